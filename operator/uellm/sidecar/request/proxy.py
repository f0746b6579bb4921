"""The handler of every request: check, queue, send, relay; and one outcome in the end, whatever happened."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping
from typing import Any

from uellm.http import Budget, EngineLost, EngineUnreachable, Fault, Pairs, Reply, Request, Upstream, pairs
from uellm.sidecar.drain import Drain
from uellm.sidecar.engine.connection import Engine
from uellm.sidecar.outcome import RETRY_ENGINE_S, Outcome, Refusal, of_engine_status, spread_s
from uellm.sidecar.prediction.service import Predictor
from uellm.sidecar.request.dispatch import Dispatcher
from uellm.sidecar.request.exchange import Exchange
from uellm.sidecar.request.relay import STALL_S, Relay
from uellm.sidecar.request.routes import Way, check_headers, end_to_end, path_of, request_id, way_of
from uellm.sidecar.scheduling import Targets
from uellm.sidecar.telemetry.access_log import Record
from uellm.sidecar.telemetry.figures import Figures
from uellm.sidecar.telemetry.metrics import CONTENT_TYPE, exposition, with_waiting
from uellm.sidecar.telemetry.tracing import Trace, Tracing
from uellm.sidecar.wire.call import Call
from uellm.sidecar.wire.keys import Keys, key_of
from uellm.sidecar.wire.read import Terms, read, unread
from uellm.sidecar.wire.slo import targets_of

_SENT: Pairs = ((b"Content-Length", b""),)
"""What the transport says of the request, whatever the client did."""


class Proxy:
    """All that a request meets between its client and the engine."""

    def __init__(
        self,
        classes: Mapping[str, Targets],
        engine: Engine,
        dispatcher: Dispatcher,
        figures: Figures,
        bodies: Budget,
        *,
        terms: Terms | None = None,
        keys: Keys | None = None,
        lengths: Predictor | None = None,
    ) -> None:
        self.drain = Drain()
        self.bodies = bodies
        self.terms = terms or Terms()
        self.keys = keys or Keys()
        """Who may ask."""
        self.allowed: Collection[str] = ()
        """Administrative routes of the engine that are served nevertheless."""
        self.tracing: Tracing | None = None
        self.lengths = lengths
        """Predicts the answers' lengths; None: nobody does."""
        self.stall_s = STALL_S
        self._engine = engine
        self._dispatcher = dispatcher
        self._figures = figures
        self._faults = figures.faults
        self._classes = classes

    def reconfigure(self, classes: Mapping[str, Targets]) -> None:
        """Take over changed classes; requests that wait keep the targets they came with."""
        self._classes = classes

    async def metrics(self) -> str:
        """Our figures, then the engine's own with our queue counted in; ours alone while the engine does not answer."""
        engine_metrics = await self._engine.metrics()
        own = exposition(self._figures.metrics)
        return own if engine_metrics is None else own + with_waiting(engine_metrics, self._dispatcher.queued)

    def attainment(self) -> dict[str, Any]:
        """How the requests of the last minutes fared, by class; of each class there is, even without any."""
        return self._figures.attainment.document(_now_s(), self._classes)

    def unreadable(self, fault: Fault) -> tuple[Pairs, bytes]:
        """Count what was not HTTP; headers and body of the answer to it."""
        refusal, now_s = Refusal.of(fault), _now_s()
        self._figures.count(Record("-", "-", now_s, outcome=refusal.outcome, status=refusal.status, end_s=now_s))
        return pairs(refusal.headers()), refusal.body()

    async def handle(self, request: Request, reply: Reply) -> None:
        """Answer one request. Cancelled when its client leaves."""
        record = Record(request.method, request.path, _now_s())
        trace = self._traced(request, record)
        self.drain.enter()
        try:
            await self._answer(request, reply, record)
        except Refusal as refusal:
            self._refuse(refusal, reply, record)
        except Fault as fault:
            self._refuse(self._full(fault, record), reply, record)
        except asyncio.CancelledError:
            record.outcome = Outcome.DRAINING if self.drain.over else _left(record)
            raise
        except Exception as error:
            self._fail(error, reply, record)
        finally:
            request.release()
            reply.close |= self.drain.refusing  # of an answer that began before
            self.drain.leave()
            record.end_s = _now_s()
            self._figures.count(record)
            if trace is not None:
                with self._faults.spared("tracing", record.id):
                    trace.end(record)

    def _traced(self, request: Request, record: Record) -> Trace | None:
        if self.tracing is None:
            return None
        trace: Trace | None = None
        with self._faults.spared("tracing", record.id):
            trace = self.tracing.begin(request.headers)
            record.trace_headers = trace.headers
        return trace

    def _full(self, fault: Fault, record: Record) -> Refusal:
        refusal = Refusal.of(fault)
        if refusal.outcome is Outcome.QUEUE_FULL and record.targets is not None:
            refusal.retry_after_s = self._dispatcher.retry_s(record.targets)
        return refusal

    async def _answer(self, request: Request, reply: Reply, record: Record) -> None:
        headers = request.headers
        record.id = request_id(headers)
        check_headers(headers)
        path = path_of(request.method, request.path)
        self.keys.check(request.method, path, key_of(headers))
        way = way_of(request.method, path, self.allowed)
        if way is Way.METRICS:
            metrics = (await self.metrics()).encode()
            record.outcome, record.status, record.bytes_out = Outcome.COMPLETED, 200, len(metrics)
            reply.send(200, [(b"Content-Type", CONTENT_TYPE.encode())], metrics)
            return
        self.drain.check()
        if way is Way.SCHEDULE:
            record.targets, record.route = targets_of(headers, self._classes), path
            record.bytes_in = len(await request.read())
            await self._scheduled(request, reply, record, record.targets)
        else:
            record.bytes_in = len(await request.read())
            await self._passed(request, reply, record)

    async def _scheduled(self, request: Request, reply: Reply, record: Record, targets: Targets) -> None:
        call = self._read(request, record, targets)
        request.body = b""  # the call has it, and maybe not as it came
        exchange = Exchange(call, record, self._dispatcher, self.lengths, self.terms)
        try:
            while True:
                body = await exchange.turn()
                try:
                    upstream = await self._send(request, record, body, exchange.priority)
                except EngineUnreachable:
                    continue  # nothing was sent, so it waits, at its old place, until the engine is back
                reply.close |= self.drain.draining
                try:
                    await exchange.answer(reply, upstream, pairs(_own_headers(record)), stall_s=self.stall_s)
                finally:
                    self._over(record, upstream)
                break
        finally:
            exchange.end()

    def _read(self, request: Request, record: Record, targets: Targets) -> Call:
        try:
            return read(record.route, request.headers, request.body, targets, self.terms)
        except Exception as error:  # a fault of ours, which is no reason to refuse anybody
            self._faults.note("reading", error, record.id)
            return unread(record.route, request.headers, request.body, targets)

    async def _passed(self, request: Request, reply: Reply, record: Record) -> None:
        try:
            upstream = await self._send(request, record, request.body)
        except EngineUnreachable as error:
            message = "the engine is away; retry later"
            raise Refusal(Outcome.ENGINE_UNAVAILABLE, message, retry_after_s=spread_s(RETRY_ENGINE_S)) from error
        reply.close |= self.drain.draining
        try:
            await Relay(reply, upstream, record, stall_s=self.stall_s).run(pairs(_own_headers(record)))
        finally:
            self._over(record, upstream)

    async def _send(self, request: Request, record: Record, body: bytes, priority: int = 0) -> Upstream:
        own = [(b"X-Request-Id", record.id.encode()), *record.trace_headers]
        if self.terms.accepts_priority:
            # For bodies that have no field for it. It would win over the one in the body, so no client may set it.
            own.append((b"X-Vllm-Priority", b"%d" % priority))
        headers = [*end_to_end(request.headers, (*_SENT, *own)), *own]
        try:
            upstream = await self._engine.send(request.method, request.target, headers, body)
        except EngineLost as error:
            message = "the engine stopped before it answered; whether it ran the request is unknown"
            raise Refusal(Outcome.ENGINE_LOST, message, retry_after_s=spread_s(RETRY_ENGINE_S)) from error
        request.release()
        return upstream

    def _over(self, record: Record, upstream: Upstream) -> None:
        upstream.abort()
        if record.outcome is Outcome.ENGINE_LOST:
            self._engine.suspect()

    def _refuse(self, refusal: Refusal, reply: Reply, record: Record) -> None:
        body = refusal.body()
        record.outcome, record.status, record.bytes_out = refusal.outcome, refusal.status, len(body)
        reply.close |= refusal.closes or self.drain.draining
        reply.send(refusal.status, pairs(_own_headers(record) | refusal.headers()), body)

    def _fail(self, error: Exception, reply: Reply, record: Record) -> None:
        self._faults.note("request", error, record.id)
        if reply.started:
            record.outcome = Outcome.INTERNAL_ERROR
            reply.abort()
            return
        reply.close = True
        self._refuse(Refusal(Outcome.INTERNAL_ERROR, "the sidecar failed; its log has the request's id"), reply, record)


def _left(record: Record) -> Outcome:
    if record.done:
        return of_engine_status(record.failed_status or record.status)
    return Outcome.CLIENT_LEFT


def _own_headers(record: Record) -> dict[str, str]:
    headers = {"X-Request-Id": record.id}
    if record.targets is not None:
        headers["x-uellm-class"] = record.slo_class
    if record.queue_s is not None:
        headers["x-uellm-queue-ms"] = f"{record.queue_s * 1000:.0f}"
    if record.predicted_tokens is not None:
        headers["x-uellm-predicted-tokens"] = f"{record.predicted_tokens:.0f}"
    return headers


def _now_s() -> float:
    return asyncio.get_running_loop().time()
