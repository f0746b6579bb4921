"""What the gateway needs of the place where services are described: a cluster, or a file."""

from __future__ import annotations

from collections.abc import Collection
from typing import Protocol

from uellm.gateway.catalog import Service
from uellm.proxying.keys import Keys


class FleetView(Protocol):
    """Keeps a `Fleet` up to date."""

    @property
    def complete(self) -> bool:
        """Whether everything was read once that can be read."""

    @property
    def refused(self) -> Collection[str]:
        """Namespaces that cannot be read: their services are not served."""

    def age_s(self) -> float:
        """Seconds since it was up to date for certain."""

    async def run(self) -> None:
        """Keep the fleet up to date until cancelled."""

    async def want(self, service: Service) -> None:
        """Ask for a replica. Raises nothing: the caller asks again."""

    async def keys(self, service: Service) -> Keys | None:
        """The API keys of a service; None: they are not for the gateway to read, or there are none.

        Raises Refusal: they cannot be read now.
        """
