"""What was learned of one source of requests."""

from __future__ import annotations

from uellm.sidecar.prediction.window import Window

FORECASTERS = ("source", "bucket", "words")


class LengthSource:
    """One source. `lengths`: logarithms; `residuals`: these less the words' forecasts."""

    __slots__ = ("errors", "lengths", "residuals")

    def __init__(self) -> None:
        self.lengths, self.residuals = Window(), Window()
        self.errors = [0.0] * (len(FORECASTERS) + 1)
        """Of each forecaster, then the number of answers (losses.py)."""
