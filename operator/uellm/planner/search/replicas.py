"""How many replicas of a shape the workload needs on a node, and the figures of each.

A replica that carries 1/r of the workload must hold its KV cache, meet every class's targets, and serve its share of
the rate. All three become easier with more replicas, so bisection finds the smallest r.

Where speeds are measured, KV cache is sized for the predicted pace. Otherwise (nothing is measured, or a CPU with its
own pace simulates the GPUs) it is sized for the slowest pace that the targets allow.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import NamedTuple

from uellm.planner import constants as c
from uellm.planner.cost.demand import RequestPace, demand, least_kv_tokens
from uellm.planner.cost.targets import outcomes
from uellm.planner.memory.footprint import Footprint
from uellm.planner.nodes.pools import Pool
from uellm.planner.refusals.kinds import MissedTargets, PlanRefusal, TooFewRequests
from uellm.planner.request import PlanRequest
from uellm.planner.search.candidate import Candidate, Evaluator
from uellm.planner.shape import Shape
from uellm.planner.target_outcome import TargetOutcome
from uellm.planner.vllm.flags import UserArgs


class Refused(NamedTuple):
    """Why a shape is refused on a node."""

    cause: PlanRefusal
    by_load: bool = False
    """Whether fewer requests per replica would help."""

    @property
    def missed(self) -> tuple[TargetOutcome, ...]:
        """The targets that would be missed; empty if there is another cause."""
        return self.cause.missed if isinstance(self.cause, MissedTargets) else ()


@dataclass(frozen=True, slots=True)
class Sized:
    """The least sufficient number of replicas, and the candidate for each of them."""

    candidate: Candidate
    replicas: int


class Sizer:
    """Sizes shapes for one request. It caches the evaluators that candidates share."""

    def __init__(self, request: PlanRequest) -> None:
        self.request = request
        self.user = UserArgs(request.engine.args)
        self._evaluators: dict[tuple[bool, int, RequestPace | None], Evaluator] = {}
        self._lightest: dict[tuple[str, str, Shape], Candidate | Refused] = {}
        self.attempts = 0

    def evaluator(self, *, simulated: bool, replicas: int = 1, pace: RequestPace | None = None) -> Evaluator:
        """The evaluator for one of this number of replicas."""
        key = (simulated, replicas, pace)
        if key not in self._evaluators:
            wanted = demand(self.request, simulated=simulated, share=replicas, pace=pace)
            self._evaluators[key] = Evaluator(self.request, wanted, self.user)
        return self._evaluators[key]

    def least(self, pool: Pool, shape: Shape, floor: int = 1) -> Sized | Refused:
        """The least sufficient number of replicas; `floor` is a known lower bound."""
        first = self.attempt(pool, shape, floor)
        if isinstance(first, Candidate):
            return Sized(first, floor)
        if self.request.workload.requests_per_s is None or not first.by_load:
            return first
        lightest = self.lightest(pool, shape)
        return lightest if isinstance(lightest, Refused) else self._halved(pool, shape, lightest, floor)

    def lightest(self, pool: Pool, shape: Shape) -> Candidate | Refused:
        """The shape with next to no load: what it cannot do then, it never can."""
        key = (pool.node, pool.resource_name, shape)
        if key not in self._lightest:
            self._lightest[key] = self.attempt(pool, shape, c.MOST_REPLICAS)
        return self._lightest[key]

    def alone(self, pool: Pool, shape: Shape) -> Candidate | PlanRefusal:
        """The shape with next to no load, ignoring targets; or why even that has no room."""
        return self._alone(pool, c.MOST_REPLICAS).fit(pool, shape)

    def refusal(self, pool: Pool, shape: Shape) -> PlanRefusal | None:
        """Why the shape has no room even with next to no load; None if it has."""
        evaluator = self._alone(pool, c.MOST_REPLICAS)
        return evaluator.refusal(pool, shape, evaluator.steps_on(pool, shape))

    def needs_exact(self, pool: Pool, shape: Shape) -> bool:
        """Whether it would have room if we could choose the devices."""
        return self._alone(pool, c.MOST_REPLICAS).needs_exact(pool, shape)

    def footprint(self, pool: Pool, shape: Shape) -> Footprint:
        """Memory of the shape with KV cache for one request."""
        evaluator = self._alone(pool, c.MOST_REPLICAS)
        return evaluator.footprint(shape, evaluator.steps_on(pool, shape))

    def _alone(self, pool: Pool, replicas: int) -> Evaluator:
        """The evaluator with KV cache for one request."""
        key = (pool.simulated, replicas, RequestPace(0.0, 0.0))
        if key not in self._evaluators:
            wanted = self.evaluator(simulated=pool.simulated, replicas=replicas).demand
            lean = replace(wanted, kv_tokens=least_kv_tokens(self.request))
            self._evaluators[key] = Evaluator(self.request, lean, self.user)
        return self._evaluators[key]

    def attempt(self, pool: Pool, shape: Shape, replicas: int) -> Candidate | Refused:
        """One of `replicas` replicas, or why that number is too small. Chunks above the chosen one are tried too."""
        first = self._attempt(pool, shape, replicas, 1)
        if isinstance(first, Candidate) or not _waits(first):
            return first
        for larger in c.LARGER_CHUNKS:
            found = self._attempt(pool, shape, replicas, larger)
            if isinstance(found, Candidate):
                return found
        return first

    def _attempt(self, pool: Pool, shape: Shape, replicas: int, larger: int) -> Candidate | Refused:
        self.attempts += 1
        evaluator = self.evaluator(simulated=pool.simulated, replicas=replicas)
        sized_by_pace = self.request.workload.requests_per_s is not None and not pool.simulated
        if not sized_by_pace:
            return self._judged(evaluator.fit(pool, shape, larger), evaluator)
        alone = self._alone(pool, replicas)
        light = alone.fit(pool, shape, larger)
        if isinstance(light, PlanRefusal):
            return Refused(light)
        if light.times is None:
            return self._judged(evaluator.fit(pool, shape, larger), evaluator)
        verdict = self._judged(light, alone)
        if isinstance(verdict, Refused) and verdict.missed:
            return verdict
        paced = self.evaluator(
            simulated=False,
            replicas=replicas,
            pace=RequestPace(_rounded(light.times.ttft_s), _rounded(light.times.tpot_s)),
        )
        return self._judged(paced.fit(pool, shape, larger), paced)

    def _judged(self, found: Candidate | PlanRefusal, evaluator: Evaluator) -> Candidate | Refused:
        wanted = evaluator.demand
        if isinstance(found, PlanRefusal):
            return Refused(found, by_load=wanted.kv_tokens > least_kv_tokens(self.request))
        times = found.times and (evaluator.slowest(found) or found.times)
        if times is None:
            return found
        kept = outcomes(times, self.request.classes, wanted.output_tokens)
        missed = tuple(entry for entry in kept if entry.missed)
        if missed:
            return Refused(MissedTargets(missed), by_load=wanted.requests_per_s is not None)
        rate = wanted.requests_per_s
        if rate is not None and times.requests_per_s < rate * (1 - c.TARGET_TOLERANCE):
            return Refused(TooFewRequests(times.requests_per_s, rate), by_load=True)
        return found

    def _halved(self, pool: Pool, shape: Shape, light: Candidate, floor: int) -> Sized:
        """Double the steps from a guess until the result changes, then bisect. `floor` replicas do not suffice."""
        low, high, best, step = floor, c.MOST_REPLICAS, light, 1
        probe = min(max(_guess(light, self.request), floor + 1), c.MOST_REPLICAS - 1)
        while high - low > 1:
            found = self.attempt(pool, shape, probe)
            if isinstance(found, Candidate):
                high, best = probe, found
            else:
                low = probe
            if low > floor and high < c.MOST_REPLICAS:
                probe = (low + high) // 2
            else:
                probe = max(high - step, low + 1) if low == floor else min(low + step, high - 1)
                step *= 2
        return Sized(best, high)


def _waits(refused: Refused) -> bool:
    """Whether prompts wait too long: a larger chunk helps them, and no other target."""
    if isinstance(refused.cause, MissedTargets):
        return all(entry.name == "TTFT" for entry in refused.missed)
    return isinstance(refused.cause, TooFewRequests)


def _guess(light: Candidate, request: PlanRequest) -> int:
    rate, times = request.workload.requests_per_s, light.times
    if rate is None or times is None or not times.requests_per_s:
        return 0
    return math.ceil(rate / times.requests_per_s * (1 - c.TARGET_TOLERANCE))


def _rounded(seconds: float) -> float:
    """Rounded to three digits, so that similar nodes share an evaluator."""
    if not 0 < seconds < math.inf:
        return seconds
    scale = 10.0 ** (2 - math.floor(math.log10(seconds)))
    return math.ceil(seconds * scale) / scale
