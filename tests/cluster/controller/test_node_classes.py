"""An empty cluster is planned on classes of nodes that may join: what pods ask for, and what a node that joins does.

The control plane's own scheduler binds the pods by their labels; kwok plays the nodes.
"""

from __future__ import annotations

import subprocess

import pytest

from helpers.sizes import GIB
from uellm.controller.node_classes import NodeClassKeeper
from uellm.kube import GPUNODECLASS, POD, Invalid
from uellm_devcluster.binaries import ensure

BY_LABELS = {"placement": {"schedulerName": "default-scheduler"}}
BIG = {"example.com/kind": "big"}
RATES = {"bf16GigaflopsPerSecond": 100_000, "memoryBytesPerSecond": 1_000_000_000_000}


def class_document(name, memory_bytes, labels=BIG, **spec):
    devices = [
        {"index": index, "product": "Simulated", "memoryBytes": size, "measured": RATES}
        for index, size in enumerate(memory_bytes)
    ]
    return {
        "apiVersion": GPUNODECLASS.api_version,
        "kind": GPUNODECLASS.kind,
        "metadata": {"name": name},
        "spec": {"labels": labels, "simulated": True, "devices": devices, **spec},
    }


@pytest.fixture
async def gpu_class(kube):
    """Make a class of nodes; it is removed afterwards."""
    made = []

    async def make(name, memory_bytes, **spec):
        await kube.create(class_document(name, memory_bytes, **spec))
        made.append(name)

    yield make
    for name in made:
        await kube.delete(GPUNODECLASS, name)


@pytest.fixture
def pods(kube, namespace):
    """The living pods."""

    async def listed():
        return [pod for pod in await kube.list(POD, namespace) if "deletionTimestamp" not in pod["metadata"]]

    return listed


async def until(eventually, watching, check):
    """Pass after pass until `check` holds."""

    async def passed():
        await watching.step("llama")
        return await check()

    return await eventually(passed, timeout_s=40)


async def waiting(llama, watching, eventually):
    """A service that waits for a node: its pods are there, and Ready says why they have none."""

    async def is_waiting():
        condition = await llama.condition("Ready")
        return condition if condition[1] == "WaitingForNode" else None

    return await until(eventually, watching, is_waiting)


async def test_an_empty_cluster_is_planned_on_a_class_and_a_node_that_joins_takes_the_pods(
    operator, service, gpu_class, gpu_node, pods, eventually
):
    await gpu_class("big", [24 * GIB])
    llama = await service(**BY_LABELS)
    watching = operator()
    await watching.write_out("llama")
    _, _, message = await waiting(llama, watching, eventually)
    assert "waits for a node of class big to join, with the labels example.com/kind=big" in message
    plan = await llama.plan()
    assert (plan["nodeClasses"], plan.get("nodes", [])) == (["big"], [])
    assert plan["assumptions"][0].startswith("planned for a node of class big that has not joined")
    [pod] = await pods()
    affinity = pod["spec"]["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    asked = {each["key"]: each for each in affinity["nodeSelectorTerms"][0]["matchExpressions"]}
    assert (asked["uellm.io/gpu.count"]["operator"], asked["uellm.io/gpu.count"]["values"]) == ("Gt", ["0"])
    assert asked["uellm.io/gpu.simulated"]["values"] == ["true"]
    template = (await llama.deployment())["spec"]["template"]

    node = await gpu_node([24 * GIB], labels=BIG)

    async def verified():
        found = await llama.plan()
        bound = [each["spec"].get("nodeName") for each in await pods()] == [node]
        return bound and found.get("nodes") == [node] and "nodeClasses" not in found

    await until(eventually, watching, verified)
    assert (await llama.deployment())["spec"]["template"] == template
    assert [each["metadata"]["name"] for each in await pods()] == [pod["metadata"]["name"]]
    assert (await llama.plan())["assumptions"][0] == f"planned for a node of class big; {node} holds the plan as it is"


async def test_a_node_that_joins_smaller_than_its_class_calls_for_another_plan_with_the_reason(
    operator, service, gpu_class, gpu_node, pods, eventually
):
    await gpu_class("big", [24 * GIB])
    llama = await service(**BY_LABELS)
    watching = operator()
    await watching.write_out("llama")
    assert (await llama.plan())["gpusPerReplica"] == 1
    node = await gpu_node([12 * GIB] * 2, labels=BIG)

    async def replanned():
        found = await llama.plan()
        bound = [each["spec"].get("nodeName") for each in await pods()] == [node]
        return bound and found["gpusPerReplica"] == 2

    await until(eventually, watching, replanned)
    plan = await llama.plan()
    assert plan["nodes"] == [node]
    assert plan["reason"] == (
        f"the former plan was for a node that has not joined: class big: node {node} carries its labels and has "
        "2 x Simulated (12.0 GiB) instead of 1 x Simulated (24.0 GiB)"
    )


async def test_without_its_class_a_waiting_service_has_no_plan_and_with_it_again_it_has(
    operator, service, gpu_class, kube, eventually
):
    await gpu_class("big", [24 * GIB])
    llama = await service(**BY_LABELS)
    watching = operator()
    await watching.write_out("llama")
    await waiting(llama, watching, eventually)
    await kube.delete(GPUNODECLASS, "big")

    async def unplanned():
        planned, ready = await llama.condition("Planned"), await llama.condition("Ready")
        return (planned[:2], ready[:2]) == (("False", "NoProfile"), ("False", "NoProfile"))

    await until(eventually, watching, unplanned)
    await gpu_class("big", [24 * GIB])
    await waiting(llama, watching, eventually)


async def test_of_two_classes_the_smallest_that_holds_the_service_is_planned_on(operator, service, gpu_class):
    await gpu_class("eight", [24 * GIB] * 8, labels={"example.com/kind": "eight"})
    await gpu_class("one", [24 * GIB], labels={"example.com/kind": "one"})
    await gpu_class("small", [2 * GIB], labels={"example.com/kind": "small"})
    llama = await service(**BY_LABELS)
    await operator().write_out("llama")
    assert (await llama.plan())["nodeClasses"] == ["one", "eight"]


async def test_a_restarted_operator_leaves_pods_that_wait_for_a_node_alone(operator, service, gpu_class):
    await gpu_class("big", [24 * GIB])
    llama = await service(**BY_LABELS)
    await operator().write_out("llama")
    before = await llama.deployment()
    await operator().write_out("llama")
    assert (await llama.deployment())["metadata"]["generation"] == before["metadata"]["generation"]


@pytest.mark.parametrize(
    ("spec", "line"),
    [
        ({"links": [{"a": 0, "b": 1}]}, "spec.links: Invalid value: .*must name only indices of devices"),
        ({"devices": [{"index": 3, "memoryBytes": 1}]}, "spec.devices: Invalid value: .*numbered from 0 on"),
        ({"devices": []}, "spec.devices: Invalid value: .*at least 1 item"),
        ({"devices": [{"index": 0, "memoryBytes": 0}]}, r"spec\.devices\[0\]\.memoryBytes: Invalid value"),
    ],
)
async def test_bad_input_in_a_class_is_refused_by_the_server_and_named(kube, spec, line):
    with pytest.raises(Invalid, match=line):
        await kube.create(class_document("bad", [GIB], **spec))


@pytest.fixture
def keeper(kube, operator):
    """One step of the keeper of classes, on what the cluster holds now."""

    async def step(*, remember=False):
        watching = operator()
        await watching.observe()
        assert await NodeClassKeeper(kube, watching.cache, remember=remember).step(watching.now)

    return step


def printed(kubeconfig):
    """What `kubectl get gpunodeclasses` prints."""
    command = [str(ensure({"kubectl"}) / "kubectl"), "--kubeconfig", kubeconfig, "get", "gpunodeclasses"]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout.splitlines()


async def test_kubectl_shows_what_a_class_has_and_how_many_of_its_nodes_are_there(
    kubeconfig, keeper, gpu_class, gpu_node
):
    await gpu_class("big", [24 * GIB] * 2)
    await gpu_node([24 * GIB] * 2, labels=BIG)
    await keeper()
    head, row = printed(kubeconfig)
    assert head.split() == ["NAME", "GPUS", "PRODUCTS", "NODES", "READY", "STATUS", "AGE"]
    assert row.split()[:-1] == ["big", "2", "2", "x", "Simulated", "1", "True", "Usable"]


async def test_a_kind_of_node_that_was_seen_is_remembered_where_that_is_asked_for(kube, keeper, gpu_node):
    await gpu_node([24 * GIB] * 2, labels={"node.kubernetes.io/instance-type": "sim-2"})
    await keeper()
    assert await kube.list(GPUNODECLASS) == []
    await keeper(remember=True)
    await keeper(remember=True)
    [made] = await kube.list(GPUNODECLASS)
    await kube.delete(GPUNODECLASS, made["metadata"]["name"])
    assert made["spec"]["labels"]["node.kubernetes.io/instance-type"] == "sim-2"
    assert (made["spec"]["simulated"], len(made["spec"]["devices"])) == (True, 2)
    assert made["status"]["nodes"] == 1
