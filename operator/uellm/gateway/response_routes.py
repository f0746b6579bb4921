"""Requests about responses that a replica keeps: the next turn, and the routes below `/v1/responses/ID`.

A client's key goes only to a service that the request names, or to the only one that there is.
"""

from __future__ import annotations

from collections.abc import Container, Iterable
from typing import NamedTuple
from urllib.parse import parse_qs

from uellm.gateway.catalog import Match, Service, ServiceKey
from uellm.gateway.fleet import Fleet
from uellm.gateway.replicas import Replica
from uellm.gateway.stored import AskedReplica, StoredResponses
from uellm.http import Pairs, Request
from uellm.proxying.outcome import Refusal, RequestOutcome
from uellm.proxying.response_id import previous_id
from uellm.proxying.routes import MEANT_FOR, SEARCH

_KEYS: Pairs = ((b"authorization", b""), (b"x-api-key", b""))
_SEARCH = (SEARCH.encode(), b"1")


class KeptResponse(NamedTuple):
    """A service, and its replica that keeps a response."""

    match: Match
    replica: Replica
    withheld: Pairs
    """Headers that the service must not get: without being named it has said that the response is its own."""


class ResponseRoutes:
    """Finds the replica that keeps a response."""

    def __init__(self, fleet: Fleet, stored: StoredResponses) -> None:
        self._fleet = fleet
        self._stored = stored

    async def of_body(self, request: Request, body: bytes, service: Service) -> Replica | None:
        """The replica that keeps the response which a request goes on from. None: it goes on from none, or none does.

        The engine then says so itself.
        """
        response_id = previous_id(body)
        if not response_id or len(self._fleet.replicas(service.key)) < 2:
            return None
        known = self._known(response_id, {service.key})
        if known is not None:
            return known.replica
        found = await self._stored.search(response_id, self._asked(request, service, named=True), named=True)
        return None if found is None else found.replica

    async def of_path(self, request: Request, response_id: str) -> KeptResponse:
        """The replica that keeps the response of that id. Raises Refusal: none that may be asked does."""
        model = parse_qs(request.query).get("model")
        services = list(self._fleet.catalog.services.values())
        if model:
            services = [self._fleet.catalog.find(model[0]).service]
        named = len(services) == 1
        known = self._known(response_id, {service.key for service in services}, named=named)
        if known is not None:
            return known
        asked = [each for service in services for each in self._asked(request, service, named=named)]
        found = await self._stored.search(response_id, asked, named=named)
        if found is not None and (service := self._fleet.catalog.services.get(found.service)) is not None:
            return KeptResponse(_match(service), found.replica, () if named else _KEYS)
        message = f"Response with id '{response_id}' not found: it ends with the replica that made it."
        if not named:
            message += " If its service has API keys, name its model: send the request with ?model=NAME"
        raise Refusal(RequestOutcome.BAD_REQUEST, message, status=404)

    def _known(self, response_id: str, keys: Container[ServiceKey], *, named: bool = True) -> KeptResponse | None:
        """Who has it of these services, as far as this gateway knows. `named`: the request names the only one."""
        holder = self._stored.holder(response_id)
        if holder is None or holder.service not in keys:
            return None
        service = self._fleet.catalog.services.get(holder.service)
        replica = None if service is None else self._fleet.replicas(service.key).named(holder.replica)
        if service is None or replica is None:
            return None
        return KeptResponse(_match(service), replica, () if named or holder.named else _KEYS)

    def _asked(self, request: Request, service: Service, *, named: bool) -> Iterable[AskedReplica]:
        """The replicas of a service that may be asked. A service of a file may have keys that we do not know of."""
        keyless = service.uid and service.keys_secret is None
        if not named and not keyless:
            return
        names = {name for name, _ in _KEYS}
        key = [field for field in request.headers.raw if field[0].lower() in names] if named else []
        meant: Pairs = [(MEANT_FOR.encode(), str(service.key).encode())] if service.uid else []
        for replica in self._fleet.replicas(service.key).all:
            yield AskedReplica(service.key, replica, [*key, *meant, _SEARCH])


def _match(service: Service) -> Match:
    return Match(service, service.names[0], service.names[0])
