"""Requests whose answers come whole: the engine's progress with them is not seen before they end.

vLLM computes prompts in the order in which it got them. The first token of one request, or its end, therefore shows
that the prompts of all requests before it are computed. The engine also reports how many requests it runs: these are
the first ones, and of their prompts no more than a step's worth can be unfinished.
"""

from __future__ import annotations

from collections.abc import Iterable

from uellm.sidecar.scheduling.types import Shows, Ticket

_END = Shows.END


class Unseen:
    """Those requests in flight."""

    def __init__(self) -> None:
        self.in_flight = 0
        self._unfilled: dict[Ticket, None] = {}
        """Those whose prompt may not be computed, in the order in which they were sent."""
        self._first_seen = False
        """Whether a first token was seen since the engine's last report."""

    @property
    def alone(self) -> bool:
        """Whether no other answer has shown the engine's progress of late."""
        return self.in_flight > 0 and not self._first_seen

    def on_dispatch(self, ticket: Ticket) -> None:
        """A request is sent to the engine."""
        if ticket.shows is _END:
            self.in_flight += 1
            if not ticket.filled:
                self._unfilled[ticket] = None

    def on_filled(self, ticket: Ticket) -> None:
        """The engine has computed a prompt, of any request."""
        self._unfilled.pop(ticket, None)
        self._first_seen |= ticket.shows is not _END

    def on_report(self) -> None:
        """The engine's report is taken over."""
        self._first_seen = False

    def remove(self, ticket: Ticket) -> None:
        """A request has ended, or did not reach the engine."""
        if ticket.shows is _END:
            self.in_flight -= 1
            self._unfilled.pop(ticket, None)

    def before(self, ticket: Ticket) -> list[Ticket]:
        """Those whose prompts were computed before this request's, and were not known to be."""
        sent_s = ticket.dispatched_s
        if not self._unfilled or sent_s is None:
            return []
        found = []
        for each in self._unfilled:
            if each is ticket or each.dispatched_s is None or each.dispatched_s >= sent_s:
                break
            found.append(each)
        return found

    def of_first(self, tickets: Iterable[Ticket], running: int, step_tokens: int) -> tuple[list[Ticket], int]:
        """What an engine that runs so many sequences of the `tickets` in flight has computed.

        Those whose prompts it has, and were not known to be; and the tokens of those that it may have begun.
        """
        started = []
        for ticket in tickets:
            running -= ticket.sequences
            if running < 0:
                break
            started.append(ticket)
        # The newest prompt may be larger than a step, and unfinished all the same.
        most = left = max(step_tokens, started[-1].uncached_tokens) if started else 0
        while started and started[-1].uncached_tokens <= left:
            left -= started.pop().uncached_tokens
        return [ticket for ticket in started if ticket in self._unfilled], most - left
