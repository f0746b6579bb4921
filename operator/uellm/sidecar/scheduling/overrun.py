"""The TPOT targets in flight, and by how much recent steps exceeded the tightest one."""

from __future__ import annotations

from collections import Counter

from uellm.sidecar.scheduling.types import Ticket

OVERRUN_SHARE = 0.8
MAX_OVERRUN_TARGETS = 20.0
"""Share of the tightest TPOT target above which a gap adds to the overrun; the overrun's bound, in such targets."""


class Overrun:
    """Counts the targets of the requests in flight, and adds up the gaps beyond them."""

    def __init__(self) -> None:
        self.seconds = 0.0
        """Time by which recent steps together exceeded the tightest target."""
        self.tightest_s: float | None = None
        """The tightest target in flight."""
        self._targets: Counter[float] = Counter()

    def add(self, ticket: Ticket) -> None:
        """A request is in flight."""
        if (tpot_s := ticket.targets.tpot_s) is not None:
            self._targets[tpot_s] += 1
            if self.tightest_s is None or tpot_s < self.tightest_s:
                self.tightest_s = tpot_s

    def remove(self, ticket: Ticket) -> None:
        """A request is in flight no more."""
        if (tpot_s := ticket.targets.tpot_s) is not None:
            self._targets[tpot_s] -= 1
            if not self._targets[tpot_s]:
                del self._targets[tpot_s]
                self.tightest_s = min(self._targets, default=None)

    def take(self, gap_s: float) -> None:
        """A step took so long for each token."""
        tpot_s = self.tightest_s
        if tpot_s is None:
            self.seconds = 0.0
            return
        seconds, most_s = self.seconds + gap_s - OVERRUN_SHARE * tpot_s, MAX_OVERRUN_TARGETS * tpot_s
        if seconds > most_s:
            seconds = most_s
        self.seconds = seconds if seconds > 0.0 else 0.0
