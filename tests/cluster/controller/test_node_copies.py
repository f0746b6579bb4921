"""A model that pods copy to the disks of their nodes, on the real API server.

The test plays the kubelet and the container that copies, and says how far it is.
"""

from __future__ import annotations

import pytest

from helpers.models import LLAMA_8B
from helpers.sizes import GIB
from uellm.hub import LookUpRefusal
from uellm.hub.copy_document import to_document
from uellm.hub.copy_state import Progress
from uellm.kube import POD
from uellm.kube.kinds import DEPLOYMENT, PVC
from uellm.reconcile.model_claim import NodeCache

COMMIT = "c0ffee" + "0" * 34
CONFIG = {**LLAMA_8B, "max_position_embeddings": 8192, "tie_word_embeddings": False}
MODEL = {
    "uri": "hf://org/llama",
    "revision": COMMIT,
    "config": CONFIG,
    "maxModelLen": 4096,
    "tokenSecretRef": {"name": "hub", "key": "token"},
    "cache": {"nodeLocal": True},
}
HALF = Progress(52_200_000_000, 141_000_000_000, 238.0, False)
FULL = LookUpRefusal("VolumeFull", "the node's directory for models may hold 100 GB")
DISK = NodeCache("/var/lib/models", "operator:1")
BY_KWOK = {"placement": {"schedulerName": "default-scheduler"}}


@pytest.fixture
async def llama(gpu_node, service):
    await gpu_node([24 * GIB])
    return await service(model=MODEL, **BY_KWOK)


async def copying(kube, namespace, eventually, state):
    """The service's pod while its first container is in this state."""

    async def bound():
        pods = await kube.list(POD, namespace, label_selector="uellm.io/service=llama")
        return next((pod for pod in pods if pod["spec"].get("nodeName") and pod["status"].get("podIP")), None)

    pod = await eventually(bound)
    container = {"name": "fetch", "ready": False, "started": False, "restartCount": 0, "image": "", "imageID": ""}
    kept = {name: pod["metadata"][name] for name in ("name", "namespace", "uid")}
    ready = {"type": "Ready", "status": "False"}
    status = {"initContainerStatuses": [{**container, "state": state}], "conditions": [ready]}
    await kube.apply_status({"apiVersion": "v1", "kind": "Pod", "metadata": kept, "status": status}, manager="kubelet")
    return pod


async def test_a_cluster_whose_nodes_keep_no_models_says_so(llama, operator):
    watching = operator()
    await watching.settle("llama")
    status, reason, message = await llama.condition("Ready")
    assert (status, reason) == ("False", "NoNodeCache")
    assert message.startswith("spec.model.cache.nodeLocal: nodes of this cluster keep no models: its")
    assert (await llama.condition("Stalled"))[0] == "True"
    assert await llama.child(DEPLOYMENT) is None


async def test_a_pod_copies_before_its_engine_starts_and_holds_the_copy(llama, operator, kube, namespace):
    await operator(node_cache=DISK).write_out("llama")
    spec = (await llama.deployment())["spec"]["template"]["spec"]
    fetch = spec["initContainers"][0]
    assert (fetch["name"], fetch["image"], fetch["restartPolicy"]) == ("fetch", "operator:1", "Always")
    assert fetch["args"] == [
        "fetch",
        f"hf://org/llama@{COMMIT}",
        "/models",
        "--called=the node's directory for models",
        f"--compiled={namespace}/llama",
        "--hold",
        "--listen=:8008",
        "--seconds=60",
    ]
    assert fetch["env"] == [{"name": "HF_TOKEN", "valueFrom": {"secretKeyRef": {"name": "hub", "key": "token"}}}]
    assert {"name": "model", "hostPath": {"path": "/var/lib/models", "type": "Directory"}} in spec["volumes"]
    (engine,) = spec["containers"]
    assert {"name": "model", "mountPath": "/models", "readOnly": True} in engine["volumeMounts"]
    compiled = next(each for each in engine["volumeMounts"] if each.get("subPath"))
    assert compiled["subPath"] == f".compiled/{namespace}/llama"
    assert await kube.get(PVC, "llama-weights", namespace) is None


async def test_how_far_a_pod_is_and_why_it_cannot_copy_are_told(llama, operator, kube, namespace, eventually):
    watching = operator(node_cache=DISK)
    await watching.settle("llama")
    pod = await copying(kube, namespace, eventually, {"running": {}})
    watching.copies = {pod["status"]["podIP"]: to_document(HALF)}
    await watching.settle("llama")
    what = f"pod {pod['metadata']['name']} copies the model to the disk of node {pod['spec']['nodeName']}"
    message = f"{what}: 37 % of 141 GB, about 4 min"
    assert await llama.condition("ModelAccessible") == ("Unknown", "ModelDownloading", message)
    assert await llama.condition("Ready") == ("False", "ModelDownloading", message)

    watching.copies = {pod["status"]["podIP"]: to_document(FULL)}
    await watching.settle("llama")
    told = ("False", "VolumeFull", f"{what}, which is tried again: {FULL.message}")
    assert await llama.condition("Ready") == told
    watching.copies = {}
    # The kubelet starts it again: until then what it said last holds.
    await copying(kube, namespace, eventually, {"waiting": {"reason": "CrashLoopBackOff"}})
    await watching.settle("llama")
    assert await llama.condition("Ready") == told


async def test_a_service_turns_from_its_own_claim_to_the_nodes(llama, operator):
    watching = operator(node_cache=DISK)
    await watching.write_out("llama")
    before = (await llama.status())["revision"]
    await llama.change(lambda spec: spec["model"].update(cache={"claimName": "models"}))
    await watching.settle("llama")
    assert (await llama.condition("Ready"))[1] == "ModelDownloading"
    assert (await llama.status())["revision"] == before
    await llama.change(lambda spec: spec["model"].update(cache={"nodeLocal": True}))
    await watching.write_out("llama")
    assert (await llama.status())["revision"] == before
