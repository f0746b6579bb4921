"""The handler of every request: check, queue, send, relay; and one outcome in the end, whatever happened."""

from __future__ import annotations

import asyncio
import logging
import traceback
from collections.abc import Mapping

from uellm.sidecar.dispatch import RETRY_ENGINE_S, Dispatcher
from uellm.sidecar.drain import Drain
from uellm.sidecar.engine import Engine
from uellm.sidecar.http import Budget, EngineLost, EngineUnreachable, Fault, Pairs, Reply, Request, Upstream, pairs
from uellm.sidecar.metrics import CONTENT_TYPE, exposition, with_waiting
from uellm.sidecar.outcome import Outcome, Refusal
from uellm.sidecar.record import Figures, Record
from uellm.sidecar.relay import STALL_S, Relay
from uellm.sidecar.routes import Way, check_headers, end_to_end, request_id, way_of
from uellm.sidecar.scheduling import Targets, Ticket

LOG = logging.getLogger("uellm.sidecar")

CLASS_HEADER = "x-slo-class"

_SENT: Pairs = ((b"X-Request-Id", b""), (b"Content-Length", b""))
"""What the engine gets from us, whatever the client says of it."""


class Proxy:
    """All that a request meets between its client and the engine."""

    def __init__(
        self,
        classes: Mapping[str, Targets],
        engine: Engine,
        dispatcher: Dispatcher,
        figures: Figures,
        bodies: Budget,
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

    def unreadable(self, fault: Fault) -> tuple[Pairs, bytes]:
        """Count what was not HTTP; headers and body of the answer to it."""
        refusal, now_s = Refusal.of(fault), _now_s()
        self._figures.count(Record("-", "-", now_s, outcome=refusal.outcome, status=refusal.status, end_s=now_s))
        return pairs(refusal.headers()), refusal.body()

    async def handle(self, request: Request, reply: Reply) -> None:
        """Answer one request. Cancelled when its client leaves."""
        record = Record(request.method, request.path, _now_s())
        self.drain.enter()
        try:
            await self._answer(request, reply, record)
        except Refusal as refusal:
            self._refuse(refusal, reply, record)
        except Fault as fault:
            self._refuse(Refusal.of(fault), reply, record)
        except asyncio.CancelledError:
            record.outcome = Outcome.DRAINING if self.drain.over else _left(record)
            raise
        except Exception as error:
            self._fail(error, reply, record)
        finally:
            request.release()
            self.drain.leave()
            record.end_s = _now_s()
            self._figures.count(record)

    async def _answer(self, request: Request, reply: Reply, record: Record) -> None:
        record.id = request_id(request.headers)
        check_headers(request.headers)
        way, path = way_of(request.method, request.path)
        if way is Way.METRICS:
            metrics = (await self.metrics()).encode()
            record.outcome, record.status = Outcome.COMPLETED, 200
            reply.send(200, [(b"Content-Type", CONTENT_TYPE.encode())], metrics)
            return
        self.drain.check()
        if way is Way.SCHEDULE:
            targets = self._class_of(request)
            record.slo_class, record.route = targets.name, path
            record.bytes_in = len(await request.read())
            await self._scheduled(request, reply, record, targets)
        else:
            record.bytes_in = len(await request.read())
            await self._passed(request, reply, record)

    def _class_of(self, request: Request) -> Targets:
        name = request.headers.get(CLASS_HEADER)
        if name is None:
            return next(iter(self._classes.values()))
        if name not in self._classes:
            known = ", ".join(self._classes)
            raise Refusal(Outcome.BAD_REQUEST, f"{CLASS_HEADER} names no class of this service; it has: {known}")
        return self._classes[name]

    async def _scheduled(self, request: Request, reply: Reply, record: Record, targets: Targets) -> None:
        ticket = Ticket(targets, record.arrival_s, body_bytes=record.bytes_in)
        try:
            while True:
                await self._dispatcher.turn(ticket)
                record.queue_s = _now_s() - record.arrival_s
                try:
                    upstream = await self._send(request, record)
                except EngineUnreachable:
                    continue  # nothing was sent, so it waits, at its old place, until the engine is back
                await self._relay(reply, record, upstream)
                break
        finally:
            self._dispatcher.finish(ticket)

    async def _passed(self, request: Request, reply: Reply, record: Record) -> None:
        try:
            upstream = await self._send(request, record)
        except EngineUnreachable as error:
            message = "the engine is away; retry later"
            raise Refusal(Outcome.ENGINE_UNAVAILABLE, message, retry_after_s=RETRY_ENGINE_S) from error
        await self._relay(reply, record, upstream)

    async def _send(self, request: Request, record: Record) -> Upstream:
        own = ((b"X-Request-Id", record.id.encode()),)
        headers = [*end_to_end(request.headers, _SENT), *own]
        try:
            upstream = await self._engine.send(request.method, request.target, headers, request.body)
        except EngineLost as error:
            message = "the engine stopped before it answered; whether it ran the request is unknown"
            raise Refusal(Outcome.ENGINE_LOST, message, retry_after_s=RETRY_ENGINE_S) from error
        request.release()
        return upstream

    async def _relay(self, reply: Reply, record: Record, upstream: Upstream) -> None:
        reply.close |= self.drain.draining
        try:
            await Relay(reply, upstream, record, stall_s=self.stall_s).run(pairs(_own_headers(record)))
        finally:
            upstream.abort()
            if record.outcome is Outcome.ENGINE_LOST:
                self._engine.suspect()

    def _refuse(self, refusal: Refusal, reply: Reply, record: Record) -> None:
        record.outcome, record.status = refusal.outcome, refusal.status
        reply.close |= refusal.closes or self.drain.draining
        reply.send(refusal.status, pairs(_own_headers(record) | refusal.headers()), refusal.body())

    def _fail(self, error: Exception, reply: Reply, record: Record) -> None:
        # The frames, not the error's text: that may quote the request.
        frames = "".join(traceback.format_tb(error.__traceback__))
        LOG.error("request %s failed by %s at:\n%s", record.id, type(error).__name__, frames)
        if reply.started:
            record.outcome = Outcome.INTERNAL_ERROR
            reply.abort()
            return
        reply.close = True
        self._refuse(Refusal(Outcome.INTERNAL_ERROR, "the sidecar failed; its log has the request's id"), reply, record)


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
