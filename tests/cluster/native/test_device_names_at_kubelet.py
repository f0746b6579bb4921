"""Each naming scheme of device plugins on a real kubelet: the real profiler knows which GPUs pods have.

The description is changed from scheme to scheme on one node.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import pytest

from helpers.real_node import NODE, RealNode

GPU = "nvidia.com/gpu"
WHOLE = [f"GPU-53000000-0000-0000-0000-00000000001{index}" for index in range(2)]
SLICES = [f"MIG-53000000-0000-0000-0000-0000000000{index:02}" for index in (1, 2, 5)]
DEVICES: list[dict[str, Any]] = [
    {"index": index, "uuid": uuid, "product": "Simulated", "memoryBytes": 2**30} for index, uuid in enumerate(WHOLE)
]
CUT: list[dict[str, Any]] = [
    {"index": 0, "uuid": uuid, "product": "Simulated MIG", "memoryBytes": 2**29, "mig": True} for uuid in SLICES
]


class Scheme(NamedTuple):
    """A plugin as it is described, and what the profiler is to find."""

    plugin: Mapping[str, Any]
    devices: list[dict[str, Any]] = DEVICES
    resource: str = GPU
    shares: int | None = None
    """To how many pods each device is lent, as the profile says it."""
    clear: bool = True
    """Whether the names tell which device a pod has. If not, it may be any of them."""

    @property
    def offered(self) -> int:
        return len(self.devices) * int(self.plugin.get("replicas", 1))


SCHEMES = {
    "NVIDIA, by UUID": Scheme({"names": "UUID"}),
    "by index": Scheme({"names": "Index"}),
    "GKE, by device file": Scheme({"names": "GKE"}),
    "HAMi, one share": Scheme({"names": "HAMi"}),
    "HAMi, ten shares": Scheme({"names": "HAMi", "replicas": 10}, shares=10),
    "time-slicing": Scheme({"names": "UUID", "replicas": 4}, shares=4),
    "time-slicing, renamed": Scheme(
        {"names": "UUID", "replicas": 3, "renamed": True}, resource=f"{GPU}.shared", shares=3
    ),
    "GKE, time-slicing": Scheme({"names": "GKE", "replicas": 2}, shares=2),
    "MIG, by UUID": Scheme({"names": "UUID"}, devices=CUT),
    "MIG on GKE": Scheme({"names": "GKE"}, devices=CUT),
    "MIG, time-slicing": Scheme({"names": "UUID", "replicas": 2}, devices=CUT, shares=2),
    "names that nobody knows": Scheme({"names": "Opaque"}, clear=False),
    "shares by names that nobody knows": Scheme({"names": "Opaque", "replicas": 3}, shares=3, clear=False),
}


def taken_over(node: RealNode) -> int:
    """How often the plugin has offered other devices, or the same under another resource."""
    log = node.log("device-plugin")
    return log.count(" INFO offering ") + log.count(" INFO registered ")


@pytest.fixture(scope="module")
def node(real_node: RealNode) -> Iterator[RealNode]:
    # As no scheme has it, so that each of them is a change.
    real_node.describe({"devices": DEVICES, "devicePlugin": {"names": "Index", "replicas": 7}})
    before = taken_over(real_node)
    with real_node.running("profiler", "--interval=0.3"), real_node.running("device-plugin"):
        real_node.until(lambda: taken_over(real_node) > before, lambda: real_node.log("device-plugin"))
        yield real_node


@pytest.mark.parametrize("name", SCHEMES)
def test_the_gpus_of_a_pod_are_taken_whatever_their_plugin_calls_them(node: RealNode, name: str) -> None:
    scheme = SCHEMES[name]
    every = {device["uuid"] for device in scheme.devices}
    before = taken_over(node)
    node.describe({"devices": scheme.devices, "devicePlugin": dict(scheme.plugin)})

    def offered() -> bool:
        # The number alone may be that of the scheme before.
        if taken_over(node) == before:
            return False
        allocatable = node.get(f"node/{NODE}")["status"]["allocatable"]
        return bool(allocatable.get(scheme.resource) == str(scheme.offered))

    def recognised() -> bool:
        found = node.profile()
        told = {(each.get("resourceName"), each.get("shares")) for each in found.values()}
        healthy = all(each["health"]["state"] == "Healthy" for each in found.values())
        return healthy and found.keys() == every and told == {(scheme.resource, scheme.shares)}

    def state() -> str:
        return f"{node.profile()}\n{node.log('device-plugin')}\n{node.log('profiler')}"

    # Before there is any pod.
    node.until(offered, state)
    node.until(recognised, state)
    assert node.holders() == {}

    node.apply(node.pod("job", resources={"limits": {scheme.resource: "1"}}))
    try:
        [has] = node.wait_running("job").split(",")
        uid = node.uid("job")
        if scheme.clear:
            node.until(lambda: node.holders() == {has: uid}, state)
        else:
            # By the pod's name, which is nobody's UID: these GPUs are free to nobody.
            node.until(lambda: node.holders() == dict.fromkeys(every, "default/job"), state)
            assert has in every
    finally:
        node.remove("pod/job")
    node.until(lambda: node.holders() == {}, state)
