"""Handles every request: check it, queue it, send it, relay the answer. Each request ends with one outcome."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

from uellm.api.attainment_report import AttainmentReport, LoadMeasurement, StepMeasurement
from uellm.http import Budget, EngineLost, EngineUnreachable, Fault, Pairs, Reply, Request, Upstream
from uellm.proxying.browsers import AllowedOrigins
from uellm.proxying.drain import Drain
from uellm.proxying.handler import RequestHandler, now_s
from uellm.proxying.keys import key_of
from uellm.proxying.metrics import CONTENT_TYPE, exposition, with_older_names, with_waiting
from uellm.proxying.outcome import RETRY_ENGINE_S, Refusal, RequestOutcome, of_engine_status, spread_s
from uellm.proxying.relay import STALL_S, Relay
from uellm.proxying.response_id import kept_id
from uellm.proxying.routes import HOP_BY_HOP, MEANT_FOR, SEARCH, WAITED_MS, end_to_end, path_of, request_id, waited_s
from uellm.sidecar.engine.connection import EngineConnection
from uellm.sidecar.prediction.service import Predictor
from uellm.sidecar.request.background import Background
from uellm.sidecar.request.dispatch import Dispatcher
from uellm.sidecar.request.exchange import Exchange
from uellm.sidecar.request.refusals import misdirected
from uellm.sidecar.request.routes import Way, way_of
from uellm.sidecar.request.tunnel import SWITCHING, UPGRADE, Tunnel, asks_for_websocket
from uellm.sidecar.scheduling import Targets
from uellm.sidecar.settings import LiveSettings
from uellm.sidecar.telemetry.access_log import Record
from uellm.sidecar.telemetry.sidecar_metrics import SidecarMetrics
from uellm.sidecar.telemetry.tracing import RequestSpan, Tracing
from uellm.sidecar.wire.call import Call
from uellm.sidecar.wire.read import Terms, read, unread
from uellm.sidecar.wire.slo import SCHEDULING, targets_of
from uellm.vllm_routes import is_use

_SCHEDULE, _METRICS = Way.SCHEDULE, Way.METRICS
_OBEYED = (*SCHEDULING, MEANT_FOR, WAITED_MS, SEARCH)
_NOT_PASSED_ON = HOP_BY_HOP.union([b"content-length", b"x-request-id"], [name.encode() for name in _OBEYED])
"""Headers that the transport sets itself, the one that the sidecar always sets, and those that it has obeyed."""
_UNCOMPRESSED = (b"Accept-Encoding", b"identity")
_LEAST_ERROR = 400
"""The statuses from this one on say that the engine did nothing for the client."""


class Proxy(RequestHandler[Record]):
    """The request handler between clients and the engine."""

    def __init__(
        self,
        settings: LiveSettings,
        engine: EngineConnection,
        dispatcher: Dispatcher,
        figures: SidecarMetrics,
        bodies: Budget,
        lengths: Predictor,
        drain: Drain,
        *,
        tracing: Tracing | None = None,
    ) -> None:
        super().__init__("sidecar", Record, figures, drain)
        self.bodies = bodies
        self.terms = Terms()
        self.tracing = tracing
        self.lengths = lengths
        """Predicts output lengths, if the settings enable it."""
        self.stall_s = STALL_S
        self._engine = engine
        self._dispatcher = dispatcher
        self._figures = figures
        self._faults = figures.faults
        self._settings = settings
        self.background = Background(engine, drain)
        self._passing = 0
        """Requests of other than the scheduled routes that the engine has and that are a sign of use, realtime sessions
        among them."""
        self._passed_on = 0
        """Those of them that ended since the start, and that the engine did not refuse."""

    async def metrics(self) -> str:
        """The sidecar's metrics, then the engine's with the sidecar's queue added to its waiting requests.

        Only the sidecar's if the engine does not answer.
        """
        engine_metrics = await self._engine.metrics()
        own = exposition(self._figures.metrics)
        if engine_metrics is None:
            return own
        return own + with_older_names(with_waiting(engine_metrics, self._dispatcher.queued))

    def attainment(self) -> AttainmentReport:
        """Attainment over the last minutes for every class, even without requests; the engine's steps, and the load."""
        current = self._settings.current
        report = self._figures.attainment.report(now_s(), current.classes)
        return replace(report, steps=self._steps() if current.steps_are_planned else None, load=self._load())

    def _load(self) -> LoadMeasurement:
        totals, dispatcher = self._figures.totals, self._dispatcher
        return LoadMeasurement(
            totals.ended,
            totals.missed,
            totals.prompt_tokens,
            totals.output_tokens,
            dispatcher.in_flight,
            dispatcher.queued,
            dispatcher.cached_share(),
            dispatcher.measured_step(),
            self._passing,
            totals.prompts,
            totals.answers,
            self._passed_on,
        )

    def _steps(self) -> StepMeasurement | None:
        measured = self._dispatcher.measured_steps()
        if not measured.observed:
            return None
        factors = measured.factors.bounded()
        return StepMeasurement(measured.observed, factors, measured.mean_s, measured.expected_s)

    def _begins(self, request: Request, record: Record) -> Callable[[Record], None] | None:
        if self.tracing is None:
            return None
        trace: RequestSpan | None = None
        with self._faults.guard("tracing", record.id):
            trace = self.tracing.begin(request.headers, record.arrival_s)
            record.trace_headers = trace.headers
        return None if trace is None else partial(self._traced, trace)

    def _traced(self, trace: RequestSpan, record: Record) -> None:
        with self._faults.guard("tracing", record.id):
            trace.end(record)

    def _refusal_of(self, fault: Fault, record: Record) -> Refusal:
        refusal = Refusal.of(fault)
        if refusal.outcome is RequestOutcome.QUEUE_FULL and record.targets is not None:
            refusal.retry_after_s = self._dispatcher.retry_s(record.targets)
        return refusal

    async def _answer(self, request: Request, reply: Reply, record: Record) -> None:
        headers, settings, method = request.headers, self._settings.current, request.method
        record.id = request_id(headers)
        path = path_of(method, request.path)
        if settings.service and (headers.get(MEANT_FOR) or settings.service) != settings.service:
            raise misdirected()
        if settings.keys.required:
            settings.keys.check(method, path, key_of(headers))
        way = way_of(method, path, settings.allowed_routes)
        if way is _METRICS:
            self._send(request, reply, record, CONTENT_TYPE, (await self.metrics()).encode())
            return
        if self.drain.refusing and not kept_id(method, path):  # what the drain waits for may be asked for
            self.drain.check()
        if way is _SCHEDULE:
            record.targets, record.route = targets_of(headers, settings.classes), path
            await self._read_body(request, record)
            record.waited_s = waited_s(headers, settings.service)
            record.arrival_s -= record.waited_s
            await self._scheduled(request, reply, record, record.targets)
        else:
            await self._read_body(request, record)
            await self._passed(request, reply, record, path)

    async def _scheduled(self, request: Request, reply: Reply, record: Record, targets: Targets) -> None:
        settings, call = self._settings.current, self._read(request, record, targets)
        if settings.adapters and any(each.name == call.model for each in settings.adapters):
            record.adapter = call.model
        request.body = b""  # the call has it, perhaps modified
        lengths = self.lengths if settings.predicts_lengths else None
        exchange = Exchange(call, record, self._dispatcher, lengths, self.terms)
        try:
            while True:
                body = await exchange.turn()
                try:
                    upstream = await self._send_on(request, record, body, exchange.priority, plain=call.rewrites_events)
                except EngineUnreachable:
                    record.waits = True
                    continue  # nothing was sent: wait at the old place until the engine is back
                reply.close |= self.drain.draining
                try:
                    await exchange.answer(reply, upstream, self._own_headers(record), stall_s=self.stall_s)
                finally:
                    self._over(record, upstream)
                break
        finally:
            if not self.background.take(exchange, request.headers):
                exchange.end()

    def _read(self, request: Request, record: Record, targets: Targets) -> Call:
        try:
            accepts_priority = self._settings.current.accepts_priority
            return read(
                record.route, request.headers, request.body, targets, self.terms, accepts_priority=accepts_priority
            )
        except Exception as error:  # our own fault must not refuse the request
            self._faults.count("reading", error, record.id)
            return unread(record.route, request.headers, request.body, targets)

    async def _passed(self, request: Request, reply: Reply, record: Record, path: str) -> None:
        searched = SEARCH in request.headers and bool(kept_id(request.method, path))
        used = is_use(path) and not searched
        self._passing += used
        try:
            await self._pass(request, reply, record)
        finally:
            self._passing -= used
            # The status is that of the engine's answer; 0 where there was none.
            self._passed_on += used and 0 < record.status < _LEAST_ERROR

    async def _pass(self, request: Request, reply: Reply, record: Record) -> None:
        switches = asks_for_websocket(request.method, request.headers)
        try:
            upstream = await self._send_on(request, record, request.body, switches=switches)
        except EngineUnreachable as error:
            message = "the engine is away; retry later"
            raise Refusal(RequestOutcome.ENGINE_UNAVAILABLE, message, retry_after_s=spread_s(RETRY_ENGINE_S)) from error
        reply.close |= self.drain.draining
        own = self._own_headers(record)
        try:
            if upstream.status == SWITCHING:
                await Tunnel(reply, upstream, record).run(own)
            else:
                await Relay(reply, upstream, record, stall_s=self.stall_s).run(own)
        finally:
            self._over(record, upstream)

    async def _send_on(
        self,
        request: Request,
        record: Record,
        body: bytes,
        priority: int = 0,
        *,
        plain: bool = False,
        switches: bool = False,
    ) -> Upstream:
        """`plain`: the answer's events are read and changed, so the engine must not compress it."""
        own = [*record.trace_headers]
        if self._settings.current.accepts_priority:
            # For bodies without a priority field. The header overrides the body, so no client may set it.
            own.append((b"X-Vllm-Priority", b"%d" % priority))
        if plain and request.headers.get("accept-encoding"):
            own.append(_UNCOMPRESSED)
        if switches:
            own += UPGRADE
        headers = end_to_end(request.headers, own, _NOT_PASSED_ON)
        headers.append((b"X-Request-Id", record.id.encode()))
        headers += own
        record.waits = False
        try:
            upstream = await self._engine.pool.send(request.method, request.target, headers, body, switches=switches)
        except EngineUnreachable:
            self._engine.lost()
            raise
        except EngineLost as error:
            self._engine.suspect()
            message = "the engine stopped before it answered; whether it ran the request is unknown"
            raise Refusal(RequestOutcome.ENGINE_LOST, message, retry_after_s=spread_s(RETRY_ENGINE_S)) from error
        request.release()
        return upstream

    def _over(self, record: Record, upstream: Upstream) -> None:
        upstream.abort()
        if record.outcome is RequestOutcome.ENGINE_LOST:
            self._engine.suspect()

    def _outcome_left(self, record: Record) -> RequestOutcome:
        if record.done:
            return of_engine_status(record.failed_status or record.status)
        return RequestOutcome.CLIENT_LEFT

    def _allowed_origins(self) -> AllowedOrigins:
        return self._settings.current.allowed_origins

    def _own_headers(self, record: Record) -> Pairs:
        headers = [(b"X-Request-Id", record.id.encode())]
        if record.targets is not None:
            headers.append((b"x-uellm-class", record.targets.name.encode()))
        if record.queue_s is not None:
            headers.append((b"x-uellm-queue-ms", b"%.0f" % (record.queue_s * 1000)))
        if record.predicted_tokens is not None:
            headers.append((b"x-uellm-predicted-tokens", b"%.0f" % record.predicted_tokens))
        return headers
