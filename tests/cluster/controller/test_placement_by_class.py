"""Pods are placed by what nodes are: a node that joins, goes, fills or is closed costs no more than it must.

The control plane's own scheduler binds the pods by their labels; kwok plays the nodes.
"""

from __future__ import annotations

import pytest

from helpers.sizes import GIB
from uellm.kube import GPUNODEPROFILE, NODE, POD

BY_LABELS = {"placement": {"schedulerName": "default-scheduler"}}
# Of eight GPUs of 3 GiB, none less holds the model.
EIGHT = {"placement": {"schedulerName": "default-scheduler", "gpus": {"min": 8, "max": 8}}}


@pytest.fixture
def pods(kube, namespace):
    """The living pods' nodes by name; None for a pod without one."""

    async def listed():
        return {
            pod["metadata"]["name"]: pod["spec"].get("nodeName")
            for pod in await kube.list(POD, namespace)
            if "deletionTimestamp" not in pod["metadata"]
        }

    return listed


@pytest.fixture
def bound(pods, eventually):
    """Wait until so many pods all have nodes."""

    async def wait(count, step=None):
        async def all_bound():
            if step is not None:
                await step()
            nodes = await pods()
            return nodes if len(nodes) == count and all(nodes.values()) else None

        return await eventually(all_bound)

    return wait


@pytest.fixture
def hold(kube, namespace):
    """Put the pods' GPUs into the profile of a node, as its profiler would."""

    async def write(node):
        held = [pod for pod in await kube.list(POD, namespace) if pod["spec"].get("nodeName") == node]
        document = await kube.get(GPUNODEPROFILE, node)
        devices = iter(document["status"]["devices"])
        for pod in held:
            limits = pod["spec"]["containers"][0]["resources"]["limits"]
            for _ in range(int(limits["nvidia.com/gpu"])):
                next(devices)["allocatedTo"] = {"podUID": pod["metadata"]["uid"]}
        await _write(kube, node, document["status"])

    return write


async def _write(kube, node, status):
    metadata = {"name": node}
    await kube.apply_status(
        {"apiVersion": "uellm.io/v1alpha1", "kind": "GPUNodeProfile", "metadata": metadata, "status": status},
        manager="uellm-tests",
    )


async def _remove_node(kube, node, namespace):
    """The node goes, and with it its profile and its pods: Kubernetes takes a minute for these, the test does not."""
    await kube.delete(NODE, node)
    await kube.delete(GPUNODEPROFILE, node)
    for pod in await kube.list(POD, namespace):
        if pod["spec"].get("nodeName") == node:
            await kube.delete(POD, pod["metadata"]["name"], namespace, grace_s=0)


async def _scale(llama, replicas):
    await llama.change(lambda spec: spec.update(replicas=replicas))


async def test_of_two_replicas_on_whole_nodes_one_finds_the_node_that_replaced_its_own(
    operator, service, gpu_node, kube, bound, hold
):
    first, second = await gpu_node([3 * GIB] * 8), await gpu_node([3 * GIB] * 8)
    llama = await service(replicas=2, **EIGHT)
    watching = operator()
    await watching.settle("llama")
    before = await bound(2)
    assert sorted(before.values()) == sorted([first, second])
    plan = await llama.plan()
    await _remove_node(kube, second, llama.namespace)
    third = await gpu_node([3 * GIB] * 8)
    after = await bound(2, lambda: watching.step("llama"))
    assert sorted(after.values()) == sorted([first, third])
    # The replica on the other node was left alone, and the plan as it is.
    (stayed,) = [name for name, node in before.items() if node == first]
    assert after[stayed] == first
    assert {**await llama.plan(), "reason": ""} == {**plan, "reason": ""}


async def test_a_node_that_joined_later_takes_the_third_replica(operator, service, gpu_node, bound):
    await gpu_node([24 * GIB])
    await gpu_node([24 * GIB])
    llama = await service(replicas=2, **BY_LABELS)
    watching = operator()
    await watching.settle("llama")
    before = await bound(2)
    joined = await gpu_node([24 * GIB])
    await _scale(llama, 3)
    after = await bound(3, lambda: watching.step("llama"))
    assert before.items() <= after.items()
    assert joined in after.values()


async def test_a_node_that_was_busy_when_the_plan_was_made_takes_a_replica_once_it_is_free(
    operator, service, gpu_node, kube, bound
):
    busy = await gpu_node([24 * GIB], allocatedTo={"podUID": "somebody-else"})
    free = await gpu_node([24 * GIB])
    llama = await service(**BY_LABELS, template={"spec": {"nodeSelector": {"kubernetes.io/os": "linux"}}})
    # Until it is free, the scheduler knows of its GPU by the device plugin alone.
    await _allocatable(kube, busy, 0)
    watching = operator()
    await watching.settle("llama")
    before = await bound(1)
    assert list(before.values()) == [free]
    assert (await llama.plan())["nodes"] == [free]
    document = await kube.get(GPUNODEPROFILE, busy)
    for device in document["status"]["devices"]:
        device.pop("allocatedTo")
    await _write(kube, busy, document["status"])
    await _allocatable(kube, busy, 1)
    await _scale(llama, 2)
    after = await bound(2, lambda: watching.step("llama"))
    assert sorted(after.values()) == sorted([busy, free])
    assert before.items() <= after.items()


async def _allocatable(kube, node, gpus):
    count = {"nvidia.com/gpu": str(gpus)}
    await kube.apply_status(
        {
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {"name": node},
            "status": {"allocatable": count, "capacity": count},
        },
        manager="kubelet",
    )


async def test_a_changed_list_of_nodes_rolls_nobody(operator, service, gpu_node, kube, bound):
    await gpu_node([24 * GIB])
    llama = await service(**BY_LABELS)
    watching = operator()
    await watching.settle("llama")
    before, template = await bound(1), (await llama.deployment())["spec"]["template"]
    extra = await gpu_node([24 * GIB])
    await watching.settle("llama")
    await llama.change(lambda spec: spec.update(replicas=2))
    await bound(2, lambda: watching.step("llama"))
    await _remove_node(kube, extra, llama.namespace)
    await watching.settle("llama")
    assert (await llama.deployment())["spec"]["template"] == template
    assert before.keys() <= (await bound_names(kube, llama))


async def bound_names(kube, llama):
    return {pod["metadata"]["name"] for pod in await kube.list(POD, llama.namespace)}


async def test_a_cordon_moves_no_pod_and_makes_no_new_plan(operator, service, gpu_node, kube, bound):
    node = await gpu_node([24 * GIB])
    llama = await service(**BY_LABELS)
    watching = operator()
    await watching.settle("llama")
    before, plan = await bound(1), await llama.plan()
    generation = (await llama.deployment())["metadata"]["generation"]
    other = await gpu_node([80 * GIB])
    await kube.apply(
        {"apiVersion": "v1", "kind": "Node", "metadata": {"name": node}, "spec": {"unschedulable": True}},
        manager="kubectl",
    )
    await watching.settle("llama")
    watching.later(600)
    await watching.settle("llama")
    restarted = operator()
    await restarted.settle("llama")
    assert (await bound(1)) == before
    assert await llama.plan() == plan
    assert (await llama.deployment())["metadata"]["generation"] == generation
    # A new replica goes elsewhere, without another plan.
    await _scale(llama, 2)
    after = await bound(2, lambda: restarted.step("llama"))
    assert sorted(after.values()) == sorted([node, other])


async def test_a_gpu_that_was_replaced_under_a_new_uuid_changes_no_pod(operator, service, gpu_node, kube, bound, hold):
    node = await gpu_node([24 * GIB])
    llama = await service(**BY_LABELS)
    watching = operator()
    await watching.settle("llama")
    await bound(1)
    generation = (await llama.deployment())["metadata"]["generation"]
    document = await kube.get(GPUNODEPROFILE, node)
    document["status"]["devices"][0]["uuid"] = "GPU-replacement"
    await _write(kube, node, document["status"])
    await hold(node)
    await watching.settle("llama")
    watching.later(600)
    await watching.settle("llama")
    assert (await llama.condition("Planned"))[0] == "True"
    assert (await llama.deployment())["metadata"]["generation"] == generation
    (placement,) = (await llama.status())["placements"]
    assert placement["actual"] == ["GPU-replacement"]


async def test_the_pods_of_a_node_that_vanished_find_another(operator, service, gpu_node, kube, bound, eventually):
    first, second = await gpu_node([24 * GIB]), await gpu_node([24 * GIB])
    await service(**BY_LABELS)
    watching = operator()
    await watching.settle("llama")
    ((_, home),) = (await bound(1)).items()
    await _remove_node(kube, home, watching.namespace)
    other = second if home == first else first

    async def elsewhere():
        await watching.step("llama")
        return [pod["spec"].get("nodeName") for pod in await kube.list(POD, watching.namespace)] == [other]

    await eventually(elsewhere)


async def test_a_quarantined_gpu_leaves_running_pods_alone(operator, service, gpu_node, kube, bound, hold):
    node = await gpu_node([24 * GIB])
    llama = await service(**BY_LABELS)
    watching = operator()
    await watching.settle("llama")
    before = await bound(1)
    await hold(node)
    document = await kube.get(GPUNODEPROFILE, node)
    document["status"]["devices"][0]["health"] = {"state": "Quarantined", "reason": "OffTheBus"}
    await _write(kube, node, document["status"])
    await watching.settle("llama")
    assert (await bound(1)) == before
    assert (await llama.condition("Planned"))[0] == "True"
    await _scale(llama, 2)
    await watching.step("llama")
    watching.later(120)
    await watching.step("llama")
    status, _, message = await llama.condition("Planned")
    assert status == "False"
    assert "GPU" in message
