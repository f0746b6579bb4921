"""The learned model beside the online one: asked without waiting, and used where it was more accurate.

Its answers are medians. P80 and P90 follow from its recent errors, by source and overall, with the same windows and
levels as those of the online forecasters.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from math import isnan, log

from uellm.sidecar.prediction import losses
from uellm.sidecar.prediction.accuracy import Track
from uellm.sidecar.prediction.conformal import ConformalLevel
from uellm.sidecar.prediction.learned.frames import FrameKind, floats, row
from uellm.sidecar.prediction.learned.process import Child
from uellm.sidecar.prediction.online import LEAST_VALUES, Prediction, tokens_of
from uellm.sidecar.prediction.recent import Recent
from uellm.sidecar.prediction.window import MOST_WINDOWS, Window, add_to_all, first_of

MOST_WAITING = 1024
"""Requests that wait to be sent to the model, at most; further ones are not sent."""

MOST_AT_ONCE = 256
"""Requests in a batch; the next batch is sent when this one is answered."""

LESSONS = 32
"""Real lengths that are sent to the model together."""

PATIENCE_S = 30.0
"""A batch takes milliseconds; after this time without an answer the process is killed."""

Use = Callable[[Prediction], None]


@dataclass(eq=False)
class Asked:
    """A request that was sent to the learned model."""

    prediction: Prediction
    use: Use | None
    """Called with a better prediction; None after the answer."""
    forecast: float | None = None
    """The model's answer, a logarithm."""
    better: Prediction | None = None
    """The prediction from `forecast` and the model's recent errors; None while these are not known."""


@dataclass(frozen=True)
class Trained:
    """The last training."""

    rows: int
    seconds: float
    resident_bytes: int


class LearnedLengths:
    """Asks the model without ever waiting for it; if it fails, only its answers are missing. Off until `switch`."""

    def __init__(self, child: Callable[..., Child] = Child) -> None:
        self.child = child(self._took, self._lost)
        self.track = Track()
        self.answers = self.used = self.trainings = 0
        self.answer_seconds = 0.0
        self.trained: Trained | None = None
        self._waiting: deque[Asked] = deque()
        self._out: list[Asked] = []
        self._lessons: list[bytes] = []
        self._patience: asyncio.TimerHandle | None = None
        self._levels = {"p80": ConformalLevel(0.8), "p90": ConformalLevel(0.9)}
        self._forget()

    def switch(self, *, on: bool) -> None:
        """Switch the learned model on or off."""
        self.child.wanted = on

    async def run(self) -> None:
        """Keep the model's process running while it is switched on, until cancelled."""
        await self.child.run()

    def ask(self, prediction: Prediction, use: Use) -> Asked | None:
        """Ask about a request; `use` is called later with a better prediction, or never."""
        if self.trained is None or len(self._waiting) >= MOST_WAITING:
            return None
        asked = Asked(prediction, use)
        if not self._waiting and not self._out:
            asyncio.get_running_loop().call_soon(self._send)
        self._waiting.append(asked)
        return asked

    def observe(self, prediction: Prediction, asked: Asked | None, tokens: int) -> None:
        """Learn from an answer of `tokens` tokens."""
        if self.child.pid is None:
            return
        self._lessons.append(row(prediction, tokens))
        if len(self._lessons) >= LESSONS:
            self._teach()
        if asked is not None and asked.forecast is not None:
            self._judge(prediction, asked.forecast, asked.better, tokens)

    def figures(self) -> dict[str, float | None]:
        """For the metrics; empty if it is off. Takes milliseconds."""
        if not self.child.wanted:
            return {}
        found = self.track.accuracy()
        trained = self.trained or Trained(0, 0.0, 0)
        return {
            "running": float(self.child.pid is not None),
            "starts": self.child.starts,
            "trainings": self.trainings,
            "trained_rows": trained.rows,
            "training_seconds": trained.seconds,
            "resident_bytes": trained.resident_bytes,
            "answers": self.answers,
            "answers_used": self.used,
            "answer_seconds": self.answer_seconds,
            "mean_absolute_error_tokens": found.mean_absolute_error_tokens,
            "coverage_p80": found.coverage_p80,
            "coverage_p90": found.coverage_p90,
            "tau": found.tau,
        }

    def _send(self) -> None:
        """Send the next batch, if there is one and the last is answered."""
        if self._out or not self._waiting:
            return
        self._teach()
        batch = [self._waiting.popleft() for _ in range(min(len(self._waiting), MOST_AT_ONCE))]
        if self.child.send(FrameKind.ASK, b"".join(row(asked.prediction) for asked in batch)):
            self._out = batch
            self._patience = asyncio.get_running_loop().call_later(PATIENCE_S, self.child.kill)
        else:
            self._give_up(batch)

    def _teach(self) -> None:
        if self._lessons:
            self.child.send(FrameKind.TEACH, b"".join(self._lessons))
            self._lessons.clear()

    def _took(self, kind: FrameKind, content: bytes) -> None:
        values = floats(content)
        if kind is FrameKind.TRAINED:
            rows, seconds, resident_bytes = values
            self.trained = Trained(int(rows), seconds, int(resident_bytes))
            self.trainings += 1
        elif kind is FrameKind.ANSWER:
            batch = self._rest()
            self.answer_seconds += values[0]
            for asked, forecast in zip(batch, values[1:], strict=False):
                self._answered(asked, forecast)
            self._send()

    def _answered(self, asked: Asked, forecast: float) -> None:
        use, asked.use = asked.use, None
        if isnan(forecast) or use is None:
            return
        self.answers += 1
        asked.forecast = forecast
        asked.better = self._with_error(asked.prediction, forecast)
        if asked.better is not None and losses.best(self._losses, asked.prediction.sources) == 1:
            self.used += 1
            use(asked.better)

    def _with_error(self, prediction: Prediction, forecast: float) -> Prediction | None:
        window = first_of(self._errors.known(prediction.sources), LEAST_VALUES)
        if window is None:
            return None
        p50, p80, p90 = (
            tokens_of(forecast + window.quantile(level))
            for level in (0.5, self._levels["p80"].level, self._levels["p90"].level)
        )
        return replace(prediction, p50=p50, p80=p80, p90=p90)

    def _judge(self, prediction: Prediction, forecast: float, better: Prediction | None, tokens: int) -> None:
        length = log(tokens)
        add_to_all(self._errors.use(prediction.sources), length - forecast)
        if better is None:
            return
        self._levels["p80"].learn(covered=tokens <= better.p80)
        self._levels["p90"].learn(covered=tokens <= better.p90)
        errors = [abs(length - log(each.p50)) for each in (prediction, better)]
        losses.learn(self._losses.use(prediction.sources), errors)

    def _rest(self) -> list[Asked]:
        """The batch in flight, which ends with this call."""
        if self._patience is not None:
            self._patience.cancel()
        batch, self._out = self._out, []
        return batch

    def _give_up(self, batch: list[Asked]) -> None:
        """Drop all requests that wait for an answer."""
        for asked in (*batch, *self._waiting):
            asked.use = None
        self._waiting.clear()

    def _lost(self) -> None:
        """The process ended: the next one learns from nothing, so its errors are forgotten as well."""
        self._give_up(self._rest())
        self._lessons.clear()
        self._forget()

    def _forget(self) -> None:
        self.trained = None
        self._errors: Recent[Window] = Recent(Window, MOST_WINDOWS)
        """Of the model's answers, by source."""
        self._losses = losses.by_source(2)
        """Of the online prediction and the model's."""
