"""The handler of every request: check, queue, send, relay; and one outcome in the end, whatever happened."""

from __future__ import annotations

import asyncio
import logging
import traceback
from collections.abc import Mapping
from typing import cast

from aiohttp import ClientResponse
from aiohttp.web import BaseRequest, Response, StreamResponse

from uellm.sidecar.body import Bodies, Body
from uellm.sidecar.connection import ClientConnection
from uellm.sidecar.dispatch import RETRY_ENGINE_S, Dispatcher
from uellm.sidecar.drain import Drain
from uellm.sidecar.engine import Engine, EngineLost, EngineUnreachable
from uellm.sidecar.metrics import CONTENT_TYPE, exposition, with_waiting
from uellm.sidecar.outcome import Outcome, Refusal
from uellm.sidecar.record import Figures, Record
from uellm.sidecar.relay import STALL_S, Relay
from uellm.sidecar.routes import Way, check_headers, end_to_end, request_id, way_of
from uellm.sidecar.scheduling import Targets, Ticket

LOG = logging.getLogger("uellm.sidecar")

CLASS_HEADER = "x-slo-class"


class Proxy:
    """All that a request meets between its client and the engine."""

    def __init__(
        self,
        classes: Mapping[str, Targets],
        engine: Engine,
        dispatcher: Dispatcher,
        figures: Figures,
        bodies: Bodies,
    ) -> None:
        self.drain = Drain()
        self.bodies = bodies
        self.stall_s = STALL_S
        self._engine = engine
        self._dispatcher = dispatcher
        self._figures = figures
        self._classes = classes

    def reconfigure(self, classes: Mapping[str, Targets]) -> None:
        """Take over changed classes; requests that wait keep the targets they came with."""
        self._classes = classes

    async def metrics(self) -> str:
        """Our figures, then the engine's own with our queue counted in; ours alone while the engine does not answer."""
        engine_metrics = await self._engine.metrics()
        own = exposition(self._figures.metrics)
        return own if engine_metrics is None else own + with_waiting(engine_metrics, self._dispatcher.queued)

    def unreadable(self, refusal: Refusal) -> None:
        """Count what was not HTTP."""
        now_s = _now_s()
        record = Record("-", "-", now_s, outcome=refusal.outcome, status=refusal.status, end_s=now_s)
        self._figures.count(record)

    async def handle(self, request: BaseRequest) -> StreamResponse:
        """Answer one request. Cancelled when its client leaves."""
        connection = cast(ClientConnection, request.protocol)
        record = Record(request.method, request.rel_url.raw_path, _now_s())
        body = self.bodies.new()
        connection.begin()
        self.drain.enter()
        try:
            return await self._answer(request, record, body)
        except Refusal as refusal:
            record.outcome, record.status = refusal.outcome, refusal.status
            return self._refuse(refusal, record)
        except asyncio.CancelledError:
            record.outcome = Outcome.DRAINING if self.drain.over else _left(record)
            raise
        except ConnectionError:
            record.outcome = _left(record)
            raise
        except Exception as error:
            return self._fail(error, request, record)
        finally:
            body.release()
            self.drain.leave()
            connection.end()
            record.end_s = _now_s()
            self._figures.count(record)

    async def _answer(self, request: BaseRequest, record: Record, body: Body) -> StreamResponse:
        record.id = request_id(request.headers)
        check_headers(request.raw_headers)
        way, path = way_of(request.method, request.rel_url.raw_path)
        if way is Way.METRICS:
            record.outcome, record.status = Outcome.COMPLETED, 200
            return Response(body=(await self.metrics()).encode(), headers={"Content-Type": CONTENT_TYPE})
        self.drain.check()
        if way is Way.SCHEDULE:
            targets = self._class_of(request)
            record.slo_class, record.route = targets.name, path
            await self._read_body(request, record, body)
            return await self._scheduled(request, record, body, targets)
        await self._read_body(request, record, body)
        return await self._passed(request, record, body)

    async def _read_body(self, request: BaseRequest, record: Record, body: Body) -> None:
        await self.bodies.read(request, body)
        record.bytes_in = len(body.content)

    def _class_of(self, request: BaseRequest) -> Targets:
        name = request.headers.get(CLASS_HEADER)
        if name is None:
            return next(iter(self._classes.values()))
        if name not in self._classes:
            known = ", ".join(self._classes)
            raise Refusal(Outcome.BAD_REQUEST, f"{CLASS_HEADER} names no class of this service; it has: {known}")
        return self._classes[name]

    async def _scheduled(self, request: BaseRequest, record: Record, body: Body, targets: Targets) -> StreamResponse:
        ticket = Ticket(targets, record.arrival_s)
        try:
            while True:
                await self._dispatcher.turn(ticket)
                record.queue_s = _now_s() - record.arrival_s
                try:
                    upstream = await self._send(request, record, body)
                except EngineUnreachable:
                    continue  # nothing was sent, so it waits, at its old place, until the engine is back
                return await self._relay(request, record, upstream)
        finally:
            self._dispatcher.finish(ticket)

    async def _passed(self, request: BaseRequest, record: Record, body: Body) -> StreamResponse:
        try:
            upstream = await self._send(request, record, body)
        except EngineUnreachable as error:
            message = "the engine is away; retry later"
            raise Refusal(Outcome.ENGINE_UNAVAILABLE, message, retry_after_s=RETRY_ENGINE_S) from error
        return await self._relay(request, record, upstream)

    async def _send(self, request: BaseRequest, record: Record, body: Body) -> ClientResponse:
        headers = end_to_end(request.headers)
        headers["X-Request-Id"] = record.id
        url = request.rel_url
        try:
            upstream = await self._engine.send(
                request.method, url.raw_path, url.raw_query_string, headers, body.content
            )
        except EngineLost as error:
            message = "the engine stopped before it answered; whether it ran the request is unknown"
            raise Refusal(Outcome.ENGINE_LOST, message, retry_after_s=RETRY_ENGINE_S) from error
        body.release()
        return upstream

    async def _relay(self, request: BaseRequest, record: Record, upstream: ClientResponse) -> StreamResponse:
        try:
            relay = Relay(request, upstream, record, stall_s=self.stall_s)
            return await relay.run(_own_headers(record), close=self.drain.draining)
        finally:
            upstream.close()
            if record.outcome is Outcome.ENGINE_LOST:
                self._engine.suspect()

    def _refuse(self, refusal: Refusal, record: Record) -> StreamResponse:
        headers = _own_headers(record) | refusal.headers()
        response = Response(status=refusal.status, body=refusal.body(), headers=headers)
        if refusal.closes or self.drain.draining:
            response.force_close()
        return response

    def _fail(self, error: Exception, request: BaseRequest, record: Record) -> StreamResponse:
        # The frames, not the error's text: that may quote the request.
        frames = "".join(traceback.format_tb(error.__traceback__))
        LOG.error("request %s failed by %s at:\n%s", record.id, type(error).__name__, frames)
        refusal = Refusal(Outcome.INTERNAL_ERROR, "the sidecar failed; its log has the request's id")
        record.outcome, record.status = refusal.outcome, refusal.status
        if request.writer.output_size and request.transport is not None:
            request.transport.abort()
        response = self._refuse(refusal, record)
        response.force_close()
        return response


def _left(record: Record) -> Outcome:
    return Outcome.COMPLETED if record.done else Outcome.CLIENT_LEFT


def _own_headers(record: Record) -> dict[str, str]:
    headers = {"X-Request-Id": record.id}
    if record.slo_class != "-":
        headers["x-uellm-class"] = record.slo_class
    if record.queue_s is not None:
        headers["x-uellm-queue-ms"] = f"{record.queue_s * 1000:.0f}"
    return headers


def _now_s() -> float:
    return asyncio.get_running_loop().time()
