"""Services and replicas as the cluster has them, by a watch of LLMServices and one of EndpointSlices.

While the API server is away the last state stays in force: replicas that are gone by then are found out by connecting.
"""

from __future__ import annotations

import asyncio
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
from uellm.gateway.secret_keys import KeySecret, SecretKeys
from uellm.kube import DELETED, ENDPOINTSLICE, LLMSERVICE, SYNCED, Event, Kind, Kube, KubeError, NotFound
from uellm.proxying.keys import Keys

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
        self._keys = SecretKeys(kube, clock)

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
        """The keys of its Secret, where a Role of the namespace lets the gateway read it. Raises Refusal."""
        secret = _secret_of(service)
        return None if secret is None else await self._keys.of(secret)

    async def _follow(
        self, kind: Kind, namespace: str | None, label_selector: str, put: Callable[[Event], None]
    ) -> None:
        watched = self._kube.watch(
            kind,
            namespace=namespace,
            label_selector=label_selector,
            on_contact=lambda: self._heard(kind, namespace),
            on_refused=lambda error: self._refused(kind, namespace, error),
        )
        async for event in watched:
            if event.type == SYNCED:
                self._contact.synced(kind, namespace)
            else:
                put(event)

    def _heard(self, kind: Kind, namespace: str | None) -> None:
        if self._contact.heard(kind, namespace):
            LOG.info("%s", _readable(namespace))

    def _refused(self, kind: Kind, namespace: str | None, error: KubeError) -> bool:
        """Log a refusal that is news; whether everything known of the namespace is to be dropped."""
        if self._contact.refuse(kind, namespace):
            LOG.error("%s", _refusal(namespace, error))
        return self._contact.lost(kind, namespace)

    def _service(self, event: Event) -> None:
        before = self._fleet.catalog.services.get(key_of(event.object))
        after = None if event.type == DELETED else service_of(event.object)
        if after is None:
            self._fleet.drop(key_of(event.object))
        else:
            self._fleet.put(after)
        secret = before and _secret_of(before)
        if secret and (after is None or _secret_of(after) != secret):
            self._keys.forget(secret)

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


def _secret_of(service: Service) -> KeySecret | None:
    return None if service.keys_secret is None else KeySecret(service.key.namespace, service.keys_secret)


def _readable(namespace: str | None) -> str:
    of = "all namespaces" if namespace is None else f"namespace {namespace}"
    return f"the services of {of} can be read again"


def _refusal(namespace: str | None, error: KubeError) -> str:
    """What to do. A list of a namespace that was deleted is empty or forbidden; not found is a kind alone."""
    if isinstance(error, NotFound):
        todo = "install the CRDs: uellm crds | kubectl apply --server-side -f -"
        return f"the cluster has no LLMServices: {error}; {todo}"
    if namespace is None:
        return f"no namespace can be read: {error}; give the gateway the ClusterRoleBinding of its chart"
    todo = "take it out of gateway.namespaces if it was deleted; if not, helm upgrade gives the rights anew"
    return f"the services of namespace {namespace} cannot be read: {error}; {todo}"
