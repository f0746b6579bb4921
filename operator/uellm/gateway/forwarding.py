"""A request on its way to a replica, and its answer on the way back.

A request is sent to a second replica only while nothing of an answer has reached the client, and only if the first one
was not reached, broke the connection, refused the request unserved, or does not know its key or what it asks for. After
the head of a stream, whole events are passed on as they come, without parsing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from functools import partial

from uellm.gateway.attempt import ForwardedRequest, ReplicaAnswer, failed_there, retry_reason
from uellm.gateway.catalog import Match, Service, not_yet
from uellm.gateway.fleet import Fleet
from uellm.gateway.holding import Holding, stopped
from uellm.gateway.replicas import Replica, Replicas
from uellm.gateway.routed import routed_request
from uellm.gateway.stored import Holder, StoredResponses
from uellm.gateway.telemetry import GatewayMetrics, GatewayRecord
from uellm.http import EngineLost, EngineUnreachable, Pairs, Reply, Request, Upstream
from uellm.proxying.outcome import RETRY_REPLICA_S, Refusal, RequestOutcome, spread_s
from uellm.proxying.relay import STALL_S, Relay
from uellm.proxying.response_id import RESPONSES, OpeningId
from uellm.proxying.routes import MEANT_FOR, SEARCH, WAITED_MS, end_to_end

MOST_LOST = 1
"""How often a request whose connection broke is sent again: it might be what broke the replica."""
REFUSAL_BYTES = 64 * 1024
REFUSAL_S = 0.5
"""How long the rest of a refusal that no client gets is waited for."""

_SENT: Pairs = tuple((name.encode(), b"") for name in ("Content-Length", MEANT_FOR, WAITED_MS, SEARCH))
"""Headers that the transport sets itself, and that no client may set."""
_DONE = b"data: [DONE]\n\n\r\n"
_UNKNOWING = {401: "unauthorized", 404: "not_found"}
"""Answers that may be this replica's alone, because a new key or a new adapter has not reached it yet."""


class PassThrough:
    """The tap of a relay that changes nothing: whole events go from socket to socket. `began`: called at the first.

    `named`: called with the id of a response, which is near the answer's beginning.
    """

    def __init__(self, reply: Reply, began: Callable[[], None], named: Callable[[str], None] | None = None) -> None:
        self._began: Callable[[], None] | None = began
        self._named = named
        self._opening = None if named is None else OpeningId()
        self._closing = reply.link.transport.is_closing
        self._write = reply.link.transport.write
        self.passed_bytes = 0
        """Bytes that were passed on without parsing, chunk framing included."""

    def piece(self, piece: bytes) -> bytes:
        """The piece as it is."""
        if self._began is not None:
            began, self._began = self._began, None
            began()
        if self._opening is not None and self._named is not None:
            self._opening.feed(piece)
            if self._opening.found:
                self._named(self._opening.found)
            if not self._opening.looking:
                self._opening = None
        return piece

    def count(self, piece: bytes) -> None:
        """Nothing is counted."""

    def chunk_sink(self) -> Callable[[bytes], bool] | None:
        """Takes the next chunks."""
        return self._take if self._opening is None else None

    def held_back(self) -> bytes:
        """Nothing is held back."""
        return b""

    def _take(self, chunk: bytes) -> bool:
        if chunk.endswith(_DONE):
            return False  # the relay notes that the stream is done
        self.passed_bytes += len(chunk)
        if not self._closing():
            self._write(chunk)
        return True


class Forwarding:
    """Sends requests to replicas and relays their answers."""

    def __init__(self, fleet: Fleet, holding: Holding, figures: GatewayMetrics, stored: StoredResponses) -> None:
        self._fleet = fleet
        self._stored = stored
        self._holding = holding
        self._figures = figures
        self.stall_s = STALL_S

    async def forward(
        self,
        request: Request,
        reply: Reply,
        record: GatewayRecord,
        match: Match,
        own: Pairs,
        shown: Pairs = (),
        *,
        pinned: Replica | None = None,
        withheld: Pairs = (),
    ) -> None:
        """Send `request.body` to a replica and relay the answer. Raises Refusal.

        Both have the additional headers `own`; the answer has `shown` as well, in place of the replica's. `pinned`: the
        only replica that can answer it. `withheld`: headers of the client that do not go there.
        """
        service = match.service
        replicas = self._fleet.replicas(service.key)
        chosen = service.class_of(request.headers)
        if not len(replicas) and pinned is None:
            deadline_s = None if chosen is None else chosen.deadline_s
            match = replace(match, service=await self._hold(request, record, service, replicas, deadline_s))
        if match.adapter and pinned is None and len(replicas) and not await replicas.can_serve(match):
            raise not_yet(match)
        route = record.route if len(replicas) > 1 else ""  # without a choice nothing need be known of the prompt
        routed = routed_request(route, request.body, chosen, replicas.ratio, record.arrival_s, match.adapter)
        # Without a uid it is from a file, where it may have any name.
        meant = [(MEANT_FOR.encode(), str(service.key).encode())] if service.uid else []
        headers = [*end_to_end(request.headers, (*_SENT, *own, *withheld)), *own, *meant]
        attempt = ForwardedRequest(request, record, match, replicas, routed, headers, [], pinned)
        replica, upstream = await self._send(attempt)
        try:
            request.release()
            makes_response = record.route == RESPONSES and upstream.status == 200
            named = partial(self._remember, Holder(service.key, replica.name)) if makes_response else None
            tap = PassThrough(reply, lambda: replicas.began(replica, routed), named)
            await Relay(reply, upstream, record, stall_s=self.stall_s, tap=tap).run([*own, *shown])
            record.bytes_out += tap.passed_bytes
        finally:
            failed = record.outcome is RequestOutcome.ENGINE_LOST or failed_there(upstream)
            replicas.ended(replica, routed, failed=failed)
            upstream.abort()

    def _remember(self, holder: Holder, response_id: str) -> None:
        self._stored.remember(response_id, holder)

    async def _hold(
        self, request: Request, record: GatewayRecord, service: Service, replicas: Replicas, deadline_s: float | None
    ) -> Service:
        """Wait for a replica. The service as it is then. Raises Refusal."""
        began_s = _now_s()
        try:
            await self._holding.hold(service, replicas, deadline_s, len(request.body))
        finally:
            record.held_s = _now_s() - began_s
        current = self._fleet.catalog.services.get(service.key)
        if current is None:
            raise Refusal(RequestOutcome.MODEL_NOT_FOUND, f"{service.key.name} was deleted while the request waited")
        if not len(replicas) and not current.starts:
            raise stopped(current)
        return current

    async def _send(self, attempt: ForwardedRequest) -> ReplicaAnswer:
        attempt.replicas.retries.request()
        attempt.replicas.doubts.request()
        lost = 0
        while (replica := attempt.choose()) is not None:
            failure: Exception | None = None
            upstream: Upstream | None = None
            try:
                upstream = await attempt.send(replica)
            except (EngineUnreachable, EngineLost) as error:
                failure = error
                lost += isinstance(error, EngineLost)
            reason = retry_reason(upstream, failure)
            again = bool(reason) and lost <= MOST_LOST and attempt.may_go_on() and attempt.replicas.retries.take()
            if upstream is not None and not again:
                return await self._with_second_opinion(attempt, ReplicaAnswer(replica, upstream))
            attempt.ended(replica, failed=True)
            if upstream is not None:
                await _drop(upstream)
            elif not again:
                raise _failed(failure)
            self._count_retry(attempt, reason)
        raise _failed(None)

    async def _with_second_opinion(self, attempt: ForwardedRequest, first: ReplicaAnswer) -> ReplicaAnswer:
        """What another replica answers, where the first one knows neither the key nor what is asked for.

        Until that is known the first one is avoided. If the other one does not know it either, that was the client's.
        """
        reason = _UNKNOWING.get(first.upstream.status)
        if reason is None or not attempt.may_go_on() or not attempt.replicas.doubts.take():
            return first
        other = attempt.choose()
        if other is None:
            return first
        attempt.ended(first.replica, failed=True)
        self._count_retry(attempt, reason)
        try:
            upstream = await attempt.send(other)
        except (EngineUnreachable, EngineLost):
            attempt.ended(other, failed=True)
            attempt.record.replica = first.replica.name
            attempt.replicas.forgive(first.replica)
            return first
        except BaseException:
            first.upstream.abort()
            raise
        if upstream.status in _UNKNOWING:
            attempt.ended(other, failed=False)
            upstream.abort()
            attempt.record.replica = first.replica.name
        else:
            first.upstream.abort()
        if upstream.status in _UNKNOWING or failed_there(upstream):
            attempt.replicas.forgive(first.replica)
        return first if upstream.status in _UNKNOWING else ReplicaAnswer(other, upstream)

    def _count_retry(self, attempt: ForwardedRequest, reason: str) -> None:
        self._figures.count_retry(attempt.record.service, reason)


async def _drop(upstream: Upstream) -> None:
    """End an answer that the client does not get; a short one is read, so that its connection can be kept."""
    try:
        if int(upstream.headers.get("content-length") or REFUSAL_BYTES) < REFUSAL_BYTES:
            async with asyncio.timeout(REFUSAL_S):
                await upstream.read()
    except (EngineLost, TimeoutError, ValueError):
        pass
    finally:
        upstream.abort()


def _failed(failure: Exception | None) -> Refusal:
    retry_after_s = spread_s(RETRY_REPLICA_S)
    if isinstance(failure, EngineLost):
        message = "the replica stopped before it answered; whether it ran the request is unknown"
        return Refusal(RequestOutcome.ENGINE_LOST, message, retry_after_s=retry_after_s)
    message = "no replica of the service could be reached; retry later"
    return Refusal(RequestOutcome.ENGINE_UNAVAILABLE, message, retry_after_s=retry_after_s)


def _now_s() -> float:
    return asyncio.get_running_loop().time()
