"""What the gateway makes of the cluster's objects."""

from __future__ import annotations

import asyncio
import base64
import copy
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest

from helpers.fake_engine import eventually
from uellm.gateway.catalog import ServiceKey
from uellm.gateway.documents import ready_endpoints, service_of
from uellm.gateway.fleet import Fleet
from uellm.gateway.kube_view import KubeView
from uellm.gateway.replicas import ReplicaAddress
from uellm.kube import ADDED, DELETED, ENDPOINTSLICE, LLMSERVICE, MODIFIED, SYNCED, Event, Forbidden, Kind, NotFound
from uellm.proxying.outcome import Refusal

LLAMA = ServiceKey("team-a", "llama")


def llmservice(**spec: Any) -> dict[str, Any]:
    metadata = {
        "namespace": "team-a",
        "name": "llama",
        "uid": "u1",
        "creationTimestamp": "2026-01-01T00:00:00Z",
        "resourceVersion": "1",
    }
    return {"metadata": metadata, "spec": {"model": {"uri": "hf://a/b"}, **spec}}


def endpoint(address: str, pod: str, **conditions: bool) -> dict[str, Any]:
    return {"addresses": [address], "conditions": conditions, "targetRef": {"kind": "Pod", "uid": pod}}


def endpoint_slice(*endpoints: dict[str, Any], name: str = "llama-1", family: str = "IPv4") -> dict[str, Any]:
    labels = {"kubernetes.io/service-name": "llama", "uellm.io/service": "llama"}
    return {
        "metadata": {"namespace": "team-a", "name": name, "labels": labels},
        "addressType": family,
        "ports": [{"name": "http", "port": 8000}],
        "endpoints": list(endpoints),
    }


def test_a_service_is_read_with_its_names_classes_and_what_wakes_it() -> None:
    document = llmservice(
        model={"servedName": "meta/llama", "adapters": [{"name": "law", "uri": "hf://a/law"}]},
        slo={
            "defaultClass": "batch",
            "classes": [
                {"name": "now", "ttft": "500ms", "e2e": "2s", "onDeadline": "Reject"},
                {"name": "batch", "e2e": "1m"},
            ],
        },
        autoscaling={"minReplicas": 0, "maxReplicas": 3},
        auth={"apiKeysSecretRef": {"name": "keys"}},
        replicas=0,
    )
    document["status"] = {"autoscaling": {"startupSeconds": 90}}
    service = service_of(document)
    assert service.names == ("meta/llama", "law")
    assert (service.wakes, service.replicas, service.startup_s, service.keys_secret) == (True, 0, 90.0, "keys")
    assert service.created_s == 1767225600
    assert [(each.name, each.deadline_s) for each in service.classes] == [("batch", None), ("now", 0.5)]
    assert service.class_of({"x-slo-class": "now"}).name == "now"
    assert service.class_of({}).name == "batch"


def test_a_suspended_service_does_not_wake() -> None:
    service = service_of(llmservice(suspend=True, autoscaling={"maxReplicas": 1}))
    assert (service.suspended, service.wakes) == (True, False)


@pytest.mark.parametrize("spec", [{"autoscaling": {"maxReplicas": 1}, "replicas": 0}, {"replicas": 2}])
def test_a_service_that_is_being_deleted_gets_no_replica(spec) -> None:
    document = llmservice(**spec)
    assert service_of(document).starts
    document["metadata"]["deletionTimestamp"] = "2026-01-02T00:00:00Z"
    service = service_of(document)
    assert (service.deleting, service.wakes, service.starts) == (True, False, False)


@pytest.mark.parametrize("spec", [{}, {"model": None, "slo": 1, "autoscaling": [], "auth": {"apiKeysSecretRef": 1}}])
def test_odd_fields_count_as_not_set(spec) -> None:
    service = service_of(llmservice(**spec))
    assert (service.names, service.classes, service.wakes, service.keys_secret) == (("llama",), (), False, None)


def test_endpoints_that_are_not_ready_or_about_to_end_are_left_out() -> None:
    document = endpoint_slice(
        endpoint("10.0.0.1", "p1", ready=True),
        endpoint("10.0.0.2", "p2", ready=False),
        endpoint("10.0.0.3", "p3", ready=True, terminating=True),
        endpoint("10.0.0.4", "p4"),
    )
    assert [address.host for _, address in ready_endpoints(document)] == ["10.0.0.1", "10.0.0.4"]
    assert list(ready_endpoints({**document, "addressType": "FQDN"})) == []
    assert list(ready_endpoints({**document, "ports": []})) == []


class ScriptedKube:
    """Yields the events that a test puts in; those of namespaces that it forbids are refused."""

    def __init__(self) -> None:
        self.events: dict[Kind, asyncio.Queue[Event]] = {LLMSERVICE: asyncio.Queue(), ENDPOINTSLICE: asyncio.Queue()}
        self.forbidden: set[str | None] = set()
        self.installed = True
        self.secret: dict[str, Any] | Exception | None = None
        self.reads = 0

    async def watch(
        self, kind: Kind, *, namespace: str | None, on_contact: Any, on_refused: Any, **_: Any
    ) -> AsyncIterator[Event]:
        while True:
            if not self.installed and kind is LLMSERVICE:
                on_refused(NotFound(404, "NotFound", "the server could not find the requested resource"))
                await asyncio.sleep(0.001)
                continue
            if namespace in self.forbidden:
                on_refused(Forbidden(403, "Forbidden", f"cannot list {kind.plural}"))
                await asyncio.sleep(0.001)
                continue
            event = await self.events[kind].get()
            on_contact()
            yield event
            self.events[kind].task_done()

    async def get(self, kind: Kind, name: str, namespace: str) -> dict[str, Any] | None:
        self.reads += 1
        if isinstance(self.secret, Exception):
            raise self.secret
        return self.secret

    async def put(self, kind: Kind, type: str, document: dict[str, Any]) -> None:
        self.events[kind].put_nowait(Event(type, copy.deepcopy(document)))
        await self.events[kind].join()


@asynccontextmanager
async def watching(
    kube: ScriptedKube, namespaces: Iterable[str] = (), **options: Any
) -> AsyncIterator[tuple[KubeView, Fleet]]:
    """A view that runs, until the end of the block."""
    fleet = Fleet()
    view = KubeView(kube, fleet, namespaces, **options)  # type: ignore[arg-type]
    running = asyncio.create_task(view.run())
    try:
        yield view, fleet
    finally:
        running.cancel()
        with suppress(asyncio.CancelledError):
            await running
        fleet.close()


@pytest.fixture
async def world() -> AsyncIterator[tuple[ScriptedKube, KubeView, Fleet]]:
    kube = ScriptedKube()
    async with watching(kube, clock=lambda: 0.0) as (view, fleet):
        yield kube, view, fleet


def hosts(fleet: Fleet) -> list[str]:
    return sorted(replica.address.host for replica in fleet.replicas(LLAMA)._by_name.values())


async def test_services_and_replicas_follow_the_cluster(world) -> None:
    kube, view, fleet = world
    await kube.put(ENDPOINTSLICE, ADDED, endpoint_slice(endpoint("10.0.0.1", "p1", ready=True)))
    await kube.put(ENDPOINTSLICE, SYNCED, {})
    assert not view.complete
    await kube.put(LLMSERVICE, ADDED, llmservice())
    await kube.put(LLMSERVICE, SYNCED, {})
    assert view.complete
    assert fleet.catalog.find("llama").service.key == LLAMA
    assert hosts(fleet) == ["10.0.0.1"]
    await kube.put(LLMSERVICE, MODIFIED, llmservice(model={"servedName": "other"}))
    assert fleet.catalog.find("other").service.key == LLAMA
    await kube.put(LLMSERVICE, DELETED, llmservice())
    await kube.put(ENDPOINTSLICE, DELETED, {"metadata": {"namespace": "team-a", "name": "llama-1"}})
    assert fleet.catalog.listed() == []
    assert fleet._replicas == {}


async def test_a_pod_with_two_addresses_is_one_replica_and_several_slices_are_one_service(world) -> None:
    kube, _, fleet = world
    await kube.put(ENDPOINTSLICE, ADDED, endpoint_slice(endpoint("10.0.0.1", "p1"), endpoint("10.0.0.2", "p2")))
    await kube.put(ENDPOINTSLICE, ADDED, endpoint_slice(endpoint("fd00::1", "p1"), name="llama-6", family="IPv6"))
    assert hosts(fleet) == ["10.0.0.1", "10.0.0.2"]
    await kube.put(ENDPOINTSLICE, MODIFIED, endpoint_slice(endpoint("10.0.0.1", "p1", ready=False)))
    assert hosts(fleet) == ["fd00::1"]


async def test_a_replica_that_stays_keeps_its_connections(world) -> None:
    kube, _, fleet = world
    await kube.put(ENDPOINTSLICE, ADDED, endpoint_slice(endpoint("10.0.0.1", "p1")))
    (before,) = fleet.replicas(LLAMA)._by_name.values()
    await kube.put(ENDPOINTSLICE, MODIFIED, endpoint_slice(endpoint("10.0.0.1", "p1"), endpoint("10.0.0.2", "p2")))
    assert before in fleet.replicas(LLAMA)._by_name.values()
    assert ReplicaAddress("10.0.0.1", 8000, 8002) == before.address


async def test_keys_are_read_where_the_namespace_lets_it_and_kept_for_a_while(world) -> None:
    kube, view, _ = world
    service = service_of(llmservice(auth={"apiKeysSecretRef": {"name": "keys"}}))
    kube.secret = {"data": {"a": base64.b64encode(b"one\ntwo\n").decode()}}
    keys = await view.keys(service)
    for key in ("one", "two"):
        keys.check("POST", "/v1/x", key)
    assert await view.keys(service) is keys
    assert kube.reads == 1
    assert await view.keys(service_of(llmservice())) is None


async def test_keys_that_may_not_be_read_are_not_there(world) -> None:
    kube, view, _ = world
    kube.secret = Forbidden(403, "Forbidden", "no")
    assert await view.keys(service_of(llmservice(auth={"apiKeysSecretRef": {"name": "keys"}}))) is None


async def test_another_secret_is_read_at_once(world) -> None:
    kube, view, fleet = world
    old, new = ({"apiKeysSecretRef": {"name": name}} for name in ("old", "new"))
    await kube.put(LLMSERVICE, ADDED, llmservice(auth=old))
    kube.secret = {"data": {"a": base64.b64encode(b"one").decode()}}
    (await view.keys(fleet.catalog.services[LLAMA])).check("POST", "/v1/x", "one")
    kube.secret = {"data": {"a": base64.b64encode(b"two").decode()}}
    await kube.put(LLMSERVICE, MODIFIED, llmservice(auth=new))
    keys = await view.keys(fleet.catalog.services[LLAMA])
    keys.check("POST", "/v1/x", "two")
    with pytest.raises(Refusal, match="not one of this service's"):
        keys.check("POST", "/v1/x", "one")
    assert kube.reads == 2
    await kube.put(LLMSERVICE, DELETED, llmservice())
    assert view._keys._read == {}


async def test_a_namespace_that_was_deleted_is_logged_once_and_the_others_are_served(caplog) -> None:
    kube = ScriptedKube()
    kube.forbidden = {"gone"}
    async with watching(kube, ["team-a", "gone"]) as (view, fleet):
        await kube.put(LLMSERVICE, ADDED, llmservice())
        await kube.put(LLMSERVICE, SYNCED, {})
        await kube.put(ENDPOINTSLICE, SYNCED, {})
        await eventually(lambda: view.complete)
        assert view.refused == {"gone"}
        assert view.age_s() < 5
        assert fleet.catalog.find("llama").service.key == LLAMA
        assert caplog.messages == [
            "the services of namespace gone cannot be read: cannot list llmservices; take it out of gateway.namespaces "
            "if it was deleted; if not, helm upgrade gives the rights anew"
        ]


@pytest.mark.parametrize(
    ("namespaces", "what"), [([], "all namespaces"), (["team-a"], "namespace team-a")], ids=["all", "one"]
)
async def test_services_that_can_be_read_again_are_a_line_in_the_log(caplog, namespaces, what) -> None:
    caplog.set_level("INFO", "uellm.gateway")
    kube = ScriptedKube()
    kube.forbidden = set(namespaces) or {None}
    async with watching(kube, namespaces):
        await eventually(lambda: bool(caplog.messages))
        kube.forbidden = set()
        for kind in (LLMSERVICE, ENDPOINTSLICE):
            for _ in range(2):
                await kube.put(kind, SYNCED, {})
        assert caplog.messages[1:] == [f"the services of {what} can be read again"]


@pytest.mark.parametrize("namespaces", [[], ["team-a"]], ids=["all", "one"])
async def test_a_cluster_without_the_crds_is_no_missing_namespace(caplog, namespaces) -> None:
    kube = ScriptedKube()
    kube.installed = False
    async with watching(kube, namespaces) as (view, _):
        await eventually(lambda: bool(caplog.messages))
        assert not view.complete
        assert caplog.messages == [
            "the cluster has no LLMServices: the server could not find the requested resource; install the CRDs: "
            "uellm crds | kubectl apply --server-side -f -"
        ]


async def test_a_gateway_without_the_rights_to_read_all_namespaces_is_not_ready_and_says_why(caplog) -> None:
    kube = ScriptedKube()
    kube.forbidden = {None}
    async with watching(kube) as (view, _):
        await eventually(lambda: bool(caplog.messages))
        assert not view.complete
        assert view.refused == set()
        assert caplog.messages == [
            "no namespace can be read: cannot list llmservices; give the gateway the ClusterRoleBinding of its chart"
        ]
