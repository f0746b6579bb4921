"""The DRA driver of simulated GPUs: its devices, its claims on disk, its answers to the kubelet over a real socket."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import grpc
import pytest

from uellm.kube import RESOURCECLAIM, RESOURCESLICE, Kind, KubeError, Unavailable
from uellm.planner.handover.device_facts import NO_FACTS, DeviceFacts
from uellm.profiler.dra.claims import ClaimedDevice, ClaimFiles, PreparedClaim
from uellm.profiler.dra.devices import pcie_roots, published
from uellm.profiler.dra.driver import DraServicer
from uellm.profiler.dra.server import DraServer
from uellm.profiler.dra.slice import NodeSlice
from uellm.profiler.kubelet import dra_pb2, dra_pb2_grpc, pluginregistration_pb2, pluginregistration_pb2_grpc
from uellm.profiler.podresources import DeviceId, Listed, PodKey
from uellm.profiler.sample import Sample

A = {"index": 0, "uuid": "GPU-a", "product": "Simulated A", "memoryBytes": 1000, "computeCapability": "9.0"}
B = {"index": 1, "uuid": "GPU-b", "product": "Simulated B", "memoryBytes": 2000, "computeCapability": "8.9"}
C = {"index": 2, "uuid": "GPU-c", "product": "Simulated C", "memoryBytes": 3000}
SAMPLE = Sample("Simulated", (A, B, C), driver_version="580.65.06", cuda_version="13.0")


class FakeServer:
    """Objects in memory: the part of `Kube` that the driver uses."""

    def __init__(self) -> None:
        self.objects: dict[tuple[str, str], dict[str, Any]] = {}
        self.error: KubeError | None = None
        self.written = asyncio.Event()
        self.put("Node", "node-1", "uid-of-node-1")

    def put(self, kind: str, name: str, uid: str, **fields: Any) -> None:
        self.objects[kind, name] = {"metadata": {"name": name, "uid": uid}, **fields}

    def allocate(self, name: str, *devices: str, uid: str = "", **devices_fields: Any) -> dra_pb2.Claim:
        results = [
            {"request": f"stage-{stage}", "driver": "gpu.nvidia.com", "pool": "node-1", "device": device}
            for stage, device in enumerate(devices)
        ]
        status = {"allocation": {"devices": {"results": results, **devices_fields}}}
        self.put("ResourceClaim", name, uid or f"uid-of-{name}", status=status)
        return dra_pb2.Claim(namespace="default", name=name, uid=f"uid-of-{name}")

    async def get(self, kind: Kind, name: str, namespace: str | None = None) -> dict[str, Any] | None:
        if self.error is not None:
            raise self.error
        return self.objects.get((kind.kind, name))

    async def apply(self, obj: dict[str, Any], *, manager: str) -> dict[str, Any]:
        self.objects[obj["kind"], obj["metadata"]["name"]] = obj
        self.written.set()
        return obj

    async def delete(self, kind: Kind, name: str) -> bool:
        return self.objects.pop((kind.kind, name), None) is not None

    async def watch(self, kind: Kind, **_: Any) -> AsyncIterator[Any]:
        assert kind is RESOURCESLICE
        await asyncio.Event().wait()
        yield


class HeldDevices:
    """The kubelet's list of who has what."""

    def __init__(self) -> None:
        self.devices: dict[DeviceId, PodKey] = {}

    async def held(self) -> Listed:
        return Listed(self.devices)

    async def allocatable(self) -> frozenset[DeviceId]:
        return frozenset()


@pytest.fixture
def server() -> FakeServer:
    return FakeServer()


@pytest.fixture
def pods() -> HeldDevices:
    return HeldDevices()


@pytest.fixture
def cdi(tmp_path: Path) -> Path:
    (tmp_path / "cdi").mkdir()
    return tmp_path / "cdi"


@pytest.fixture
def driver(server: FakeServer, pods: HeldDevices, cdi: Path) -> DraServicer:
    """The driver as it is after each start: it knows only what is on disk."""
    return started(server, pods, cdi)


def started(server: Any, pods: Any, cdi: Path, sample: Sample = SAMPLE) -> DraServicer:
    made = DraServicer(server, "node-1", ClaimFiles(cdi), pods)
    made.sample = sample
    return made


async def prepare(driver: DraServicer, claim: dra_pb2.Claim) -> Any:
    answer = await driver.NodePrepareResources(dra_pb2.NodePrepareResourcesRequest(claims=[claim]), None)
    return answer.claims[claim.uid]


async def unprepare(driver: DraServicer, claim: dra_pb2.Claim) -> str:
    answer = await driver.NodeUnprepareResources(dra_pb2.NodeUnprepareResourcesRequest(claims=[claim]), None)
    return str(answer.claims[claim.uid].error)


def edits(cdi: Path, claim: dra_pb2.Claim) -> dict[str, str]:
    """What a container of the claim gets."""
    document = json.loads((cdi / f"k8s.gpu.nvidia.com-claim_{claim.uid}.json").read_text())
    assert document["kind"] == "k8s.gpu.nvidia.com/claim"
    [device] = document["devices"]
    assert device["name"] == claim.uid
    return dict(variable.split("=", 1) for variable in device["containerEdits"]["env"])


def test_devices_have_the_names_and_attributes_of_nvidia_s_driver():
    first = published(SAMPLE)[0].to_dict()
    assert first == {
        "name": "gpu-0",
        "attributes": {
            "type": {"string": "gpu"},
            "uuid": {"string": "GPU-a"},
            "productName": {"string": "Simulated A"},
            "brand": {"string": "Simulated"},
            "architecture": {"string": "Hopper"},
            "cudaComputeCapability": {"version": "9.0.0"},
            "driverVersion": {"version": "580.65.6"},
            "cudaDriverVersion": {"version": "13.0.0"},
        },
        "capacity": {"memory": {"value": "1000"}},
    }


def test_faulty_gpus_and_slices_of_a_gpu_are_not_published():
    devices = ({**A, "health": {"state": "Quarantined"}}, {**B, "mig": True}, C)
    assert [device.name for device in published(Sample("Simulated", devices))] == ["gpu-2"]


def test_gpus_share_a_pcie_root_where_no_link_leaves_the_host_bridge():
    places = ("0000:3B:00.0", "0000:3c:00.0", "0000:86:00.0", "")
    devices = tuple({"index": i, "uuid": f"GPU-{i}", "pciBusId": place} for i, place in enumerate(places))
    links = ({"a": "GPU-1", "b": "GPU-0", "kind": "PXB"}, {"a": "GPU-0", "b": "GPU-2", "kind": "SYS"})
    roots = pcie_roots(Sample("Simulated", devices, links))
    assert roots == {"GPU-0": "pci0000:3b", "GPU-1": "pci0000:3b", "GPU-2": "pci0000:86"}


async def test_a_container_sees_its_claim_s_gpus_in_the_order_of_the_allocation(driver, server, cdi):
    claim = server.allocate("two", "gpu-2", "gpu-0")
    answer = await prepare(driver, claim)
    assert [(list(one.request_names), one.pool_name, one.device_name) for one in answer.devices] == [
        (["stage-0"], "node-1", "gpu-2"),
        (["stage-1"], "node-1", "gpu-0"),
    ]
    assert {tuple(one.cdi_device_ids) for one in answer.devices} == {("k8s.gpu.nvidia.com/claim=uid-of-two",)}
    given = edits(cdi, claim)
    assert given["NVIDIA_VISIBLE_DEVICES"] == "GPU-c,GPU-a"
    assert list(DeviceFacts.from_json(given["UELLM_SIMULATED_DEVICES"]).devices) == ["GPU-c", "GPU-a"]


async def test_a_claim_is_prepared_once_whatever_happens_to_driver_description_and_server(driver, server, pods, cdi):
    claim = server.allocate("one", "gpu-0")
    first = await prepare(driver, claim)
    server.error = Unavailable(0, "Timeout", "no answer")
    again = started(server, pods, cdi, Sample("Simulated", (C,)))
    assert await prepare(again, claim) == first
    assert await unprepare(again, claim) == ""
    assert await unprepare(again, claim) == ""
    assert list(cdi.iterdir()) == []


async def test_an_alternative_of_a_request_is_answered_by_the_request(driver, server):
    claim = server.allocate("alternatives", "gpu-0")
    server.objects["ResourceClaim", "alternatives"]["status"]["allocation"]["devices"]["results"][0]["request"] = "a/b"
    answer = await prepare(driver, claim)
    assert list(answer.devices[0].request_names) == ["a"]


async def test_half_a_file_of_a_killed_driver_is_no_claim_and_goes(server, pods, cdi):
    (cdi / ".k8s.gpu.nvidia.com-claim_half.json").write_text("{")
    (cdi / "k8s.gpu.nvidia.com-claim_foreign.json").write_text('{"kind": "something else"}')
    claim = server.allocate("half", "gpu-0")
    answer = await prepare(started(server, pods, cdi), claim)
    assert not answer.error
    assert sorted(path.name for path in cdi.iterdir()) == [
        "k8s.gpu.nvidia.com-claim_foreign.json",
        "k8s.gpu.nvidia.com-claim_uid-of-half.json",
    ]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"uid": "another"}, "there is no claim default/claim of the UID uid-of-claim"),
        ({"device": "gpu-7"}, "the description of node-1 has no healthy GPU gpu-7"),
        ({"pool": "node-9"}, "the claim's devices are not on node-1"),
        ({"driver": "gpu.example.com"}, "the claim's devices are not on node-1"),
        ({"adminAccess": True}, "the claim asks for admin access to gpu-0, and simulated GPUs have none"),
    ],
)
async def test_a_claim_that_cannot_be_prepared_says_why(driver, server, cdi, change, says):
    claim = server.allocate("claim", "gpu-0", uid=change.pop("uid", ""))
    server.objects["ResourceClaim", "claim"]["status"]["allocation"]["devices"]["results"][0] |= change
    assert (await prepare(driver, claim)).error == says
    assert list(cdi.iterdir()) == []


async def test_a_claim_that_is_not_allocated_or_asks_for_sharing_is_refused(driver, server):
    opaque = {"driver": "gpu.nvidia.com", "parameters": {"kind": "GpuConfig", "sharing": {"strategy": "MPS"}}}
    shared = server.allocate("shared", "gpu-0", config=[{"opaque": opaque}])
    assert "asks for time-slicing or MPS" in (await prepare(driver, shared)).error
    server.put("ResourceClaim", "new", "uid-of-new")
    new = dra_pb2.Claim(namespace="default", name="new", uid="uid-of-new")
    assert (await prepare(driver, new)).error == "the claim is not allocated"


async def test_a_silent_api_server_is_the_answer_and_the_kubelet_asks_again(driver, server):
    claim = server.allocate("one", "gpu-0")
    server.error = Unavailable(0, "Timeout", "no answer")
    assert "no answer" in (await prepare(driver, claim)).error
    server.error = None
    assert not (await prepare(driver, claim)).error


async def test_a_gpu_of_one_claim_goes_to_no_other_until_it_is_unprepared(driver, server):
    first, second = server.allocate("first", "gpu-0"), server.allocate("second", "gpu-1", "gpu-0")
    await prepare(driver, first)
    assert (await prepare(driver, second)).error == "claim default/first has GPU-a: wait until it is unprepared"
    await unprepare(driver, first)
    assert not (await prepare(driver, second)).error


async def test_a_claim_that_was_deleted_holds_its_gpus_until_no_pod_has_them(driver, server, pods):
    first, second = server.allocate("first", "gpu-0"), server.allocate("second", "gpu-0")
    await prepare(driver, first)
    del server.objects[RESOURCECLAIM.kind, "first"]
    pods.devices = {DeviceId("gpu.nvidia.com", "gpu-0"): PodKey("default", "ending")}
    assert (await prepare(driver, second)).error == "claim default/first has GPU-a: wait until it is unprepared"
    pods.devices = {}
    assert not (await prepare(driver, second)).error


async def test_a_gpu_that_a_pod_has_through_a_device_plugin_goes_to_no_claim(driver, server, pods):
    pods.devices = {DeviceId("nvidia.com/gpu", "GPU-a"): PodKey("default", "job")}
    claim = server.allocate("one", "gpu-0")
    says = "pod default/job has GPU-a through the device plugin: wait until it has ended"
    assert (await prepare(driver, claim)).error == says
    assert [device.name for device in driver.devices()] == ["gpu-1", "gpu-2"]
    # By a name that is nobody's, it may be any of them.
    pods.devices = {DeviceId("nvidia.com/gpu", "vgpu-7"): PodKey("default", "job")}
    await driver.look()
    assert driver.devices() == ()


async def test_a_claim_s_own_entry_at_the_kubelet_is_no_other_pod_s(driver, server, pods):
    claim = server.allocate("one", "gpu-0")
    pods.devices = {DeviceId("gpu.nvidia.com", "gpu-0"): PodKey("default", "engine")}
    assert not (await prepare(driver, claim)).error


async def test_names_that_changed_their_gpus_are_not_published_while_claims_have_them(driver, server):
    await prepare(driver, server.allocate("one", "gpu-0"))
    driver.sample = Sample("Simulated", ({**A, "index": 1}, {**B, "index": 0}, C))
    assert [device.name for device in driver.devices()] == ["gpu-2"]


async def test_the_pool_s_generation_grows_with_each_change_and_with_nothing_else(server):
    node_slice = NodeSlice(server, "node-1")
    key = (RESOURCESLICE.kind, "node-1-gpu.nvidia.com")
    assert await node_slice.publish(published(SAMPLE))
    assert not await node_slice.publish(published(SAMPLE))
    assert await node_slice.publish(published(SAMPLE)[:1])
    assert server.objects[key]["spec"]["pool"] == {"name": "node-1", "generation": 2, "resourceSliceCount": 1}
    assert server.objects[key]["metadata"]["ownerReferences"][0]["uid"] == "uid-of-node-1"
    assert server.objects[key]["metadata"]["labels"]["uellm.io/simulated"] == "true"
    assert await node_slice.publish(())
    assert key not in server.objects
    assert not await node_slice.publish(())


def test_prepared_claims_are_read_back_from_disk(cdi):
    claim = PreparedClaim("uid", "default", "one", (ClaimedDevice("stage-0", "node-1", "gpu-0", "GPU-a"),))
    ClaimFiles(cdi).add(claim, NO_FACTS)
    assert ClaimFiles(cdi).all() == (claim,)


@pytest.fixture
def short_path() -> Iterator[Path]:
    """A directory whose name leaves room for a socket's: 107 characters in all."""
    with TemporaryDirectory(prefix="dra") as name:
        yield Path(name)


async def test_the_kubelet_finds_the_driver_by_its_socket_and_nothing_is_left_at_the_end(
    driver, server, short_path, background
):
    (short_path / "plugins_registry").mkdir()
    stale = short_path / "plugins_registry" / "gpu.nvidia.com-reg.sock"
    stale.write_text("of a driver that was killed")
    node_slice = NodeSlice(server, "node-1")
    running = DraServer(lambda: SAMPLE, driver, node_slice, kubelet_directory=short_path, poll_s=0.02)
    task = background(running.run())
    async with asyncio.timeout(10):
        await server.written.wait()
    assert (RESOURCESLICE.kind, node_slice.name) in server.objects
    async with grpc.aio.insecure_channel(f"unix:{stale}") as channel:
        stub = pluginregistration_pb2_grpc.RegistrationStub(channel)
        info = await stub.GetInfo(pluginregistration_pb2.InfoRequest())
        await stub.NotifyRegistrationStatus(pluginregistration_pb2.RegistrationStatus(plugin_registered=True))
    assert (info.type, info.name, list(info.supported_versions)) == (
        "DRAPlugin",
        "gpu.nvidia.com",
        ["v1.DRAPlugin"],
    )
    claim = server.allocate("one", "gpu-1")
    async with grpc.aio.insecure_channel(f"unix:{info.endpoint}") as channel:
        request = dra_pb2.NodePrepareResourcesRequest(claims=[claim])
        answer = await dra_pb2_grpc.DRAPluginStub(channel).NodePrepareResources(request)
    assert answer.claims[claim.uid].devices[0].device_name == "gpu-1"
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (RESOURCESLICE.kind, node_slice.name) not in server.objects
    left = [path for path in short_path.rglob("*") if path.is_socket()]
    assert left == []
