"""A replica serves on while its change is corrected or refused, on the real API server and its Deployment controller.

No scheduler takes the pods: the test binds them. kwok makes a pod ready that has no address when it is bound.
"""

from __future__ import annotations

import pytest

from helpers.sizes import GIB
from uellm.kube.kinds import PDB, POD, SERVICE

ONE_GPU = {"placement": {"gpus": {"max": 1}}}


@pytest.fixture
async def serving(operator, service, gpu_node, kube, namespace, eventually):
    """(the service, its operator, its pod, a second node) with one replica that serves, on one of two nodes."""
    nodes = [await gpu_node([24 * GIB]), await gpu_node([24 * GIB])]
    llama = await service(**ONE_GPU)
    watching = operator()
    await watching.settle("llama")
    (pod,) = await eventually(lambda: pods_of(kube, namespace, 1))
    await bind(kube, pod, nodes[0])

    async def serves():
        found = await kube.get(POD, pod["metadata"]["name"], namespace)
        return any(each["type"] == "Ready" and each["status"] == "True" for each in found["status"]["conditions"])

    await eventually(serves)
    await watching.settle("llama")
    return llama, watching, pod["metadata"]["name"], nodes[1]


async def pods_of(kube, namespace, count):
    alive = [pod for pod in await kube.list(POD, namespace) if "deletionTimestamp" not in pod["metadata"]]
    return alive if len(alive) == count else None


async def bind(kube, pod, node):
    metadata = {name: pod["metadata"][name] for name in ("name", "namespace")}
    target = {"apiVersion": "v1", "kind": "Node", "name": node}
    body = {"apiVersion": "v1", "kind": "Binding", "metadata": metadata, "target": target}
    await kube._transport.call("POST", POD.path(**metadata, subresource="binding"), body=body)


async def keep_loading(kube, pod):
    """Give the pod an address, so that kwok leaves it as it is."""
    kept = {name: pod["metadata"][name] for name in ("name", "namespace", "uid")}
    status = {"podIP": "10.0.0.9", "podIPs": [{"ip": "10.0.0.9"}]}
    await kube.apply_status({"apiVersion": "v1", "kind": "Pod", "metadata": kept, "status": status}, manager="kubelet")


def setting(value):
    return lambda spec: spec.update(engine={"env": [{"name": "A", "value": value}]})


async def test_a_change_that_is_corrected_while_its_pod_loads_leaves_the_replica_that_serves(
    serving, kube, namespace, eventually
):
    llama, watching, old, node = serving
    await llama.change(setting("wrong"))
    await watching.step("llama")
    assert "surge: " in (await llama.condition("Ready"))[2]
    both = await eventually(lambda: pods_of(kube, namespace, 2))
    loading = next(pod for pod in both if pod["metadata"]["name"] != old)
    await keep_loading(kube, loading)
    await bind(kube, loading, node)
    await watching.write_out("llama")

    await llama.change(setting("right"))
    await watching.step("llama")
    # The second GPU is the loading pod's, so no node has room, and yet nobody has to go.
    loads = loading["metadata"]["name"]
    assert f"surge: pod {loads} gives its GPUs to the next one" in (await llama.condition("Ready"))[2]
    revision = (await llama.status())["revision"]

    async def replaced():
        found = await kube.list(POD, namespace)
        assert old in [pod["metadata"]["name"] for pod in found if "deletionTimestamp" not in pod["metadata"]]
        gone = loads not in [pod["metadata"]["name"] for pod in found]
        return gone and [pod for pod in found if pod["metadata"]["labels"]["uellm.io/revision"] == revision]

    assert len(await eventually(replaced)) == 1
    deployment = await llama.deployment()
    assert deployment["spec"]["strategy"]["rollingUpdate"] == {"maxSurge": 1, "maxUnavailable": 0}


async def test_while_a_change_is_refused_the_service_is_made_again_and_its_node_can_be_emptied(
    serving, kube, namespace
):
    llama, watching, _, _ = serving
    assert (await llama.child(PDB))["spec"]["maxUnavailable"] == 0
    await llama.change(lambda spec: spec.update(template={"spec": {"noSuchField": 1}}))
    await kube.delete(SERVICE, "llama", namespace)
    await watching.write_out("llama")
    assert (await llama.condition("Ready"))[1] == "InvalidTemplate"
    assert (await llama.child(PDB))["spec"]["maxUnavailable"] == 1
    assert (await llama.child(SERVICE))["spec"]["selector"] == {"uellm.io/service": "llama"}
    assert await watching.step("llama") == []

    # Meanwhile somebody else takes the name.
    await kube.delete(SERVICE, "llama", namespace)
    ports = [{"port": 1, "protocol": "TCP", "targetPort": 1}]
    metadata = {"name": "llama", "namespace": namespace}
    theirs = {"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": {"ports": ports}}
    foreign = await kube.create(theirs)
    await watching.write_out("llama")
    found = await llama.child(SERVICE)
    assert (found["metadata"]["uid"], found["spec"]) == (foreign["metadata"]["uid"], foreign["spec"])
    assert "ownerReferences" not in found["metadata"]
