"""The length predictor at work: it predicts and learns, judges itself, and keeps what it learned over restarts."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

from uellm.sidecar.prediction import LengthQuestion, OnlineLengths, Prediction, Track, store
from uellm.sidecar.prediction.learned import Asked, LearnedLengths
from uellm.sidecar.prediction.learned.lengths import Use
from uellm.sidecar.prediction.online import teaches

LOG = logging.getLogger("uellm.sidecar")

FILE = "lengths.json"
SAVE_EVERY_S = 60.0


class Predictor:
    """`path`: where what was learned is kept; None: nowhere."""

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        self._track = Track()
        self._unsaved = False
        self._model = OnlineLengths()
        self.learned = LearnedLengths()
        """Off until `switch`; runs while `learned.run()` does."""
        if path is not None and path.exists():
            self._load(path)

    def predict(self, question: LengthQuestion) -> Prediction:
        """The length of one answer."""
        return self._model.predict(question)

    def ask(self, prediction: Prediction, use: Use) -> Asked | None:
        """Ask the learned model too, where there is one; `use` is called with a better prediction, later or never."""
        return self.learned.ask(prediction, use)

    def observe(
        self, prediction: Prediction, tokens: int, *, truncated: bool = False, asked: Asked | None = None
    ) -> None:
        """An answer came to so many tokens; `truncated`: the request's own limit ended it."""
        self._model.observe(prediction, tokens, truncated=truncated)
        self._unsaved = True
        if teaches(prediction, tokens, truncated=truncated):
            self.learned.observe(prediction, asked, tokens)
        if truncated:
            return
        self._track.add(prediction, tokens)
        if asked is not None and asked.better is not None:
            self.learned.track.add(asked.better, tokens)

    def figures(self) -> dict[str, float | None]:
        """How good the last predictions were. Takes milliseconds."""
        found = self._track.accuracy()
        return {
            "requests": found.requests,
            "mean_absolute_error_tokens": found.mean_absolute_error_tokens,
            "bucket_share": found.bucket_share,
            "coverage_p80": found.coverage_p80,
            "coverage_p90": found.coverage_p90,
            "tau": found.tau,
            "tau_within_source": found.tau_within_source,
            "tau_source_median": found.tau_source_median,
        }

    async def keep(self) -> None:
        """Save what is new from time to time, until cancelled."""
        while self._path is not None:
            await asyncio.sleep(SAVE_EVERY_S)
            await self.save()

    async def save(self) -> None:
        """Save what is new. A volume that takes nothing is told of, and costs nothing else."""
        if self._path is None or not self._unsaved:
            return
        self._unsaved = False
        try:
            await asyncio.to_thread(store.save, store.dump(self._model), self._path)
        except OSError as error:
            LOG.warning("lengths: what was learned cannot be kept: %s", error.strerror)

    def _load(self, path: Path) -> None:
        try:
            self._model = store.parse(path.read_bytes())
        except (OSError, ValueError) as error:
            LOG.warning("lengths: what was learned before cannot be read (%s); learning anew", type(error).__name__)
