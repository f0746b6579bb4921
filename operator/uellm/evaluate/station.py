"""One replica of a replay: a policy, the engine behind it, and the events that only the two of them cause.

While a step runs, requests arrive, timers fire and the engine's gauges are polled. At the end of the step its tokens
reach the sidecar, which may send more requests. A request reaches the engine some delay after the sidecar or client has
sent it, and joins the next step that begins after that. The gauges are those of the last finished step, polled every
`POLL_S` as in the live sidecar.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable

from uellm.errors import CannotBeDone
from uellm.evaluate.engine import Step, VirtualEngine, Work
from uellm.evaluate.front import EngineGauges, Front
from uellm.evaluate.scenario import Job

POLL_S = 0.1
"""Interval of reading the engine's metrics."""

STALL_S = 600.0
"""If the engine is idle for this long while requests wait, the policy has stopped sending."""


def no_delay() -> float:
    """Requests reach the engine at once."""
    return 0.0


class Station:
    """A front and its engine. `delay_s` gives the delay of a sent request on its way to the engine."""

    def __init__(
        self, engine: VirtualEngine, front: Front, delay_s: Callable[[], float] = no_delay, name: str = ""
    ) -> None:
        self.engine = engine
        self.front = front
        self.name = name
        self.ends_s = math.inf
        """When the running step, or the last step of the running leap, ends; infinite while none runs."""
        self._delay_s = delay_s
        self._step: Step | None = None
        self._sent: list[tuple[float, int, Job, int]] = []
        self._sends = 0
        self._arrivals_s: dict[int, float] = {}
        """When each request came that the engine has not got yet."""
        self._next_poll_s = 0.0
        self._timer_s = math.inf
        self._idle_since_s = 0.0
        self._gauges = EngineGauges()

    @property
    def has_work(self) -> bool:
        """Whether any request is in the engine, on its way there, or in the queue."""
        return self.engine.busy or self.front.queued > 0 or bool(self._sent) or self.ends_s < math.inf

    def submit(self, job: Job, now_s: float) -> bool:
        """A request arrives. False if it is refused."""
        if not self.has_work:
            # Polls of an idle engine change nothing and were left out.
            self._next_poll_s = max(self._next_poll_s, now_s)
        accepted = self.front.submit(job, now_s)
        if accepted:
            self._arrivals_s[job.index] = now_s
        return accepted

    def react(self, now_s: float) -> list[Job]:
        """Let the policy send, and set the timer for its next decision. Returns the requests that it refuses."""
        reaction = self.front.react(now_s)
        for job in reaction.refused:
            del self._arrivals_s[job.index]
        for job, priority in reaction.sent:
            delay_s = self._delay_s()
            if delay_s > 0:
                self._sends += 1
                heapq.heappush(self._sent, (now_s + delay_s, self._sends, job, priority))
            else:
                self._enter(job, priority)
        # The timer for this time has just fired, so the next one must be later.
        self._timer_s = math.inf if reaction.again_s is None else max(reaction.again_s, now_s + 1e-3)
        return reaction.refused

    def next_event_s(self, arrival_s: float) -> float:
        """The next event of its own but for the end of a step. `arrival_s`: the next arrival anywhere."""
        sent_s = self._sent[0][0] if self._sent else math.inf
        return min(sent_s, self._poll_s(arrival_s), self._timer_s)

    def enter_due(self, at_s: float) -> bool:
        """Let the engine have the next request that is due. False if there is none."""
        if not self._sent or self._sent[0][0] > at_s:
            return False
        self._enter(*heapq.heappop(self._sent)[2:])
        return True

    def poll_due(self, at_s: float, arrival_s: float) -> bool:
        """Read the gauges if it is time. Raises CannotBeDone if the policy has stopped sending."""
        if self._poll_s(arrival_s) > at_s:
            return False
        self.front.poll(self._gauges, at_s)
        self._next_poll_s += POLL_S
        if self.engine.busy or not self.front.queued:
            self._idle_since_s = at_s
        elif at_s - self._idle_since_s > STALL_S:
            raise CannotBeDone(
                f"{self.front.name} leaves the engine idle while {self.front.queued} requests wait: it stopped sending"
            )
        return True

    def timer_due(self, at_s: float) -> bool:
        """Whether the policy asked to be called."""
        return self._timer_s <= at_s

    def start(self, now_s: float, until_s: float) -> list[Step]:
        """Begin the next step, or a leap of steps that start before `until_s` and need no decision.

        Returns the steps of a leap, whose results are known at once.
        """
        if not self.front.queued and not self._sent:
            ends, keys = self.engine.leap(now_s, until_s)
            if ends:
                self.ends_s = ends[-1]
                return [Step(end_s, keys, []) for end_s in ends]
        self._step = self.engine.step(now_s)
        self.ends_s = self._step.end_s
        return []

    def end(self) -> Step | None:
        """End the step that runs. None for a leap."""
        self._idle_since_s = self.ends_s
        self.ends_s = math.inf
        step, self._step = self._step, None
        return step

    def gauge(self) -> None:
        """Take the gauges that the next polls will read."""
        if self.front.polls:
            engine = self.engine
            self._gauges = EngineGauges(engine.running, engine.waiting, engine.kv_used_share, engine.preemptions)

    def _poll_s(self, arrival_s: float) -> float:
        if not self.front.polls:
            return math.inf
        if not self.has_work:
            # Nothing waits and nothing runs, so only an arrival can change the state.
            if arrival_s == math.inf:
                return math.inf
            self._next_poll_s = max(self._next_poll_s, arrival_s)
        return self._next_poll_s

    def _enter(self, job: Job, priority: int) -> None:
        arrival_s = self._arrivals_s.pop(job.index)
        self.engine.add(Work(job.index, arrival_s, job.prompt_tokens, job.output_tokens, priority, job.blocks))
