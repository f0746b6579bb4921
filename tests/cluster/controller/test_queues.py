"""Pods that wait in a queue, and pods that are preempted, on the real API server with the real scheduler.

The test plays Kueue: it gates pods, says why they wait, and admits them. `tests/full/test_kueue.py` has the real one.
"""

from __future__ import annotations

import subprocess

import pytest

from cluster.conftest import hold
from helpers.sizes import GIB
from uellm.kube import CRD, LLMSERVICE, POD
from uellm.kube.kinds import DEPLOYMENT, WORKLOAD
from uellm_devcluster.binaries import ensure

BY_KWOK = {"placement": {"schedulerName": "default-scheduler"}}
GATE = "kueue.x-k8s.io/admission"
QUEUE = {"kueue.x-k8s.io/queue-name": "team", "kueue.x-k8s.io/priority-class": "production"}
GATED = {**BY_KWOK, "template": {"spec": {"schedulingGates": [{"name": GATE}]}}}
NO_QUOTA = "couldn't assign flavors to pod set main: insufficient unused quota for nvidia.com/gpu, 1 more needed"
WORKLOAD_CRD = {
    "apiVersion": CRD.api_version,
    "kind": CRD.kind,
    "metadata": {"name": "workloads.kueue.x-k8s.io"},
    "spec": {
        "group": "kueue.x-k8s.io",
        "scope": "Namespaced",
        "names": {"plural": "workloads", "singular": "workload", "kind": "Workload"},
        "versions": [
            {
                "name": WORKLOAD.api_version.rpartition("/")[2],
                "served": True,
                "storage": True,
                "schema": {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": True}},
            }
        ],
    },
}


async def label(kube, llama, labels):
    metadata = {"name": llama.name, "namespace": llama.namespace, "labels": labels}
    document = {"apiVersion": LLMSERVICE.api_version, "kind": LLMSERVICE.kind, "metadata": metadata}
    await kube.apply(document, manager="team")


@pytest.fixture
def admit(kubeconfig, namespace):
    """Kueue's admission: the gate goes."""

    def admit(pod):
        kubectl = [str(ensure({"kubectl"}) / "kubectl"), "--kubeconfig", kubeconfig, "--namespace", namespace]
        patch = '[{"op": "remove", "path": "/spec/schedulingGates"}]'
        command = [*kubectl, "patch", "pod", pod["metadata"]["name"], "--type=json", f"--patch={patch}"]
        subprocess.run(command, check=True, capture_output=True, timeout=30)

    return admit


@pytest.fixture
async def say(kube, namespace, eventually):
    """Kueue's Workload of a pod, and what it says."""
    await kube.apply(WORKLOAD_CRD, manager="tests")

    async def is_served():
        found = await kube.get(CRD, WORKLOAD_CRD["metadata"]["name"]) or {}
        conditions = (found.get("status") or {}).get("conditions") or ()
        return any(each["type"] == "Established" and each["status"] == "True" for each in conditions)

    await eventually(is_served)

    async def say(pod, words, name=""):
        condition = {"type": "QuotaReserved", "status": "False", "reason": "Pending", "message": words}
        labels = {"kueue.x-k8s.io/job-uid": pod["metadata"]["uid"]}
        name = name or f"pod-{pod['metadata']['name']}"
        document = {
            "apiVersion": WORKLOAD.api_version,
            "kind": WORKLOAD.kind,
            "metadata": {"name": name, "namespace": namespace, "labels": labels},
            "spec": {"active": True},
            "status": {"conditions": [condition]},
        }
        await kube.apply(document, manager="kueue")

    yield say
    name = WORKLOAD_CRD["metadata"]["name"]
    await kube.delete(CRD, name)

    async def is_gone():
        return await kube.get(CRD, name) is None

    # The next test's apply would otherwise change the one that ends.
    await eventually(is_gone, timeout_s=40)


async def only_pod(kube, namespace):
    pods = [pod for pod in await kube.list(POD, namespace) if "deletionTimestamp" not in pod["metadata"]]
    assert len(pods) == 1
    return pods[0]


async def test_the_labels_of_a_queue_are_those_of_the_deployment_and_roll_nothing_themselves(
    operator, service, gpu_node, kube
):
    await gpu_node([24 * GIB])
    llama = await service(**BY_KWOK)
    watching = operator()
    await watching.serve("llama")
    before = await llama.deployment()
    await label(kube, llama, {**QUEUE, "team": "a"})
    await watching.serve("llama")
    after = await llama.deployment()
    assert after["metadata"]["labels"] == {**before["metadata"]["labels"], **QUEUE}
    assert after["spec"] == before["spec"]
    assert await operator().step("llama") == []
    await label(kube, llama, {})
    await watching.serve("llama")
    assert (await llama.deployment())["metadata"]["labels"] == before["metadata"]["labels"]


async def test_a_pod_that_is_held_back_is_queued_and_neither_failed_nor_unschedulable_nor_in_the_way(
    operator, service, gpu_node, kube, namespace, admit, say, eventually
):
    node = await gpu_node([24 * GIB])
    llama = await service(**GATED)
    watching = operator()
    await watching.settle("llama")
    pod = await only_pod(kube, namespace)
    await say(pod, NO_QUOTA)
    watching.later(120)
    await watching.write_out("llama")
    status, reason, message = await llama.condition("Ready")
    held = (
        f"0 of 1 replicas serve; pod {pod['metadata']['name']} is held back by the scheduling gate {GATE}: {NO_QUOTA}"
    )
    assert (status, reason, message) == ("False", "Queued", held)
    assert (await llama.condition("Stalled"))[0] == "False"
    assert "podFailures" not in await llama.status()
    plan = await llama.plan()

    # Nobody knows when its turn comes: meanwhile its GPUs are another's.
    other = await service("other", **BY_KWOK)
    await watching.settle("llama", "other")
    assert (await other.condition("Planned"))[:2] == ("True", "Planned")

    async def node_of(name):
        pods = await kube.list(POD, namespace, label_selector=f"uellm.io/service={name}")
        return [each["spec"].get("nodeName") for each in pods]

    async def other_is_bound():
        return await node_of("other") == [node]

    await eventually(other_is_bound)
    second = await gpu_node([24 * GIB])
    admit(pod)

    async def is_bound():
        return await node_of("llama") == [second]

    await eventually(is_bound)
    await watching.settle("llama")
    assert (await llama.condition("Ready"))[1] not in ("Queued", "Unschedulable")
    assert (await llama.plan())["layers"] == plan["layers"]


async def test_a_service_that_may_wait_for_its_turn_is_planned_on_gpus_that_others_hold(
    operator, service, gpu_node, kube, namespace
):
    node = await gpu_node([24 * GIB], allocatedTo={"podUID": "a-stranger"})
    llama = await service(**BY_KWOK)
    watching = operator()
    await watching.write_out("llama")
    assert (await llama.condition("Planned"))[:2] == ("False", "NoFit")
    assert await llama.child(DEPLOYMENT) is None
    await label(kube, llama, QUEUE)
    await watching.write_out("llama")
    assert (await llama.condition("Planned"))[:2] == ("True", "Planned")
    assert (await llama.plan())["nodes"] == [node]
    assert (await llama.deployment())["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "team"
    # A restarted operator stays with it.
    again = operator()
    await again.write_out("llama")
    assert (await llama.condition("Planned"))[:2] == ("True", "Planned")


async def test_a_change_that_fits_nowhere_is_told_also_where_pods_may_displace_others(
    operator, service, gpu_node, kube, namespace, eventually
):
    await gpu_node([24 * GIB])
    llama = await service(**BY_KWOK)
    await label(kube, llama, QUEUE)
    watching = operator()
    await watching.settle("llama")

    async def is_bound():
        return (await only_pod(kube, namespace))["spec"].get("nodeName")

    await eventually(is_bound)
    await llama.change(lambda spec: spec["placement"].update(gpus={"min": 4, "max": 4}))
    await watching.write_out("llama")
    assert (await llama.condition("Planned"))[:2] == ("False", "NoFit")
    await llama.change(lambda spec: spec["placement"].update(gpus={"min": 1, "max": 1}))
    await watching.write_out("llama")
    assert (await llama.condition("Planned"))[:2] == ("True", "Planned")


async def test_a_change_whose_additional_pod_waits_in_a_queue_goes_in_place_after_a_minute(
    operator, service, gpu_node, kube, namespace, admit, eventually
):
    node = await gpu_node([24 * GIB] * 2)
    llama = await service(**BY_KWOK)
    watching = operator()
    await watching.settle("llama")
    await llama.change(lambda spec: spec.update(GATED, engine={"env": [{"name": "A", "value": "b"}]}))
    await watching.step("llama")
    strategy = (await llama.deployment())["spec"]["strategy"]["rollingUpdate"]
    assert strategy == {"maxSurge": 1, "maxUnavailable": 0}

    async def gated():
        found = await kube.list(POD, namespace)
        return next((pod for pod in found if pod["spec"].get("schedulingGates")), None)

    pod = await eventually(gated)
    watching.later(120)
    await watching.step("llama")
    assert (await llama.condition("Ready"))[1] == "Queued"
    strategy = (await llama.deployment())["spec"]["strategy"]["rollingUpdate"]
    assert strategy == {"maxSurge": 0, "maxUnavailable": 1}

    async def alone():
        return len(await kube.list(POD, namespace)) == 1

    await eventually(alone)
    admit(pod)

    async def is_bound():
        return (await only_pod(kube, namespace))["spec"].get("nodeName") == node

    await eventually(is_bound)


@pytest.fixture
def high(kubeconfig):
    kubectl = [str(ensure({"kubectl"}) / "kubectl"), "--kubeconfig", kubeconfig]
    words = ["create", "priorityclass", "high", "--value=1000"]
    subprocess.run([*kubectl, *words], check=True, capture_output=True, timeout=30)
    yield "high"
    subprocess.run([*kubectl, "delete", "priorityclass", "high"], check=True, capture_output=True, timeout=30)


def stranger(namespace, priority):
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "stranger", "namespace": namespace},
        "spec": {
            "priorityClassName": priority,
            "containers": [{"name": "main", "image": "main", "resources": {"limits": {"nvidia.com/gpu": "1"}}}],
        },
    }


async def test_an_engine_that_a_stranger_preempts_is_no_failure_and_is_replaced_where_there_is_room(
    operator, service, gpu_node, apply_profile, kube, namespace, high, eventually
):
    node = await gpu_node([24 * GIB])
    llama = await service(**BY_KWOK)
    watching = operator()
    await watching.settle("llama")

    async def bound():
        pod = await only_pod(kube, namespace)
        return pod if pod["spec"].get("nodeName") else None

    victim = await eventually(bound)
    name = victim["metadata"]["name"]
    await hold(kube, namespace, name, ["example.com/drains"])
    await kube.create(stranger(namespace, high))

    async def is_preempted():
        return "deletionTimestamp" in (await kube.get(POD, name, namespace))["metadata"]

    await eventually(is_preempted)

    async def told():
        # The Deployment's own status says a moment later that the pod is none of its ready ones any more.
        await watching.step("llama")
        found = await llama.condition("Ready")
        return found if found[1] == "Preempted" else None

    status, _, message = await eventually(told)
    assert status == "False"
    assert message.startswith(f"pod {name} on node {node} has to give up its GPUs: default-scheduler: preempting")
    await hold(kube, namespace, name, [])

    async def is_taken():
        return (await kube.get(POD, "stranger", namespace))["spec"].get("nodeName") == node

    await eventually(is_taken)
    uid = (await kube.get(POD, "stranger", namespace))["metadata"]["uid"]
    await apply_profile(node, [24 * GIB], allocatedTo={"podUID": uid})

    async def is_unschedulable():
        await watching.step("llama")
        return (await llama.condition("Ready"))[1] == "Unschedulable"

    await eventually(is_unschedulable)
    assert (await llama.condition("Stalled"))[0] == "False"
    assert "podFailures" not in await llama.status()
    # Its GPUs are no longer counted for it, and not for anybody else either.
    other = await service("other", **BY_KWOK)
    await watching.write_out("other")
    assert (await other.condition("Planned"))[:2] == ("False", "NoFit")
    await other.delete()
    second = await gpu_node([24 * GIB])
    await watching.settle("llama")

    async def is_replaced():
        pods = await kube.list(POD, namespace)
        return [pod["spec"].get("nodeName") for pod in pods if pod["metadata"]["name"] != "stranger"] == [second]

    await eventually(is_replaced)


async def test_a_service_of_high_priority_preempts_a_stranger(
    operator, service, gpu_node, kube, namespace, high, eventually
):
    node = await gpu_node([24 * GIB], allocatedTo={"podUID": "the-strangers"})
    low = stranger(namespace, high)
    del low["spec"]["priorityClassName"]
    await kube.create(low)

    async def runs():
        return (await kube.get(POD, "stranger", namespace))["spec"].get("nodeName") == node

    await eventually(runs)
    llama = await service(**BY_KWOK, template={"spec": {"priorityClassName": high}})
    watching = operator()
    await watching.write_out("llama")
    assert (await llama.condition("Planned"))[:2] == ("True", "Planned")

    async def has_displaced():
        pods = {pod["metadata"]["name"]: pod["spec"].get("nodeName") for pod in await kube.list(POD, namespace)}
        return list(pods.values()) == [node] and "stranger" not in pods

    await eventually(has_displaced)
