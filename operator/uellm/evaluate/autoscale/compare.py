"""`uellm evaluate autoscale`: every policy with every start-up time on the same day.

The fixed number is that of the busiest five minutes. The others begin with what their first interval needs. A tuned
policy is run with several settings (`tuning`): the answer is its cheapest setting that attains what the fixed number
attains but for TOLERATED, or, where none does, the one that attains most. A baseline is also tuned to UELLM's own
attainment and to its GPU hours, so that the two can be compared at equal figures.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from uellm.autoscaling import Autoscaler, Bounds, MeanLengths, ReplicaEngine, ShareOfClass
from uellm.autoscaling.capacity import expected_miss
from uellm.evaluate.autoscale import policies
from uellm.evaluate.autoscale.day import DAY_S, Days
from uellm.evaluate.autoscale.policies import INTERVAL_S, ReplicaPolicy
from uellm.evaluate.autoscale.pool import DayLoad, ReplicaPool, attainment
from uellm.evaluate.autoscale.tuning import Result, Tuning, attained, hours
from uellm.planner.cost.engine_file import EngineFile
from uellm.planner.request import SloClass

FIXED, CLAIRVOYANT, CURVE, HPA, KEDA, OURS = "fixed", "clairvoyant", "curve", "hpa", "keda", "uellm"
NAMES = (FIXED, CLAIRVOYANT, CURVE, HPA, KEDA, OURS)
TOLERATED = 0.005
"""Attainment below that of the fixed number that counts as kept."""
BASELINES = (HPA, KEDA)
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
    def work_without_bursts(self) -> Any:
        """The same as if the day had no bursts."""
        work, bursts = self.work, self.days.bursts
        minutes = np.arange(len(work)) * len(bursts) // len(work)
        return work / bursts[minutes]

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


def run(comparison: Comparison, policy: ReplicaPolicy, startup_s: float) -> Result:
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
) -> list[Result]:
    """`results`, by start-up time and policy."""
    fixed = run(comparison, policies.Fixed(comparison.peak), startups[0])
    progress(_line(FIXED, startups[0], fixed))
    wanted = attained(fixed) - TOLERATED
    # UELLM's own first: the baselines are compared with it.
    jobs = [_Job(OURS, startup_s, wanted) for startup_s in startups if OURS in names]
    found = _found_all(comparison, jobs, progress, processes)
    others = [name for name in names if name not in {FIXED, OURS}]
    jobs = [_Job(name, each, wanted, found.get((OURS, each))) for each in startups for name in others]
    found |= _found_all(comparison, jobs, progress, processes)
    # The start-up time does not matter to the fixed number.
    found |= {(FIXED, startup_s): {**fixed, "startupSeconds": startup_s} for startup_s in startups}
    return [{"policy": name, **found[name, startup_s]} for startup_s in startups for name in names]


def _line(name: str, startup_s: float, found: Result) -> str:
    return f"{name}, start-up {startup_s:g} s: attainment {attained(found):.4f}, {hours(found):.1f} GPU hours"


class _Job(NamedTuple):
    """One policy with one start-up time."""

    name: str
    startup_s: float
    wanted: float
    beside: Result | None = None
    """UELLM's own result, if there is one."""


def _found_all(
    comparison: Comparison, jobs: Sequence[_Job], progress: Callable[[str], None], processes: int
) -> dict[tuple[str, float], Result]:
    found = {}
    for job, result in zip(jobs, _each(comparison, jobs, processes), strict=True):
        progress(_line(job.name, job.startup_s, result))
        found[job.name, job.startup_s] = result
    return found


def _each(comparison: Comparison, jobs: Sequence[_Job], processes: int) -> Iterator[Result]:
    if processes <= 1 or len(jobs) <= 1:
        for job in jobs:
            yield _found(comparison, job)
        return
    context = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(processes, mp_context=context, initializer=_keep, initargs=(comparison,)) as pool:
        yield from pool.map(_found_kept, jobs)


_kept: list[Comparison] = []
"""The comparison of a worker process: inherited instead of sent with every job."""


def _keep(comparison: Comparison) -> None:
    _kept[:] = [comparison]


def _found_kept(job: _Job) -> Result:
    return _found(_kept[0], job)


def _found(comparison: Comparison, job: _Job) -> Result:
    """One result."""
    if job.name == OURS:
        return run(comparison, ours(comparison, job.startup_s), job.startup_s)
    tuning = Tuning(lambda share: _run_with(comparison, job.name, job.startup_s, share))
    result = tuning.cheapest(job.wanted)
    if job.beside is None or job.name not in BASELINES:
        return result
    return {**result, "besideUellm": tuning.beside(job.beside)}


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


def _run_with(comparison: Comparison, name: str, startup_s: float, share: float) -> Result:
    setting, policy = _with_setting(comparison, name, startup_s, share)
    return {**run(comparison, policy, startup_s), "setting": setting}


def _with_setting(
    comparison: Comparison, name: str, startup_s: float, share: float
) -> tuple[dict[str, Any], ReplicaPolicy]:
    """A policy that aims at this share of what a saturated replica holds."""
    bounds, full = comparison.bounds, comparison.replica.saturated(comparison.lengths)
    if name in {CLAIRVOYANT, CURVE}:
        known = comparison.work if name == CLAIRVOYANT else comparison.work_without_bursts
        policy: ReplicaPolicy = policies.Clairvoyant(known, share, startup_s, bounds)
        return {"utilisation": round(share, 3)}, policy
    if name == HPA:
        target = max(0.5, share * full.sequences)
        return {"requestsPerPod": round(target, 1)}, policies.Hpa(target, bounds)
    held = comparison.lengths.prompt_tokens + comparison.lengths.output_tokens / 2
    kv_share = min(0.95, share * full.sequences * held / comparison.engine.kv_tokens)
    return {"kvShare": round(kv_share, 4), "waitingPerPod": 1}, policies.Keda(1.0, kv_share, bounds)
