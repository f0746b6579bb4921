"""The kubelet's PodResources API, over a real socket."""

from __future__ import annotations

import asyncio

import pytest

from uellm.profiler.kubelet import podresources_pb2 as pr
from uellm.profiler.podresources import Held, KubeletSilent, PodKey, PodResources


@pytest.fixture
async def client(kubelet):
    client = PodResources(kubelet.pod_resources_socket)
    yield client
    await client.close()


async def test_devices_are_reported_with_the_pod_that_has_them(kubelet, client):
    kubelet.give("default", "engine-0", "GPU-a", "GPU-b")
    kubelet.give("kube-system", "proxy")
    held = await client.held()
    assert held.devices == {"GPU-a": PodKey("default", "engine-0"), "GPU-b": PodKey("default", "engine-0")}
    assert held.pods == {PodKey("default", "engine-0"), PodKey("kube-system", "proxy")}


async def test_a_share_of_a_time_sliced_gpu_takes_the_gpu(kubelet, client):
    kubelet.give("b", "second", "GPU-a::1")
    kubelet.give("a", "first", "GPU-a::0")
    assert (await client.held()).devices == {"GPU-a": PodKey("a", "first")}


async def test_each_device_has_the_resource_that_the_kubelet_counts_it_under(kubelet, client):
    kubelet.allocatable = [
        pr.ContainerDevices(resource_name="nvidia.com/gpu", device_ids=["GPU-a::0", "GPU-a::1"]),
        pr.ContainerDevices(resource_name="nvidia.com/mig-1g.10gb", device_ids=["MIG-1"]),
    ]
    assert await client.resource_names() == {"GPU-a": "nvidia.com/gpu", "MIG-1": "nvidia.com/mig-1g.10gb"}


async def test_a_silent_kubelet_is_named_by_its_socket_and_used_again_when_it_is_back(kubelet, client):
    await kubelet.stop()
    with pytest.raises(KubeletSilent, match=r"pod-resources\.sock"):
        await client.held()
    await kubelet.start()
    kubelet.give("default", "engine-0", "GPU-a")
    assert (await answer(client)).devices == {"GPU-a": PodKey("default", "engine-0")}


async def answer(client: PodResources) -> Held:
    """The first answer of a kubelet that is starting."""
    async with asyncio.timeout(10):
        while True:
            try:
                return await client.held()
            except KubeletSilent:
                await asyncio.sleep(0.02)
