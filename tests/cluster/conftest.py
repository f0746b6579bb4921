"""A real API server for the whole session, and for each test a namespace of its own.

control_plane   session   etcd, kube-apiserver, controller manager, scheduler and kwok, on loopback, CRDs applied
kubeconfig      session   path of the administrator's kubeconfig
kube            test      a client
namespace       test      a fresh namespace, removed afterwards
gpu_node        test      makes a Ready node with GPUs (simulated by kwok) and its GPUNodeProfile, removed afterwards
eventually      test      waits until a condition holds
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from uellm.api.node_labels import own_labels
from uellm.hardware import GPU_RESOURCE, Node
from uellm.kube import CRD, GPUNODEPROFILE, NAMESPACE, NODE, POD, Kind, Kube
from uellm_devcluster import ControlPlane

CRDS = Path(__file__).parents[2] / "manifests" / "crds"
SERVICE_ACCOUNT = Kind("v1", "ServiceAccount", "serviceaccounts", True)
MANAGER = "uellm-tests"
CAPACITY = {"cpu": "32", "memory": "256Gi", "pods": "110", "ephemeral-storage": "1Ti"}

Eventually = Callable[..., Awaitable[Any]]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Every test in this directory needs the API server, so it is marked accordingly."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.cluster)


@pytest.fixture(scope="session")
def control_plane() -> Iterator[ControlPlane]:
    with ControlPlane(kwok_nodes=1) as plane:
        asyncio.run(_apply_crds(str(plane.kubeconfig)))
        yield plane


async def _apply_crds(kubeconfig: str) -> None:
    async with await Kube.connect(kubeconfig=kubeconfig) as kube:
        for path in sorted(CRDS.glob("*.yaml")):
            crd = yaml.safe_load(path.read_text())
            await kube.apply(crd, manager=MANAGER)
            await wait_until(lambda crd=crd: _established(kube, crd["metadata"]["name"]))


async def _established(kube: Kube, name: str) -> bool:
    crd = await kube.get(CRD, name) or {}
    conditions = crd.get("status", {}).get("conditions") or []
    return any(condition["type"] == "Established" and condition["status"] == "True" for condition in conditions)


@pytest.fixture(scope="session")
def kubeconfig(control_plane: ControlPlane) -> str:
    return str(control_plane.kubeconfig)


@pytest.fixture
async def kube(kubeconfig: str) -> AsyncIterator[Kube]:
    async with await Kube.connect(kubeconfig=kubeconfig) as client:
        yield client


@pytest.fixture
async def namespace(kube: Kube) -> AsyncIterator[str]:
    name = f"test-{uuid.uuid4().hex[:8]}"
    await kube.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
    # A namespace admits no pod before its default service account exists, which takes a moment.
    await wait_until(lambda: kube.get(SERVICE_ACCOUNT, "default", name))
    yield name
    await kube.delete(NAMESPACE, name)


@pytest.fixture
def apply_profile(kube: Kube) -> Callable[..., Awaitable[None]]:
    """`await apply_profile(node, [memory_bytes, ...], **device_fields)` writes a node's GPUNodeProfile."""

    async def apply(name: str, memory_bytes: list[int], **fields: Any) -> None:
        profile = profile_of(name, memory_bytes, **fields)
        await kube.apply({key: profile[key] for key in ("apiVersion", "kind", "metadata")}, manager=MANAGER)
        await kube.apply_status(profile, manager=MANAGER)

    return apply


async def _schedulable(kube: Kube, name: str) -> bool:
    node = await kube.get(NODE, name) or {}
    conditions = node.get("status", {}).get("conditions") or []
    ready = any(condition["type"] == "Ready" and condition["status"] == "True" for condition in conditions)
    return ready and not node["spec"].get("taints")


@pytest.fixture
async def gpu_node(
    kube: Kube, apply_profile: Callable[..., Awaitable[None]]
) -> AsyncIterator[Callable[..., Awaitable[str]]]:
    """`await gpu_node([memory_bytes, ...], name=..., **device_fields)` returns the node's name."""
    made: list[str] = []

    async def make(
        memory_bytes: list[int], *, name: str = "", labels: dict[str, str] | None = None, **fields: Any
    ) -> str:
        name = name or f"gpu-{uuid.uuid4().hex[:8]}"
        made.append(name)
        capacity = {**CAPACITY, GPU_RESOURCE: str(len(memory_bytes))}
        facts = Node.from_profile(profile_of(name, memory_bytes, **fields))
        # Written by the profiler on a real node.
        own = own_labels(facts.devices, simulated=facts.simulated)
        metadata = {
            "name": name,
            "annotations": {"kwok.x-k8s.io/node": "fake"},
            "labels": {"kubernetes.io/hostname": name, "kubernetes.io/os": "linux", **own, **(labels or {})},
        }
        status = {"capacity": capacity, "allocatable": capacity}
        await kube.create({"apiVersion": "v1", "kind": "Node", "metadata": metadata, "status": status})
        await apply_profile(name, memory_bytes, **fields)
        await wait_until(lambda: _schedulable(kube, name))
        return name

    yield make
    for name in made:
        await kube.delete(NODE, name)
        await kube.delete(GPUNODEPROFILE, name)


def profile_of(name: str, memory_bytes: list[int], *, source: str = "Simulated", **fields: Any) -> dict[str, Any]:
    """A GPUNodeProfile with one healthy device for each entry, `GPU-<node>-<index>`; `fields` go into each."""
    devices = [
        {
            "index": index,
            "uuid": f"GPU-{name}-{index}",
            "product": "Simulated",
            "memoryBytes": size,
            "resourceName": GPU_RESOURCE,
            "health": {"state": "Healthy"},
            "measured": {
                "bf16GigaflopsPerSecond": 100_000,
                "memoryBytesPerSecond": 1_000_000_000_000,
                "measuredAt": "2026-01-01T00:00:00Z",
            },
            **fields,
        }
        for index, size in enumerate(memory_bytes)
    ]
    return {
        "apiVersion": GPUNODEPROFILE.api_version,
        "kind": GPUNODEPROFILE.kind,
        "metadata": {"name": name},
        "status": {
            "observedAt": "2026-01-01T00:00:00Z",
            "source": source,
            "summary": {"gpus": str(len(devices)), "free": str(len(devices)), "products": "Simulated"},
            "devices": devices,
        },
    }


@pytest.fixture
def eventually() -> Eventually:
    """`await eventually(check)` calls the async `check` until its result is truthy, and returns that."""
    return wait_until


async def left_by_kwok(kube: Kube, pod: dict[str, Any]) -> None:
    """Wait until kwok has written that a new pod with a node runs. After that its status is the test's to write."""

    async def left() -> bool:
        found = await kube.get(POD, pod["metadata"]["name"], pod["metadata"]["namespace"])
        return found is None or found["status"].get("phase") != "Pending"

    await wait_until(left)


async def hold(kube: Kube, namespace: str, name: str, finalizers: list[str]) -> None:
    """Keep a pod that is deleted, as one whose engine drains; without finalizers, let it go."""
    metadata = {"name": name, "namespace": namespace, "finalizers": finalizers}
    await kube.apply({"apiVersion": "v1", "kind": "Pod", "metadata": metadata}, manager=MANAGER)


async def wait_until(check: Callable[[], Awaitable[Any]], *, timeout_s: float = 20.0, every_s: float = 0.05) -> Any:
    deadline = time.monotonic() + timeout_s
    while True:
        answer = await check()
        if answer:
            return answer
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout_s:g} s; the last answer was {answer!r}")
        await asyncio.sleep(every_s)
