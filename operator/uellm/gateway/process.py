"""The gateway's process: everything put together, from the first socket to the last answer."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from uellm.gateway.catalog import Service
from uellm.gateway.door import Door
from uellm.gateway.fleet import Fleet
from uellm.gateway.forwarding import Forwarding
from uellm.gateway.holding import Holding, HoldLimits
from uellm.gateway.management import GatewayManagement
from uellm.gateway.response_routes import ResponseRoutes
from uellm.gateway.stored import StoredResponses
from uellm.gateway.telemetry import GatewayMetrics
from uellm.gateway.tls import Certificate
from uellm.gateway.view import FleetView
from uellm.http import Budget, RequestLimits, Server
from uellm.pod_interface import LAME_DUCK_S
from uellm.proxying.browsers import NO_ORIGIN, AllowedOrigins
from uellm.proxying.drain import GRACE_S
from uellm.proxying.metrics import Gauge
from uellm.proxying.process import Address, Ending, prepare
from uellm.proxying.secrets import KeyDirectory
from uellm.proxying.serving import ServingProxy

LOG = logging.getLogger("uellm.gateway")

KEYS_POLL_S = 10.0


@dataclass(frozen=True)
class GatewayOptions:
    """What the command line says; times in seconds."""

    listen: Address
    metrics_listen: Address | None = None
    keys: Path | None = None
    """Directory with API keys that every request needs, whatever the service."""
    tls: Path | None = None
    """Directory with `tls.crt` and `tls.key`."""
    origins: AllowedOrigins = NO_ORIGIN
    """Whose pages may use the gateway."""
    grace_s: float = GRACE_S
    lame_duck_s: float = LAME_DUCK_S
    limits: RequestLimits = field(default_factory=RequestLimits)
    holding: HoldLimits = field(default_factory=HoldLimits)


class Gateway(ServingProxy):
    """A running gateway."""

    def __init__(self, options: GatewayOptions, view_of: Callable[[Fleet], FleetView]) -> None:
        """`view_of` makes the view that keeps a fleet up to date."""
        super().__init__(options.listen, options.metrics_listen)
        self._options = options
        self.figures = GatewayMetrics(lambda key: key in self.fleet.catalog.services)
        self.fleet = Fleet(self.figures.forget)
        self.view = view_of(self.fleet)
        self._keys = KeyDirectory(options.keys)
        self.holding = Holding(options.holding, self._want)
        self.stored = StoredResponses()
        self.forwarding = Forwarding(self.fleet, self.holding, self.figures, self.stored)
        self._certificate = None if options.tls is None else Certificate(options.tls)
        responses = ResponseRoutes(self.fleet, self.stored)
        door = Door(
            self.fleet,
            self.view,
            self.forwarding,
            self.figures,
            self.drain,
            self._keys,
            responses,
            options.origins,
        )
        self.bodies = Budget()
        self._server = Server(
            door.handle,
            door.unreadable,
            limits=options.limits,
            budget=self.bodies,
            tls=None if self._certificate is None else self._certificate.context,
        )
        management = GatewayManagement(self.figures, self.view, self.drain)
        self._management_server = Server(management.handle, management.unreadable)
        self._add_gauges()

    def _watches(self) -> Iterable[Coroutine[Any, Any, None]]:
        yield self.view.run()
        yield self._watch_keys()
        if self._certificate is not None:
            yield self._certificate.watch()

    async def _close(self) -> None:
        self.holding.close()
        self.fleet.close()

    async def end_of_view(self) -> None:
        """Wait until the view ends, which it does by a fault alone: answers from a dead view would be wrong."""
        await asyncio.wait({self._tasks[0]})
        self._tasks[0].result()

    async def stop(self, *, linger: bool) -> None:
        """Become not ready, serve what still comes for a while (`linger`), refuse what comes then, finish the rest."""
        self.drain.begin(lame_duck_s=self._options.lame_duck_s if linger else 0.0, final=True)
        await self.drain.wait(self._options.grace_s)

    async def _want(self, service: Service) -> None:
        self.figures.count_wanted(service.key)
        await self.view.want(service)

    async def _watch_keys(self) -> None:
        while True:
            await asyncio.sleep(KEYS_POLL_S)
            if self._keys.poll():
                LOG.info("API keys: new ones are in force")

    def _add_gauges(self) -> None:
        service = ("namespace", "service")
        for gauge in (
            Gauge("uellm_gateway_replicas", "Ready replicas that requests are sent to.", self.fleet.counts, *service),
            Gauge(
                "uellm_gateway_requests_held", "Requests that wait for a first replica.", self.holding.counts, *service
            ),
            Gauge("uellm_gateway_requests_active", "Requests in hand.", lambda: self.drain.active),
            Gauge("uellm_gateway_connections", "Open connections of clients.", lambda: len(self.connections)),
            Gauge("uellm_gateway_body_bytes", "Bytes of request bodies in memory.", lambda: self.bodies.held_bytes),
            Gauge("uellm_gateway_view_age_seconds", "Time since the API server was heard of.", self.view.age_s),
            Gauge(
                "uellm_gateway_namespace_refused",
                "1 for each namespace that cannot be read: it was deleted, or the rights or the CRDs are missing.",
                lambda: dict.fromkeys(((namespace,) for namespace in self.view.refused), 1.0),
                "namespace",
            ),
            Gauge("uellm_gateway_draining", "1 once it is to stop, and not ready.", lambda: self.drain.draining),
        ):
            self.figures.gauge(gauge)


async def serve(
    options: GatewayOptions, view_of: Callable[[Fleet], FleetView], on_started: Callable[[Gateway], None]
) -> None:
    """Run until SIGTERM or SIGINT, then drain; a second signal ends at once. Only after SIGTERM it lingers."""
    prepare()
    ending = Ending()
    async with Gateway(options, view_of) as gateway:
        on_started(gateway)
        first, dead = asyncio.create_task(ending.first()), asyncio.create_task(gateway.end_of_view())
        await asyncio.wait((first, dead), return_when=asyncio.FIRST_COMPLETED)
        if dead.done():
            first.cancel()
            dead.result()
        dead.cancel()
        LOG.info("draining %d requests", gateway.drain.active)
        await ending.unless_again(gateway.stop(linger=first.result() is signal.SIGTERM))
