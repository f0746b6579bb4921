"""Requests that arrive at a rate, whether or not earlier ones have ended, step by step.

Gaps between arrivals are spread like those of a Poisson process, by a fixed sequence: the same load gives the same
times.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from uellm.planner import constants as c
from uellm.planner.cost.replay import Engine, Limits, Served


@dataclass(frozen=True, slots=True)
class OpenLoop:
    """Requests at a rate."""

    requests_per_s: float
    requests: int | None
    """In all; None: c.REQUESTS_AT_A_RATE."""
    prompt_tokens: int
    output_tokens: int


def open_loop(
    load: OpenLoop, limits: Limits, step_s: Callable[[int, int], float], before_engine_s: float = 0.0
) -> Served:
    """What clients see, given `step_s(prompt tokens, sequences)` in seconds."""
    arrivals = _arrivals(load.requests_per_s, load.requests or c.REQUESTS_AT_A_RATE)
    engine = Engine(load.prompt_tokens, load.output_tokens, limits)
    now = waited = decoded = 0.0
    tokens = next_one = first_tokens = 0
    while first_tokens < len(arrivals) or engine.decoding:
        if not engine.busy:
            now = max(now, arrivals[next_one])
        arrived = next_one
        while arrived < len(arrivals) and arrivals[arrived] <= now:
            arrived += 1
        engine.arrive(arrived - next_one)
        next_one = arrived
        step = engine.plan()
        each = step_s(step.prompt_tokens, step.sequences)
        same = engine.alike(step)
        if same > 1 and next_one < len(arrivals):
            same = max(1, min(same, math.ceil((arrivals[next_one] - now) / each)))
        now += each * same
        decoded += each * same * step.sequences
        tokens += step.sequences * same
        for _ in range(step.first_tokens):
            waited += now - arrivals[first_tokens]
            first_tokens += 1
        engine.apply(step, same)
    count = len(arrivals)
    return Served(waited / count + before_engine_s, decoded / max(1, tokens), now - arrivals[0], count)


def _arrivals(requests_per_s: float, count: int) -> list[float]:
    """Seconds, ascending, from 0."""
    times, now = [], 0.0
    for index in range(count):
        times.append(now)
        now -= math.log1p(-_uniform(index)) / requests_per_s
    return times


def _uniform(index: int) -> float:
    """A fixed sequence of numbers that look random, 0 to 1 (splitmix64; Steele, Lea and Flood 2014)."""
    mask = (1 << 64) - 1
    mixed = (index + 1) * 0x9E3779B97F4A7C15 & mask
    mixed = (mixed ^ mixed >> 30) * 0xBF58476D1CE4E5B9 & mask
    mixed = (mixed ^ mixed >> 27) * 0x94D049BB133111EB & mask
    return ((mixed ^ mixed >> 31) >> 11) / (1 << 53)
