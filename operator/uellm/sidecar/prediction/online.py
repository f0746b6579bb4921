"""Output lengths learned while serving, in well under 0.1 ms per request and without a language model.

Three forecasters, each giving quantiles of the length's logarithm:

    source   recent lengths of this tenant, route and template; with too few of them, of tenant and route, then of all
    bucket   the same among prompts of similar length
    words    a linear model over the prompt's hashed words, and its recent errors at this source

The first is used unless another was better by a margin, judged at the narrowest source with enough requests. Quantile
levels are adjusted online until their coverage is right (conformal.py). Of a busy client's answers a share is learned
from (lessons.py), and the words of the others are not looked at unless the forecast comes from them.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from math import exp, log
from random import Random
from typing import NamedTuple

from uellm.sidecar.prediction import features, losses
from uellm.sidecar.prediction.conformal import ConformalLevel
from uellm.sidecar.prediction.lessons import Lessons
from uellm.sidecar.prediction.linear import LinearModel
from uellm.sidecar.prediction.recent import Recent
from uellm.sidecar.prediction.source import LengthSource
from uellm.sidecar.prediction.window import MOST_WINDOWS, Window, add_to_all, first_of
from uellm.sidecar.scheduling import Lengths

UNKNOWN_TOKENS = 256.0
"""Median before any observation; P80 and P90 are then 2 and 3 times that: chat answers in public traces."""

FORECASTERS = ("source", "bucket", "words")
_WORDS = FORECASTERS.index("words")

LEAST_VALUES = 4
"""Values that a source's window needs before it is used."""

_LARGEST = 20.0
"""Cap on a forecast, a logarithm: a linear model may extrapolate to any value."""

Keys = tuple[tuple[Hashable, ...], ...]


@dataclass
class LengthQuestion:
    """What is known of a request before it is answered. `text`: the last turn; a few hundred characters matter.

    Neither this nor a prediction is ever changed; to freeze them would triple the time to make one.
    """

    route: str
    tenant: str = ""
    template: int = 0
    prompt_tokens: int = 0
    text: str = field(default="", repr=False)

    @property
    def length_bits(self) -> int:
        """The power of two of the prompt's length."""
        return self.prompt_tokens.bit_length() or 1

    def sources(self) -> Keys:
        """What the request belongs to, the narrowest first."""
        tenant, route = self.tenant, self.route
        return (tenant, route, self.template), (tenant, route), (route,), ()

    def in_bucket(self) -> Keys:
        """The same among prompts of similar length."""
        tenant, route, bits = self.tenant, self.route, self.length_bits
        return (tenant, route, self.template, bits), (tenant, route, bits), (route, bits), (bits,)


class Wording(NamedTuple):
    """What a prompt's words say: their features, and the linear model's forecast, a logarithm."""

    features: Sequence[int]
    forecast: float


@dataclass
class Prediction:
    """Predicted output tokens: median, P80 and P90. The other fields are needed for learning."""

    p50: float
    p80: float
    p90: float
    question: LengthQuestion = field(repr=False)
    sources: Keys = field(repr=False)
    in_bucket: Keys = field(repr=False)
    """The sources, each with the power of two of the prompt's length."""
    medians: tuple[float | None, ...] = field(repr=False)
    """Logarithms, by forecaster."""
    wording: Wording | None = field(repr=False)
    """None: the words were not looked at."""
    teaches: bool = field(default=True, repr=False)
    """Its answer is to be learned from."""

    def lengths(self, max_tokens: int | None) -> Lengths:
        """For the scheduler, capped at the request's own limit."""
        if max_tokens is None:
            return Lengths(self.p50, self.p80)
        most = float(max(1, max_tokens))
        return Lengths(min(self.p50, most), min(self.p80, most))


class OnlineLengths:
    """The online predictor. Not thread-safe."""

    def __init__(self) -> None:
        self.linear = LinearModel()
        self.sources: Recent[LengthSource] = Recent(LengthSource, MOST_WINDOWS)
        self.buckets: Recent[Window] = Recent(Window, MOST_WINDOWS)
        """Logarithms of lengths."""
        self.errors = losses.by_source(len(FORECASTERS))
        self.levels = {"p80": ConformalLevel(0.8), "p90": ConformalLevel(0.9)}
        self._lessons: Recent[Lessons] = Recent(Lessons, MOST_WINDOWS)
        self._draw = Random(0).random

    def predict(self, question: LengthQuestion, now_s: float | None = None) -> Prediction:
        """The length of one answer. `now_s`: when it is asked; None: the answer is learned from in any case.

        With a time, the prompt's words are looked at only if the forecast comes from them, else when the answer is
        learned from: many words cost more than all the rest.
        """
        sources, in_bucket = question.sources(), question.in_bucket()
        best = losses.best(self.errors, sources)
        wording = self._wording(question, sources) if now_s is None or best == _WORDS else None
        windows = self._windows(sources, in_bucket)
        medians = _medians(windows, wording)
        median = medians[best]
        if median is None:
            best, median = 0, medians[0]
        shift = wording.forecast if best == _WORDS and wording is not None else 0.0
        p50, p80, p90 = self._quantiles(windows[best], shift, median)
        teaches = now_s is None or self._lessons.use(sources[1:2])[0].choose(now_s, self._draw)
        return Prediction(p50, p80, p90, question, sources, in_bucket, medians, wording, teaches)

    def observe(self, prediction: Prediction, tokens: int, *, truncated: bool = False) -> bool:
        """An answer ended after `tokens` tokens; `truncated`: the request's own limit ended it.

        Returns whether it was learned from.
        """
        if not prediction.teaches or not _tells(prediction, tokens, truncated=truncated):
            return False
        length = log(tokens)
        self.levels["p80"].learn(covered=tokens <= prediction.p80)
        self.levels["p90"].learn(covered=tokens <= prediction.p90)
        medians, wording = prediction.medians, prediction.wording
        sources = self.sources.use(prediction.sources)
        if wording is None:  # now that it is worked out, every forecaster is judged by what it would say now
            wording = self._wording(prediction.question, prediction.sources)
            medians = _medians(self._windows(prediction.sources, prediction.in_bucket), wording)
        errors = [None if median is None else abs(length - median) for median in medians]
        losses.learn(self.errors.use(prediction.sources), errors)
        residual = length - wording.forecast
        add_to_all([each.lengths for each in sources], length)
        add_to_all([each.residuals for each in sources], residual)
        add_to_all(self.buckets.use(prediction.in_bucket), length)
        overall = sources[-1]
        self.linear.learn(wording.features, residual - overall.residuals.median())
        return True

    def _windows(self, sources: Keys, in_bucket: Keys) -> tuple[Window | None, ...]:
        """What each forecaster goes by."""
        source, similar = self._filled(sources), first_of(self.buckets.known(in_bucket), LEAST_VALUES)
        if source is None:
            return None, similar, None
        return source.lengths, source.lengths if similar is None else similar, source.residuals

    def _filled(self, sources: Keys) -> LengthSource | None:
        """The first source with enough values."""
        for source in self.sources.known(sources):
            if len(source.lengths.ordered) >= LEAST_VALUES:
                return source
        return None

    def _wording(self, question: LengthQuestion, sources: Keys) -> Wording:
        found = features.of(question.text, question.length_bits, sources[:3])
        return Wording(found, self.linear.predict(found))

    def _quantiles(self, window: Window | None, shift: float, median: float | None) -> tuple[float, float, float]:
        if window is None or median is None:
            return UNKNOWN_TOKENS, 2 * UNKNOWN_TOKENS, 3 * UNKNOWN_TOKENS
        levels = self.levels
        p80, p90 = window.quantile(levels["p80"].level), window.quantile(levels["p90"].level)
        return tokens_of(median), tokens_of(shift + p80), tokens_of(shift + p90)


def _medians(windows: tuple[Window | None, ...], wording: Wording | None) -> tuple[float | None, ...]:
    """Logarithms, by forecaster."""
    lengths, similar, residuals = windows
    return (
        None if lengths is None else lengths.median(),
        None if similar is None else similar.median(),
        None if residuals is None or wording is None else wording.forecast + residuals.median(),
    )


def _tells(prediction: Prediction, tokens: int, *, truncated: bool) -> bool:
    """Whether an answer tells anything.

    How long one would have become that the request's own limit ended is not known, only that it is no shorter: where
    more was predicted than the limit allowed, there is nothing.
    """
    return tokens > 0 and not (truncated and tokens <= prediction.p50)


def tokens_of(logarithm: float) -> float:
    """A length by its logarithm, within reason."""
    if logarithm > 0.0:
        return exp(logarithm if logarithm < _LARGEST else _LARGEST)
    return 1.0
