"""What the router knows of one replica: its last report, and what was sent there and has not ended."""

from __future__ import annotations

from dataclasses import dataclass

from uellm.api.replica_load import ReplicaLoad
from uellm.routing.prefixes import HeldPrefixes
from uellm.routing.request import RoutedRequest

STALE_S = 1.0
"""From this age on a report counts as missing. Reports come every 0.2 s."""

AVOIDED_S = 2.0
"""How long a replica at which a request failed is avoided, if there is another. It doubles with each failure in a row,
so that a replica which fails at once, and so seems idle, does not get every request. Requests that were there together
fail together, which is one failure."""

MOST_DOUBLINGS = 5

SILENT_S = 5.0
"""A replica has failed if it reports nothing, and a client has waited so long for it in vain. Such a replica has few
requests, since they leave, and would otherwise get its share of the next ones for ever."""


@dataclass(slots=True)
class Sent:
    """A request that was sent and has not ended."""

    sent_s: float
    uncached_tokens: int
    """Prompt tokens that were probably not in the replica's cache when it was sent."""
    began: bool = False
    """Its first token has come."""


class ReplicaBooks:
    """One replica in the router's books."""

    def __init__(self, name: str, added_s: float) -> None:
        self.name = name
        self.added_s = added_s
        self.load: ReplicaLoad | None = None
        self.queued = 0
        """Requests in the replica's own queue, by its last report."""
        self.queued_tokens = 0
        """Uncached prompt tokens of those."""
        self.reported_s = 0.0
        self.outstanding: dict[RoutedRequest, Sent] = {}
        self.prefixes = HeldPrefixes()
        self.sent = 0
        """Requests that were ever sent there."""
        self.unfilled_tokens = 0
        """Uncached prompt tokens of the outstanding requests that have no first token yet."""
        self.began = 0
        """Outstanding requests that have their first token."""
        self.kv_tokens = 0
        """Prompt tokens of those."""
        self.prompt_tokens = 0
        """Prompt tokens of all outstanding requests."""
        self._since: list[Sent] = []
        self._failures = 0
        self._failed_s = float("-inf")
        """When the last failure was seen."""
        self._avoid_until_s = 0.0
        self._before_failure = (0, self._failed_s, 0.0)
        """The three figures above, as they were before the last failure."""
        self._failed_together = 0
        """Requests of the last failure that are not forgiven."""

    def report(self, load: ReplicaLoad, now_s: float) -> None:
        """Take over a report."""
        if self.load is not None and load.incarnation != self.load.incarnation:
            self.prefixes.clear()
        self.load, self.reported_s = load, now_s
        self.queued = load.late.requests + sum(span.requests for span in load.waiting)
        self.queued_tokens = load.late.prompt_tokens + sum(span.prompt_tokens for span in load.waiting)
        self._since.clear()
        self.prefixes.report(load.prefixes, load.kv_capacity_tokens)

    def since_report(self) -> list[Sent]:
        """What was sent there after the last report."""
        return self._since

    def fresh(self, now_s: float) -> ReplicaLoad | None:
        """Its last report; None if that is missing or too old."""
        return self.load if self.load is not None and now_s - self.reported_s <= STALE_S else None

    @property
    def draining(self) -> bool:
        """Whether it takes no more requests. A report that says so holds until another one."""
        return self.load is not None and self.load.draining

    def available(self, now_s: float) -> bool:
        """Whether nothing speaks against it: it is ready, and no request has failed there lately."""
        return (self.load is None or self.load.ready) and now_s >= self._avoid_until_s

    def uncached_tokens(self, request: RoutedRequest) -> int:
        """Prompt tokens that the engine there must compute; at least one."""
        return max(request.prompt_tokens - self.prefixes.tokens(request.prefix), 1)

    def on_sent(self, request: RoutedRequest, now_s: float) -> None:
        """Record a request that is sent there."""
        uncached = self.uncached_tokens(request)
        sent = self.outstanding[request] = Sent(now_s, uncached)
        if self.fresh(now_s) is not None:
            self._since.append(sent)
        self.unfilled_tokens += uncached
        self.prompt_tokens += request.prompt_tokens
        self.sent += 1
        self.prefixes.add(request.prefix, 0 if self.load is None else self.load.kv_capacity_tokens)

    def on_first_token(self, request: RoutedRequest) -> None:
        """Record the first token of an answer. A second call does nothing."""
        sent = self.outstanding.get(request)
        if sent is not None and not sent.began:
            sent.began = True
            self.began += 1
            self.kv_tokens += request.prompt_tokens
            self.unfilled_tokens -= sent.uncached_tokens

    def on_ended(self, request: RoutedRequest, now_s: float, *, failed: bool, unanswered: bool = False) -> None:
        """Record the end of a request. A second call does nothing."""
        self.on_first_token(request)
        sent = self.outstanding.pop(request, None)
        if sent is None:
            return
        self.began -= 1
        self.prompt_tokens -= request.prompt_tokens
        self.kv_tokens -= request.prompt_tokens
        silent = unanswered and now_s - sent.sent_s >= SILENT_S and self.fresh(now_s) is None
        was_sent_after_failure = sent.sent_s >= self._failed_s
        if failed or silent:
            self._on_failure(now_s, another=was_sent_after_failure)
        elif not unanswered:
            self._failures = 0
            if was_sent_after_failure:
                self._avoid_until_s = 0.0

    def _on_failure(self, now_s: float, *, another: bool) -> None:
        """A request has failed. `another`: it was sent after the last failure was seen."""
        if another:
            self._before_failure = self._failures, self._failed_s, self._avoid_until_s
            self._failures, self._failed_s, self._failed_together = self._failures + 1, now_s, 0
        self._failed_together += 1
        if another or now_s >= self._avoid_until_s:
            self._avoid_until_s = now_s + AVOIDED_S * 2.0 ** min(max(self._failures - 1, 0), MOST_DOUBLINGS)

    def forgive(self) -> None:
        """Take a request's failure back."""
        self._failed_together -= 1
        if self._failed_together == 0:
            self._failures, self._failed_s, self._avoid_until_s = self._before_failure
