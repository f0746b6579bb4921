"""Which replica gets a request."""

from __future__ import annotations

from collections.abc import Callable, Collection

from uellm.api.replica_load import ReplicaLoad
from uellm.routing.books import ReplicaBooks
from uellm.routing.predicted import BestOutlook
from uellm.routing.request import RoutedRequest
from uellm.routing.routes import FewestRequests, PrefixBoundedLoad, RoundRobin, Route, Uniform

AUTO = "auto"

_ROUTES: dict[str, Callable[[int], Route]] = {
    "random": Uniform,
    "round-robin": lambda _seed: RoundRobin(),
    "fewest-requests": lambda _seed: FewestRequests(),
    "prefix-bounded-load": lambda _seed: PrefixBoundedLoad(),
    AUTO: lambda _seed: BestOutlook(),
}
ROUTES = tuple(_ROUTES)
"""Names of the routes."""


class Router:
    """The replicas of one service, and the choice among them. Times are seconds on one monotonic clock.

    For each request call `choose`, then `sent` with the chosen replica, `first_token` when its answer begins, and
    `ended` when it ends, whether it was answered, failed or was cancelled. A request that is retried elsewhere ends at
    the first replica and is sent again.
    """

    def __init__(self, route: str = AUTO, seed: int = 1) -> None:
        """`route`: one of `ROUTES`; `seed`: of the route `random`."""
        self.route = route
        self._route = _ROUTES[route](seed)
        self._replicas: dict[str, ReplicaBooks] = {}

    def __contains__(self, replica: str) -> bool:
        return replica in self._replicas

    @property
    def replicas(self) -> tuple[str, ...]:
        """Names of the replicas."""
        return tuple(self._replicas)

    def add(self, replica: str, now_s: float) -> None:
        """A replica joins. One that is known already stays as it is."""
        if replica not in self._replicas:
            self._replicas[replica] = ReplicaBooks(replica, now_s)

    def remove(self, replica: str, now_s: float) -> None:
        """A replica leaves. Later calls about its requests do nothing."""
        self._replicas.pop(replica, None)

    def report(self, replica: str, load: ReplicaLoad, now_s: float) -> None:
        """A replica's report has come. One of an unknown replica is ignored."""
        if replica in self._replicas:
            self._replicas[replica].report(load, now_s)

    def known_prefixes(self, replica: str) -> int:
        """What to ask a replica's prefixes since (`PrefixNews.since`); 0 for an unknown replica."""
        return self._replicas[replica].prefixes.count if replica in self._replicas else 0

    def choose(self, request: RoutedRequest, now_s: float, exclude: Collection[str] = frozenset()) -> str | None:
        """The replica for a request. None: every replica is excluded or draining.

        Replicas that are not ready, or at which requests have just failed, are chosen only if there is no other.
        """
        able = [r for r in self._replicas.values() if r.name not in exclude and not r.draining]
        if not able:
            return None
        return self._route.choose(request, [r for r in able if r.available(now_s)] or able, now_s).name

    def sent(self, replica: str, request: RoutedRequest, now_s: float) -> None:
        """A request is sent to a replica."""
        if replica in self._replicas:
            self._replicas[replica].on_sent(request, now_s)

    def first_token(self, replica: str, request: RoutedRequest, now_s: float) -> None:
        """The answer has begun."""
        if replica in self._replicas:
            self._replicas[replica].on_first_token(request)

    def ended(
        self, replica: str, request: RoutedRequest, now_s: float, *, failed: bool = False, unanswered: bool = False
    ) -> None:
        """A request has ended there. `failed`: the replica did not answer it, or broke off.

        `unanswered`: its client left before the replica had answered, which tells of a fault only after a while.
        """
        if replica in self._replicas:
            self._replicas[replica].on_ended(request, now_s, failed=failed, unanswered=unanswered)

    def forgive(self, replica: str) -> None:
        """The last failure there was none of the replica's."""
        if replica in self._replicas:
            self._replicas[replica].forgive()

    def replica(self, name: str) -> ReplicaBooks | None:
        """The books of a replica, to read; None for an unknown one."""
        return self._replicas.get(name)
