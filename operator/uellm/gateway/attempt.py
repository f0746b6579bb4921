"""A request as it is sent to one replica after the other, and what their answers say of them."""

from __future__ import annotations

import asyncio
from typing import NamedTuple

from uellm.gateway.catalog import Match
from uellm.gateway.replicas import Replica, Replicas
from uellm.gateway.telemetry import GatewayRecord
from uellm.http import EngineLost, EngineUnreachable, Pairs, Request, Upstream
from uellm.proxying.outcome import RequestOutcome
from uellm.proxying.routes import WAITED_MS
from uellm.routing import RoutedRequest

MOST_TRIES = 3
_UNSERVED = frozenset(
    map(
        str,
        (
            RequestOutcome.DRAINING,
            RequestOutcome.QUEUE_FULL,
            RequestOutcome.SHED,
            RequestOutcome.ENGINE_UNAVAILABLE,
        ),
    )
)
"""Outcomes of requests that a sidecar refused without giving them to its engine."""
_NO_FAULT = frozenset((501, 505))
"""Statuses from 500 on that say something of the request."""


class ReplicaAnswer(NamedTuple):
    """What a replica has begun to answer."""

    replica: Replica
    upstream: Upstream


class ForwardedRequest(NamedTuple):
    """A request as it is sent to each replica."""

    request: Request
    record: GatewayRecord
    match: Match
    replicas: Replicas
    routed: RoutedRequest
    headers: Pairs
    tried: list[str]
    pinned: Replica | None = None
    """The only replica that can answer it, because it keeps what the request is about."""

    def choose(self) -> Replica | None:
        """The next replica; None: there is no further one."""
        if self.pinned is not None:
            if self.tried:
                return None
            self.replicas.pin(self.pinned, self.routed)
            return self.pinned
        return self.replicas.choose(self.routed, self.match, self.tried)

    def may_go_on(self) -> bool:
        """Whether a further replica may be tried."""
        if self.pinned is not None:
            return False
        return len(self.tried) < MOST_TRIES and self.replicas.has_other(self.match, self.tried)

    async def send(self, replica: Replica) -> Upstream:
        """Send it there. Raises EngineUnreachable and EngineLost."""
        record = self.record
        self.tried.append(replica.name)
        record.tries, record.replica, record.waits = len(self.tried), replica.name, False
        record.sent_s = _now_s() - record.arrival_s if record.sent_s is None else record.sent_s
        waited_ms = round((_now_s() - record.arrival_s) * 1e3)
        headers = self.headers
        if self.match.service.uid and waited_ms:  # a file's sidecars do not know which service they are of
            headers = [*headers, (WAITED_MS.encode(), b"%d" % waited_ms)]
        try:
            return await replica.pool.send(self.request.method, self.request.target, headers, self.request.body)
        except (EngineUnreachable, EngineLost):
            raise
        except BaseException:
            self.ended(replica, failed=False, unanswered=True)
            raise

    def ended(self, replica: Replica, *, failed: bool, unanswered: bool = False) -> None:
        """It has ended there."""
        self.replicas.ended(replica, self.routed, failed=failed, unanswered=unanswered)


def retry_reason(upstream: Upstream | None, failure: Exception | None) -> str:
    """Why a further replica may take the request; empty: none may."""
    if upstream is None:
        return "lost" if isinstance(failure, EngineLost) else "unreachable"
    if upstream.status not in (429, 503):
        return ""
    outcome = upstream.headers.get("x-uellm-outcome") or ""
    return outcome if outcome in _UNSERVED else ""


def failed_there(upstream: Upstream) -> bool:
    """Whether an answer says that the replica does not work, or takes nothing now."""
    if upstream.status < 500 or upstream.status in _NO_FAULT:
        return bool(retry_reason(upstream, None))
    return upstream.headers.get("x-uellm-outcome") != str(RequestOutcome.DEADLINE_PASSED)


def _now_s() -> float:
    return asyncio.get_running_loop().time()
