"""The DRA driver of simulated GPUs on a real kubelet, with the stock scheduler, containerd and the real profiler."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from helpers.real_node import NODE, RealNode

CHECKOUT = Path(__file__).parents[3]
NODES = yaml.safe_load((CHECKOUT / "charts/uellm/values-simulated.yaml").read_text())["simulated"]["nodes"]
STATUS: dict[str, Any] = NODES[NODE]
UUIDS = [device["uuid"] for device in STATUS["devices"]]
SWIFT, STEADY, SMALLER, SLOW = UUIDS
CLASS = {
    "apiVersion": "resource.k8s.io/v1",
    "kind": "DeviceClass",
    "metadata": {"name": "gpu.nvidia.com"},
    "spec": {
        "selectors": [
            {
                "cel": {
                    "expression": "device.driver == 'gpu.nvidia.com' && "
                    "device.attributes['gpu.nvidia.com'].type == 'gpu'"
                }
            }
        ]
    },
}


def template(name: str, *expressions: str) -> dict[str, Any]:
    """A claim with one GPU for each expression, in this order."""
    requests = [
        {
            "name": f"stage-{stage}",
            "exactly": {"deviceClassName": "gpu.nvidia.com", "selectors": [{"cel": {"expression": expression}}]},
        }
        for stage, expression in enumerate(expressions)
    ]
    return {
        "apiVersion": "resource.k8s.io/v1",
        "kind": "ResourceClaimTemplate",
        "metadata": {"name": name},
        "spec": {"spec": {"devices": {"requests": requests}}},
    }


def with_claim(node: RealNode, pod: str, claim: str) -> dict[str, Any]:
    return node.pod(
        pod,
        resourceClaims=[{"name": "gpus", "resourceClaimTemplateName": claim}],
        resources={"claims": [{"name": "gpus"}]},
    )


def is_uuid(uuid: str) -> str:
    return f"device.attributes['gpu.nvidia.com'].uuid == '{uuid}'"


def of_product(product: str) -> str:
    return f"device.attributes['gpu.nvidia.com'].productName == '{product}'"


class Driver:
    """The driver on the node; `restart` kills it."""

    def __init__(self, node: RealNode) -> None:
        self.node = node
        self.process = node.start("dra-driver")

    def kill(self) -> None:
        self.node.end(self.process, signal.SIGKILL)

    def restart(self) -> None:
        self.kill()
        self.process = self.node.start("dra-driver")

    def slice(self) -> dict[str, Any]:
        """The node's ResourceSlice; empty where there is none."""
        items = self.node.get("resourceslices")["items"]
        return dict(items[0]) if items else {}

    def names(self) -> list[str]:
        return [device["name"] for device in self.slice().get("spec", {}).get("devices", ())]

    def until_published(self, *names: str) -> None:
        self.node.until(lambda: self.names() == list(names), lambda: f"{self.names()}\n{self.node.log('dra-driver')}")

    def uuids(self) -> list[str]:
        return [device["attributes"]["uuid"]["string"] for device in self.slice().get("spec", {}).get("devices", ())]

    def until_as_described(self) -> None:
        """Until all of the node's GPUs are published as `STATUS` says: a name alone may be another GPU's still."""
        self.node.until(lambda: self.uuids() == UUIDS, lambda: f"{self.uuids()}\n{self.node.log('dra-driver')}")


@pytest.fixture(scope="module")
def node(real_node: RealNode) -> Iterator[RealNode]:
    real_node.describe(STATUS)
    real_node.apply(CLASS)
    with real_node.running("profiler", "--interval=0.5"):
        real_node.until(lambda: len(real_node.profile()) == 4, lambda: real_node.log("profiler"))
        yield real_node


@pytest.fixture(scope="module")
def driver(node: RealNode) -> Iterator[Driver]:
    made = Driver(node)
    made.until_published("gpu-0", "gpu-1", "gpu-2", "gpu-3")
    yield made
    node.end(made.process)
    # A clean end leaves nothing that could be allocated.
    assert made.slice() == {}


@pytest.fixture(autouse=True)
def clean(node: RealNode, driver: Driver) -> Iterator[None]:
    yield
    node.remove("pods", "--all")
    node.remove("resourceclaims", "--all")
    node.remove("resourceclaimtemplates", "--all")
    node.describe(STATUS)
    driver.until_as_described()
    node.until(lambda: not node.holders(), lambda: str(node.profile()))
    # The kubelet unprepares a claim some time after the pod has ended.
    node.until(lambda: not node.on_node("ls", "-A", "/var/run/cdi"), lambda: node.on_node("ls", "-A", "/var/run/cdi"))


def test_a_claim_s_devices_come_in_the_order_of_its_requests_and_are_taken(node: RealNode, driver: Driver) -> None:
    node.apply(template("two", of_product("Simulated Steady 480M"), of_product("Simulated Swift 544M")))
    node.apply(with_claim(node, "engine", "two"))
    assert node.wait_running("engine") == f"{SMALLER},{SWIFT}"
    expected = dict.fromkeys((SMALLER, SWIFT), node.uid("engine"))
    node.until(lambda: node.holders() == expected, lambda: str(node.holders()))
    node.remove("pod/engine")
    node.until(lambda: node.holders() == {}, lambda: str(node.holders()))


def test_gpus_below_one_pcie_root_can_be_asked_for(node: RealNode, driver: Driver) -> None:
    claim = template("near", "true", of_product("Simulated Slow 448M"))
    devices = claim["spec"]["spec"]["devices"]
    devices["constraints"] = [{"matchAttribute": "resource.kubernetes.io/pcieRoot"}]
    node.apply(claim, with_claim(node, "engine", "near"))
    assert node.wait_running("engine") == f"{SMALLER},{SLOW}"


def test_a_killed_driver_s_claims_go_on_and_their_devices_come_back(node: RealNode, driver: Driver) -> None:
    node.apply(template("one", is_uuid(SWIFT)), with_claim(node, "first", "one"))
    assert node.wait_running("first") == SWIFT
    driver.kill()
    # Meanwhile a pod waits, and another ends.
    node.apply(template("other", is_uuid(SLOW)), with_claim(node, "second", "other"))
    node.kubectl("delete", "pod/first", "--wait=false")
    driver.restart()
    assert node.wait_running("second") == SLOW
    node.until(lambda: list(node.holders()) == [SLOW], lambda: str(node.holders()))
    node.apply(with_claim(node, "third", "one"))
    assert node.wait_running("third") == SWIFT


def test_a_driver_killed_while_it_prepares_prepares_again(node: RealNode, driver: Driver) -> None:
    node.apply(template("one", is_uuid(STEADY)))
    for round_ in range(2):
        pod = f"engine-{round_}"
        node.apply(with_claim(node, pod, "one"))
        node.until(lambda pod=pod: node.get(f"pod/{pod}")["spec"].get("nodeName"), lambda: "not scheduled")
        driver.restart()
        # What a driver leaves that dies between two writes.
        node.on_node("sh", "-c", "echo '{' > /var/run/cdi/.k8s.gpu.nvidia.com-claim_half.json")
        driver.restart()
        assert node.wait_running(pod) == STEADY
        node.remove(f"pod/{pod}")


def test_a_restarted_kubelet_finds_the_driver_and_its_claims(node: RealNode, driver: Driver, commands: Any) -> None:
    node.apply(template("one", is_uuid(SWIFT)), with_claim(node, "before", "one"))
    assert node.wait_running("before") == SWIFT
    uid = node.uid("before")
    kubelet = next(each["pid"] for each in commands.status()["components"] if each["name"] == "node-1-kubelet")
    os.kill(kubelet, signal.SIGKILL)
    node.until(lambda: not commands.status()["running"], lambda: "the kubelet runs")
    commands("up", "--nodes", "1")
    driver.until_published("gpu-0", "gpu-1", "gpu-2", "gpu-3")
    node.apply(template("other", is_uuid(SLOW)), with_claim(node, "after", "other"))
    assert node.wait_running("after") == SLOW
    assert node.phase("before") == "Running"
    node.until(
        lambda: node.holders() == {SWIFT: uid, SLOW: node.uid("after")},
        lambda: str(node.holders()),
    )


def test_a_changed_description_gives_no_gpu_of_a_claim_to_another(node: RealNode, driver: Driver) -> None:
    node.apply(template("one", is_uuid(SWIFT)), with_claim(node, "engine", "one"))
    assert node.wait_running("engine") == SWIFT
    generation = driver.slice()["spec"]["pool"]["generation"]
    # The first two GPUs change places: gpu-0 is the other one now, and gpu-1 the one that the claim has.
    swapped = [{**device, "index": {0: 1, 1: 0}.get(device["index"], device["index"])} for device in STATUS["devices"]]
    node.describe({**STATUS, "devices": swapped})
    driver.until_published("gpu-2", "gpu-3")
    assert driver.slice()["spec"]["pool"]["generation"] > generation
    driver.restart()
    driver.until_published("gpu-2", "gpu-3")
    node.remove("pod/engine")
    driver.until_published("gpu-0", "gpu-1", "gpu-2", "gpu-3")


def test_of_pods_that_race_for_a_gpu_one_gets_it(node: RealNode, driver: Driver) -> None:
    node.apply(template("one", is_uuid(SWIFT)), *[with_claim(node, f"racer-{each}", "one") for each in range(3)])

    def running() -> list[str]:
        node.look_again("pods", "--all")
        items = node.get("pods")["items"]
        return [pod["metadata"]["name"] for pod in items if pod["status"].get("phase") == "Running"]

    for _ in range(3):
        node.until(running, lambda: node.kubectl("describe", "pods"))
        [winner] = running()
        assert node.wait_running(winner) == SWIFT
        node.remove(f"pod/{winner}")


def test_a_gpu_that_a_pod_has_through_the_device_plugin_goes_to_no_claim(node: RealNode, driver: Driver) -> None:
    socket = "/var/lib/kubelet/pod-resources/kubelet.sock"
    with node.running("device-plugin", f"--pod-resources={socket}"):
        allocatable = lambda: node.get(f"node/{NODE}")["status"]["allocatable"].get("nvidia.com/gpu")  # noqa: E731
        node.until(lambda: allocatable() == "4", lambda: node.log("device-plugin"))
        node.apply(node.pod("plugged", resources={"limits": {"nvidia.com/gpu": "1"}}))
        held = node.wait_running("plugged")
        free = [f"gpu-{index}" for index, uuid in enumerate(UUIDS) if uuid != held]
        driver.until_published(*free)
        node.apply(template("all", *[is_uuid(uuid) for uuid in UUIDS if uuid != held]))
        node.apply(with_claim(node, "claims", "all"))
        node.wait_running("claims")
        # And the other way round: the device plugin offers what no claim has.
        node.until(lambda: allocatable() == "1", lambda: node.log("device-plugin"))
        node.remove("pod/claims")
        node.until(lambda: allocatable() == "4", lambda: node.log("device-plugin"))
        node.remove("pod/plugged")


def test_the_slice_says_that_its_gpus_are_simulated(node: RealNode, driver: Driver) -> None:
    found = driver.slice()
    assert found["metadata"]["labels"]["uellm.io/simulated"] == "true"
    assert found["spec"]["driver"] == "gpu.nvidia.com"
    assert {device["attributes"]["brand"]["string"] for device in found["spec"]["devices"]} == {"Simulated"}
    node.remove("resourceslices", "--all")
    driver.until_published("gpu-0", "gpu-1", "gpu-2", "gpu-3")
    assert json.dumps(driver.slice()["spec"]["devices"]) == json.dumps(found["spec"]["devices"])


def test_a_claim_that_asks_for_sharing_is_refused_with_its_reason(node: RealNode, driver: Driver) -> None:
    claim = template("shared", is_uuid(SWIFT))
    parameters = {
        "apiVersion": "resource.nvidia.com/v1beta1",
        "kind": "GpuConfig",
        "sharing": {"strategy": "TimeSlicing"},
    }
    claim["spec"]["spec"]["devices"]["config"] = [{"opaque": {"driver": "gpu.nvidia.com", "parameters": parameters}}]
    node.apply(claim, with_claim(node, "engine", "shared"))
    said = "the claim asks for time-slicing or MPS, and simulated GPUs are handed out whole"
    node.until(lambda: said in node.kubectl("describe", "pod/engine"), lambda: node.kubectl("describe", "pod/engine"))
