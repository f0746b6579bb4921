"""What a placement should do under load: TTFT, TPOT, and the requests a second at which the targets hold.

With n sequences running, a round without prompts takes D, one that carries X tokens of prompts takes P (pipeline.py).
A request brings p prompt tokens and stays for o rounds, so by Little's law, with lambda requests a second:

    lambda = n / (o * T)       share of rounds with prompts  f = n * p / (o * X)       T = D + f * (P - D)

T is the mean TPOT. Prompts wait for each other: an M/G/1 queue (Pollaczek-Khinchine) whose server takes S = P * p / X a
prompt, X as large as the chunk allows, with utilisation r = lambda * S and lengths as spread as an exponential's:

    mean wait W = S * r / (1 - r),    P(wait > t) = r * exp(-t * r / W)    (exact for M/M/1; heavy traffic otherwise)

    TTFT = quantile of the wait + a round in progress (T) + the prompt's own passage through all stages

Everything is explicit in n, and grows with it; the rate at which targets hold is found by halving over n.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from uellm.planner import constants as c
from uellm.planner.cost.demand import Demand
from uellm.planner.cost.pipeline import Pipeline, all_measured
from uellm.planner.cost.rates import Costs, Links
from uellm.planner.cost.work import StageLoad
from uellm.planner.shape import Steps
from uellm.step_time import StepTime


@dataclass(frozen=True, slots=True)
class Times:
    """Seconds under the expected load, or under the largest that keeps the targets where that is less.

    `ttft_s` is kept by TTFT_QUANTILE of mean requests, `tpot_s` is the mean. `requests_per_s`: the largest rate at
    which both targets hold, without regard to one that not even a request alone meets. `binding`: what ends it there.
    """

    ttft_s: float
    tpot_s: float
    requests_per_s: float
    binding: str = ""
    """One of compute, memory bandwidth, KV cache and link."""
    step: StepTime | None = None

    def end_to_end_s(self, output_tokens: int) -> float:
        """Seconds from arrival to the last token."""
        return self.ttft_s + output_tokens * self.tpot_s


def predict(
    loads: Sequence[StageLoad], links: Links | None, costs: Costs, demand: Demand, kv_tokens: int, sizes: Steps
) -> Times | None:
    """The times of a placement whose KV cache holds so many tokens; None where a device is not measured."""
    if not all_measured(loads):
        return None
    engine = EngineModel(Pipeline(loads, links, costs), kv_tokens, sizes)
    best = engine.most(demand.ttft_s, demand.tpot_s)
    most = engine.rate(best)
    if demand.requests_per_s is None:
        running, rate = 1.0, 0.0
    else:
        rate = min(demand.requests_per_s, most)
        running = engine.halved(lambda n: engine.rate(n) <= rate, best)
    return Times(
        ttft_s=engine.ttft_s(running, rate),
        tpot_s=engine.tpot_s(running),
        requests_per_s=most,
        binding=engine.binding(best),
        step=engine.step_time(best),
    )


class EngineModel:
    """A pipeline with its limits, at any number of running sequences."""

    def __init__(self, pipeline: Pipeline, kv_tokens: int, sizes: Steps) -> None:
        self.pipeline = pipeline
        self.prompt = float(max(1, pipeline.costs.prompt_tokens))
        self.output = float(max(1, pipeline.costs.output_tokens))
        self._chunk = float(sizes.batched_tokens) * len(pipeline.stages)
        self._by_kv = max(1.0, kv_tokens / pipeline.costs.held_tokens)
        self.limit = min(self._by_kv, float(sizes.sequences))

    def room(self, running: float) -> float:
        """Prompt tokens that a round can carry beside the running sequences."""
        return max(1.0, self._chunk - running)

    def tpot_s(self, running: float) -> float:
        """T of the module's docstring."""
        owed = running * self.prompt / self.output  # prompt tokens a round, on average
        carried = min(self.room(running), max(self.prompt, owed))
        without, full = self.pipeline.round_s(0.0, running), self.pipeline.round_s(carried, running)
        return without + min(1.0, owed / carried) * (full - without)

    def rate(self, running: float) -> float:
        """Requests a second that keep so many running."""
        return running / (self.output * self.tpot_s(running))

    def utilisation(self, running: float, rate: float) -> float:
        """Of the server of prompts: 1 and more, and prompts pile up."""
        return rate * self._service_s(running)

    def ttft_s(self, running: float, rate: float) -> float:
        """The TTFT that TTFT_QUANTILE of requests keep; rate 0: that of a request which meets no other."""
        chunk = min(self.prompt, self.room(running))
        others = running if rate else 0.0
        passage = self.pipeline.passage_s(chunk, others)
        passage += max(0.0, self.prompt / chunk - 1) * self.pipeline.round_s(chunk, others)
        if not rate:
            return passage
        busy, service = self.utilisation(running, rate), self._service_s(running)
        if busy >= 1.0:
            return math.inf
        # W / r = S / (1 - r)
        wait = service / (1.0 - busy) * max(0.0, math.log(busy / (1.0 - c.TTFT_QUANTILE)))
        return wait + self.tpot_s(running) + passage

    def most(self, ttft_s: float | None, tpot_s: float | None) -> float:
        """The most sequences that may run while the targets hold that a request alone meets."""
        alone = min(1.0, self.limit)
        tpot = tpot_s if tpot_s is not None and self.tpot_s(alone) <= tpot_s else math.inf
        ttft = ttft_s if ttft_s is not None and self.ttft_s(alone, 0.0) + self.tpot_s(alone) <= ttft_s else math.inf

        def holds(running: float) -> bool:
            rate = self.rate(running)
            if self.utilisation(running, rate) >= c.MOST_UTILISATION:
                return False
            return self.tpot_s(running) <= tpot and self.ttft_s(running, rate) <= ttft

        return self.halved(holds, self.limit)

    def halved(self, holds: Callable[[float], bool], most: float) -> float:
        """The largest number up to `most` that holds, to the tolerance, where all smaller ones hold too."""
        if holds(most):
            return most
        low, high = 0.0, most
        while high - low > c.BISECTION_TOLERANCE * most:
            middle = (low + high) / 2
            low, high = (middle, high) if holds(middle) else (low, middle)
        return max(low, c.BISECTION_TOLERANCE * most)

    def binding(self, running: float) -> str:
        """What a larger rate would need more of."""
        if running >= self._by_kv * (1 - c.BISECTION_TOLERANCE):
            return "KV cache"
        owed = running * self.prompt / self.output
        parts = self.pipeline.slowest(min(self.room(running), owed), running)
        named = {"compute": parts.compute_s, "memory bandwidth": parts.memory_s, "link": parts.link_s}
        return max(named, key=lambda name: named[name])

    def step_time(self, running: float) -> StepTime:
        """The step-time model around so many running sequences, with full chunks."""
        return self.pipeline.step_time(self.room(running), running)

    def _service_s(self, running: float) -> float:
        room = self.room(running)
        return self.pipeline.round_s(room, running) * self.prompt / room
