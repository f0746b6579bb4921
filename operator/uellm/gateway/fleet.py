"""The services and their replicas as they are now."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from uellm.gateway.catalog import Catalog, Service, ServiceKey
from uellm.gateway.replicas import ReplicaAddress, Replicas


class Fleet:
    """What a view keeps up to date and the door reads."""

    def __init__(self, on_drop: Callable[[ServiceKey], None] = lambda _: None) -> None:
        """`on_drop` is called when a service is gone."""
        self._on_drop = on_drop
        self.catalog = Catalog()
        self._replicas: dict[ServiceKey, Replicas] = {}
        self._gone: list[Replicas] = []

    def replicas(self, key: ServiceKey) -> Replicas:
        """The replicas of a service; none if nothing is known of it."""
        if key not in self._replicas:
            self._replicas[key] = Replicas(lambda: self._told(key))
        return self._replicas[key]

    def _told(self, key: ServiceKey) -> None:
        self.catalog.tell(key, self.replicas(key).told)

    def counts(self) -> dict[tuple[str, ...], float]:
        """Ready replicas by namespace and service."""
        return {(key.namespace, key.name): len(self.replicas(key)) for key in self.catalog.services}

    def put(self, service: Service) -> None:
        """Add or replace a service."""
        self.catalog.put(service)
        self.replicas(service.key).serve(awaited=service.starts)

    def drop(self, key: ServiceKey) -> None:
        """Remove a service. Requests at its replicas go on."""
        self.catalog.drop(key)
        self.replicas(key).serve(awaited=False)
        self._tidy(key)
        self._on_drop(key)

    def place(self, key: ServiceKey, addresses: Iterable[ReplicaAddress]) -> None:
        """Take these as the ready replicas of a service, which may become known later."""
        self.replicas(key).place(addresses)
        self._told(key)
        self._tidy(key)

    def close(self) -> None:
        """Cut every connection to replicas."""
        for replicas in (*self._replicas.values(), *self._gone):
            replicas.close()

    def _tidy(self, key: ServiceKey) -> None:
        if key not in self.catalog.services and key in self._replicas and not len(self._replicas[key]):
            self._gone = [each for each in self._gone if each.connected]
            self._gone.append(self._replicas.pop(key))
