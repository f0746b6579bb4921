"""The length predictor as a service: predicts, learns, measures its accuracy, and keeps its state over restarts."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

from uellm.sidecar.prediction import LengthQuestion, OnlineLengths, Prediction, Track, store
from uellm.sidecar.prediction.learned import Asked, LearnedLengths
from uellm.sidecar.prediction.learned.lengths import Use

LOG = logging.getLogger("uellm.sidecar")

FILE = "lengths.json"
SAVE_EVERY_S = 60.0


class Predictor:
    """`path`: file of the learned state; None: it is not kept."""

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        self._track = Track()
        self._unsaved = False
        self._saving: asyncio.Task[None] | None = None
        """The last save. It goes on where the coroutine that began it is cancelled."""
        self._model = OnlineLengths()
        self.learned = LearnedLengths()
        """Off until `switch`; runs while `learned.run()` does."""
        if path is not None and path.exists():
            self._load(path)

    def predict(self, question: LengthQuestion, now_s: float | None = None) -> Prediction:
        """Predict the length of one answer. Without a time, or if a learned model runs, it is learned from for sure."""
        return self._model.predict(question, now_s if self.learned.child.pid is None else None)

    def ask(self, prediction: Prediction, use: Use) -> Asked | None:
        """Also ask the learned model, if there is one; `use` is called later with a better prediction, or never."""
        return self.learned.ask(prediction, use)

    def observe(
        self, prediction: Prediction, tokens: int, *, truncated: bool = False, asked: Asked | None = None
    ) -> None:
        """An answer ended after `tokens` tokens; `truncated`: the request's own limit ended it."""
        taught = self._model.observe(prediction, tokens, truncated=truncated)
        self._unsaved = True
        if taught and prediction.wording is not None:
            self.learned.observe(prediction, asked, tokens)
        if truncated:
            return
        self._track.add(prediction, tokens)
        if asked is not None and asked.better is not None:
            self.learned.track.add(asked.better, tokens)

    def figures(self) -> dict[str, float | None]:
        """Accuracy of the last predictions. Takes milliseconds."""
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
        """Save changed state every `SAVE_EVERY_S` until cancelled."""
        while self._path is not None:
            await asyncio.sleep(SAVE_EVERY_S)
            await self.save()

    async def save(self) -> None:
        """Save changed state. A failed write is logged and has no other effect."""
        if self._saving is not None:
            await asyncio.wait({self._saving})  # one at a time, also where who began it waits no more
        if self._path is None or not self._unsaved:
            return
        self._unsaved = False
        taken = store.snapshot(self._model)
        self._saving = asyncio.create_task(asyncio.to_thread(store.save, store.dump(taken), self._path))
        try:
            await asyncio.shield(self._saving)
        except OSError as error:
            LOG.warning("lengths: the learned state cannot be saved: %s", error.strerror)

    def _load(self, path: Path) -> None:
        try:
            self._model = store.parse(path.read_bytes())
        except (OSError, ValueError) as error:
            LOG.warning(
                "lengths: the saved state cannot be read (%s); learning starts from nothing", type(error).__name__
            )
