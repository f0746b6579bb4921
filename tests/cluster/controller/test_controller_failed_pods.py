"""Pods that have failed for good, on the real API server: reported, counted once, and removed."""

from __future__ import annotations

import pytest

from cluster.conftest import hold, left_by_kwok
from helpers.sizes import GIB
from uellm.kube.kinds import DEPLOYMENT, NODE, POD

BY_KWOK = {"placement": {"schedulerName": "default-scheduler"}}
EVICTED = {"phase": "Failed", "reason": "Evicted", "message": "The node was low on resource: memory."}


@pytest.fixture
async def placed(operator, service, gpu_node, kube, namespace, eventually):
    """(the service, its operator, the name of its pod, which has a node)."""
    await gpu_node([24 * GIB])
    llama = await service(**BY_KWOK)
    watching = operator()
    await watching.settle("llama")

    async def bound():
        return next((pod for pod in await kube.list(POD, namespace) if pod["spec"].get("nodeName")), None)

    pod = await eventually(bound)
    return llama, watching, pod


async def fail(kube, pod, status):
    """As its kubelet would."""
    await left_by_kwok(kube, pod)
    kept = {name: pod["metadata"][name] for name in ("name", "namespace", "uid")}
    await kube.apply_status({"apiVersion": "v1", "kind": "Pod", "metadata": kept, "status": status}, manager="kubelet")


async def names(kube, namespace):
    return [pod["metadata"]["name"] for pod in await kube.list(POD, namespace)]


async def test_an_evicted_pod_is_reported_with_the_kubelets_message_and_removed_after_a_while(placed, kube, namespace):
    llama, watching, pod = placed
    await fail(kube, pod, EVICTED)
    await watching.step("llama")
    failures = (await llama.status())["podFailures"]
    node = pod["spec"]["nodeName"]
    assert (failures["count"], failures["reason"]) == (1, "Evicted")
    assert failures["message"] == (
        f"pod {pod['metadata']['name']} on node {node}: Evicted: The node was low on resource: memory."
    )
    await watching.step("llama")
    assert (await llama.status())["podFailures"]["count"] == 1
    watching.later(601)
    assert "delete Pod" in await watching.step("llama")
    assert pod["metadata"]["name"] not in await names(kube, namespace)


async def test_an_operator_that_dies_between_counting_and_removing_counts_no_pod_twice(placed, operator, kube, killed):
    llama, watching, pod = placed
    await fail(kube, pod, EVICTED)
    watching.kube.die_after = len(watching.kube.writes) + 1  # the status is the first
    with pytest.raises(killed):
        await watching.step("llama")
    after = operator()
    after.later(601)
    await after.step("llama")
    assert (await llama.status())["podFailures"]["count"] == 1


async def test_a_pod_that_reports_no_fit_is_deleted_with_backoff(placed, kube, namespace):
    llama, watching, pod = placed
    ended = {"exitCode": 1, "message": "uellm launcher: NoFit: GPU g0 has 2 GiB free\n"}
    engine = {"name": "engine", "image": "engine:1", "imageID": "", "ready": False, "restartCount": 1}
    status = {"containerStatuses": [{**engine, "state": {"waiting": {}}, "lastState": {"terminated": ended}}]}
    await fail(kube, pod, status)
    await watching.step("llama")
    assert pod["metadata"]["name"] in await names(kube, namespace)
    assert (await llama.status())["podFailures"]["reason"] == "NoFit"
    watching.later(11)
    assert "delete Pod" in await watching.step("llama")


async def test_a_change_surges_where_gpus_are_free_and_goes_in_place_where_they_are_not(
    operator, service, gpu_node, apply_profile, kube
):
    node = await gpu_node([24 * GIB, 24 * GIB])
    llama = await service(placement={"gpus": {"max": 1}})
    watching = operator()
    await watching.settle("llama")
    await llama.change(lambda spec: spec.update(engine={"env": [{"name": "A", "value": "1"}]}))
    await watching.step("llama")
    update = (await llama.deployment())["spec"]["strategy"]["rollingUpdate"]
    assert update == {"maxSurge": 1, "maxUnavailable": 0}
    assert f"surge: node {node} has the 1 free GPU" in (await llama.condition("Ready"))[2]

    # Its pod still gets no node: no scheduler runs here.
    watching.later(120)
    await watching.step("llama")
    deployment = await llama.deployment()
    assert deployment["spec"]["strategy"]["rollingUpdate"] == {"maxSurge": 0, "maxUnavailable": 1}
    assert "has been Pending for a minute" in deployment["metadata"]["annotations"]["uellm.io/rollout"]


async def test_a_pod_that_is_stuck_on_a_node_that_is_gone_is_removed(placed, kube, namespace, eventually):
    _, watching, pod = placed
    name = pod["metadata"]["name"]
    # A finalizer stands for the kubelet that never says that the pod has ended.
    await hold(kube, namespace, name, ["example.com/never-ends"])
    await kube.delete(POD, name, namespace, uid=pod["metadata"]["uid"])
    await kube.delete(NODE, pod["spec"]["nodeName"])
    assert "delete Pod" not in await watching.step("llama")
    watching.later(600 + 60 + 60)  # its grace period, what a kubelet may take, and what this test has taken
    assert "delete Pod" in await watching.step("llama")
    await hold(kube, namespace, name, [])

    async def is_gone():
        return name not in await names(kube, namespace)

    await eventually(is_gone)
    assert await kube.get(DEPLOYMENT, "llama-engine", namespace) is not None
