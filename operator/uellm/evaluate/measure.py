"""The figures of a replay, with the keys of `uellm evaluate queue -o json`."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from uellm.evaluate.replay import Fate, ReplayResult
from uellm.evaluate.scenario import ALL, Job


@dataclass(frozen=True, slots=True)
class Timing:
    """Times of a finished request, in seconds. `tpot_s` is None for an output of one token."""

    ttft_s: float
    tpot_s: float | None
    e2e_s: float


def measure(jobs: Sequence[Job], outcome: ReplayResult) -> dict[str, Any]:
    """The figures of a replay.

    attainment             share of requests that met every target of their class; refused and unfinished ones count as
    missed
    goodputPerSecond       requests that met every target, per second from the first arrival to the last end
    ttft-, tpot-, e2eSeconds   percentiles over the requests that finished
    outputTokensPerSecond  of all requests, whether they met their targets or not, over the same time
    shed, preempted        requests refused; preemptions in the engine
    jain                   Jain's index of the tenants' attainments: 1 where all tenants attain the same
    schedulerMicroseconds  CPU time of the sidecar's scheduler for each time it was asked what to send
    """
    met = [_met(job, fate) for job, fate in zip(jobs, outcome.fates, strict=True)]
    timings = [timing for fate in outcome.fates if (timing := _timing(fate)) is not None]
    span_s = max((fate.end_s for fate in outcome.fates if fate.end_s is not None), default=0.0)
    tpots = [timing.tpot_s for timing in timings if timing.tpot_s is not None]
    return {
        "attainment": _attainment(jobs, met),
        "goodputPerSecond": sum(met) / span_s if span_s else 0.0,
        "ttftSeconds": percentiles(timing.ttft_s for timing in timings),
        "tpotSeconds": percentiles(tpots),
        "e2eSeconds": percentiles(timing.e2e_s for timing in timings),
        "outputTokensPerSecond": sum(fate.tokens for fate in outcome.fates) / span_s if span_s else 0.0,
        "shed": sum(fate.refused for fate in outcome.fates),
        "preempted": outcome.preempted,
        "jain": jain(_by(met, (job.client for job in jobs)).values()),
        "schedulerMicroseconds": 1e6 * outcome.scheduler_s / outcome.decisions if outcome.decisions else 0.0,
    }


def _met(job: Job, fate: Fate) -> bool:
    if fate.first_token_s is None or fate.end_s is None:
        return False
    return job.request_class.met(fate.arrival_s, fate.first_token_s, fate.end_s, job.output_tokens)


def _timing(fate: Fate) -> Timing | None:
    if fate.first_token_s is None or fate.end_s is None:
        return None
    tpot_s = (fate.end_s - fate.first_token_s) / (fate.tokens - 1) if fate.tokens > 1 else None
    return Timing(fate.first_token_s - fate.arrival_s, tpot_s, fate.end_s - fate.arrival_s)


def _attainment(jobs: Sequence[Job], met: Sequence[bool]) -> dict[str, float]:
    return {ALL: sum(met) / len(met), **_by(met, (job.request_class.name for job in jobs))}


def _by(met: Sequence[bool], keys: Iterable[str]) -> dict[str, float]:
    """Share of the requests that met their targets, by key."""
    groups = defaultdict(list)
    for good, key in zip(met, keys, strict=True):
        groups[key].append(good)
    return {key: sum(group) / len(group) for key, group in sorted(groups.items())}


def percentiles(values: Iterable[float]) -> dict[str, float | None]:
    """p50, p90 and p99 by linear interpolation; None without values."""
    ordered = sorted(values)
    return {f"p{percent}": percentile(ordered, percent / 100) for percent in (50, 90, 99)}


def percentile(ordered: Sequence[float], share: float) -> float | None:
    """The `share` quantile (0 to 1) of sorted values by linear interpolation; None without values."""
    if not ordered:
        return None
    place = share * (len(ordered) - 1)
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (place - low) * (ordered[high] - ordered[low])


def jain(values: Iterable[float]) -> float:
    """Jain's fairness index, 1/n to 1; 1 if all values are 0."""
    shares = list(values)
    squares = sum(share * share for share in shares)
    return sum(shares) ** 2 / (len(shares) * squares) if squares else 1.0
