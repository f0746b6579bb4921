"""Replays requests through a policy and the virtual engine: one loop over steps and the events between them.

While a step runs, requests arrive, timers fire and the engine's gauges are polled. At the end of the step its tokens
reach the sidecar, which may send more requests. A request reaches the engine some delay after the sidecar or client has
sent it, and joins the next step that begins after that. The gauges are those of the last finished step, polled every
`POLL_S` as in the live sidecar.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from uellm.errors import CannotBeDone
from uellm.evaluate.engine import Step, VirtualEngine, Work
from uellm.evaluate.front import EngineGauges, Front
from uellm.evaluate.scenario import Job

POLL_S = 0.1
"""Interval of reading the engine's metrics."""

STALL_S = 600.0
"""If the engine is idle for this long while requests wait, the policy has stopped sending."""


@dataclass(slots=True)
class Fate:
    """What happened to a request; times in seconds on the replay's clock, None: it did not happen."""

    arrival_s: float
    first_token_s: float | None = None
    end_s: float | None = None
    tokens: int = 0
    refused: bool = False


@dataclass(slots=True)
class ReplayResult:
    """A replay's result: the fates in the jobs' order, the engine's preemptions, and the sidecar's CPU time."""

    fates: list[Fate]
    preempted: int = 0
    scheduler_s: float = 0.0
    decisions: int = 0


def no_delay() -> float:
    """Requests reach the engine at once."""
    return 0.0


@dataclass
class Replay:
    """One replay; call `run` once. `delay_s` gives the delay of a sent request on its way to the engine."""

    jobs: Sequence[Job]
    engine: VirtualEngine
    front: Front
    speed: float = 1.0
    delay_s: Callable[[], float] = no_delay
    _sent: list[tuple[float, int, Job, int]] = field(default_factory=list)
    _sends: int = 0
    _next_job: int = 0
    _next_poll_s: float = 0.0
    _timer_s: float = math.inf
    _idle_since_s: float = 0.0

    def __post_init__(self) -> None:
        self.fates = [Fate(job.arrival_s / self.speed) for job in self.jobs]
        self._gauges = EngineGauges()

    def run(self) -> ReplayResult:
        """Replay until every request has ended or was refused. Raises CannotBeDone where a policy stops sending."""
        now_s = 0.0
        self._react(now_s)
        while True:
            self._happen(now_s)
            if self.engine.busy:
                now_s = self._advance(now_s)
                self._idle_since_s = now_s
            elif self.front.queued or self._sent or self._next_job < len(self.jobs):
                now_s = self._wait(now_s)
            else:
                break
        scheduler_s, decisions = self.front.cost()
        return ReplayResult(self.fates, self.engine.preemptions, scheduler_s, decisions)

    def _advance(self, now_s: float) -> float:
        """Run the engine for one step, or for as many as need no decision. Returns the time at the end."""
        if not self.front.queued and not self._sent:
            ends, keys = self.engine.leap(now_s, self._next_event_s())
            if ends:
                for end_s in ends:
                    self._deliver(Step(end_s, keys, []))
                self._gauge()
                return ends[-1]
        step = self.engine.step(now_s)
        # The step's end comes before other events at the same time.
        self._happen(math.nextafter(step.end_s, 0.0))
        self._deliver(step)
        self._gauge()
        self._react(step.end_s)
        return step.end_s

    def _wait(self, now_s: float) -> float:
        """Advance the time of an idle engine to the next event."""
        if not self.front.queued:
            if not self._sent:
                # Nothing waits and nothing runs, so only an arrival can change the state.
                arrival_s = self.fates[self._next_job].arrival_s
                self._next_poll_s = max(self._next_poll_s, arrival_s)
            self._idle_since_s = now_s
        elif now_s - self._idle_since_s > STALL_S:
            raise CannotBeDone(
                f"{self.front.name} leaves the engine idle while {self.front.queued} requests wait: it stopped sending"
            )
        return max(now_s, self._next_event_s())

    def _next_event_s(self) -> float:
        arrival_s = self.fates[self._next_job].arrival_s if self._next_job < len(self.jobs) else math.inf
        sent_s = self._sent[0][0] if self._sent else math.inf
        poll_s = self._next_poll_s if self.front.polls else math.inf
        return min(arrival_s, sent_s, poll_s, self._timer_s)

    def _happen(self, until_s: float) -> None:
        """Process all arrivals, timers and polls until then, in order."""
        while (at_s := self._next_event_s()) <= until_s:
            if self._sent and self._sent[0][0] <= at_s:
                self._enter(*heapq.heappop(self._sent)[2:])
                continue
            if self.front.polls and self._next_poll_s <= at_s:
                self.front.poll(self._gauges, at_s)
                self._next_poll_s += POLL_S
            elif self._next_job < len(self.jobs) and self.fates[self._next_job].arrival_s <= at_s:
                self._arrive(at_s)
            self._react(at_s)

    def _arrive(self, now_s: float) -> None:
        job = self.jobs[self._next_job]
        self._next_job += 1
        if not self.front.submit(job, now_s):
            self.fates[job.index].refused = True

    def _react(self, now_s: float) -> None:
        """Let the policy send and refuse, and set the timer for its next decision."""
        reaction = self.front.react(now_s)
        for job in reaction.refused:
            self.fates[job.index].refused = True
        for job, priority in reaction.sent:
            delay_s = self.delay_s()
            if delay_s > 0:
                self._sends += 1
                heapq.heappush(self._sent, (now_s + delay_s, self._sends, job, priority))
            else:
                self._enter(job, priority)
        # The timer for this time has just fired, so the next one must be later.
        self._timer_s = math.inf if reaction.again_s is None else max(reaction.again_s, now_s + 1e-3)

    def _enter(self, job: Job, priority: int) -> None:
        arrival_s = self.fates[job.index].arrival_s
        self.engine.add(Work(job.index, arrival_s, job.prompt_tokens, job.output_tokens, priority, job.blocks))

    def _deliver(self, step: Step) -> None:
        fates, end_s = self.fates, step.end_s
        for key in step.tokens:
            fate = fates[key]
            fate.tokens += 1
            if fate.first_token_s is None:
                fate.first_token_s = end_s
        for key in step.finished:
            fates[key].end_s = end_s
        self.front.progress(step)

    def _gauge(self) -> None:
        if self.front.polls:
            engine = self.engine
            self._gauges = EngineGauges(engine.running, engine.waiting, engine.kv_used_share, engine.preemptions)
