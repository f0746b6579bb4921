"""The device plugin against a kubelet on real sockets that calls it as the real one does."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from uellm.errors import BadInput
from uellm.planner.handover.device_facts import DeviceFacts
from uellm.profiler import deviceplugin
from uellm.profiler.deviceplugin import DevicePluginServer, OfferedDevice, offers, preferred
from uellm.profiler.kubelet import deviceplugin_pb2 as api
from uellm.profiler.kubelet import deviceplugin_pb2_grpc as stubs
from uellm.profiler.kubelet import podresources_pb2 as pr
from uellm.profiler.plugin_names import DevicePluginNames
from uellm.profiler.podresources import PodResources
from uellm.profiler.sample import NoGPUs, Sample

A = {"index": 0, "uuid": "GPU-a", "memoryBytes": 1, "numaNode": 1}
B = {"index": 1, "uuid": "GPU-b", "memoryBytes": 1, "health": {"state": "Quarantined"}}
C = {"index": 2, "uuid": "GPU-c", "memoryBytes": 1}


class Description:
    """The result of `sample`, or the error that it raises."""

    def __init__(self, *devices: dict[str, Any]) -> None:
        self.error: Exception | None = None
        self.devices = devices

    def sample(self) -> Sample:
        if self.error:
            raise self.error
        return Sample("Simulated", self.devices)


@pytest.fixture
def description():
    return Description(A, B, C)


@pytest.fixture
def plugin(kubelet, description, background) -> Callable[[], asyncio.Task]:
    def start() -> asyncio.Task:
        return background(DevicePluginServer(description.sample, plugin_dir=kubelet.directory, poll_s=0.02).run())

    return start


@asynccontextmanager
async def called_back(kubelet) -> AsyncIterator[tuple[stubs.DevicePluginStub, Any]]:
    """The kubelet's connection to the plugin that registers next, with its open ListAndWatch."""
    async with asyncio.timeout(10):
        request = await kubelet.registered.get()
    async with grpc.aio.insecure_channel(f"unix:{kubelet.directory / request.endpoint}") as channel:
        stub = stubs.DevicePluginStub(channel)
        yield stub, stub.ListAndWatch(api.Empty())


async def listed(stream: Any) -> dict[str, tuple[str, list[int]]]:
    async with asyncio.timeout(10):
        answer = await stream.read()
    return {one.ID: (one.health, [node.ID for node in one.topology.nodes]) for one in answer.devices}


async def test_the_plugin_registers_and_lists_its_devices(kubelet, plugin):
    plugin()
    async with asyncio.timeout(10):
        request = await kubelet.registered.get()
    assert (request.version, request.resource_name) == ("v1beta1", "nvidia.com/gpu")
    assert request.options.get_preferred_allocation_available
    assert "/" not in request.endpoint
    kubelet.registered.put_nowait(request)
    async with called_back(kubelet) as (stub, stream):
        assert await listed(stream) == {
            "GPU-a": ("Healthy", [1]),
            "GPU-b": ("Unhealthy", []),
            "GPU-c": ("Healthy", []),
        }
        assert (await stub.GetDevicePluginOptions(api.Empty())).get_preferred_allocation_available


async def test_allocated_devices_are_named_to_the_container_in_the_order_of_the_request(kubelet, plugin):
    plugin()
    async with called_back(kubelet) as (stub, _):
        requests = [
            api.ContainerAllocateRequest(devices_ids=["GPU-c", "GPU-a"]),
            api.ContainerAllocateRequest(devices_ids=["GPU-b"]),
        ]
        answer = await stub.Allocate(api.AllocateRequest(container_requests=requests))
    given = [dict(one.envs) for one in answer.container_responses]
    assert [envs["NVIDIA_VISIBLE_DEVICES"] for envs in given] == ["GPU-c,GPU-a", "GPU-b"]
    # No driver knows what they are, so the plugin says it.
    facts = [DeviceFacts.from_json(envs["UELLM_SIMULATED_DEVICES"]).devices for envs in given]
    assert [list(devices) for devices in facts] == [["GPU-c", "GPU-a"], ["GPU-b"]]
    assert {device.memory_bytes for devices in facts for device in devices.values()} == {1}


async def test_shares_of_a_gpu_are_offered_one_by_one_and_name_the_gpu_once(kubelet, description, background):
    names = DevicePluginNames(replicas=2, renamed=True)
    sample = Sample("Simulated", (A, C), plugin_names=names)
    background(DevicePluginServer(lambda: sample, plugin_dir=kubelet.directory, poll_s=0.02).run())
    async with asyncio.timeout(10):
        registered = await kubelet.registered.get()
    assert registered.resource_name == "nvidia.com/gpu.shared"
    kubelet.registered.put_nowait(registered)
    async with called_back(kubelet) as (stub, stream):
        assert list(await listed(stream)) == ["GPU-a::0", "GPU-a::1", "GPU-c::0", "GPU-c::1"]
        request = api.ContainerAllocateRequest(devices_ids=["GPU-c::1", "GPU-a::0", "GPU-c::0"])
        answer = await stub.Allocate(api.AllocateRequest(container_requests=[request]))
    assert answer.container_responses[0].envs["NVIDIA_VISIBLE_DEVICES"] == "GPU-c,GPU-a"


async def test_devices_whose_resource_was_renamed_are_registered_again(kubelet, background):
    samples = [Sample("Simulated", (A,))]
    background(DevicePluginServer(lambda: samples[-1], plugin_dir=kubelet.directory, poll_s=0.02).run())
    async with called_back(kubelet) as (_, stream):
        assert list(await listed(stream)) == ["GPU-a"]
        samples.append(Sample("Simulated", (A,), plugin_names=DevicePluginNames(renamed=True)))
        async with asyncio.timeout(10):
            assert (await kubelet.registered.get()).resource_name == "nvidia.com/gpu.shared"


async def test_a_device_that_is_not_there_is_not_allocated(kubelet, plugin):
    plugin()
    async with called_back(kubelet) as (stub, _):
        request = api.AllocateRequest(container_requests=[api.ContainerAllocateRequest(devices_ids=["GPU-x"])])
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.Allocate(request)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "GPU-x" in (caught.value.details() or "")


async def test_the_kubelet_gets_a_preferred_allocation(kubelet, plugin):
    plugin()
    one = api.ContainerPreferredAllocationRequest(
        available_deviceIDs=["GPU-c", "GPU-a", "GPU-b"], must_include_deviceIDs=["GPU-c"], allocation_size=2
    )
    async with called_back(kubelet) as (stub, _):
        answer = await stub.GetPreferredAllocation(api.PreferredAllocationRequest(container_requests=[one]))
    assert list(answer.container_responses[0].deviceIDs) == ["GPU-c", "GPU-b"]


async def test_a_change_of_the_description_reaches_the_kubelet(kubelet, plugin, description):
    plugin()
    async with called_back(kubelet) as (_, stream):
        assert len(await listed(stream)) == 3
        description.devices = (A, {**C, "health": {"state": "Quarantined"}})
        assert await listed(stream) == {"GPU-a": ("Healthy", [1]), "GPU-c": ("Unhealthy", [])}


async def test_a_description_that_turns_bad_or_vanishes_changes_nothing(kubelet, plugin, description, log):
    plugin()
    async with called_back(kubelet) as (_, stream):
        await listed(stream)
        description.error = BadInput("n.yaml: status.devices", "is odd")
        await log.said("is odd")
        description.error, description.devices = None, (A,)
        assert list(await listed(stream)) == ["GPU-a"]


async def test_the_plugin_registers_again_when_the_kubelet_is_started_again(kubelet, plugin):
    plugin()
    async with called_back(kubelet) as (_, stream):
        await listed(stream)
        await kubelet.stop()
    await kubelet.start()  # it removes the plugin's socket, as the real one does
    async with called_back(kubelet) as (_, stream):
        assert len(await listed(stream)) == 3


async def test_the_plugin_waits_for_a_kubelet_that_is_not_there_yet(kubelet, plugin, log):
    await kubelet.stop()
    (kubelet.directory / "kubelet.sock").unlink(missing_ok=True)
    plugin()
    await log.said("waiting for it")
    await kubelet.start()
    async with called_back(kubelet) as (_, stream):
        assert len(await listed(stream)) == 3


async def test_a_refused_registration_is_logged_once_and_retried(kubelet, plugin, log):
    kubelet.refuse = "not today"
    plugin()
    await log.said("not today")
    kubelet.refuse = ""
    async with called_back(kubelet) as (_, stream):
        assert len(await listed(stream)) == 3
    assert log.count("not today") == 1


async def test_the_socket_is_removed_when_the_process_ends(kubelet, plugin):
    task = plugin()
    async with called_back(kubelet) as (_, stream):
        await listed(stream)
        (socket,) = set(kubelet.directory.glob("uellm-*.sock"))
        task.cancel()
        await asyncio.wait({task}, timeout=5)
    assert task.cancelled()
    assert not socket.exists()


async def test_a_plugin_whose_socket_somebody_removes_registers_again(kubelet, plugin):
    plugin()
    async with called_back(kubelet) as (_, stream):
        await listed(stream)
        (socket,) = set(kubelet.directory.glob("uellm-*.sock"))
        socket.unlink()
    async with called_back(kubelet) as (_, stream):
        assert len(await listed(stream)) == 3


async def test_a_plugin_that_the_kubelet_never_calls_registers_again(kubelet, plugin, monkeypatch):
    monkeypatch.setattr(deviceplugin, "CALL_BACK_S", 0.1)
    plugin()
    async with asyncio.timeout(10):
        await kubelet.registered.get()
        await kubelet.registered.get()


async def test_a_node_without_a_description_registers_no_resource(kubelet, plugin, description, log):
    description.error = NoGPUs("NotDescribed", "no such node")
    plugin()
    await log.said("no such node")
    assert kubelet.registered.empty()
    description.error = None
    async with called_back(kubelet) as (_, stream):
        assert len(await listed(stream)) == 3


async def test_a_description_that_is_bad_from_the_start_ends_the_process(plugin, description):
    description.error = BadInput("n.yaml", "bad")
    with pytest.raises(BadInput):
        await plugin()


def test_only_the_devices_of_the_resource_are_offered(tmp_path: Path):
    sample = Sample("Simulated", (A, {**C, "resourceName": "nvidia.com/mig-1g.10gb"}))
    assert [one.uuid for one in offers(sample)] == ["GPU-a"]
    assert [one.uuid for one in offers(sample, "nvidia.com/mig-1g.10gb")] == ["GPU-c"]


def test_unknown_numa_node_is_no_numa_node():
    assert offers(Sample("Simulated", ({**A, "numaNode": -1},)))[0].numa_node is None


@pytest.mark.parametrize(
    ("numa", "available", "required", "size", "wanted"),
    [
        ("0011", "abcd", "", 2, "ab"),  # a tie goes to the lower node
        ("0111", "abcd", "", 1, "a"),  # the fullest node that has enough
        ("0111", "abcd", "", 2, "bc"),
        ("0011", "abcd", "", 3, "abc"),  # no node has enough
        ("0011", "abcd", "d", 2, "dc"),  # near to what is required
        ("0001", "abcd", "d", 2, "da"),
        ("----", "dcba", "", 2, "ab"),  # the order of the index
    ],
)
def test_devices_are_taken_from_one_numa_node_where_that_is_possible(numa, available, required, size, wanted):
    devices = [
        OfferedDevice(name, True, None if node == "-" else int(node)) for name, node in zip("abcd", numa, strict=True)
    ]
    assert "".join(preferred(devices, list(available), list(required), size)) == wanted


def test_a_device_that_a_claim_has_is_offered_as_unhealthy():
    offered = offers(Sample("Simulated", (A, C)), claimed={"GPU-c"})
    assert [(device.uuid, device.healthy) for device in offered] == [("GPU-a", True), ("GPU-c", False)]


async def test_the_plugin_withdraws_what_claims_have(kubelet, description, background):
    client = PodResources(kubelet.pod_resources_socket)
    server = DevicePluginServer(description.sample, plugin_dir=kubelet.directory, kubelet=client, poll_s=0.02)
    background(server.run())
    async with called_back(kubelet) as (_, stream):
        assert (await listed(stream))["GPU-a"][0] == "Healthy"
        device = pr.ClaimResource(driver_name="gpu.nvidia.com", pool_name="node-1", device_name="gpu-0")
        claim = pr.DynamicResource(claim_name="gpus", claim_resources=[device])
        container = pr.ContainerResources(name="main", dynamic_resources=[claim])
        kubelet.pods.append(pr.PodResources(namespace="default", name="engine", containers=[container]))
        assert (await listed(stream))["GPU-a"][0] == "Unhealthy"
        kubelet.pods.clear()
        assert (await listed(stream))["GPU-a"][0] == "Healthy"
    await client.close()
