"""Wrong measurements of the engine do not throttle it: throughput stays that of first come, first served.

Closed-loop clients run against a minimal engine: chunked prompts, a step time by the model's formula, and a delay on
each request's way to it. Every case first teaches the scheduler something wrong. From two seconds after the clients'
arrival, the tokens per second are compared with those of the same engine without a scheduler. No target is limiting: a
step with a full chunk takes half of the TPOT target.

Answers that come whole show their end alone. The engine then reports once a second, or sooner where the scheduler wants
it, what its steps did, as vLLM's metrics do. What needs reports has two seconds more.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator
from dataclasses import astuple, dataclass, field, replace
from itertools import count
from random import Random
from typing import Any

import pytest

from uellm.prompt import Prompt, Ratio
from uellm.sidecar.scheduling import (
    EngineState,
    EngineSteps,
    Lengths,
    Options,
    Scheduler,
    Shows,
    StepEstimate,
    Targets,
    Ticket,
)
from uellm.step_time import StepTime

CHAT = Targets("chat", ttft_s=30.0, tpot_s=0.06)
TASK = Targets("task", e2e_s=60.0)
MODEL = StepTime(5.5e-3, 45e-6, 44e-9, 15e-6, 0.5e-3)
READY = EngineState(ready=True, kv_tokens=384_000, max_num_batched_tokens=512)
CLIENTS = 48
SETTLED_S, UNTIL_S = 2.0, 5.0
FAR_S = 1e9


@dataclass
class Running:
    ticket: Ticket
    prompt_left: int
    output_left: int


@dataclass
class Engine:
    """`work` counts the prompt and answer tokens that it has computed."""

    core: Scheduler
    times: float = 1.0
    overhead_s: float = 0.01
    jitter: float = 0.1
    now_s: float = 0.0
    work: int = 0
    chunk: int = 512
    kv_tokens: int = 384_000
    max_model_len: int = 10**9
    metrics_every_s: float = FAR_S
    whole: float = 0.0
    """The share of the answers that come whole."""
    reports: bool = True
    """Its metrics tell of its requests and steps."""
    api_servers: int = 1
    """Each of them counts the steps in which it had a token to pass on."""
    counted: Callable[[int], None] = lambda _characters: None
    """Called at the end of an answer with its prompt's real length."""
    ended: list[Ticket] = field(default_factory=list)
    refused: list[Ticket] = field(default_factory=list)
    lost: list[Ticket] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._random = Random(1)
        self._outputs: dict[Ticket, int] = {}
        self._prompts: dict[Ticket, int] = {}
        self._metrics_s = 0.0
        self._on_the_way: list[tuple[float, int, Ticket]] = []
        self._waiting: list[Running] = []
        self._running: list[Running] = []
        self._numbers = count()
        self._shares = Random(6)
        self._steps = EngineSteps(0.0, 0.0, 0.0, 0.0, 0.0)
        self.core.on_engine_state(READY, self.now_s)

    def ask(
        self,
        prompt_tokens: int,
        output_tokens: int,
        targets: Targets = CHAT,
        estimated: int | None = None,
        **others: Any,
    ) -> Ticket:
        """`estimated`: what the scheduler takes for the prompt's length."""
        if self._shares.random() < self.whole:
            others = {"shows": Shows.END, **others}
        ticket = Ticket(targets, self.now_s, prompt_tokens if estimated is None else estimated, **others)
        self._outputs[ticket], self._prompts[ticket] = output_tokens, prompt_tokens
        self.core.submit(ticket, self.now_s)
        self.pump()
        return ticket

    @property
    def busy(self) -> bool:
        return bool(self._on_the_way or self._waiting or self._running or self.core.queued)

    def pump(self) -> None:
        self.lost += [ticket for ticket, _ in self.core.expire(self.now_s)]
        for ticket in self.core.dispatchable(self.now_s):
            at_s = self.now_s + self.overhead_s * self._random.lognormvariate(0, self.jitter)
            heapq.heappush(self._on_the_way, (at_s, next(self._numbers), ticket))

    def turn(self) -> None:
        """Run one step, or return the time until there is something to do."""
        self._take(self.now_s)
        if not self._running:
            self._pass(min(self._on_the_way[0][0] if self._on_the_way else FAR_S, self._alarm_s()))
            return
        done, step_s = self._schedule()
        end_s = self.now_s + step_s
        while (at_s := self._alarm_s()) < end_s:
            self._pass(at_s)
        self.now_s = max(end_s, self.now_s)
        self._count(done, step_s)
        self._tell(done)
        if self.now_s >= self._metrics_s + self.metrics_every_s:
            self._report()
        self.pump()

    def _report(self) -> None:
        self._metrics_s = self.now_s
        held = sum(
            self._prompts[r.ticket] - r.prompt_left + self._outputs[r.ticket] - r.output_left for r in self._running
        )
        state = replace(
            READY, kv_tokens=self.kv_tokens, kv_used_share=held / self.kv_tokens, max_num_batched_tokens=self.chunk
        )
        if self.reports:
            # vLLM counts a request as running from the first step that computes a part of its prompt.
            running = sum(r.prompt_left < self._prompts[r.ticket] for r in self._running)
            waiting = len(self._waiting) + len(self._running) - running
            state = replace(state, running=running, waiting=waiting, steps=self._steps)
        self.core.on_engine_state(state, self.now_s)
        if self.core.wants_report:
            self._metrics_s -= 0.75 * self.metrics_every_s

    def _count(self, done: list[Running], step_s: float) -> None:
        """As vLLM counts: prompts with the first token of their answer, and steps in which an answer got a token."""
        begun = [r for r in done if r.output_left == self._outputs[r.ticket]]
        gaps = len(done) - len(begun)
        prompts = sum(self._prompts[r.ticket] for r in begun)
        news = EngineSteps(float(min(self.api_servers, len(done))), gaps * step_s, gaps, prompts, gaps)
        self._steps = EngineSteps(*[old + new for old, new in zip(self._steps, news, strict=True)])

    def _pass(self, at_s: float) -> None:
        assert at_s < FAR_S, "the scheduler waits for nothing"
        self.now_s = max(at_s, self.now_s + 1e-4)
        self.pump()

    def _alarm_s(self) -> float:
        at_s = self.core.next_event_s(self.now_s)
        return FAR_S if at_s is None else max(at_s, self.now_s + 1e-4)

    def _take(self, now_s: float) -> None:
        while self._on_the_way and self._on_the_way[0][0] <= now_s:
            ticket = heapq.heappop(self._on_the_way)[2]
            if self._prompts[ticket] > self.max_model_len:
                self.refused.append(ticket)
                self.core.on_abort(ticket, now_s)
                continue
            self._waiting.append(Running(ticket, self._prompts[ticket], self._outputs[ticket]))
        held = sum(self._prompts[r.ticket] + self._outputs[r.ticket] for r in self._running)
        while self._waiting and len(self._running) < 256:
            first = self._waiting[0]
            held += self._prompts[first.ticket] + first.output_left
            if self._running and held > self.kv_tokens:
                break
            self._running.append(self._waiting.pop(0))

    def _schedule(self) -> tuple[list[Running], float]:
        """The requests that get a token in the next step, and the step's time."""
        decoding = [r for r in self._running if not r.prompt_left]
        room = self.chunk - len(decoding)
        prefill, done = 0, decoding
        for running in self._running:
            taken = min(running.prompt_left, room - prefill)
            prefill += taken
            if taken:
                running.prompt_left -= taken
                if not running.prompt_left:
                    done = [*done, running]
        kv = sum(self._prompts[r.ticket] + r.ticket.tokens for r in decoding)
        self.work += prefill
        step_s = max(MODEL.floor_s, MODEL.per_prefill_token_s * prefill) + MODEL.per_kv_token_s * kv
        step_s += MODEL.per_sequence_s * len(self._running) + MODEL.overhead_s
        return done, self.times * step_s * self._random.lognormvariate(0, self.jitter)

    def _tell(self, done: list[Running]) -> None:
        self.work += len(done)
        for running in done:
            running.output_left -= 1
            ticket = running.ticket
            if ticket.shows is Shows.TOKENS:
                self.told(ticket)
            if not running.output_left:
                self._running.remove(running)
                events = max(ticket.events, 1) if ticket.shows is Shows.TOKENS else 0
                tokens = 0 if ticket.shows is Shows.PROMPT else events or self._outputs[ticket]
                self.core.on_finish(ticket, self.now_s, tokens, events)
                self.ended.append(ticket)
                self.counted(self._prompts[ticket])

    def told(self, ticket: Ticket) -> None:
        """The sidecar reads a token of the answer."""
        if ticket.first_token_s is None:
            self.core.on_first_token(ticket, self.now_s)
        else:
            self.core.on_events(ticket, max(ticket.events, 1) + 1, self.now_s)

    def drop_all(self) -> None:
        """The process dies with all its requests."""
        for ticket in [t for _, _, t in self._on_the_way] + [r.ticket for r in self._waiting + self._running]:
            self.core.on_abort(ticket, self.now_s)
        self._on_the_way, self._waiting, self._running = [], [], []

    def run(self, until_s: float = FAR_S) -> None:
        """Run until that time, or until nothing is left to do."""
        while self.busy and self.now_s < until_s:
            self.turn()

    def alone(self, prompt_tokens: int, output_tokens: int = 2, times: int = 1) -> None:
        """Run requests one after the other."""
        for _ in range(times):
            self.ask(prompt_tokens, output_tokens)
            self.run()
            self.now_s += 0.01


Poison = Callable[[Engine], None]


def late_first_tokens(*prompts: int) -> Poison:
    def poison(engine: Engine) -> None:
        random = Random(2)
        for _ in range(1000):
            engine.alone(random.choice(prompts))

    return poison


def a_slow_client(engine: Engine) -> None:
    ticket = Ticket(CHAT, engine.now_s, 100)
    engine.core.submit(ticket, engine.now_s)
    assert engine.core.dispatchable(engine.now_s) == [ticket]
    for _ in range(60):
        engine.now_s += 1.5
        engine.told(ticket)


def a_paused_engine(engine: Engine) -> None:
    for _ in range(4):
        engine.ask(300, 50)
    for pause_s in (0.0, 30.0, 0.0, 5.0):
        engine.now_s += pause_s
        for _ in range(5):
            engine.turn()


def a_huge_prompt(engine: Engine) -> None:
    engine.alone(120_000)


def silence(engine: Engine) -> None:
    engine.alone(126, 20, times=20)
    engine.now_s += 3600.0


def a_jump_ahead(engine: Engine) -> None:
    for _ in range(8):
        engine.ask(200, 40)
    engine.turn()
    engine.now_s += 3600.0


def a_jump_back(engine: Engine) -> None:
    engine.now_s += 7200.0
    for _ in range(8):
        engine.ask(200, 40)
    for _ in range(5):
        engine.turn()
    engine.drop_all()
    engine.now_s -= 3600.0


def restarted(before: float, *, noticed: bool) -> Poison:
    """Before its restart the engine was slower by this factor."""

    def poison(engine: Engine) -> None:
        after, engine.times = engine.times, before
        random = Random(3)
        for _ in range(20):
            for _ in range(8):
                engine.ask(random.randint(20, 1500), random.randint(2, 30))
            engine.run()
        engine.ask(700, 10)
        engine.turn()
        engine.drop_all()
        if noticed:
            engine.core.on_engine_state(replace(READY, ready=False), engine.now_s)
            engine.now_s += 20.0
            engine.core.on_engine_state(READY, engine.now_s)
        engine.times = after

    return poison


def another_model(times: float) -> Poison:
    def poison(engine: Engine) -> None:
        engine.alone(300, 20, times=10)
        engine.core.reset_step_model(StepTime(*(times * value for value in astuple(MODEL))))
        engine.core.reconfigure(engine.core.options, engine.now_s)

    return poison


def old_figures(engine: Engine) -> None:
    engine.core.on_engine_state(replace(READY, stale=True), engine.now_s)


def learnt(**wrong: float) -> Poison:
    """Figures of the estimate that no real observation would produce."""

    def poison(engine: Engine) -> None:
        for name, value in wrong.items():
            setattr(engine.core.step, name, value)

    return poison


def tokens_of_events(times: float) -> Poison:
    """As after thousands of events of an engine that speculated."""

    def poison(engine: Engine) -> None:
        engine.core._view.events.add(times * 9000, 9000)

    return poison


POISONS: dict[str, Poison] = {
    "nothing": lambda _engine: None,
    "late first tokens, 126": late_first_tokens(126),
    "late first tokens, 140": late_first_tokens(140),
    "late first tokens, 200": late_first_tokens(200),
    "late first tokens, mixed": late_first_tokens(126, 140, 200),
    "a slow client": a_slow_client,
    "a paused engine": a_paused_engine,
    "a huge prompt": a_huge_prompt,
    "silence": silence,
    "the clock jumps ahead": a_jump_ahead,
    "the clock jumps back": a_jump_back,
    "was slower": restarted(6.0, noticed=True),
    "was slower, unnoticed": restarted(6.0, noticed=False),
    "was faster": restarted(0.2, noticed=True),
    "was faster, unnoticed": restarted(0.2, noticed=False),
    "a model twenty times too slow": another_model(20.0),
    "a model twenty times too fast": another_model(0.05),
    "the engine's figures are old": old_figures,
    "prompts learnt as slow": learnt(prefill_factor=50.0),
    "prompts learnt as fast": learnt(prefill_factor=0.02),
    "steps learnt as slow": learnt(decode_factor=50.0),
    "steps learnt as fast": learnt(decode_factor=0.02),
    "events learnt to have many tokens": tokens_of_events(32.0),
    "gaps learnt as long": learnt(gap_s=5.0, recent_gap_s=5.0),
    "all learnt as slow": learnt(prefill_factor=50.0, decode_factor=50.0, gap_s=5.0, recent_gap_s=5.0),
}

LOADS: dict[str, Callable[[Random], tuple[int, int]]] = {
    "short": lambda random: (126, 32),
    "mixed": lambda random: (random.randint(20, 3000), random.randint(1, 60)),
    "long prompts": lambda random: (random.randint(2000, 6000), 5),
    "embeddings": lambda random: (random.randint(50, 800), 1),
}


LONG_ANSWERS = {"chats": lambda random: (random.randint(300, 700), random.randint(300, 700))}
WHOLE = [("short", 1.0), ("mixed", 1.0), ("chats", 1.0), ("chats", 0.98)]
"""Loads of answers that come whole, and what share of the answers that is."""
REPORTED_S, UNTIL_REPORTED_S = 4.0, 24.0


def clients(
    engine: Engine,
    load: str,
    until_s: float = UNTIL_S,
    targets: Targets | None = None,
    number: int = CLIENTS,
    **others: object,
) -> Iterator[tuple[float, int]]:
    """Run the clients: times since their arrival, and the work done since then."""
    draw, random = (LOADS | LONG_ANSWERS)[load], Random(4)
    start_s, start, asked = engine.now_s, engine.work, 0
    others_there = len(engine.ended) + len(engine.lost)
    while engine.now_s < start_s + until_s:
        while asked - (len(engine.ended) + len(engine.lost) - others_there) < number:
            drawn = CHAT if random.random() < 0.5 else TASK
            engine.ask(*draw(random), targets=targets or drawn, **others)
            asked += 1
        engine.turn()
        yield engine.now_s - start_s, engine.work - start


def rate(engine: Engine, load: str, settled_s: float = SETTLED_S, **others: Any) -> float:
    """Tokens per second, prompts and answers, from `settled_s` after the clients' arrival."""
    seen = [(at_s, work) for at_s, work in clients(engine, load, **others) if at_s >= settled_s]
    (first_s, first), (last_s, last) = seen[0], seen[-1]
    return (last - first) / (last_s - first_s)


def guarded(policy: str = "SLO-ODBS") -> Engine:
    return Engine(Scheduler(Options(policy), StepEstimate(MODEL)))


def unguarded_rate(load: str) -> float:
    return rate(guarded("engine-only"), load)


@pytest.fixture(scope="module")
def fcfs() -> dict[str, float]:
    return {load: unguarded_rate(load) for load in LOADS}


@pytest.mark.parametrize("load", LOADS)
@pytest.mark.parametrize("poison", POISONS)
def test_a_wrong_lesson_costs_no_throughput_after_two_seconds(poison: str, load: str, fcfs: dict[str, float]) -> None:
    engine = guarded()
    POISONS[poison](engine)
    assert rate(engine, load) >= 0.95 * fcfs[load]
    assert not engine.lost
    assert engine.core.failure is None


def with_whole_answers(policy: str, share: float, **others: Any) -> Engine:
    scheduler = Scheduler(Options(policy), StepEstimate(MODEL))
    return Engine(scheduler, whole=share, metrics_every_s=1.0, **others)


def rate_of_whole(engine: Engine, load: str, **others: Any) -> float:
    return rate(engine, load, REPORTED_S, until_s=UNTIL_REPORTED_S, **others)


@pytest.fixture(scope="module")
def fcfs_of_whole() -> dict[str, float]:
    return {load: rate_of_whole(with_whole_answers("engine-only", 1.0), load) for load, _ in WHOLE}


@pytest.mark.parametrize(("load", "share"), WHOLE)
@pytest.mark.parametrize("poison", POISONS)
def test_a_wrong_lesson_costs_answers_that_come_whole_no_throughput(
    poison: str, load: str, share: float, fcfs_of_whole: dict[str, float]
) -> None:
    engine = with_whole_answers("SLO-ODBS", share)
    POISONS[poison](engine)
    assert rate_of_whole(engine, load) >= 0.95 * fcfs_of_whole[load]
    assert not engine.lost
    assert engine.core.failure is None


@pytest.mark.parametrize("times", [1.0, 20.0])
def test_an_engine_without_reports_gets_its_whole_answers_no_slower_after_some_seconds(times: float) -> None:
    model = StepTime(*(times * value for value in astuple(MODEL)))

    def unreported(policy: str) -> float:
        engine = Engine(Scheduler(Options(policy), StepEstimate(model)), whole=1.0)
        seen = [(at_s, work) for at_s, work in clients(engine, "chats", until_s=40.0) if at_s > 20.0]
        assert engine.core.step.observed == 0, "what nobody saw teaches nothing"
        return (seen[-1][1] - seen[0][1]) / (seen[-1][0] - seen[0][0])

    assert unreported("SLO-ODBS") >= 0.95 * unreported("engine-only")


@pytest.mark.parametrize("times", [0.2, 1.0, 5.0])
def test_reports_teach_the_steps_of_answers_that_come_whole(times: float) -> None:
    engine = with_whole_answers("SLO-ODBS", 1.0)
    POISONS["a model twenty times too slow"](engine)
    engine.times = times
    for _ in clients(engine, "short", until_s=30.0):
        pass
    measured, true_s = engine.core.step, times * (MODEL.floor_s + MODEL.overhead_s)
    assert 0.5 * true_s < measured.decode_s(0.0, 0.0) < 2.0 * true_s
    assert measured.measured.observed > 100


def test_steps_that_several_api_servers_count_hold_nothing_back() -> None:
    tight = Targets("tight", tpot_s=0.015)

    def counted_by(api_servers: int) -> float:
        return rate_of_whole(with_whole_answers("SLO-ODBS", 1.0, api_servers=api_servers), "short", targets=tight)

    assert counted_by(4) >= 0.95 * counted_by(1)


URGENT, BATCH = Targets("urgent", priority=10, ttft_s=0.5), Targets("batch")
LARGE = {
    Shows.PROMPT: (lambda random: (random.randint(200, 800), 1), (300, 1), 0.5),
    Shows.END: (lambda random: (1500, random.randint(80, 160)), (300, 20), 2.0),
}
"""Requests in bulk, an urgent one, and the most seconds that this one may take among them."""


@pytest.mark.parametrize("times", [0.1, 1.0, 10.0])
@pytest.mark.parametrize("shows", LARGE)
def test_an_urgent_request_passes_a_crowd_whose_answers_show_their_end_alone(shows: Shows, times: float) -> None:
    draw, urgent, most_s = LARGE[shows]
    model = StepTime(*(times * value for value in astuple(MODEL)))

    def waits_s(policy: str) -> list[float]:
        engine = Engine(Scheduler(Options(policy), StepEstimate(model)), metrics_every_s=1.0)
        random, asked, sent, took, next_s = Random(1), 0, {}, [], 1.0
        while engine.now_s < 40.0:
            while asked - len(engine.ended) < 240:
                engine.ask(*draw(random), targets=BATCH, shows=shows)
                asked += 1
            if engine.now_s >= next_s:
                sent[engine.ask(*urgent, targets=URGENT, shows=shows)] = engine.now_s
                asked, next_s = asked + 1, engine.now_s + 1.0
            before = len(engine.ended)
            engine.turn()
            took += [engine.now_s - sent[ticket] for ticket in engine.ended[before:] if ticket in sent]
        return took

    assert max(waits_s("SLO-ODBS")[-5:]) < most_s < min(waits_s("engine-only")[-5:]) / 2.5


def test_predicted_lengths_that_are_far_too_long_do_not_keep_the_cache_empty() -> None:
    small = replace(READY, kv_tokens=40_000)

    def small_rate(policy: str) -> float:
        engine = guarded(policy)
        engine.kv_tokens = small.kv_tokens
        engine.core.on_engine_state(small, engine.now_s)
        return rate(engine, "short", lengths=Lengths(5000.0, 9000.0))

    assert small_rate("SLO-ODBS") >= 0.95 * small_rate("engine-only")


def chat(tokens: int) -> Prompt:
    """A chat in English, of a model whose template adds nothing."""
    return Prompt(characters=4 * tokens, messages=1, templates=1)


LESSONS = {
    "nothing": (chat(100), 100),
    "short chats with a long template": (Prompt(characters=49, messages=1, templates=1), 417),
    "text that is elsewhere": (Prompt(characters=50, messages=1, templates=1), 30_000),
    "two tokens per character": (Prompt(characters=8000, messages=1, templates=1), 16_000),
    "pictures taken for text": (Prompt(characters=2_000_000, messages=1, templates=1), 600),
}
SMALL_KV = 120_000


def lengths_rate(policy: str, lesson: tuple[Prompt, int]) -> float:
    """Tokens per second of 48 clients whose prompts' lengths are estimated, from two seconds after their arrival.

    The cache just holds all of them.
    """
    ratio = Ratio()
    for _ in range(380):
        ratio.learn(*lesson)
    engine = Engine(Scheduler(Options(policy), StepEstimate(MODEL)), kv_tokens=SMALL_KV, metrics_every_s=1.0)
    engine.core.on_engine_state(replace(READY, kv_tokens=SMALL_KV), 0.0)
    engine.counted = lambda tokens: ratio.learn(chat(tokens), tokens + 5)
    asked, seen = 0, []
    while engine.now_s < UNTIL_S:
        while asked - len(engine.ended) - len(engine.lost) < CLIENTS:
            engine.ask(2000, 100, estimated=ratio.tokens(chat(2000)))
            asked += 1
        engine.turn()
        if engine.now_s >= SETTLED_S:
            seen.append((engine.now_s, engine.work))
    assert not engine.lost
    (first_s, first), (last_s, last) = seen[0], seen[-1]
    return (last - first) / (last_s - first_s)


@pytest.mark.parametrize("lesson", LESSONS)
def test_wrong_lengths_of_prompts_cost_no_throughput_after_two_seconds(lesson: str) -> None:
    assert lengths_rate("SLO-ODBS", LESSONS[lesson]) >= 0.95 * lengths_rate("engine-only", LESSONS["nothing"])


@pytest.mark.parametrize("targets", [CHAT, Targets("free")], ids=["ttft", "none"])
@pytest.mark.parametrize("policy", ["SLO-ODBS", "FCFS"])
def test_a_client_whose_prompts_are_too_long_costs_the_others_nothing(policy: str, targets: Targets) -> None:
    state = replace(READY, kv_tokens=SMALL_KV, max_model_len=32_768)

    def played(*, annoyed: bool) -> tuple[float, Engine, list[float]]:
        engine = Engine(Scheduler(Options(policy), StepEstimate(MODEL)), kv_tokens=SMALL_KV, max_model_len=32_768)
        engine.core.on_engine_state(state, 0.0)
        random, asked, since, waits = Random(5), 0, 0.0, []
        pending: Ticket | None = None
        while engine.now_s < 20.0:
            while asked - len(engine.ended) < 24:
                engine.ask(500, random.choice((20, 40, 80, 150, 400)), targets=targets, longest_prompt_tokens=500)
                asked += 1
            if pending is not None and pending in engine.refused:
                waits.append(engine.now_s - since)
                pending, since = None, engine.now_s
            if annoyed and pending is None and engine.now_s >= since + 0.5:
                since = engine.now_s
                pending = engine.ask(150_000, 16, targets=targets, longest_prompt_tokens=150_000)
            engine.turn()
        return engine.work / engine.now_s, engine, waits

    alone, _, _ = played(annoyed=False)
    beside, engine, waits = played(annoyed=True)
    assert beside >= 0.95 * alone
    assert len(waits) > 25, "the client gets its error each time"
    assert max(waits) < 0.2
    assert not engine.lost


class OneAtATime(Engine):
    """Its API server passes one request after the other."""

    way_s = 0.03

    def pump(self) -> None:
        self.lost += [ticket for ticket, _ in self.core.expire(self.now_s)]
        for ticket in self.core.dispatchable(self.now_s):
            free_s = max([at_s for at_s, _, _ in self._on_the_way], default=self.now_s)
            heapq.heappush(self._on_the_way, (free_s + self.way_s, next(self._numbers), ticket))


@pytest.mark.parametrize(("way_s", "times"), [(0.03, 1.0), (0.003, 0.02)])
def test_embeddings_do_not_pile_up_in_an_api_server_that_is_the_bottleneck(way_s: float, times: float) -> None:
    engine = OneAtATime(Scheduler(Options(), StepEstimate(MODEL)), times=times, metrics_every_s=1.0, chunk=2048)
    engine.way_s = way_s
    most = [
        engine.core.in_flight
        for at_s, _ in clients(engine, "embeddings", until_s=40.0, number=240, shows=Shows.PROMPT)
        if at_s > 20.0
    ]
    assert sum(most) / len(most) < 60, "of 240"


@pytest.mark.parametrize("overhead_s", [0.01, 0.11])
def test_embeddings_keep_the_engine_busy_behind_a_slow_api_server(overhead_s: float) -> None:
    def embedded(policy: str) -> float:
        engine = Engine(Scheduler(Options(policy), StepEstimate(MODEL)), overhead_s=overhead_s, metrics_every_s=1.0)
        return rate(engine, "embeddings", 4.0, until_s=12.0, shows=Shows.PROMPT)

    assert embedded("SLO-ODBS") >= 0.95 * embedded("engine-only")


def test_a_way_that_takes_long_lets_no_further_streams_out() -> None:
    engine = Engine(Scheduler(Options(), StepEstimate(MODEL)), overhead_s=0.11, metrics_every_s=1.0)
    for _ in clients(engine, "mixed", until_s=15.0, number=240):
        assert engine.core._gate._away.tokens == 0.0


@pytest.mark.parametrize("shows", [Shows.TOKENS, Shows.PROMPT])
def test_progress_that_is_overestimated_does_not_add_up(shows: Shows) -> None:
    engine = Engine(Scheduler(Options(), StepEstimate(MODEL)), times=5.0, chunk=2048, metrics_every_s=1.0)
    engine._report()
    left = [
        sum(r.prompt_left for r in engine._running + engine._waiting)
        for at_s, _ in clients(engine, "embeddings", until_s=20.0, number=240, shows=shows)
        if at_s > 5.0
    ]
    assert sum(left) / len(left) < 3 * engine.chunk, "the engine's queue stays short"
