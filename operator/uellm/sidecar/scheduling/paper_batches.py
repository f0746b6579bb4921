"""The paper's static batches, for comparison only. A batch is sent whole, and the next one follows when it is done.

Published: sort by SLO, and grow a batch while `w1 * Tl + w2 * To <= threshold` with
`Tl = (slo + L) * (|batch| + 1) * L1` and `To = (length - O) * (|batch| + 1) * L2`, L and O the batch's largest SLO and
predicted length. The formula adds SLOs although it means their spread, and it rewards a short request in a long batch.
SLO-ODBS here repairs both: it uses the spread of the deadlines and the padded tokens, each relative to the largest of
the batch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from uellm.sidecar.scheduling.engineview import EngineView
from uellm.sidecar.scheduling.order import Key, earliest_deadline, first_come, shortest_predicted
from uellm.sidecar.scheduling.types import Ticket

SPREAD_WEIGHT = 0.5
"""The paper's w1 and w2, equal."""

THRESHOLD = 10.0
"""Bound of weighted waste times batch size: ten entirely different requests."""


@dataclass(frozen=True, slots=True)
class Rule:
    """How batches are composed."""

    key: Callable[[Ticket], Key]
    """Order of the waiting requests."""
    most: int
    """Largest number of requests in a batch."""
    composed: bool = False
    """Whether similar requests are kept together."""


RULES = {
    "paper-FIFO": Rule(first_come, 10),
    "paper-ODBS": Rule(shortest_predicted, 10),
    "paper-ODBS-64": Rule(shortest_predicted, 64),
    "paper-SLO-DBS": Rule(earliest_deadline, 10),
    "paper-SLO-ODBS": Rule(earliest_deadline, 64, composed=True),
}


class Batches:
    """Waiting tickets, and the unsent rest of the current batch."""

    def __init__(self, rule: Rule, view: EngineView) -> None:
        self._rule = rule
        self._view = view
        self._waiting: dict[Ticket, None] = {}
        self._batch: list[Ticket] = []

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, ticket: Ticket, now_s: float) -> None:
        """Add a ticket for a later batch."""
        self._waiting[ticket] = None

    def reposition(self, ticket: Ticket, now_s: float) -> None:
        """Do nothing: the next batch uses the current predictions."""

    def head(self, now_s: float) -> Ticket | None:
        """The next ticket of the batch. O(n log n) when a batch is composed."""
        if not self._batch and not self._view.running:
            self._batch = self._compose()[::-1]
        return self._batch[-1] if self._batch else None

    def remove(self, ticket: Ticket, now_s: float) -> None:
        """Remove a ticket."""
        del self._waiting[ticket]
        if ticket in self._batch:
            self._batch.remove(ticket)

    def _compose(self) -> list[Ticket]:
        rule = self._rule
        batch: list[Ticket] = []
        for ticket in sorted(self._waiting, key=rule.key):
            if len(batch) == rule.most or (rule.composed and batch and _waste([*batch, ticket]) > THRESHOLD):
                break
            batch.append(ticket)
        return batch


def _waste(batch: list[Ticket]) -> float:
    lengths = [ticket.length.p50 for ticket in batch]
    slack_s = [ticket.deadline_s - ticket.arrival_s for ticket in batch]
    spread = (max(slack_s) - min(slack_s)) / max(*slack_s, 1e-9)
    padding = (max(lengths) - min(lengths)) / max(*lengths, 1.0)
    return (SPREAD_WEIGHT * spread + (1.0 - SPREAD_WEIGHT) * padding) * len(batch)
