"""The guards one by one: what each admits, and when."""

from __future__ import annotations

from dataclasses import replace
from itertools import permutations

import pytest

from helpers.scheduling import BATCH, CHAT, STEP_MODEL, TASK, scheduler_before, submitted
from uellm.sidecar.scheduling import (
    EngineState,
    Late,
    Lengths,
    Options,
    Scheduler,
    Targets,
    Ticket,
)
from uellm.sidecar.scheduling.fairness import Fairness
from uellm.sidecar.scheduling.kv_admission import peak_tokens
from uellm.sidecar.scheduling.prefixes import CachedPrefixes
from uellm.sidecar.scheduling.price import Price

READY = EngineState(ready=True, kv_tokens=384_000, max_num_batched_tokens=512)


def scheduler(state: EngineState = READY, **options: object) -> Scheduler:
    return scheduler_before(state, Options(**options), STEP_MODEL)


def test_the_engine_gets_no_more_prompts_than_a_step_takes_and_the_next_when_it_is_done():
    core = scheduler()
    first, second = submitted(core, Ticket(CHAT, 0.0, 600), Ticket(CHAT, 0.0, 600))
    assert core.dispatchable(0.0) == [first]
    assert core.dispatchable(0.001) == []
    core.on_first_token(first, 0.05)
    assert core.dispatchable(0.05) == [second]


def test_the_gate_opens_by_time_alone_before_a_step_of_the_engine_is_not_full():
    core = scheduler(tpot_guard=False)
    first, second = submitted(core, Ticket(CHAT, 0.0, 1000), Ticket(CHAT, 0.0, 1000))
    assert core.dispatchable(0.0) == [first]
    at_s = core.next_event_s(0.0)
    assert at_s is not None
    assert 0.015 < at_s < (1000 - 512) * 45e-6 + 0.01
    assert core.dispatchable(at_s) == [second]


@pytest.mark.parametrize("policy", ["SLO-ODBS", "EDF", "SJF", "FCFS", "llm-d"])
def test_stale_metrics_count_as_full_but_never_idle_the_engine(policy):
    core = scheduler(replace(READY, stale=True), policy=policy, tpot_guard=False)
    first, second, third = submitted(core, *(Ticket(CHAT, 0.0, 10) for _ in range(3)))
    assert core.dispatchable(0.0) == [first]
    assert core.dispatchable(0.5) == []
    assert (core.next_event_s(0.5) or 9.0) > 0.6, "an alarm that changes nothing would ring again and again"
    core.on_abort(first, 0.6)
    assert core.dispatchable(0.6) == [second]
    core.on_engine_state(READY, 0.7)
    assert core.dispatchable(0.7) == [third]


def test_with_stale_metrics_the_answers_show_progress():
    core = scheduler(replace(READY, stale=True), tpot_guard=False)
    first, second = submitted(core, Ticket(CHAT, 0.0, 10), Ticket(CHAT, 0.0, 10))
    assert core.dispatchable(0.0) == [first]
    core.on_first_token(first, 0.1)
    assert core.dispatchable(0.1) == [second]


@pytest.mark.parametrize("tokens", [0, None], ids=["embeddings", "transcripts"])
def test_with_stale_metrics_answers_without_tokens_show_progress_as_well(tokens):
    core = scheduler(replace(READY, stale=True), tpot_guard=False)
    submitted(core, *(Ticket(CHAT, 0.0, 10) for _ in range(30)))
    rounds = []
    for number in range(4):
        granted = core.dispatchable(0.1 * number)
        rounds.append(len(granted))
        for ticket in granted:
            core.on_finish(ticket, 0.1 * number + 0.05, tokens)
    assert rounds == [1, 2, 4, 8]


def test_without_the_gate_every_request_goes_to_the_engine():
    core = scheduler(gate=False, tpot_guard=False)
    waiting = submitted(core, *(Ticket(CHAT, 0.0, 600) for _ in range(5)))
    assert core.dispatchable(0.0) == waiting


def test_a_request_waits_while_the_cache_could_not_hold_it_to_the_end():
    core = scheduler(EngineState(ready=True, kv_tokens=2000, max_num_batched_tokens=512), tpot_guard=False)
    large = Ticket(BATCH, 0.0, 1000, Lengths(500, 900))
    other = Ticket(BATCH, 0.0, 500, Lengths(400, 700))
    submitted(core, large, other)
    first = core.dispatchable(0.0)
    assert len(first) == 1
    core.on_first_token(first[0], 0.1)
    assert core.dispatchable(0.1) == []
    core.on_finish(first[0], 2.0)
    assert len(core.dispatchable(2.0)) == 1


def test_without_that_guard_the_cache_is_left_to_the_engine():
    small = EngineState(ready=True, kv_tokens=2000, max_num_batched_tokens=512)
    for guarded, sent in ((True, 1), (False, 2)):
        core = scheduler(small, gate=False, tpot_guard=False, past_future=guarded)
        submitted(core, Ticket(BATCH, 0.0, 1000, Lengths(500, 900)), Ticket(BATCH, 0.0, 500, Lengths(400, 700)))
        assert len(core.dispatchable(0.0)) == sent


def test_the_peak_of_the_cache_equals_that_of_a_simulation():
    def played(loads: list[tuple[int, int]]) -> int:
        """Every request grows by a token per step and leaves when it is complete."""
        steps = max(remaining for _, remaining in loads)
        return max(sum(now + at for now, remaining in loads if remaining >= at) for at in range(steps + 1))

    loads = [(100, 40), (30, 90), (500, 17), (1, 60)]
    for order in permutations(loads):
        tickets = [Ticket(BATCH, 0.0, now, Lengths(remaining, remaining)) for now, remaining in order]
        assert peak_tokens(tickets) == played(loads)


def test_an_answer_that_outgrew_its_prediction_is_expected_to_go_on():
    ticket = Ticket(BATCH, 0.0, 10, Lengths(100, 200))
    ticket.tokens = 90
    assert ticket.remaining_tokens == pytest.approx(31.5)
    ticket.tokens = 1000
    assert ticket.remaining_tokens == pytest.approx(350)


def test_max_tokens_bounds_what_is_expected():
    ticket = Ticket(BATCH, 0.0, 10, Lengths(100, 200), max_tokens=50)
    assert (ticket.length.p50, ticket.length.p80, ticket.remaining_tokens) == (50, 50, 50)


def test_prompts_are_paced_while_answers_with_a_tpot_target_run():
    core = scheduler(EngineState(ready=True, kv_tokens=384_000, max_num_batched_tokens=8192))
    (running,) = submitted(core, Ticket(CHAT, 0.0, 100, Lengths(500, 900)))
    core.dispatchable(0.0)
    core.on_first_token(running, 0.01)
    submitted(core, *(Ticket(TASK, 0.01, 8000, Lengths(10, 20)) for _ in range(4)))
    (first,) = core.dispatchable(0.01)
    assert core.dispatchable(0.012) == []
    core.on_first_token(first, 0.38)
    assert core.dispatchable(0.38) == [], "8,000 tokens at once were more than the pace allows"
    sent, now_s, alarms = [], 0.38, 0
    while not sent:
        now_s = core.next_event_s(now_s)
        sent = core.dispatchable(now_s)
        alarms += 1
    assert len(sent) == 1
    assert 0.38 < now_s < 1.0
    assert alarms < 10


def test_without_a_tpot_target_nothing_is_paced():
    core = scheduler(EngineState(ready=True, kv_tokens=384_000, max_num_batched_tokens=8192))
    (running, following, last) = submitted(core, *(Ticket(TASK, 0.0, 8192, Lengths(10, 20)) for _ in range(3)))
    assert core.dispatchable(0.0) == [running, following], "one for this step, and one for the next"
    core.on_first_token(running, 0.4)
    core.on_first_token(following, 0.8)
    assert core.dispatchable(0.8) == [last]


@pytest.mark.parametrize("targets", [Targets("none"), Targets("first", ttft_s=120.0), CHAT])
def test_short_prompts_that_waited_for_the_engine_start_together(targets):
    core = scheduler(EngineState(ready=False))
    waiting = submitted(core, *(Ticket(targets, 0.0, 20, Lengths(10, 20)) for _ in range(12)))
    assert core.dispatchable(0.1) == []
    core.on_engine_state(EngineState(ready=True, max_num_batched_tokens=512), 1.0)
    assert core.dispatchable(1.0) == waiting


def flooded(**options: object) -> tuple[Scheduler, list[Ticket]]:
    """A queue with far more work than an engine can do within the targets."""
    core = scheduler(max_queued=10_000, **options)
    return core, submitted(core, *(Ticket(CHAT, n * 1e-3, 2000, Lengths(200, 400)) for n in range(1500)))


def test_only_hopeless_requests_are_shed_and_only_while_too_many_wait():
    core, waiting = flooded()
    assert core.expire(1.5) == [] or all(reason is Late.SHED for _, reason in core.expire(1.5))
    late = core.expire(4.0)
    assert late
    assert all(reason is Late.SHED and ticket.arrival_s + 1.0 < 4.0 for ticket, reason in late)
    assert 0 < core.queued < len(waiting)
    assert core.figures()["shed"] == len(waiting) - core.queued


def test_a_few_late_requests_are_served_late_rather_than_shed():
    core = scheduler()
    submitted(core, *(Ticket(CHAT, 0.0, 2000, Lengths(200, 400)) for _ in range(30)))
    assert core.expire(50.0) == []
    assert len(core.dispatchable(50.0)) == 1


def test_without_shedding_nobody_is_refused():
    core, waiting = flooded(shedding=False)
    assert core.expire(100.0) == []
    assert core.queued == len(waiting)


def served(core: Scheduler, arrivals: list[Ticket], until_s: float, from_s: float = 0.0) -> list[Ticket]:
    """An engine that computes 5,000 prompt tokens per second."""
    out: list[Ticket] = []
    now_s, index = from_s, 0
    while now_s < until_s:
        while index < len(arrivals) and arrivals[index].arrival_s <= now_s:
            core.submit(arrivals[index], now_s)
            index += 1
        core.expire(now_s)
        sent = core.dispatchable(now_s)
        now_s += max(0.02, sum(ticket.prompt_tokens for ticket in sent) / 5000)
        for ticket in sent:
            core.on_first_token(ticket, now_s)
            core.on_finish(ticket, now_s, 1)
        out += sent
    return out


def chats_and_one(until_s: float) -> tuple[list[Ticket], Ticket]:
    """Twice as many short chats as can be served, and one long request that no policy prefers."""
    chats = [Ticket(CHAT, n * 0.02, 500, Lengths(1, 1)) for n in range(int(until_s / 0.02))]
    victim = Ticket(CHAT, 0.0, 6000, Lengths(5000, 6000))
    return sorted([*chats, victim], key=lambda ticket: ticket.arrival_s), victim


def test_a_request_that_gave_way_is_served_within_a_bounded_time_under_lasting_overload():
    arrivals, victim = chats_and_one(400.0)
    out = served(scheduler(max_queued=10**6, shedding=False), arrivals, 400.0)
    assert victim in out


def test_fairness_counts_what_each_tenant_had_and_forgets_it():
    fairness = Fairness()
    for tenant in ("greedy", "modest"):
        fairness.arrived(tenant, 0.0)
    fairness.charge("greedy", 9000, 0, 0.0)
    fairness.charge("modest", 1000, 0, 0.0)
    assert fairness.weight("modest") == 1.0
    assert fairness.weight("greedy") == pytest.approx(5 / 9)
    fairness.charge("modest", 1000, 0, 600.0)
    assert fairness.weight("greedy") == 1.0


YEAR_S = 365 * 86_400.0


@pytest.mark.parametrize("clock_s", [0.0, 86_400.0, YEAR_S], ids=["now", "a day", "a year"])
@pytest.mark.parametrize("silence_s", [86_400.0, YEAR_S], ids=["a day", "a year"])
def test_nothing_overflows_however_long_a_machine_is_up_or_a_service_idle(clock_s, silence_s):
    core = scheduler(max_queued=10**6)
    core.on_engine_state(READY, clock_s)
    for from_s in (clock_s, clock_s + silence_s):
        arrivals = [
            Ticket(CHAT, from_s + n * 0.05, 500, Lengths(50, 90), tenant=("greedy", "modest")[n % 10 == 0])
            for n in range(100)
        ]
        core.on_engine_state(READY, from_s)
        assert len(served(core, arrivals, from_s + 30.0, from_s)) > 50


def test_fairness_and_price_count_as_ever_after_a_year():
    fairness, price = Fairness(), Price()
    for now_s in (YEAR_S, 3 * YEAR_S):
        for tenant in ("greedy", "modest"):
            fairness.arrived(tenant, now_s)
        fairness.charge("greedy", 9000, 0, now_s)
        fairness.charge("modest", 1000, 0, now_s)
        assert fairness.weight("greedy") == pytest.approx(5 / 9)
        for tenant in ("greedy", "modest"):
            fairness.left(tenant, now_s)
        price.record_demand(0, 1.0, 10.0, now_s)
        assert price.worthwhile(0, 1.0, now_s + 1.0)
        price.record_demand(0, 4.0, 1000.0, now_s + 1.0)
        assert not price.worthwhile(0, 1.0, now_s + 2.0)


def test_an_idle_tenant_gains_no_credit():
    fairness = Fairness()
    fairness.arrived("busy", 0.0)
    fairness.charge("busy", 10_000, 0, 0.0)
    fairness.arrived("late", 1.0)
    fairness.charge("late", 100, 0, 1.0)
    assert fairness.weight("late") < 1.0


def test_a_flooding_tenant_does_not_displace_others():
    def share(fair: bool) -> float:
        flood = [Ticket(CHAT, n * 0.02, 200 + 37 * n % 600, Lengths(50, 90), tenant="flood") for n in range(5000)]
        modest = [Ticket(CHAT, n * 0.5, 600, Lengths(60, 100), tenant="modest") for n in range(200)]
        arrivals = sorted([*flood, *modest], key=lambda ticket: ticket.arrival_s)
        out = served(scheduler(max_queued=10**6, fairness=fair), arrivals, 100.0)
        on_time = [t for t in out if t.tenant == "modest" and t.first_token_s - t.arrival_s <= 1.0]
        return len(on_time) / len(modest)

    assert share(True) > 0.7
    assert share(False) < share(True)


def test_cached_prefixes_do_not_count_as_work():
    prefixes = CachedPrefixes()
    ticket = Ticket(CHAT, 0.0, 1200, prefix=(1, 2))
    assert prefixes.uncached_tokens(ticket) == 1200
    prefixes.record_dispatch(ticket, 384_000)
    assert prefixes.uncached_tokens(Ticket(CHAT, 0.0, 1500, prefix=(1, 3))) == 1500 - 512
    assert prefixes.uncached_tokens(ticket) == 1200 - 1024
    prefixes.clear()
    assert prefixes.uncached_tokens(ticket) == 1200


def counted(prefixes: CachedPrefixes, rounds: int, found: float, start: float = 0.0) -> None:
    """The engine's counters after prompts of which two thirds are expected in the cache; it finds `found` of each."""
    for number in range(rounds):
        prefixes.record_dispatch(Ticket(CHAT, 0.0, 1536, prefix=(1, 2)), 384_000)
        prompts = start + 1536.0 * number
        prefixes.on_engine_state(EngineState(ready=True, prompt_tokens=prompts, cached_tokens=found * prompts / 1536.0))


def test_prefix_hits_that_the_engine_does_not_confirm_are_not_expected():
    prefixes, asked = CachedPrefixes(), Ticket(CHAT, 0.0, 1536, prefix=(1, 2))
    counted(prefixes, 100, 1024.0)
    assert prefixes.uncached_tokens(asked) == pytest.approx(512, abs=16)
    counted(prefixes, 500, 512.0, start=1e6)
    assert prefixes.uncached_tokens(asked) == pytest.approx(1024, abs=16)
    # A new process counts from zero, and this one has no such cache.
    counted(prefixes, 500, 0.0)
    assert prefixes.uncached_tokens(asked) == pytest.approx(1536, abs=16)
    counted(prefixes, 1000, 1024.0)
    assert prefixes.uncached_tokens(asked) == pytest.approx(512, abs=16)


def test_few_prompts_or_missing_counters_leave_the_expected_hits_unchanged():
    prefixes, asked = CachedPrefixes(), Ticket(CHAT, 0.0, 1536, prefix=(1, 2))
    counted(prefixes, 10, 0.0)
    assert prefixes.uncached_tokens(asked) == 512
    prefixes = CachedPrefixes()
    for _ in range(100):
        prefixes.record_dispatch(asked, 384_000)
        prefixes.on_engine_state(EngineState(ready=True, prompt_tokens=1e6))
    assert prefixes.uncached_tokens(asked) == 512


def test_an_engine_without_prefix_cache_gets_no_more_prompts_than_it_computes():
    core, now_s, prompts = scheduler(tpot_guard=False), 0.0, 0.0
    for _ in range(60):
        [ticket] = submitted(core, Ticket(TASK, now_s, 1536, Lengths(5, 9), prefix=(1, 2)))
        assert core.dispatchable(now_s) == [ticket]
        now_s += 0.1
        core.on_first_token(ticket, now_s)
        core.on_finish(ticket, now_s)
        prompts += 1536.0
        core.on_engine_state(replace(READY, prompt_tokens=prompts, cached_tokens=0.0), now_s)
    assert core.figures()["prefix_trust"] == 0.0
    alike = submitted(core, *(Ticket(TASK, now_s, 1100, Lengths(5, 9), prefix=(1, 2)) for _ in range(4)))
    assert core.dispatchable(now_s) == alike[:1]


def test_higher_priority_goes_first_among_those_that_cannot_all_be_on_time():
    core = scheduler()
    plain = [Ticket(CHAT, 0.0, 2000, Lengths(10, 20)) for _ in range(10)]
    urgent = [Ticket(Targets("vip", priority=5, ttft_s=1.0), 0.0, 4000, Lengths(900, 999)) for _ in range(3)]
    submitted(core, *plain, *urgent)
    out = []
    now_s = 0.0
    while core.queued:
        for ticket in core.dispatchable(now_s):
            out.append(ticket)
            now_s += 0.2
            core.on_first_token(ticket, now_s)
    assert set(out[:3]) == set(urgent)
