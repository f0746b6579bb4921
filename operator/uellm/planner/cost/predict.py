"""The predicted performance of a placement: TTFT, TPOT, and the requests per second at which the targets hold.

With n sequences running, a round without prompts takes D, and one with X prompt tokens takes P (pipeline.py). A request
brings p prompt tokens and stays for o rounds. So by Little's law, with lambda requests per second:

    lambda = n / (o * T)       share of rounds with prompts  f = n * p / (o * X)       T = D + f * (P - D)

T is the mean TPOT. Prompts wait for each other in an M/G/1 queue (Pollaczek-Khinchine). Its server takes S = P * p / X
per prompt, with X as large as the chunk allows; r = lambda * S is its utilisation. Prompt lengths are assumed to have
the variance of an exponential distribution:

    mean wait W = S * r / (1 - r),    P(wait > t) = r * exp(-t * r / W)    (exact for M/M/1; heavy traffic otherwise)

    TTFT = before the engine + quantile of the wait + a round in progress (T) + the prompt's passage through all stages

All these are explicit in n and grow with it. The largest rate at which the targets hold is found by bisection over n.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from uellm.planner import constants as c
from uellm.planner.cost.demand import Demand
from uellm.planner.cost.pipeline import Pipeline, all_measured
from uellm.planner.cost.pooling import PoolingModel
from uellm.planner.cost.rates import Costs, Links
from uellm.planner.cost.work import StageLoad
from uellm.planner.shape import Steps
from uellm.step_time import StepTime


@dataclass(frozen=True, slots=True)
class Times:
    """Times under the expected load, or under the largest load that meets the targets if that is less."""

    ttft_s: float
    """The TTFT_QUANTILE quantile over mean requests."""
    tpot_s: float
    """The mean; 0 for answers without output tokens."""
    requests_per_s: float
    """The largest rate at which the targets hold. A target that even a single request misses is ignored."""
    binding: str = ""
    """The resource that limits that rate: compute, memory bandwidth, KV cache or link."""
    step: StepTime | None = None
    """The step-time model near that rate."""

    def end_to_end_s(self, output_tokens: int) -> float:
        """Seconds from arrival to the last token."""
        return self.ttft_s + output_tokens * self.tpot_s


def predict(
    loads: Sequence[StageLoad], links: Links | None, costs: Costs, demand: Demand, kv_tokens: int, sizes: Steps
) -> Times | None:
    """The times of a placement whose KV cache holds `kv_tokens`; None if a device is not measured."""
    if not all_measured(loads):
        return None
    if not demand.output_tokens:
        return _pooling(PoolingModel(Pipeline(loads, links, costs), kv_tokens, sizes), demand)
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


def tpot_ms(times: Times) -> float | None:
    """The TPOT in milliseconds; None for answers without output tokens."""
    return times.tpot_s * 1e3 or None


def _pooling(engine: PoolingModel, demand: Demand) -> Times:
    most = engine.most_per_s(demand.ttft_s)
    rate = min(demand.requests_per_s or 0.0, most)
    return Times(engine.answer_s(rate), 0.0, most, engine.binding, engine.step_time())


class EngineModel:
    """A pipeline with its limits, as a function of the number of running sequences."""

    def __init__(self, pipeline: Pipeline, kv_tokens: int, sizes: Steps) -> None:
        self.pipeline = pipeline
        self.prompt = float(max(1, pipeline.costs.prompt_tokens))
        self.output = float(max(1, pipeline.costs.output_tokens))
        self._batch = float(sizes.batched_tokens)
        self._chunk = self._batch * len(pipeline.stages)
        self._rows = pipeline.stages[-1].load.rows
        self._by_kv = max(1.0, kv_tokens / pipeline.costs.held_tokens)
        self.limit = min(self._by_kv, float(sizes.sequences))

    def room(self, running: float) -> float:
        """Prompt tokens that a round has room for besides the running sequences and what they drafted."""
        return max(1.0, self._chunk - running * self._rows)

    def tpot_s(self, running: float) -> float:
        """The mean TPOT, T in the module's docstring."""
        owed = running * self.prompt / self.output  # mean prompt tokens per round
        carried = min(self.room(running), max(self.prompt, owed))
        without, full = self.pipeline.round_s(0.0, running), self._round_s(carried, running)
        return without + min(1.0, owed / carried) * (full - without)

    def rate(self, running: float) -> float:
        """Requests per second that keep this many sequences running."""
        return running / (self.output * self.tpot_s(running))

    def utilisation(self, running: float, rate: float) -> float:
        """Utilisation of the server of prompts; at 1 or more, the queue of prompts grows without limit."""
        return rate * self._service_s(running)

    def ttft_s(self, running: float, rate: float) -> float:
        """The TTFT_QUANTILE quantile of the TTFT; with rate 0, the TTFT of a single request."""
        passage = self._passage_s(running, running if rate else 0.0) + self.pipeline.costs.before_engine_s
        if not rate:
            return passage
        busy, service = self.utilisation(running, rate), self._service_s(running)
        if busy >= 1.0:
            return math.inf
        # W / r = S / (1 - r)
        wait = service / (1.0 - busy) * max(0.0, math.log(busy / (1.0 - c.TTFT_QUANTILE)))
        return wait + self.tpot_s(running) + passage

    def _passage_s(self, running: float, others: float) -> float:
        """Seconds of a prompt through all stages, beside `others`: its first chunk, then the chunks behind it."""
        room = self.room(running)
        first, carried = min(self.prompt, room / len(self.pipeline.stages)), min(self.prompt, room)
        behind = max(0.0, self.prompt - first) / carried * self._round_s(carried, others)
        return self.pipeline.passage_s(first, others) + behind

    def most(self, ttft_s: float | None, tpot_s: float | None) -> float:
        """The most running sequences with which the targets hold. A target that a single request misses is ignored."""
        alone = min(1.0, self.limit)
        tpot = self._most_s(tpot_s, self.tpot_s(alone))
        ttft = self._most_s(ttft_s, self.ttft_s(alone, 0.0) + self.tpot_s(alone))

        def holds(running: float) -> bool:
            rate = self.rate(running)
            if self.utilisation(running, rate) >= c.MOST_UTILISATION:
                return False
            return self.tpot_s(running) <= tpot and self.ttft_s(running, rate) <= ttft

        return self.halved(holds, self.limit)

    def _most_s(self, target_s: float | None, alone_s: float) -> float:
        """What may be predicted for a target, where a single request takes `alone_s`."""
        if target_s is None or alone_s > target_s:
            return math.inf
        enough_s = self.pipeline.costs.efficiency.target_share * target_s
        return target_s if alone_s > enough_s else enough_s

    def halved(self, holds: Callable[[float], bool], most: float) -> float:
        """The largest number up to `most` that `holds`, by bisection; all smaller numbers must hold, too."""
        if holds(most):
            return most
        low, high = 0.0, most
        while high - low > c.BISECTION_TOLERANCE * most:
            middle = (low + high) / 2
            low, high = (middle, high) if holds(middle) else (low, middle)
        return max(low, c.BISECTION_TOLERANCE * most)

    def binding(self, running: float) -> str:
        """The resource that limits the rate."""
        if running >= self._by_kv * (1 - c.BISECTION_TOLERANCE):
            return "KV cache"
        owed = running * self.prompt / self.output
        parts = self.pipeline.slowest(min(self.room(running), owed), running)
        named = {"compute": parts.compute_s, "memory bandwidth": parts.memory_s, "link": parts.link_s}
        return max(named, key=lambda name: named[name])

    def step_time(self, running: float) -> StepTime:
        """The step-time model around this number of running sequences, with full chunks."""
        room = self.room(running)
        return self.pipeline.step_time(room, running).folded(room)

    def _service_s(self, running: float) -> float:
        room = self.room(running)
        return self._round_s(room, running) * self.prompt / room

    def _round_s(self, prefill_tokens: float, running: float) -> float:
        return self.pipeline.round_s(prefill_tokens, running, prefill_tokens / self._batch)
