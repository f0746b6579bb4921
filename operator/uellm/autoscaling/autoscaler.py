"""The number of replicas: the least whose expected share of missed targets stays within what the service allows.

Up at once, and ahead by the time that a replica takes to start; down only when the lower number has sufficed for
some time.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, replace
from typing import NamedTuple

from uellm.autoscaling.capacity import MeanLengths, ReplicaEngine, ShareOfClass, expected_miss
from uellm.autoscaling.forecast import MINUTE_S, Forecaster
from uellm.autoscaling.miss_curve import WIDTH, MissCurve, at
from uellm.autoscaling.reports import Interval
from uellm.step_time import StepTime

SPENT = 0.4
"""Of the misses that the target attainment allows; the rest is for what no forecast sees, as a burst that is over
before another replica is ready."""
IDLE_UTILISATION = 0.2
"""Misses at this utilisation are not the number's fault."""
DRAIN_S = 60.0
"""In this time waiting requests are to be served by replicas above those for what arrives."""
LEAST_HOLD_S = 180.0
"""For which a lower number must suffice before replicas are given up, and a queue must stand to count as one that the
ready replicas do not drain."""
STANDING_SHARE = 0.8
"""Of that, for how long a queue was looked at before it can be told to stand. Looks are some seconds apart."""
STEP_CHANGE = 1.25
"""A step's time that differs by less is the same."""
LENGTHS_S = 900.0
"""Time over which the mean lengths fade."""
LEARN_S = 600.0
"""Nothing is to be given up before the load has been seen for so long."""
FIRST_LENGTHS = MeanLengths(512.0, 256.0)
"""Assumed before any request was seen; as the planner's."""


class Bounds(NamedTuple):
    """What the spec and the cluster allow."""

    least: int
    most: int


@dataclass(frozen=True, slots=True)
class ReplicaDecision:
    """How many replicas, and why."""

    replicas: int
    needed: int
    """Without bounds and without holding on to what is there."""
    utilisation: float
    """The work expected for each second and replica wanted."""
    work: float
    """The work expected when a replica ordered now is ready, in seconds for each second."""
    limited: bool
    """More are needed than the bounds allow, or were while the hold lasts: a load at the limit does not flap."""


class Autoscaler:
    """Takes the figures of each interval; tells the number of replicas."""

    def __init__(
        self,
        replica: ReplicaEngine,
        classes: tuple[ShareOfClass, ...],
        *,
        attainment: float = 0.99,
        startup_s: float = 120.0,
    ) -> None:
        """`attainment`: the share of requests, 0 to 1, that are to meet their targets."""
        self.replica = replica
        self._classes = classes
        self._allowed = (1.0 - attainment) * SPENT
        self._startup_s = startup_s
        self._forecaster = Forecaster(_minutes_ahead(startup_s))
        self._curve = MissCurve()
        self._prompt, self._prompts, self._output, self._answers = 0.0, 0.0, 0.0, 0.0
        self._minute: int | None = None
        self._minute_work_s, self._minute_seconds = 0.0, 0.0
        self._last_minute: deque[tuple[float, float, int]] = deque()
        self._worst: deque[tuple[float, float]] = deque()
        self._waited: deque[tuple[float, int]] = deque()
        self._needs: deque[tuple[float, int]] = deque()
        self._shares: list[float] = []
        self._factors: tuple[float, list[float]] = (0.0, [1.0])
        self._running = self._queued = self._ready = 0
        self._refresh()

    @property
    def lengths(self) -> MeanLengths:
        """The mean lengths of late."""
        prompt = self._prompt / self._prompts if self._prompts else FIRST_LENGTHS.prompt_tokens
        output = self._output / self._answers if self._answers else FIRST_LENGTHS.output_tokens
        return MeanLengths(_rounded(prompt), _rounded(output))

    def expect_startup(self, startup_s: float) -> None:
        """A replica takes another time to start. What was learned of the load stays; one minute makes no difference."""
        self._startup_s = startup_s
        minutes = _minutes_ahead(startup_s)
        if abs(minutes - self._forecaster.minutes_ahead) > 1:
            self._forecaster.look_ahead(minutes)
            self._refresh()

    def expect_step(self, step: StepTime) -> None:
        """The engine's steps take another time than was thought: all work is counted anew. A small change is ignored.

        What is known of misses is forgotten, because it was learned at other utilisations.
        """
        replica = replace(self.replica, step=step)
        slower = replica.work_s(self.lengths) / self.replica.work_s(self.lengths)
        if 1.0 / STEP_CHANGE < slower < STEP_CHANGE:
            return
        self.replica = replica
        self._curve = MissCurve()
        self._forecaster.scale(slower)
        self._minute_work_s *= slower
        self._last_minute = deque((seconds, work_s * slower, ready) for seconds, work_s, ready in self._last_minute)
        self._worst = deque((at_s, utilisation * slower) for at_s, utilisation in self._worst)
        self._refresh()

    def observe(self, interval: Interval) -> None:
        """The figures of an interval. Call it for each, in order."""
        self._learn_lengths(interval)
        work_s = interval.arrived * self.replica.work_s(self.lengths)
        self._take_minutes(interval, work_s)
        self._running, self._queued, self._ready = interval.running, interval.queued, interval.ready
        self._waited.append((interval.end_s, interval.queued))
        while not interval.end_s - LEAST_HOLD_S <= self._waited[0][0] <= interval.end_s:
            self._waited.popleft()
        self._last_minute.append((interval.seconds, work_s, interval.ready))
        while sum(each[0] for each in self._last_minute) - self._last_minute[0][0] >= MINUTE_S:
            self._last_minute.popleft()
        self._learn_misses(interval)

    def recall(self, minute: int, work: float) -> None:
        """Work of an earlier minute that is known otherwise, in seconds for each second."""
        self._forecaster.observe(minute, work)

    def decide(self, now_s: float, wanted: int, bounds: Bounds) -> ReplicaDecision:
        """The number of replicas for now; `wanted` are there or on their way."""
        work, needed = self._needed(bounds.most)
        self._needs.append((now_s, needed))
        hold_s = max(self._startup_s, LEAST_HOLD_S)
        while not now_s - hold_s < self._needs[0][0] <= now_s:
            self._needs.popleft()
        kept = max(need for _, need in self._needs)
        replicas = max(needed, min(wanted, kept), self._in_flight())
        bounded = min(max(replicas, bounds.least), bounds.most)
        return ReplicaDecision(bounded, needed, work / max(1, bounded), work, kept > bounds.most)

    def _needed(self, most: int) -> tuple[float, int]:
        """The work expected, and the least number whose expected misses are allowed, up to one above the most."""
        work, factors = self._factors
        backlog = self._left_s() / DRAIN_S
        work = max(work, self._work_now()) if backlog > 0.1 else work
        if work <= 0.0 and not self._queued:
            return 0.0, 0
        allowed = at(self._shares, IDLE_UTILISATION) + self._allowed
        for replicas in range(1, most + 1):
            share = sum(at(self._shares, (work * factor + backlog) / replicas) for factor in factors) / len(factors)
            if share <= allowed:
                return work, replicas
        return work, most + 1

    def _left_s(self) -> float:
        """Work that waits now and will still wait when a replica that is ordered now is ready.

        What the ready replicas have to spare drains a queue meanwhile. One that stood all the time is not drained by
        them, whatever they are thought to do.
        """
        each_s = self.replica.work_s(self.lengths)
        spare = max(0.0, self._ready - self._work_now())
        standing = min(queued for _, queued in self._waited) if self._watched_s >= STANDING_SHARE * LEAST_HOLD_S else 0
        return max(standing * each_s, self._queued * each_s - spare * self._startup_s)

    @property
    def _watched_s(self) -> float:
        """How long waiting requests were looked at, `LEAST_HOLD_S` at most."""
        return self._waited[-1][0] - self._waited[0][0] if self._waited else 0.0

    def _in_flight(self) -> int:
        """Replicas that what is running now fills."""
        return math.ceil(self._running / self.replica.sequences)

    def _work_now(self) -> float:
        seconds = sum(each[0] for each in self._last_minute)
        return sum(each[1] for each in self._last_minute) / seconds if seconds else 0.0

    def _learn_lengths(self, interval: Interval) -> None:
        keep = math.exp(-interval.seconds / LENGTHS_S)
        self._prompt = keep * self._prompt + interval.prompt_tokens
        self._prompts = keep * self._prompts + interval.prompts
        self._output = keep * self._output + interval.output_tokens
        self._answers = keep * self._answers + interval.answers

    def _take_minutes(self, interval: Interval, work_s: float) -> None:
        minute = int(interval.end_s // MINUTE_S)
        if self._minute is None:
            self._minute = minute
        self._minute_work_s += work_s
        self._minute_seconds += interval.seconds
        if minute == self._minute:
            return
        self._forecaster.observe(self._minute, self._minute_work_s / self._minute_seconds)
        self._minute, self._minute_work_s, self._minute_seconds = minute, 0.0, 0.0
        self._refresh()

    def _refresh(self) -> None:
        """What is derived from all that was seen; once a minute, because it changes slowly."""
        lengths = self.lengths
        self._shares = self._curve.shares(lambda u: expected_miss(self.replica, self._classes, lengths, u))
        self._factors = self._forecaster.forecast()

    def _learn_misses(self, interval: Interval) -> None:
        """What ended counts for the highest utilisation of the last minutes: a queue outlives its cause."""
        ready = sum(each[2] for each in self._last_minute) / len(self._last_minute)
        now = self._work_now() / ready if ready else 0.0
        self._worst.append((interval.end_s, now))
        while not interval.end_s - 2 * MINUTE_S <= self._worst[0][0] <= interval.end_s:
            self._worst.popleft()
        if interval.ended and ready:
            worst = max(each for _, each in self._worst)
            self._curve.observe(worst, interval.ended, interval.ended - interval.met)


def _minutes_ahead(startup_s: float) -> int:
    return math.ceil(startup_s / MINUTE_S) + 1


def _rounded(tokens: float) -> float:
    """To 5 %, so that what is derived of it is not computed anew each minute."""
    return float(round(math.exp(round(math.log(max(1.0, tokens)) / WIDTH) * WIDTH)))
