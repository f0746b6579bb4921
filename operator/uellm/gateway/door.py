"""Handles every request: which model it names, which service that is, and one outcome at its end."""

from __future__ import annotations

import asyncio
import json

from uellm.gateway.catalog import Service, model_object
from uellm.gateway.fleet import Fleet
from uellm.gateway.forwarding import Forwarding
from uellm.gateway.model_field import model_field
from uellm.gateway.telemetry import GatewayMetrics, GatewayRecord
from uellm.gateway.view import FleetView
from uellm.http import Fault, Pairs, Reply, Request, pairs
from uellm.proxying.drain import Drain
from uellm.proxying.keys import key_of
from uellm.proxying.outcome import RETRY_REPLICA_S, Refusal, RequestOutcome, spread_s
from uellm.proxying.routes import path_of, request_id
from uellm.proxying.secrets import KeyDirectory
from uellm.vllm_routes import OPEN

MODELS = "/v1/models"
_JSON: Pairs = ((b"Content-Type", b"application/json"),)
_HEALTH = OPEN - {"/metrics"}


class Door:
    """The request handler between clients and the services."""

    def __init__(
        self,
        fleet: Fleet,
        view: FleetView,
        forwarding: Forwarding,
        figures: GatewayMetrics,
        drain: Drain,
        keys: KeyDirectory,
    ) -> None:
        self.drain = drain
        self._fleet = fleet
        self._view = view
        self._forwarding = forwarding
        self._figures = figures
        self._keys = keys

    def unreadable(self, fault: Fault) -> tuple[Pairs, bytes]:
        """Count a message that is not HTTP. Returns headers and body of the answer."""
        refusal, now_s = Refusal.of(fault), _now_s()
        self._figures.count(GatewayRecord("-", "-", now_s, outcome=refusal.outcome, status=refusal.status, end_s=now_s))
        return pairs(refusal.headers()), refusal.body()

    async def handle(self, request: Request, reply: Reply) -> None:
        """Answer one request. Cancelled when its client leaves."""
        record = GatewayRecord(request.method, request.path, _now_s())
        self.drain.enter()
        try:
            await self._answer(request, reply, record)
        except Refusal as refusal:
            self._refuse(refusal, reply, record)
        except Fault as fault:
            self._refuse(Refusal.of(fault), reply, record)
        except asyncio.CancelledError:
            record.outcome = _left(record, over=self.drain.over)
            raise
        except Exception as error:
            self._fail(error, reply, record)
        finally:
            request.release()
            reply.close |= self.drain.refusing
            self.drain.leave()
            record.end_s = _now_s()
            self._figures.count(record)

    async def _answer(self, request: Request, reply: Reply, record: GatewayRecord) -> None:
        record.id = request_id(request.headers)
        path = path_of(request.method, request.path)
        self._keys.keys.check(request.method, path, key_of(request.headers))
        if request.method in ("GET", "HEAD"):
            await self._read_only(request, reply, record, path)
            return
        if request.method != "POST":
            raise _no_route(request.method, path)
        self.drain.check()
        if not self._view.complete:
            message = "the gateway has just started and does not know the services yet; retry soon"
            raise Refusal(RequestOutcome.ENGINE_UNAVAILABLE, message, retry_after_s=spread_s(RETRY_REPLICA_S))
        record.route = path
        body = await request.read()
        record.bytes_in = len(body)
        field = model_field(request.headers.get("content-type"), body)
        match = self._fleet.catalog.find(field.name)
        record.service = match.service.key
        if match.name != field.name:
            request.body = field.replaced(body, match.name)
        del body
        await self._check_early(request, path, match.service)
        reply.close |= self.drain.draining
        await self._forwarding.forward(request, reply, record, match.service, _own_headers(record))

    async def _check_early(self, request: Request, path: str, service: Service) -> None:
        """Check the key of a request that would be held, as far as the gateway may know the service's keys."""
        if service.keys_secret is None or len(self._fleet.replicas(service.key)):
            return
        keys = await self._view.keys(service)
        if keys is not None:
            keys.check(request.method, path, key_of(request.headers))

    async def _read_only(self, request: Request, reply: Reply, record: GatewayRecord, path: str) -> None:
        await request.read()
        catalog = self._fleet.catalog
        if path == MODELS:
            self._send(reply, record, {"object": "list", "data": catalog.listed()})
        elif path.startswith(f"{MODELS}/"):
            name = path.removeprefix(f"{MODELS}/")  # it may contain slashes, which were encoded or not
            self._send(reply, record, model_object(name, catalog.find(name)))
        elif path in _HEALTH:
            self.drain.check()
            self._send(reply, record, {"status": "ok"})
        else:
            raise _no_route(request.method, path)

    def _send(self, reply: Reply, record: GatewayRecord, document: object) -> None:
        body = json.dumps(document).encode()
        record.outcome, record.status, record.bytes_out = RequestOutcome.COMPLETED, 200, len(body)
        reply.close |= self.drain.draining
        reply.send(200, [*_JSON, *_own_headers(record)], body)

    def _refuse(self, refusal: Refusal, reply: Reply, record: GatewayRecord) -> None:
        body = refusal.body()
        record.outcome, record.status, record.bytes_out = refusal.outcome, refusal.status, len(body)
        reply.close |= refusal.closes or self.drain.draining
        reply.send(refusal.status, [*_own_headers(record), *pairs(refusal.headers())], body)

    def _fail(self, error: Exception, reply: Reply, record: GatewayRecord) -> None:
        self._figures.faults.count("request", error, record.id)
        if reply.started:
            record.outcome = RequestOutcome.INTERNAL_ERROR
            reply.abort()
            return
        reply.close = True
        message = "the gateway failed; its log has the request's id"
        self._refuse(Refusal(RequestOutcome.INTERNAL_ERROR, message), reply, record)


def _no_route(method: str, path: str) -> Refusal:
    message = f"{method} {path} is not served here: send POST requests with a `model` in the body, or GET {MODELS}"
    return Refusal(RequestOutcome.BAD_REQUEST, message, status=404)


def _left(record: GatewayRecord, *, over: bool) -> RequestOutcome:
    """The outcome of a request whose client left; OpenAI's clients do so after `[DONE]`."""
    if over:
        return RequestOutcome.DRAINING
    return RequestOutcome.COMPLETED if record.done and record.status < 400 else RequestOutcome.CLIENT_LEFT


def _own_headers(record: GatewayRecord) -> Pairs:
    return ((b"X-Request-Id", record.id.encode()),)


def _now_s() -> float:
    return asyncio.get_running_loop().time()
