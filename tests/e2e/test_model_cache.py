"""A model that is copied once for two services, which start from the copy without the hub; with the real engine."""

from __future__ import annotations

import json
import shutil
from contextlib import ExitStack

import pytest

from helpers import hub_server
from helpers.hub_pod import hub_pod, release
from uellm.launcher.compiled import LEAST_FREE_BYTES
from uellm_devcluster.demo import traffic

TOKEN = "hf_of_the_test"
CLASS = "by-hand"
CAPACITY = "1Gi"


@pytest.fixture
def hub(installed, tmp_path):
    """A hub that sends one half of the weights, and the other half when it is told to."""
    with hub_pod(installed, tmp_path, token=TOKEN, holds=True) as url:
        yield url


@pytest.fixture
def volume(installed, tmp_path_factory):
    """A directory of node-1 as a volume of a class of its own. It belongs to root."""
    directory = tmp_path_factory.mktemp("weights")
    node = {"key": "kubernetes.io/hostname", "operator": "In", "values": ["node-1"]}
    objects = [
        {
            "apiVersion": "storage.k8s.io/v1",
            "kind": "StorageClass",
            "metadata": {"name": CLASS},
            "provisioner": "kubernetes.io/no-provisioner",
            "volumeBindingMode": "WaitForFirstConsumer",
        },
        {
            "apiVersion": "v1",
            "kind": "PersistentVolume",
            "metadata": {"name": "weights"},
            "spec": {
                "capacity": {"storage": CAPACITY},
                "accessModes": ["ReadWriteOnce", "ReadWriteMany"],
                "storageClassName": CLASS,
                "local": {"path": str(directory)},
                "nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": [node]}]}},
            },
        },
    ]
    path = directory.parent / "volume.json"
    path.write_text(json.dumps({"apiVersion": "v1", "kind": "List", "items": objects}))
    try:
        installed.run(f"kubectl apply -f {path}")
        yield directory
    finally:
        installed.run(f"kubectl delete pv/weights storageclass/{CLASS} --ignore-not-found --wait=false")


def by_name(own, hub, cache):
    """The service, by the model's name alone, with a cache; nothing of it is on the node's disk."""
    spec = own.document["spec"]
    spec["model"] = {
        "uri": "hf://org/model",
        "dtype": "float32",
        "maxModelLen": 2048,
        "tokenSecretRef": {"name": "hub", "key": "token"},
        "cache": cache,
    }
    spec["engine"] = {**spec.get("engine", {}), "env": [{"name": "HF_ENDPOINT", "value": hub}]}
    template = spec["template"]["spec"]
    template["volumes"] = [each for each in template["volumes"] if each["name"] != "models"]
    (engine,) = [each for each in template["containers"] if each["name"] == "engine"]
    engine["volumeMounts"] = [each for each in engine["volumeMounts"] if each["name"] != "models"]


def tokens_of(own):
    with traffic.port_forward(own.shell, f"service/{own.name}", 80) as port:
        return traffic.stream_chat(port, own.name, "Tell me about placement.", max_tokens=8).text


def said(own):
    return own.condition("Ready").get("message", "")


def status(own):
    return json.dumps(own.get().get("status"))


@pytest.mark.timeout(1800)
def test_two_services_share_one_copy_and_start_from_it_without_the_hub(hub, volume, new_service):
    first, second = new_service(), new_service()
    by_name(first, hub, {"size": CAPACITY, "accessModes": ["ReadWriteMany"], "storageClassName": CLASS})
    by_name(second, hub, {"claimName": f"{first.name}-weights"})
    with ExitStack() as stack:
        stack.enter_context(first.applied())
        first.until(lambda: " % of " in said(first) and " 0 % of " not in said(first), 120, lambda: status(first))
        stack.enter_context(second.applied())
        second.until(lambda: "by another pod that has begun before" in said(second), 120, lambda: status(second))
        for own in (first, second):
            assert own.condition("Ready")["reason"] == "ModelDownloading"
            assert own.condition("Planned")["status"] == "True"
            assert own.pods() == []
            assert "ModelDownloading" in own.shell.run(f"kubectl get llmservice/{own.name}")
        release(first.shell)
        for own in (first, second):
            own.wait_ready(1, starts=2)
            assert tokens_of(own)
        copy = volume / "org" / "model" / hub_server.COMMIT
        weights = (copy / "model.safetensors").stat().st_size
        asked = first.shell.run("kubectl logs pod/hub").splitlines()
        assert sum(line.endswith(f"model.safetensors bytes=0-{weights - 1}") for line in asked) == 1
        plan = first.shell.json(f"kubectl get configmap/{first.name}-{first.get()['status']['revision']}")["data"]
        assert json.loads(plan["plan.json"])["engine"]["model"] == f"/models/org/model/{hub_server.COMMIT}"

        # What the engines compile is kept beside the weights, by service, version and devices.
        for own in (first, second) if shutil.disk_usage(volume).free > LEAST_FREE_BYTES else ():
            kept = [each for each in (volume / ".compiled" / own.name).rglob("*") if each.is_file()]
            assert kept, own.name
            assert {each.stat().st_uid for each in kept} == {65532}

        # Without any hub.
        first.shell.run("kubectl delete pod/hub --grace-period=1")
        (pod,) = first.pods()
        first.shell.run(f"kubectl delete pod/{pod['metadata']['name']}")
        first.until(lambda: first.condition("Ready").get("status") == "False", 60, lambda: status(first))
        first.wait_ready(1)
        assert tokens_of(first)

        # As where there is no route out: the files on a claim are all that there is.
        spec = second.document["spec"]
        place = f"pvc://{first.name}-weights/org/model/{hub_server.COMMIT}"
        spec["model"] = {"uri": place, "dtype": "float32", "maxModelLen": 2048}
        spec["engine"]["env"] = []
        second.apply()
        second.wait_ready(1, starts=2)
        assert second.condition("ModelAccessible")["reason"] == "Found"
        assert tokens_of(second)


@pytest.mark.timeout(1800)
def test_two_services_share_the_copy_on_their_node(hub, new_service):
    first, second = new_service(), new_service()
    for own in (first, second):
        by_name(own, hub, {"nodeLocal": True})  # node-1 alone has the GPUs
    with ExitStack() as stack:
        stack.enter_context(first.applied())
        first.until(lambda: " % of " in said(first) and " 0 % of " not in said(first), 180, lambda: status(first))
        assert first.condition("Ready")["reason"] == "ModelDownloading"
        assert " to the disk of node node-1: " in said(first)
        stack.enter_context(second.applied())
        second.until(lambda: "by another pod that has begun before" in said(second), 180, lambda: status(second))
        release(first.shell)
        for own in (first, second):
            own.wait_ready(1, starts=2)
            assert tokens_of(own)
        asked = first.shell.run("kubectl logs pod/hub").splitlines()
        ends = [int(line.rpartition("-")[2]) for line in asked if "model.safetensors bytes=0-" in line]
        assert ends.count(max(ends)) == 1  # the whole file, once; the others read its header

        # Without any hub, a new pod on the node starts from the copy.
        first.shell.run("kubectl delete pod/hub --grace-period=1")
        (pod,) = first.pods()
        first.shell.run(f"kubectl delete pod/{pod['metadata']['name']}")
        first.until(lambda: first.condition("Ready").get("status") == "False", 60, lambda: status(first))
        first.wait_ready(1)
        assert tokens_of(first)
