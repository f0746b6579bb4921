"""What was learned of one source of requests."""

from __future__ import annotations

from uellm.sidecar.prediction.window import Window


class LengthSource:
    """One source. `lengths`: logarithms; `residuals`: these less the words' forecasts."""

    __slots__ = ("lengths", "residuals")

    def __init__(self) -> None:
        self.lengths, self.residuals = Window(), Window()
