"""Sums that halve with time, without steps of decay: what is added later counts for more."""

from __future__ import annotations

REBASE_HALVINGS = 40.0


class HalvingScale:
    """The scale of such a sum: it doubles every half-life. `start_s`: when it is 1; None: at the first call."""

    def __init__(self, half_life_s: float, start_s: float | None = None) -> None:
        self._half_life_s = half_life_s
        self._start_s = start_s

    def at(self, now_s: float) -> tuple[float, float]:
        """By which to multiply what is added now, and all that was added before.

        The latter is 1, or less where the scale begins anew at 1. After a long silence it is 0; its inverse would be
        too large for a float. The clock of a machine that has been up for long is far from 0, too.
        """
        if self._start_s is None:
            self._start_s = now_s
        halvings = (now_s - self._start_s) / self._half_life_s
        if halvings <= REBASE_HALVINGS:
            return float(2.0**halvings), 1.0
        self._start_s = now_s
        return 1.0, float(2.0**-halvings)
