"""`uellm evaluate autoscale`: every policy with every start-up time on the same day.

The fixed number is that of the busiest five minutes. The others begin with what their first interval needs. A tuned
policy is run with several settings, by halving: the answer is its cheapest setting that attains what the fixed number
attains but for TOLERATED, or, where none does, the one that attains most.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from uellm.autoscaling import Autoscaler, Bounds, MeanLengths, ReplicaEngine, ShareOfClass
from uellm.autoscaling.capacity import expected_miss
from uellm.evaluate.autoscale import policies
from uellm.evaluate.autoscale.day import DAY_S, Days
from uellm.evaluate.autoscale.policies import INTERVAL_S, ReplicaPolicy
from uellm.evaluate.autoscale.pool import DayLoad, ReplicaPool, attainment
from uellm.evaluate.scenario import ALL
from uellm.planner.cost.engine_file import EngineFile
from uellm.planner.request import SloClass

FIXED, CLAIRVOYANT, HPA, KEDA, OURS = "fixed", "clairvoyant", "hpa", "keda", "uellm"
NAMES = (FIXED, CLAIRVOYANT, HPA, KEDA, OURS)
TOLERATED = 0.005
"""Attainment below that of the fixed number that counts as kept."""
HALVINGS = 4
AFTER_S = 600.0
"""After the day's end, for what is under way to end."""
ALLOWED = 0.005
"""Of all requests: the expected misses that the fixed number is chosen for."""


@dataclass(frozen=True)
class Comparison:
    """One day and one engine."""

    days: Days
    engine: EngineFile
    chunk: int
    max_replicas: int | None
    earlier_days: int
    attainment: float = 0.99
    replica: ReplicaEngine = field(init=False)
    lengths: MeanLengths = field(init=False)
    classes: tuple[ShareOfClass, ...] = field(init=False)

    def __post_init__(self) -> None:
        load, engine = self.days.load, self.engine
        replica = ReplicaEngine(engine.step, self.chunk, engine.max_num_seqs, engine.kv_tokens)
        object.__setattr__(self, "replica", replica)
        object.__setattr__(self, "lengths", MeanLengths(float(load.uncached.mean()), float(load.output.mean())))
        object.__setattr__(self, "classes", shares_of(load))

    @property
    def work(self) -> Any:
        """The work that arrives in each interval of the day."""
        load = self.days.load
        each = self.replica.work_s(self.lengths)
        sizes = load.uncached / self.lengths.prompt_tokens, load.output / self.lengths.output_tokens
        return policies.work_by_interval(load.arrival_s, each * (sizes[0] + sizes[1]) / 2, DAY_S)

    @property
    def utilisation(self) -> float:
        """The highest utilisation at which few enough misses are expected."""
        steps = np.arange(0.3, 1.0, 0.01)
        idle = expected_miss(self.replica, self.classes, self.lengths, 0.3)
        good = [u for u in steps if expected_miss(self.replica, self.classes, self.lengths, float(u)) - idle <= ALLOWED]
        return float(max(good, default=0.3))

    @property
    def peak(self) -> int:
        """The fixed number."""
        return policies.peak_replicas(self.work, self.utilisation)

    @property
    def bounds(self) -> Bounds:
        """From 1 to the limit; without one, twice the peak."""
        return Bounds(1, self.max_replicas or 2 * self.peak)


def shares_of(load: DayLoad) -> tuple[ShareOfClass, ...]:
    """The classes as the autoscaler takes them, with their shares of the requests."""
    counts = np.bincount(load.class_index, minlength=len(load.classes))
    return tuple(
        ShareOfClass(SloClass(t.name, t.ttft_s, t.tpot_s, t.e2e_s), float(count) / len(load))
        for t, count in zip((entry.targets for entry in load.classes), counts, strict=True)
    )


def run(comparison: Comparison, policy: ReplicaPolicy, startup_s: float) -> dict[str, Any]:
    """One policy over the day: an entry of `results` without its name."""
    load, bounds = comparison.days.load, comparison.bounds
    pool = ReplicaPool(load, comparison.engine, comparison.chunk, bounds.most, startup_s)
    first = float(policies.smoothed(comparison.work)[:20].max())
    start = min(max(1, int(np.ceil(first / comparison.utilisation)), bounds.least), bounds.most)
    pool.begin(min(max(start, policy.decide(pool.figures(INTERVAL_S), start)), bounds.most))
    counts = []
    while pool.now_s < DAY_S:
        pool.advance(pool.now_s + INTERVAL_S)
        pool.scale(policy.decide(pool.figures(INTERVAL_S), pool.wanted))
        counts.append(pool.wanted)
    gpu_s = pool.gpu_s
    pool.advance(DAY_S + AFTER_S)
    return {
        "startupSeconds": startup_s,
        "attainment": attainment(load, pool.outcomes, np.arange(len(load))),
        "gpuHours": gpu_s / 3600.0,
        "replicas": policies.summary(counts),
    }


def compare(
    comparison: Comparison,
    names: Sequence[str],
    startups: Sequence[float],
    progress: Callable[[str], None],
    *,
    processes: int = 1,
) -> list[dict[str, Any]]:
    """`results`, by start-up time and policy."""
    fixed = run(comparison, policies.Fixed(comparison.peak), startups[0])
    progress(_line(FIXED, startups[0], fixed))
    cells = [(name, startup_s) for startup_s in startups for name in names]
    wanted = fixed["attainment"][ALL] - TOLERATED
    results = []
    for (name, startup_s), found in zip(cells, _each(comparison, cells, wanted, processes), strict=True):
        result = {**fixed, "startupSeconds": startup_s} if found is None else found
        results.append({"policy": name, **result})
        if found is not None:
            progress(_line(name, startup_s, found))
    return results


def _line(name: str, startup_s: float, found: dict[str, Any]) -> str:
    share, hours = found["attainment"][ALL], found["gpuHours"]
    return f"{name}, start-up {startup_s:g} s: attainment {share:.4f}, {hours:.1f} GPU hours"


def _each(
    comparison: Comparison, cells: Sequence[tuple[str, float]], wanted: float, processes: int
) -> Iterator[dict[str, Any] | None]:
    if processes <= 1:
        for name, startup_s in cells:
            yield _found(comparison, name, startup_s, wanted)
        return
    context = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(processes, mp_context=context, initializer=_keep, initargs=(comparison,)) as pool:
        yield from pool.map(_found_kept, *zip(*((*cell, wanted) for cell in cells), strict=True))


_kept: list[Comparison] = []
"""The comparison of a worker process: inherited instead of sent with every cell."""


def _keep(comparison: Comparison) -> None:
    _kept[:] = [comparison]


def _found_kept(name: str, startup_s: float, wanted: float) -> dict[str, Any] | None:
    return _found(_kept[0], name, startup_s, wanted)


def _found(comparison: Comparison, name: str, startup_s: float, wanted: float) -> dict[str, Any] | None:
    """One result; None for the fixed number, whose start-up time does not matter."""
    if name == FIXED:
        return None
    if name == OURS:
        return run(comparison, ours(comparison, startup_s), startup_s)
    return _tuned(comparison, name, startup_s, wanted)


def ours(comparison: Comparison, startup_s: float) -> ReplicaPolicy:
    """The autoscaler, which saw the arrivals of the earlier days."""
    autoscaler = Autoscaler(
        comparison.replica, comparison.classes, attainment=comparison.attainment, startup_s=startup_s
    )
    begin_s = comparison.earlier_days * DAY_S
    minutes = ((comparison.days.earlier_s + begin_s) // 60.0).astype(int)
    each = comparison.replica.work_s(comparison.lengths) / 60.0
    for minute, count in enumerate(np.bincount(minutes, minlength=round(begin_s / 60.0))):
        autoscaler.recall(minute, float(count) * each)
    return policies.Ours(autoscaler, comparison.bounds, comparison.earlier_days)


def _tuned(comparison: Comparison, name: str, startup_s: float, wanted: float) -> dict[str, Any]:
    """Halve the setting: the larger it is, the fewer replicas, and the lower the attainment."""
    low, high = 0.1, 1.5
    best: dict[str, Any] | None = None
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        setting, policy = _with_setting(comparison, name, startup_s, middle)
        found = {**run(comparison, policy, startup_s), "setting": setting}
        keeps = found["attainment"][ALL] >= wanted
        low, high = (middle, high) if keeps else (low, middle)
        if best is None or _better(found, best, wanted):
            best = found
    assert best is not None
    return best


def _better(one: dict[str, Any], other: dict[str, Any], wanted: float) -> bool:
    """Whether one keeps what is wanted at fewer GPU hours, or comes closer to it."""
    ours, theirs = one["attainment"][ALL], other["attainment"][ALL]
    if min(ours, theirs) >= wanted:
        return bool(one["gpuHours"] < other["gpuHours"])
    return bool(ours > theirs)


def _with_setting(
    comparison: Comparison, name: str, startup_s: float, share: float
) -> tuple[dict[str, Any], ReplicaPolicy]:
    """A policy that aims at this share of what a saturated replica holds."""
    bounds, full = comparison.bounds, comparison.replica.saturated(comparison.lengths)
    if name == CLAIRVOYANT:
        policy: ReplicaPolicy = policies.Clairvoyant(comparison.work, share, startup_s, bounds)
        return {"utilisation": round(share, 3)}, policy
    if name == HPA:
        target = max(0.5, share * full.sequences)
        return {"requestsPerPod": round(target, 1)}, policies.Hpa(target, bounds)
    held = comparison.lengths.prompt_tokens + comparison.lengths.output_tokens / 2
    kv_share = min(0.95, share * full.sequences * held / comparison.engine.kv_tokens)
    return {"kvShare": round(kv_share, 4), "waitingPerPod": 1}, policies.Keda(1.0, kv_share, bounds)
