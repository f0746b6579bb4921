"""The predicted performance of an embedder or a reranker: one pass over the prompt, and no tokens out.

A step takes whole prompts, as many as it has room for. With R(t) the seconds of a step of t tokens, lambda requests per
second of p tokens each, and X the most tokens of a step:

    tokens of a step  t = lambda * p * R(t)                       what arrives during one step is the next one's work
    utilisation       r = lambda * S,   S = R(X) * p / X          the engine's seconds for each prompt in full steps
    wait              P(wait > s) = r * exp(-s * (1 - r) / S)     M/M/1
    answer            before the engine + quantile of the wait + the step in progress + the step that it is in

The answer is whole at once: TTFT is the time of the whole answer, and there is no TPOT.
"""

from __future__ import annotations

import math

from uellm.planner import constants as c
from uellm.planner.cost.pipeline import Pipeline
from uellm.planner.shape import Steps
from uellm.step_time import StepTime


class PoolingModel:
    """A pipeline that only computes prompts."""

    def __init__(self, pipeline: Pipeline, kv_tokens: int, sizes: Steps) -> None:
        """`kv_tokens`: of the KV cache; 0: the model keeps none, and nothing limits it."""
        self.pipeline = pipeline
        self.prompt = float(max(1, pipeline.costs.prompt_tokens))
        most = min(sizes.batched_tokens * len(pipeline.stages), sizes.sequences * self.prompt)
        self.room = max(self.prompt, min(most, kv_tokens) if kv_tokens else most)

    def answer_s(self, rate: float) -> float:
        """The TTFT_QUANTILE quantile of the seconds of a mean request's answer; with rate 0, those of a lone one."""
        alone = self.pipeline.passage_s(self.prompt, 0.0) + self.pipeline.costs.before_engine_s
        if not rate:
            return alone
        service = self._round_s(self.room) * self.prompt / self.room
        busy = rate * service
        if busy >= 1.0:
            return math.inf
        wait = service / (1.0 - busy) * max(0.0, math.log(busy / (1.0 - c.TTFT_QUANTILE)))
        step = self._round_s(self._tokens(rate))
        return wait + step + max(step + self.pipeline.costs.before_engine_s, alone)

    def most_per_s(self, target_s: float | None) -> float:
        """The largest rate with which the target holds. A target that a lone request misses is ignored."""
        full = c.MOST_UTILISATION * self.room / (self.prompt * self._round_s(self.room))
        if target_s is None or (alone := self.answer_s(0.0)) > target_s:
            return full
        enough_s = self.pipeline.costs.efficiency.target_share * target_s
        within_s = target_s if alone > enough_s else enough_s
        if self.answer_s(full) <= within_s:
            return full
        low, high = 0.0, full
        while high - low > c.BISECTION_TOLERANCE * full:
            middle = (low + high) / 2
            low, high = (middle, high) if self.answer_s(middle) <= within_s else (low, middle)
        return max(low, c.BISECTION_TOLERANCE * full)

    @property
    def binding(self) -> str:
        """The resource that limits full steps."""
        parts = self.pipeline.slowest(self.room, 0.0)
        named = {"compute": parts.compute_s, "memory bandwidth": parts.memory_s, "link": parts.link_s}
        return max(named, key=lambda name: named[name])

    def step_time(self) -> StepTime:
        """The step-time model of full steps."""
        return self.pipeline.step_time(self.room, 1.0).folded(self.room)

    def _tokens(self, rate: float) -> float:
        """Tokens of a step at this rate: the fixed point, or the most of a step."""
        tokens = self.prompt
        for _ in range(c.POOLING_ROUNDS):
            tokens = min(self.room, max(self.prompt, rate * self.prompt * self._round_s(tokens)))
        return tokens

    def _round_s(self, tokens: float) -> float:
        stages = len(self.pipeline.stages)
        return self.pipeline.round_s(tokens, 0.0, min(float(stages), tokens / self.prompt))
