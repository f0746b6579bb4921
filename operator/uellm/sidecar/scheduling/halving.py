"""Sums that halve with time, without steps of decay: what is added later counts for more."""

from __future__ import annotations

REBASE_HALVINGS = 40.0


class HalvingScale:
    """The scale of such a sum: it doubles every half-life. `start_s`: when it is 1; None: at the first call."""

    def __init__(self, half_life_s: float, start_s: float | None = None) -> None:
        self._half_life_s = half_life_s
        self._start_s = start_s

    def at(self, now_s: float) -> float:
        """By which to multiply what is added now. Call `rebased` before."""
        return float(2.0 ** self._halvings(now_s))

    def rebased(self, now_s: float) -> float:
        """1, or by which to multiply all that was added, because the scale begins anew at 1.

        After a long silence that is 0; its inverse would be too large for a float. The clock of a machine that has been
        up for long is far from 0, too.
        """
        halvings = self._halvings(now_s)
        if halvings <= REBASE_HALVINGS:
            return 1.0
        self._start_s = now_s
        return float(2.0**-halvings)

    def _halvings(self, now_s: float) -> float:
        if self._start_s is None:
            self._start_s = now_s
        return (now_s - self._start_s) / self._half_life_s
