"""`uellm profiler` as a process against a real API server. The test plays the kubelet's socket."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path
from typing import Any

import grpc
import pytest
import yaml

from uellm.hardware import Node
from uellm.kube import GPUNODEPROFILE, NODE, Kube
from uellm.kube.kinds import CORE_EVENT
from uellm.profiler.kubelet import podresources_pb2 as pr
from uellm.profiler.kubelet import podresources_pb2_grpc as pr_grpc
from uellm.profiler.network.gate import NetworkGate
from uellm.profiler.network.sink import Sink

STATUS = {
    "devices": [{"uuid": "GPU-a", "memoryBytes": 2000}, {"uuid": "GPU-b", "memoryBytes": 1000, "numaNode": 0}],
    "links": [{"a": "GPU-a", "b": "GPU-b", "kind": "PHB", "bytesPerSecond": 7, "latencyNanoseconds": 8}],
}


class PodResources(pr_grpc.PodResourcesListerServicer):
    """The kubelet's answers: `pods` by (namespace, name), each with its devices."""

    def __init__(self) -> None:
        self.pods: dict[tuple[str, str], list[str]] = {}

    async def List(self, request: Any, context: Any) -> Any:  # noqa: N802
        return pr.ListPodResourcesResponse(
            pod_resources=[
                pr.PodResources(
                    namespace=namespace,
                    name=name,
                    containers=[pr.ContainerResources(devices=[pr.ContainerDevices(device_ids=devices)])],
                )
                for (namespace, name), devices in self.pods.items()
            ]
        )

    async def GetAllocatableResources(self, request: Any, context: Any) -> Any:  # noqa: N802
        return pr.AllocatableResourcesResponse()


@pytest.fixture
async def pod_resources(tmp_path: Path) -> AsyncIterator[PodResources]:
    servicer, server = PodResources(), grpc.aio.server()
    pr_grpc.add_PodResourcesListerServicer_to_server(servicer, server)
    server.add_insecure_port(f"unix:{tmp_path / 'kubelet.sock'}")
    await server.start()
    yield servicer
    await server.stop(grace=None)


@pytest.fixture
async def node(kube: Kube) -> AsyncIterator[str]:
    name = "profiled"
    metadata = {"name": name, "annotations": {"kwok.x-k8s.io/node": "fake"}}
    await kube.create({"apiVersion": "v1", "kind": "Node", "metadata": metadata})
    yield name
    await kube.delete(NODE, name)
    await kube.delete(GPUNODEPROFILE, name)


@pytest.fixture
async def profiler(
    node: str, pod_resources: PodResources, kubeconfig: str, tmp_path: Path
) -> AsyncIterator[asyncio.subprocess.Process]:
    (tmp_path / "gpus.yaml").write_text(yaml.safe_dump(STATUS))
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "uellm.cli.main", "profiler", "--node", node, "--interval", "0.2"),
        *("--simulate", str(tmp_path / "gpus.yaml"), "--pod-resources", str(tmp_path / "kubelet.sock")),
        *("--kubeconfig", kubeconfig),
    )
    yield process
    if process.returncode is None:
        process.kill()
    await process.wait()


async def devices(kube: Kube, node: str) -> dict[str, dict[str, Any]]:
    profile = await kube.get(GPUNODEPROFILE, node) or {}
    return {device["uuid"]: device for device in profile.get("status", {}).get("devices", ())}


@pytest.fixture
async def profile(kube: Kube, node: str, profiler: asyncio.subprocess.Process, eventually: Any) -> dict[str, Any]:
    """The first profile that the profiler wrote."""
    await eventually(lambda: devices(kube, node))
    return await kube.get(GPUNODEPROFILE, node)


@pytest.fixture
async def allocated(
    kube: Kube, node: str, pod_resources: PodResources, namespace: str, profile: Any, eventually: Any
) -> None:
    """The profile shows that GPU-a belongs to a pod, with the UID that the API server assigned."""
    spec = {"nodeName": node, "containers": [{"name": "main", "image": "none"}]}
    metadata = {"name": "engine", "namespace": namespace}
    pod = await kube.create({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec})
    pod_resources.pods[namespace, "engine"] = ["GPU-a"]

    async def written() -> bool:
        return (await devices(kube, node))["GPU-a"].get("allocatedTo") == {"podUID": pod["metadata"]["uid"]}

    await eventually(written)


async def test_a_profile_describes_the_node_that_owns_it(kube, node, profile):
    owner = await kube.get(NODE, node)
    assert profile["metadata"]["ownerReferences"][0]["uid"] == owner["metadata"]["uid"]
    assert profile["status"]["source"] == "Simulated"
    assert profile["status"]["links"] == STATUS["links"]


async def test_a_faulty_gpu_is_quarantined_with_an_event_on_its_node(kube, node, profile, eventually, tmp_path):
    faulty = [{**STATUS["devices"][0], "memoryErrors": {"remapPending": True}}, STATUS["devices"][1]]
    (tmp_path / "gpus.yaml").write_text(yaml.safe_dump({**STATUS, "devices": faulty}))

    async def events() -> list[dict[str, Any]]:
        found = await kube.list(CORE_EVENT, "default", field_selector=f"involvedObject.name={node}")
        return [each for each in found if each["reason"] == "RowRemapPending"]

    [event] = await eventually(events)
    owner = await kube.get(NODE, node)
    assert event["involvedObject"]["uid"] == owner["metadata"]["uid"]
    assert event["type"] == "Warning"
    assert event["message"].startswith("GPU 0 has a faulty row of memory")
    assert (await devices(kube, node))["GPU-a"]["health"]["reason"] == "RowRemapPending"


async def test_a_person_s_exclusions_outlive_a_changed_description(kube, node, profile, eventually, tmp_path):
    excluded = {"excludedDevices": [{"uuid": "GPU-b", "reason": "noisy"}]}
    head = {"apiVersion": GPUNODEPROFILE.api_version, "kind": GPUNODEPROFILE.kind, "metadata": {"name": node}}
    await kube.apply({**head, "spec": excluded}, manager="a-person")
    changed = {**STATUS, "devices": [STATUS["devices"][0], {**STATUS["devices"][1], "memoryBytes": 999}]}
    (tmp_path / "gpus.yaml").write_text(yaml.safe_dump(changed))

    async def smaller() -> bool:
        return (await devices(kube, node))["GPU-b"]["memoryBytes"] == 999

    await eventually(smaller)
    assert (await kube.get(GPUNODEPROFILE, node))["spec"] == excluded


async def test_nothing_is_written_while_nothing_changes(kube, node, allocated):
    version = (await kube.get(GPUNODEPROFILE, node))["metadata"]["resourceVersion"]
    await asyncio.sleep(1.5)  # several looks and polls: what is shown is that nothing happens
    assert (await kube.get(GPUNODEPROFILE, node))["metadata"]["resourceVersion"] == version


async def test_a_deleted_profile_comes_back_with_its_allocations(kube, node, allocated, eventually):
    await kube.delete(GPUNODEPROFILE, node)

    async def back() -> bool:
        return (await devices(kube, node)).get("GPU-a", {}).get("allocatedTo") is not None

    await eventually(back)


async def test_a_profile_goes_with_its_node_and_stays_away(kube, node, profile):
    await kube.delete(NODE, node)
    await kube.delete(GPUNODEPROFILE, node)
    await asyncio.sleep(1.5)  # several looks and polls: what is shown is that nothing happens
    assert await kube.get(GPUNODEPROFILE, node) is None


async def test_the_profiler_ends_within_5_s_of_a_signal(profile, profiler):
    profiler.terminate()
    start = time.monotonic()
    assert await profiler.wait() == 0
    assert time.monotonic() - start < 5


async def test_the_network_to_another_profiler_s_node_is_in_the_profile(
    kube, node, pod_resources, namespace, kubeconfig, eventually, tmp_path
):
    labels = {"app.kubernetes.io/name": "uellm-profiler", "app.kubernetes.io/instance": "uellm"}
    spec = {"nodeName": "another", "containers": [{"name": "profiler", "image": "none"}]}
    head = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "profiler-2", "namespace": namespace}}
    await kube.create({**head, "metadata": {**head["metadata"], "labels": labels}, "spec": spec})
    address = {"podIP": "127.0.0.2", "podIPs": [{"ip": "127.0.0.2"}]}
    await kube.apply_status({**head, "status": {"phase": "Running", **address}}, manager="kubelet")
    (tmp_path / "gpus.yaml").write_text(yaml.safe_dump(STATUS))
    with closing(Sink("127.0.0.2", 0, NetworkGate())) as other:
        other.known = frozenset({"127.0.0.1"})
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "uellm.cli.main", "profiler", "--node", node, "--kubeconfig", kubeconfig),
            *("--simulate", str(tmp_path / "gpus.yaml"), "--pod-resources", str(tmp_path / "kubelet.sock")),
            *("--network-listen", f"127.0.0.1:{other.port}"),
            *("--network-peers", f"{namespace}/{','.join(f'{key}={value}' for key, value in labels.items())}"),
        )

        async def measured() -> list[dict[str, Any]]:
            profile = await kube.get(GPUNODEPROFILE, node) or {}
            return profile.get("status", {}).get("network") or []

        try:
            (found,) = await eventually(measured)
        finally:
            process.terminate()
            await process.wait()
    assert found["node"] == "another"
    assert found["bytesPerSecond"] > 1_000_000
    assert 0 < found["roundTripNanoseconds"] < 10**9
    assert Node.from_profile({"metadata": {"name": node}, "status": {"network": [found]}}).network[0].node == "another"
