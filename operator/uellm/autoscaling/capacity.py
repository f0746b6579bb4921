"""What a replica can carry: the work of a mean request, and the share of targets missed at a utilisation.

Work is measured in seconds of a saturated engine: a replica that gets one second of work each second is saturated
(`uellm.planner.cost.chunk.saturation`). The utilisation is the work that arrives for each second and replica.

The share of missed targets is estimated for a queue whose order is by deadline: a class waits for the classes whose
deadlines are not later than its own, of which a utilisation u is left. The wait is longer than t with the probability

    u * exp(-2 * (1 - u) * t / (work * variability))         (M/G/1 in heavy traffic; Kingman 1961)

and where u is above 1, the part 1 - 1/u is late in any case. An end-to-end target is also missed where the answer is
too long for the pace; lengths are taken as exponential, as for the chunk. The estimate is a start: `MissCurve` replaces
it by what is measured.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

from uellm.planner.cost.chunk import Load, SaturatedEngine, saturation
from uellm.planner.request import SloClass
from uellm.step_time import StepTime

VARIABILITY = 3.0
"""Sum of the squared coefficients of variation of the gaps and of the work: 1 and 2, about those of public traces."""
FAR_S = 120.0
"""The wait that a class without a target of its first token or end bears."""


class MeanLengths(NamedTuple):
    """A mean request."""

    prompt_tokens: float
    """To compute."""
    output_tokens: float


@dataclass(frozen=True, slots=True)
class ReplicaEngine:
    """The engine of one replica."""

    step: StepTime
    chunk: int
    """Tokens in a step at most."""
    sequences: int
    """Requests that run at the same time, at most."""
    kv_tokens: int

    def saturated(self, lengths: MeanLengths) -> SaturatedEngine:
        """Its steady state with as many of these requests as it can serve."""
        return _saturated(self, lengths)

    def work_s(self, lengths: MeanLengths) -> float:
        """Seconds of the saturated engine for each request.

        A prompt that fills several steps by itself takes as many, however short its answer is: an embedder's request
        with many texts, for example.
        """
        saturated = self.saturated(lengths)
        work_s = 1.0 / saturated.requests_per_s
        if not saturated.prefill_tokens:
            return work_s
        return max(work_s, saturated.tpot_s * lengths.prompt_tokens / saturated.prefill_tokens)

    def tpot_s(self, lengths: MeanLengths, utilisation: float) -> float:
        """Seconds for each token of an answer at a utilisation: the fixed point of Little's law."""
        load = self.load(lengths)
        rate, full_s = utilisation / self.work_s(lengths), self.saturated(lengths).tpot_s
        pace_s = self.step.step_s(0.0, load.held_tokens, 1.0)
        for _ in range(30):
            running = max(1.0, min(rate * load.output_tokens * pace_s, load.most_sequences()))
            prefill = min(rate * load.prompt_tokens * pace_s, max(0.0, self.chunk - running))
            pace_s = min(self.step.step_s(prefill, running * load.held_tokens, running), full_s)
        return pace_s

    def load(self, lengths: MeanLengths) -> Load:
        """The planner's description of these requests."""
        prompt, output = max(1, round(lengths.prompt_tokens)), max(1, round(lengths.output_tokens))
        return Load(prompt, output, self.sequences, self.kv_tokens)


@lru_cache(maxsize=256)
def _saturated(replica: ReplicaEngine, lengths: MeanLengths) -> SaturatedEngine:
    return saturation(replica.step, replica.load(lengths), replica.chunk)


class ShareOfClass(NamedTuple):
    """A class and its share of the requests, 0 to 1."""

    targets: SloClass
    share: float


@lru_cache(maxsize=4096)
def expected_miss(
    replica: ReplicaEngine, classes: tuple[ShareOfClass, ...], lengths: MeanLengths, utilisation: float
) -> float:
    """The share of requests that miss a target at this utilisation of each replica, by the formulas above."""
    work_s, pace_s = replica.work_s(lengths), replica.tpot_s(lengths, utilisation)
    missed, load = 0.0, 0.0
    for wait_s, entry in _by_patience(classes, lengths, pace_s):
        load += utilisation * entry.share
        missed += entry.share * max(_late(load, wait_s, work_s), _too_slow(entry.targets, lengths, pace_s))
    return missed


def _by_patience(
    classes: Sequence[ShareOfClass], lengths: MeanLengths, pace_s: float
) -> list[tuple[float, ShareOfClass]]:
    """The wait that each class bears in seconds, the shortest first."""
    waits = [(_patience_s(entry.targets, lengths, pace_s), entry) for entry in classes]
    return sorted(waits, key=lambda wait: wait[0])


def _patience_s(targets: SloClass, lengths: MeanLengths, pace_s: float) -> float:
    wait_s = FAR_S if targets.ttft_s is None else targets.ttft_s
    if targets.e2e_s is not None:
        wait_s = min(wait_s, max(0.0, targets.e2e_s - 2 * lengths.output_tokens * pace_s))
    return max(wait_s - lengths.prompt_tokens * pace_s / 1024, 0.0)


def _late(utilisation: float, wait_s: float, work_s: float) -> float:
    if utilisation >= 1.0:
        return 1.0 - 1.0 / utilisation + math.exp(-wait_s / 60.0) / utilisation
    return utilisation * math.exp(-2.0 * (1.0 - utilisation) * wait_s / (work_s * VARIABILITY))


def _too_slow(targets: SloClass, lengths: MeanLengths, pace_s: float) -> float:
    if targets.tpot_s is not None and pace_s > targets.tpot_s:
        return 1.0
    if targets.e2e_s is None:
        return 0.0
    return math.exp(-targets.e2e_s / (pace_s * max(1.0, lengths.output_tokens)))
