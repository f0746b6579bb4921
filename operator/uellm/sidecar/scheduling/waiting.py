"""The queued tickets with their classes, bytes and time limits. Their order is kept elsewhere."""

from __future__ import annotations

from collections.abc import Iterator

from uellm.sidecar.scheduling.alarms import Alarms
from uellm.sidecar.scheduling.types import Options, Ticket


class Waiting:
    """The queued tickets. Each has an entry in the alarms that apply to it."""

    def __init__(self) -> None:
        self.bytes = 0
        self.by_class: dict[str, int] = {}
        self.deadlines = Alarms()
        self.arrivals = Alarms()
        self.tickets: dict[Ticket, None] = {}

    def __len__(self) -> int:
        return len(self.tickets)

    def __iter__(self) -> Iterator[Ticket]:
        return iter(self.tickets)

    def has_room(self, ticket: Ticket, options: Options) -> bool:
        """Whether one more ticket may wait. The first always may, whatever its size."""
        if len(self.tickets) >= options.max_queued:
            return False
        return not self.tickets or self.bytes + ticket.body_bytes <= options.max_queued_bytes

    def add(self, ticket: Ticket) -> None:
        """Add a QUEUED ticket. O(log n)."""
        self.tickets[ticket] = None
        self.bytes += ticket.body_bytes
        name = ticket.targets.name
        self.by_class[name] = self.by_class.get(name, 0) + 1
        self.arrivals.add(ticket.arrival_s, ticket)
        if ticket.targets.reject_late and (reject_s := ticket.reject_s) is not None:
            self.deadlines.add(reject_s, ticket)

    def remove(self, ticket: Ticket) -> None:
        """Remove a ticket that is no longer QUEUED. O(1), amortised."""
        del self.tickets[ticket]
        self.bytes -= ticket.body_bytes
        name = ticket.targets.name
        left = self.by_class[name] - 1
        if left:
            self.by_class[name] = left
        else:
            del self.by_class[name]
        waiting = len(self.tickets)
        if waiting:
            self.deadlines.compact(waiting)
            self.arrivals.compact(waiting)
        else:
            self.deadlines.clear()
            self.arrivals.clear()
