"""Handles every request: which model it names, which service that is, and one outcome at its end."""

from __future__ import annotations

import asyncio
import json

from uellm.gateway.catalog import Match, Service, model_object
from uellm.gateway.fleet import Fleet
from uellm.gateway.forwarding import Forwarding
from uellm.gateway.model_field import ModelField, Search, model_field
from uellm.gateway.replicas import Replica
from uellm.gateway.response_routes import ResponseRoutes
from uellm.gateway.telemetry import GatewayMetrics, GatewayRecord
from uellm.gateway.view import FleetView
from uellm.http import Pairs, Reply, Request
from uellm.proxying.browsers import AllowedOrigins, is_preflight
from uellm.proxying.drain import Drain
from uellm.proxying.handler import RequestHandler
from uellm.proxying.keys import key_of
from uellm.proxying.outcome import RETRY_REPLICA_S, Refusal, RequestOutcome, spread_s
from uellm.proxying.response_id import RESPONSES, kept_id
from uellm.proxying.routes import path_of, request_id
from uellm.proxying.secrets import KeyDirectory
from uellm.vllm_routes import OPEN

MODELS = "/v1/models"
_METHODS = "GET, HEAD, POST"
_HEALTH = OPEN - {"/metrics"}


class Door(RequestHandler[GatewayRecord]):
    """The request handler between clients and the services."""

    def __init__(
        self,
        fleet: Fleet,
        view: FleetView,
        forwarding: Forwarding,
        figures: GatewayMetrics,
        drain: Drain,
        keys: KeyDirectory,
        responses: ResponseRoutes,
        origins: AllowedOrigins,
    ) -> None:
        super().__init__("gateway", GatewayRecord, figures, drain)
        self._fleet = fleet
        self._view = view
        self._forwarding = forwarding
        self._keys = keys
        self._responses = responses
        self._origins = origins

    async def _answer(self, request: Request, reply: Reply, record: GatewayRecord) -> None:
        record.id = request_id(request.headers)
        path = path_of(request.method, request.path)
        self._keys.keys.check(request.method, path, key_of(request.headers))
        if is_preflight(request.method, request.headers):
            await self._preflight(request, reply, record)
            return
        if response_id := kept_id(request.method, path):
            await self._about_response(request, reply, record, response_id)
            return
        if request.method in ("GET", "HEAD"):
            await self._read_only(request, reply, record, path)
            return
        if request.method != "POST":
            raise _no_route(request.method, path)
        self.drain.check()
        self._check_complete()
        record.route = path
        body = await self._read_body(request, record)
        field = await in_turns(model_field(request.headers.get("content-type"), body))
        match = self._fleet.catalog.find(field.name)
        record.service = match.service.key
        if match.name != field.name:
            request.body = field.replaced(body, match.name)
        pinned = await self._responses.of_body(request, body, match.service) if path == RESPONSES else None
        del body
        await self._check_early(request, path, match.service)
        await self._forward(request, reply, record, match, pinned)

    async def _about_response(self, request: Request, reply: Reply, record: GatewayRecord, response_id: str) -> None:
        self.drain.check()
        self._check_complete()
        await self._read_body(request, record)
        kept = await self._responses.of_path(request, response_id)
        record.service = kept.match.service.key
        await self._forward(request, reply, record, kept.match, kept.replica, kept.withheld)

    async def _forward(
        self,
        request: Request,
        reply: Reply,
        record: GatewayRecord,
        match: Match,
        pinned: Replica | None,
        withheld: Pairs = (),
    ) -> None:
        reply.close |= self.drain.draining
        own, shown = self._own_headers(record), self._for_pages(request)
        await self._forwarding.forward(request, reply, record, match, own, shown, pinned=pinned, withheld=withheld)

    def _check_complete(self) -> None:
        if not self._view.complete:
            message = "the gateway has just started and does not know the services yet; retry soon"
            raise Refusal(RequestOutcome.ENGINE_UNAVAILABLE, message, retry_after_s=spread_s(RETRY_REPLICA_S))

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
            self._check_complete()
            self._send_json(request, reply, record, {"object": "list", "data": catalog.listed()})
        elif path.startswith(f"{MODELS}/"):
            self._check_complete()
            name = path.removeprefix(f"{MODELS}/")  # it may contain slashes, which were encoded or not
            self._send_json(request, reply, record, model_object(name, catalog.find(name)))
        elif path in _HEALTH:
            self.drain.check()
            self._send_json(request, reply, record, {"status": "ok"})
        else:
            raise _no_route(request.method, path)

    async def _preflight(self, request: Request, reply: Reply, record: GatewayRecord) -> None:
        """Answer a browser's question whether a page may send a request. It says nothing of the services."""
        await request.read()
        allowed = self._origins.preflight(request.headers, _METHODS)
        if not allowed:
            message = "no page of this origin may use the gateway: name the origin in its --allowed-origins"
            raise Refusal(RequestOutcome.BAD_REQUEST, f"{message} (gateway.allowedOrigins of the chart)", status=403)
        record.outcome, record.status = RequestOutcome.COMPLETED, 200
        reply.close |= self.drain.draining
        reply.send(200, [*self._own_headers(record), *allowed], b"")

    def _send_json(self, request: Request, reply: Reply, record: GatewayRecord, document: object) -> None:
        self._send(request, reply, record, "application/json", json.dumps(document).encode())

    def _outcome_left(self, record: GatewayRecord) -> RequestOutcome:
        return RequestOutcome.COMPLETED if record.done and record.status < 400 else RequestOutcome.CLIENT_LEFT

    def _allowed_origins(self) -> AllowedOrigins:
        return self._origins

    def _own_headers(self, record: GatewayRecord) -> Pairs:
        return ((b"X-Request-Id", record.id.encode()),)


async def in_turns(search: Search) -> ModelField:
    """What is found, with a turn for everything else after each piece."""
    while True:
        try:
            next(search)
        except StopIteration as end:
            found: ModelField = end.value
            return found
        await asyncio.sleep(0)


def _no_route(method: str, path: str) -> Refusal:
    message = f"{method} {path} is not served here: send POST requests with a `model` in the body, or GET {MODELS}"
    return Refusal(RequestOutcome.BAD_REQUEST, message, status=404)
