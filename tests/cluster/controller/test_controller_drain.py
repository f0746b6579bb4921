"""A node that is emptied, on the real API server with its own disruption controller and eviction API."""

from __future__ import annotations

import pytest

from helpers.sizes import GIB
from uellm.kube import KubeError
from uellm.kube.kinds import DEPLOYMENT, NODE, PDB, POD

BY_KWOK = {"placement": {"schedulerName": "default-scheduler", "gpus": {"max": 1}}}


@pytest.fixture
async def serving(operator, service, gpu_node, kube, namespace, eventually):
    """(the service, its operator, its pod) with one replica that serves, on one of two nodes."""
    await gpu_node([24 * GIB])
    await gpu_node([24 * GIB])
    llama = await service(**BY_KWOK)
    watching = operator()
    await watching.settle("llama")
    (pod,) = await eventually(lambda: ready_pods(kube, namespace, 1))
    await watching.settle("llama")
    return llama, watching, pod


async def ready_pods(kube, namespace, count):
    pods = [
        pod
        for pod in await kube.list(POD, namespace)
        if "deletionTimestamp" not in pod["metadata"]
        and any(each["type"] == "Ready" and each["status"] == "True" for each in pod["status"].get("conditions") or ())
    ]
    return pods if len(pods) == count else None


async def cordon(kube, name, *, unschedulable=True):
    node = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}, "spec": {"unschedulable": unschedulable}}
    await kube.apply(node, manager="kubectl-cordon")


async def evict(kube, pod):
    """As `kubectl drain` does. Raises KubeError 429 where the budget allows none."""
    metadata = {name: pod["metadata"][name] for name in ("name", "namespace")}
    path = POD.path(**metadata, subresource="eviction")
    body = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": metadata}
    await kube._transport.call("POST", path, body=body)


async def budget(kube, namespace, allowed, eventually):
    """Until the disruption controller has worked out that so many may be evicted."""

    async def worked_out():
        found = await kube.get(PDB, "llama", namespace)
        status = found.get("status") or {}
        current = status.get("observedGeneration") == found["metadata"]["generation"]
        return current and status["disruptionsAllowed"] == allowed

    await eventually(worked_out)


async def replicas(kube, namespace):
    return (await kube.get(DEPLOYMENT, "llama-engine", namespace))["spec"]["replicas"]


async def test_a_drain_waits_for_the_stand_in_and_loses_nothing(serving, kube, namespace, eventually):
    llama, watching, pod = serving
    # Closed before, for the eviction follows the cordon within milliseconds.
    await budget(kube, namespace, 0, eventually)
    with pytest.raises(KubeError) as refused:
        await evict(kube, pod)
    assert refused.value.status == 429

    await cordon(kube, pod["spec"]["nodeName"])
    await watching.step("llama")
    assert await replicas(kube, namespace) == 2
    assert (await llama.condition("Ready"))[0] == "True"
    await eventually(lambda: ready_pods(kube, namespace, 2))
    await watching.step("llama")
    await budget(kube, namespace, 1, eventually)
    await evict(kube, pod)

    async def one_is_left():
        await watching.step("llama")
        left = await ready_pods(kube, namespace, 1)
        return left if left and await replicas(kube, namespace) == 1 else None

    (left,) = await eventually(one_is_left)
    assert left["spec"]["nodeName"] != pod["spec"]["nodeName"]
    assert (await llama.condition("Ready"))[0] == "True"


async def test_a_drain_without_free_gpus_is_not_held_up(serving, kube, namespace, eventually):
    _, watching, pod = serving
    nodes = [node["metadata"]["name"] for node in await kube.list(NODE) if node["metadata"]["name"].startswith("gpu-")]
    for name in nodes:
        await cordon(kube, name)
    await watching.step("llama")
    assert await replicas(kube, namespace) == 1
    await budget(kube, namespace, 1, eventually)
    await evict(kube, pod)


async def test_an_uncordoned_node_ends_the_stand_in(serving, kube, namespace, eventually):
    _, watching, pod = serving
    await cordon(kube, pod["spec"]["nodeName"])
    await watching.step("llama")
    await eventually(lambda: ready_pods(kube, namespace, 2))
    await cordon(kube, pod["spec"]["nodeName"], unschedulable=False)
    await watching.step("llama")
    # Which of the two goes is Kubernetes' choice.
    await eventually(lambda: ready_pods(kube, namespace, 1))
    assert await replicas(kube, namespace) == 1


async def test_autoscalers_marks_are_taken_off_a_pod_that_serves(serving, kube, namespace, eventually):
    _, watching, _ = serving

    async def unmarked():
        await watching.step("llama")
        (pod,) = await ready_pods(kube, namespace, 1)
        return not {name for name in pod["metadata"].get("annotations") or {} if "disrupt" in name or "evict" in name}

    await eventually(unmarked)
