"""Services and replicas as the cluster has them, by a watch of LLMServices and one of EndpointSlices.

While the API server is away the last state stays in force: replicas that are gone by then are found out by connecting.
"""

from __future__ import annotations

import asyncio
import base64
import logging
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from datetime import UTC, datetime

from uellm.api.names import SERVICE_LABEL, WANTED_AT_ANNOTATION
from uellm.gateway.catalog import Service, ServiceKey
from uellm.gateway.contact import Contact
from uellm.gateway.documents import key_of, ready_endpoints, service_of, slice_service
from uellm.gateway.fleet import Fleet
from uellm.gateway.replicas import ReplicaAddress
from uellm.kube import DELETED, ENDPOINTSLICE, LLMSERVICE, SECRET, SYNCED, Event, Kind, Kube, KubeError
from uellm.proxying.keys import Keys

KEYS_FOR_S = 30.0
"""How long keys that were read, or a refusal to read them, are taken for current."""

LOG = logging.getLogger("uellm.gateway")


class KubeView:
    """A view of the cluster. `namespaces`: those whose services are served; empty: all."""

    def __init__(
        self, kube: Kube, fleet: Fleet, namespaces: Sequence[str] = (), *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._kube = kube
        self._fleet = fleet
        self._namespaces: Sequence[str | None] = tuple(namespaces) or (None,)
        self._clock = clock
        self._contact = Contact((LLMSERVICE, ENDPOINTSLICE), self._namespaces, clock)
        self._slices: dict[ServiceKey, dict[str, dict[str, ReplicaAddress]]] = defaultdict(dict)
        """By service and slice: the addresses of ready pods."""
        self._slice_of: dict[ServiceKey, ServiceKey] = {}
        """The service of each slice."""
        self._keys: dict[ServiceKey, tuple[float, Keys | None]] = {}
        self._reading: defaultdict[ServiceKey, asyncio.Lock] = defaultdict(asyncio.Lock)
        """Keys: of a burst of requests the first one reads them."""

    @property
    def complete(self) -> bool:
        """Whether everything was read once that can be read."""
        return self._contact.complete

    @property
    def refused(self) -> set[str]:
        """Namespaces that cannot be read: their services are not served."""
        return {namespace for namespace in self._contact.refused if namespace is not None}

    def age_s(self) -> float:
        """Seconds since the API server was heard of; infinite before the first time."""
        return self._contact.age_s()

    async def run(self) -> None:
        """Watch until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            for namespace in self._namespaces:
                tasks.create_task(self._follow(LLMSERVICE, namespace, "", self._service))
                tasks.create_task(self._follow(ENDPOINTSLICE, namespace, SERVICE_LABEL, self._slice))

    async def want(self, service: Service) -> None:
        """Set the annotation that asks for a replica."""
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        key = service.key
        try:
            await self._kube.annotate(LLMSERVICE, key.name, key.namespace, {WANTED_AT_ANNOTATION: now}, uid=service.uid)
        except KubeError as error:
            LOG.error("cannot ask for a replica of %s: %s", key, error)

    async def keys(self, service: Service) -> Keys | None:
        """The keys of its Secret, where a Role of the namespace lets the gateway read it."""
        if service.keys_secret is None:
            return None
        async with self._reading[service.key]:
            until_s, keys = self._keys.get(service.key, (0.0, None))
            if self._clock() >= until_s:
                keys = await self._read_keys(service.key.namespace, service.keys_secret)
                self._keys[service.key] = (self._clock() + KEYS_FOR_S, keys)
            return keys

    async def _read_keys(self, namespace: str, secret: str) -> Keys | None:
        try:
            document = await self._kube.get(SECRET, secret, namespace)
        except KubeError:
            return None
        values = [base64.b64decode(value) for value in ((document or {}).get("data") or {}).values()]
        lines = [line.strip() for value in values for line in value.decode("utf-8", "replace").splitlines()]
        return Keys(line for line in lines if line)

    async def _follow(
        self, kind: Kind, namespace: str | None, label_selector: str, put: Callable[[Event], None]
    ) -> None:
        watched = self._kube.watch(
            kind,
            namespace=namespace,
            label_selector=label_selector,
            on_contact=lambda: self._contact.heard(kind, namespace),
            on_refused=lambda error: self._refused(kind, namespace, error),
        )
        async for event in watched:
            if event.type == SYNCED:
                self._contact.synced(kind, namespace)
            else:
                put(event)

    def _refused(self, kind: Kind, namespace: str | None, error: KubeError) -> None:
        if not self._contact.refuse(kind, namespace):
            return
        if namespace is None:
            LOG.error("no namespace can be read: %s; give the gateway the ClusterRoleBinding of its chart", error)
        else:
            todo = "take it out of gateway.namespaces if it was deleted; if not, helm upgrade gives the rights anew"
            LOG.error("the services of namespace %s cannot be read: %s; %s", namespace, error, todo)

    def _service(self, event: Event) -> None:
        if event.type == DELETED:
            self._keys.pop(key_of(event.object), None)
            self._reading.pop(key_of(event.object), None)
            self._fleet.drop(key_of(event.object))
        else:
            self._fleet.put(service_of(event.object))

    def _slice(self, event: Event) -> None:
        name = key_of(event.object)
        service = self._slice_of.pop(name, None)
        if service is not None:
            self._slices[service].pop(name.name, None)
        if event.type != DELETED and (owner := slice_service(event.object)) is not None:
            if service not in (None, owner):
                self._place(service)
            service = owner
            self._slice_of[name] = owner
            self._slices[owner][name.name] = dict(ready_endpoints(event.object))
        if service is not None:
            self._place(service)

    def _place(self, service: ServiceKey | None) -> None:
        if service is None:
            return
        by_pod: dict[str, ReplicaAddress] = {}
        for _, addresses in sorted(self._slices[service].items()):
            for pod, address in addresses.items():
                by_pod.setdefault(pod, address)
        if not self._slices[service]:
            del self._slices[service]
        self._fleet.place(service, by_pod.values())
