"""The kubelet's PodResources API, over a real socket."""

from __future__ import annotations

import asyncio

import pytest

from uellm.hardware import GPU_RESOURCE
from uellm.profiler.kubelet import podresources_pb2 as pr
from uellm.profiler.podresources import DeviceId, KubeletSilent, Listed, PodKey, PodResources


@pytest.fixture
async def client(kubelet):
    client = PodResources(kubelet.pod_resources_socket)
    yield client
    await client.close()


async def test_devices_are_reported_with_the_pod_that_has_them(kubelet, client):
    kubelet.give("default", "engine-0", "GPU-a", "GPU-b")
    kubelet.give("kube-system", "proxy")
    held = await client.held()
    assert held.devices == {
        DeviceId(GPU_RESOURCE, "GPU-a"): PodKey("default", "engine-0"),
        DeviceId(GPU_RESOURCE, "GPU-b"): PodKey("default", "engine-0"),
    }
    assert held.pods == {PodKey("default", "engine-0"), PodKey("kube-system", "proxy")}


async def test_devices_of_claims_are_reported_by_driver_and_name(kubelet, client):
    device = pr.ClaimResource(driver_name="gpu.nvidia.com", pool_name="node-1", device_name="gpu-3")
    claim = pr.DynamicResource(claim_name="engine-gpus", claim_namespace="default", claim_resources=[device])
    container = pr.ContainerResources(name="main", dynamic_resources=[claim])
    kubelet.pods.append(pr.PodResources(namespace="default", name="engine-0", containers=[container]))
    [(found, pod)] = (await client.held()).devices.items()
    assert found == DeviceId("gpu.nvidia.com", "gpu-3")
    assert found.claimed
    assert pod == PodKey("default", "engine-0")


async def test_each_device_is_allocatable_under_its_resource(kubelet, client):
    kubelet.allocatable = [
        pr.ContainerDevices(resource_name="nvidia.com/gpu", device_ids=["GPU-a::0", "GPU-a::1"]),
        pr.ContainerDevices(resource_name="nvidia.com/mig-1g.10gb", device_ids=["MIG-1"]),
    ]
    assert await client.allocatable() == {
        DeviceId("nvidia.com/gpu", "GPU-a::0"),
        DeviceId("nvidia.com/gpu", "GPU-a::1"),
        DeviceId("nvidia.com/mig-1g.10gb", "MIG-1"),
    }


async def test_a_silent_kubelet_is_named_by_its_socket_and_used_again_when_it_is_back(kubelet, client):
    await kubelet.stop()
    with pytest.raises(KubeletSilent, match=r"pod-resources\.sock"):
        await client.held()
    await kubelet.start()
    kubelet.give("default", "engine-0", "GPU-a")
    assert (await answer(client)).devices == {DeviceId(GPU_RESOURCE, "GPU-a"): PodKey("default", "engine-0")}


async def answer(client: PodResources) -> Listed:
    """The first answer of a kubelet that is starting."""
    async with asyncio.timeout(10):
        while True:
            try:
                return await client.held()
            except KubeletSilent:
                await asyncio.sleep(0.02)
