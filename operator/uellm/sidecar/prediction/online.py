"""Output lengths learned while serving, in well under 0.1 ms per request and without a language model.

Three forecasters, each giving quantiles of the length's logarithm:

    source   recent lengths of this tenant, route and template; with too few of them, of tenant and route, then of all
    bucket   the same among prompts of similar length
    words    a linear model over the prompt's hashed words, and its recent errors at this source

The first is used unless another was better by a margin, judged at the narrowest source with enough requests. Quantile
levels are adjusted online until their coverage is right (conformal.py).
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from math import exp, log

from uellm.sidecar.prediction import features
from uellm.sidecar.prediction.conformal import ConformalLevel
from uellm.sidecar.prediction.linear import LinearModel
from uellm.sidecar.prediction.losses import Losses
from uellm.sidecar.prediction.window import SlidingWindows, Window
from uellm.sidecar.scheduling import Lengths

UNKNOWN_TOKENS = 256.0
"""Median before any observation; P80 and P90 are then 2 and 3 times that: chat answers in public traces."""

LEAST_VALUES = 4
"""Values that a source's window needs before it is used."""

FORECASTERS = ("source", "bucket", "words")

_LARGEST = 20.0
"""Cap on a forecast, a logarithm: a linear model may extrapolate to any value."""

Keys = tuple[tuple[Hashable, ...], ...]


@dataclass(frozen=True)
class LengthQuestion:
    """What is known of a request before it is answered. `text`: the last turn; a few hundred characters matter."""

    route: str
    tenant: str = ""
    template: int = 0
    prompt_tokens: int = 0
    text: str = field(default="", repr=False)

    def sources(self) -> Keys:
        """What the request belongs to, the narrowest first."""
        return (self.tenant, self.route, self.template), (self.tenant, self.route), (self.route,), ()


@dataclass(frozen=True)
class Prediction:
    """Predicted output tokens: median, P80 and P90. The other fields are needed for learning."""

    p50: float
    p80: float
    p90: float
    sources: Keys = field(repr=False)
    bucket: int = field(repr=False)
    features: Sequence[int] = field(repr=False)
    words: float = field(repr=False)
    """The linear model's forecast, a logarithm."""
    medians: tuple[float | None, ...] = field(repr=False)
    """Logarithms, by forecaster."""
    prompt_tokens: int = field(default=0, repr=False)

    def lengths(self, max_tokens: int | None) -> Lengths:
        """For the scheduler, capped at the request's own limit."""
        most = float("inf") if max_tokens is None else float(max(1, max_tokens))
        return Lengths(min(self.p50, most), min(self.p80, most))


class OnlineLengths:
    """The online predictor. Not thread-safe."""

    def __init__(self) -> None:
        self.linear = LinearModel()
        self.windows = {name: SlidingWindows() for name in FORECASTERS}
        self.losses = Losses(len(FORECASTERS))
        self.levels = {"p80": ConformalLevel(0.8), "p90": ConformalLevel(0.9)}

    def predict(self, question: LengthQuestion) -> Prediction:
        """The length of one answer."""
        sources, bucket = question.sources(), max(question.prompt_tokens, 1).bit_length()
        found = features.of(question.text, question.prompt_tokens, *sources[:3])
        words = self.linear.predict(found)
        by_source, in_bucket, residuals = self._windows(sources, bucket)
        forecasts = (by_source, 0.0), (in_bucket, 0.0), (residuals, words)
        medians = tuple([None if each is None else shift + each.quantile(0.5) for each, shift in forecasts])
        best = self.losses.best(sources)
        if medians[best] is None:
            best = 0
        p50, p80, p90 = self._quantiles(*forecasts[best], medians[best])
        return Prediction(p50, p80, p90, sources, bucket, found, words, medians, question.prompt_tokens)

    def observe(self, prediction: Prediction, tokens: int, *, truncated: bool = False) -> None:
        """An answer ended after `tokens` tokens; `truncated`: the request's own limit ended it."""
        if not teaches(prediction, tokens, truncated=truncated):
            return
        length = log(tokens)
        self.levels["p80"].learn(covered=tokens <= prediction.p80)
        self.levels["p90"].learn(covered=tokens <= prediction.p90)
        self.losses.learn(prediction.sources, [None if m is None else abs(length - m) for m in prediction.medians])
        keys = prediction.sources[::-1]
        residual = length - prediction.words
        self.windows["source"].add(keys, length)
        self.windows["bucket"].add(_in_bucket(keys, prediction.bucket), length)
        self.windows["words"].add(keys, residual)
        overall = self.windows["words"].by_key[()]
        self.linear.learn(prediction.features, residual - overall.quantile(0.5))

    def _quantiles(self, window: Window | None, shift: float, median: float | None) -> tuple[float, float, float]:
        if window is None or median is None:
            return UNKNOWN_TOKENS, 2 * UNKNOWN_TOKENS, 3 * UNKNOWN_TOKENS
        p80 = shift + window.quantile(self.levels["p80"].level)
        p90 = shift + window.quantile(self.levels["p90"].level)
        return tokens_of(median), tokens_of(p80), tokens_of(p90)

    def _windows(self, sources: Keys, bucket: int) -> tuple[Window | None, Window | None, Window | None]:
        by_source = self.windows["source"].first(sources, LEAST_VALUES)
        in_bucket = self.windows["bucket"].first(_in_bucket(sources, bucket), LEAST_VALUES)
        return by_source, in_bucket or by_source, self.windows["words"].first(sources, LEAST_VALUES)


def teaches(prediction: Prediction, tokens: int, *, truncated: bool) -> bool:
    """Whether there is something to learn from an answer.

    How long one would have become that the request's own limit ended is not known, only that it is no shorter: where
    more was predicted than the limit allowed, there is nothing.
    """
    return tokens > 0 and not (truncated and tokens <= prediction.p50)


def tokens_of(logarithm: float) -> float:
    """A length by its logarithm, within reason."""
    return max(1.0, exp(min(logarithm, _LARGEST)))


def _in_bucket(sources: Keys, bucket: int) -> Keys:
    return tuple([(*source, bucket) for source in sources])
