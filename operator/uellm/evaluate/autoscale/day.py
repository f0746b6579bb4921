"""Days of requests made out of a trace.

A trace of a day or longer is used as it is: its last day is judged, and earlier ones are history. A shorter one is
resampled. Its minutes are shuffled, again for each time it is used up, and played at a speed that follows a daily
curve. So the gaps and lengths inside a minute are the trace's, faster or slower; the course of the day is ours:

azure-conversation   office hours and evenings high, nights low: about 3 between the peak and the trough
azure-code           working hours only: about 10 between the peak and the trough, with a dip at noon
servegen             two humps, afternoon and late evening: about 2.5
bursts               servegen's, with three times as many bursts

The curves follow what is published in words and plots of these services (DynamoLLM, arXiv 2408.00741, of Azure's two;
ServeGen, arXiv 2505.09999); the hourly values are ours. Every day differs by a random level, a shift of some minutes,
noise of some minutes, and bursts at random times: 1.3 to 1.8 times the load for 3 to 10 minutes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from uellm.errors import CannotBeDone
from uellm.evaluate.autoscale.pool import DayLoad
from uellm.evaluate.scenario import P80_GAUSSIAN, Classes
from uellm.evaluate.traces import PREFIX_BLOCK_TOKENS, Trace, TraceRequest

DAY_S = 86_400.0
MINUTES = 1440
BLOCK_S = 60.0
"""Length of the pieces that are shuffled."""

SHAPES: dict[str, tuple[float, ...]] = {
    "azure-conversation": (
        *(0.72, 0.62, 0.55, 0.50, 0.48, 0.50, 0.58, 0.75, 1.00, 1.22, 1.36, 1.42),
        *(1.38, 1.42, 1.46, 1.44, 1.38, 1.28, 1.18, 1.12, 1.08, 1.02, 0.94, 0.82),
    ),
    "azure-code": (
        *(0.28, 0.24, 0.22, 0.20, 0.20, 0.24, 0.40, 0.80, 1.50, 2.00, 2.15, 2.05),
        *(1.65, 1.80, 2.10, 2.10, 1.95, 1.50, 1.00, 0.75, 0.60, 0.50, 0.42, 0.34),
    ),
    "servegen": (
        *(0.95, 0.80, 0.68, 0.60, 0.56, 0.56, 0.62, 0.74, 0.92, 1.10, 1.22, 1.24),
        *(1.16, 1.22, 1.34, 1.38, 1.34, 1.22, 1.10, 1.12, 1.22, 1.26, 1.20, 1.08),
    ),
}
SHAPES["bursts"] = SHAPES["servegen"]
"""The load of each hour, about its middle; the mean is made 1."""

BURSTS = {"bursts": 12.0}
"""Bursts in a day, where they are not FEW_BURSTS."""
FEW_BURSTS = 4.0
LEVEL_SIGMA, NOISE_SIGMA, NOISE_MINUTES, SHIFT_MINUTES = 0.05, 0.05, 10.0, 10.0


@dataclass(frozen=True, slots=True)
class Days:
    """The judged day, and the arrivals of the days before it in seconds before its beginning (negative)."""

    load: DayLoad
    earlier_s: Any
    made: bool
    """Whether the days were resampled."""
    bursts: Any
    """How many times the load each minute of the judged day has because of bursts; 1 where none are known of."""


def make_days(
    trace: Trace, classes: Classes, *, days: int, shape: str, speed: float, seed: int, max_tokens: int
) -> Days:
    """`days` days, of which the last is judged. Raises CannotBeDone where the trace has no request to use."""
    requests = [each for each in trace.requests if each.prompt_tokens + each.output_tokens <= max_tokens]
    if not requests:
        raise CannotBeDone(f"{trace.name} has no request of at most {max_tokens} tokens: raise the limit on tokens")
    generator = np.random.default_rng(seed)
    arrival_s = np.array([each.arrival_s for each in requests])
    arrival_s -= arrival_s[0]
    if made := arrival_s[-1] < DAY_S - 3600.0:
        times_s, picked, bursts = _resampled(arrival_s, shape, days, speed, generator)
    else:
        times_s, picked = _repeated(arrival_s, speed, generator)
        bursts = np.ones(MINUTES)
    begin_s = (days - 1) * DAY_S if made else max(0.0, math.floor((arrival_s[-1] + 3600.0) / DAY_S) - 1) * DAY_S
    judged = (times_s >= begin_s) & (times_s < begin_s + DAY_S)
    load = _load(requests, picked[judged], times_s[judged] - begin_s, classes, generator)
    return Days(load, times_s[times_s < begin_s] - begin_s, made, bursts)


def _resampled(arrival_s: Any, shape: str, days: int, speed: float, generator: Any) -> tuple[Any, Any, Any]:
    """Arrivals on the days' clock, which request each is, and the bursts of the last day."""
    drawn = [_rates(shape, generator) for _ in range(days)]
    rates = np.concatenate([curve * bursts for curve, bursts in drawn]) * speed
    played_s = np.concatenate([[0.0], np.cumsum(rates * 60.0)])
    clock_s = np.arange(len(played_s)) * 60.0
    blocks = _blocks(arrival_s)
    times, picked, begin_s = [], [], 0.0
    while begin_s < played_s[-1]:
        for place in generator.permutation(len(blocks)):
            first, end, length_s = blocks[place]
            times.append(begin_s + arrival_s[first:end] - arrival_s[first])
            picked.append(np.arange(first, end))
            begin_s += length_s
    all_s = np.concatenate(times)
    kept = all_s < played_s[-1]
    return np.interp(all_s[kept], played_s, clock_s), np.concatenate(picked)[kept], drawn[-1][1]


def _blocks(arrival_s: Any) -> list[tuple[int, int, float]]:
    """The trace in pieces of BLOCK_S: first request, end, and length up to the next piece's first request."""
    edges = [0, *np.searchsorted(arrival_s, np.arange(BLOCK_S, arrival_s[-1], BLOCK_S)), len(arrival_s)]
    edges = sorted(set(edges))
    span_s = arrival_s[-1] * (1 + 1 / len(arrival_s)) or 1.0
    starts_s = [*(arrival_s[edge] for edge in edges[:-1]), span_s]
    return [
        (edges[place], edges[place + 1], float(starts_s[place + 1] - starts_s[place]))
        for place in range(len(edges) - 1)
    ]


def _rates(shape: str, generator: Any) -> tuple[Any, Any]:
    """The load of each minute of one day, about 1, without its bursts; and by how much these multiply it."""
    hours = np.array(SHAPES[shape])
    hours = hours / hours.mean()
    minutes = np.arange(MINUTES) + generator.normal(0.0, SHIFT_MINUTES)
    rates = np.interp(minutes / 60.0, np.arange(-1, 26) + 0.5, np.concatenate([hours[-1:], hours, hours[:2]]))
    rates *= math.exp(generator.normal(0.0, LEVEL_SIGMA))
    keep = math.exp(-1.0 / NOISE_MINUTES)
    noise, steps = 0.0, generator.normal(0.0, NOISE_SIGMA * math.sqrt(1 - keep * keep), MINUTES)
    for minute in range(MINUTES):
        noise = keep * noise + steps[minute]
        rates[minute] *= math.exp(noise)
    bursts = np.ones(MINUTES)
    for _ in range(generator.poisson(BURSTS.get(shape, FEW_BURSTS))):
        begin, length = generator.integers(0, MINUTES), generator.integers(3, 11)
        bursts[begin : begin + length] *= generator.uniform(1.3, 1.8)
    return rates, bursts


def _repeated(arrival_s: Any, speed: float, generator: Any) -> tuple[Any, Any]:
    """A whole trace: at another speed each request comes several times, or not always, within half a minute."""
    whole = int(speed)
    copies = whole + (generator.random(len(arrival_s)) < speed - whole)
    picked = np.repeat(np.arange(len(arrival_s)), copies)
    times_s = arrival_s[picked]
    again = np.concatenate([[False], picked[1:] == picked[:-1]])
    times_s = np.maximum(times_s + again * generator.uniform(-30.0, 30.0, len(times_s)), 0.0)
    order = np.argsort(times_s, kind="stable")
    return times_s[order], picked[order]


def _load(requests: list[TraceRequest], picked: Any, times_s: Any, classes: Classes, generator: Any) -> DayLoad:
    output = np.array([each.output_tokens for each in requests])[picked]
    sigma = classes.sigma or 0.0
    noise = np.exp(generator.normal(0.0, 1.0, len(picked)) * sigma + P80_GAUSSIAN * sigma)
    shares = np.cumsum([entry.share for entry in classes.classes])
    drawn = np.searchsorted(shares, generator.random(len(picked)) * shares[-1], side="right")
    return DayLoad(
        times_s,
        np.array([each.prompt_tokens for each in requests])[picked],
        np.array(_uncached(requests))[picked],
        output,
        np.maximum(1, output * noise),
        np.minimum(drawn, len(classes.classes) - 1),
        classes.classes,
    )


def _uncached(requests: list[TraceRequest]) -> list[int]:
    """Prompt tokens to compute, if all earlier prefixes of the trace are in the cache; at least one."""
    seen: set[int] = set()
    tokens = []
    for request in requests:
        known = 0
        while known < len(request.blocks) and request.blocks[known] in seen:
            known += 1
        seen.update(request.blocks)
        tokens.append(max(1, request.prompt_tokens - known * PREFIX_BLOCK_TOKENS))
    return tokens
