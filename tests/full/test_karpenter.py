"""The real Karpenter adds the node that a service's plan asks for, and removes it after the service.

Karpenter is its `kwok` provider: the program's own decisions, with kwok's nodes instead of a cloud's. Nobody profiles
such a node, so the test writes the profile that the profiler would write.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from helpers.controller_process import Process
from helpers.models import LLAMA_8B
from uellm.cli.main import main
from uellm_devcluster import ControlPlane
from uellm_devcluster.binaries import ensure
from uellm_devcluster.local import free_port

pytestmark = pytest.mark.timeout(600)

CRDS = Path(__file__).parents[2] / "manifests" / "crds"
INSTANCE_TYPE = "node.kubernetes.io/instance-type"
# Instance types by name: product, number of GPUs, memory of each in bytes, compute capability, price in an hour.
INSTANCE_TYPES = {
    "sim-t4": ("Tesla T4", 1, 15_634_661_376, "7.5", 0.5),
    "sim-h100": ("NVIDIA H100 80GB HBM3", 1, 85_520_809_984, "9.0", 4.0),
    "sim-8xh100": ("NVIDIA H100 80GB HBM3", 8, 85_520_809_984, "9.0", 30.0),
}
SERVICE = {
    "apiVersion": "uellm.io/v1alpha1",
    "kind": "LLMService",
    "metadata": {"name": "llama", "namespace": "default"},
    "spec": {
        "model": {"uri": "file:///models/llama", "config": LLAMA_8B, "maxModelLen": 8192},
        "placement": {"schedulerName": "default-scheduler"},
    },
}


class Cluster:
    """The API server, as an administrator uses it."""

    def __init__(self, kubeconfig: Path) -> None:
        self.kubeconfig = kubeconfig
        self._kubectl = [str(ensure({"kubectl"}) / "kubectl"), "--kubeconfig", str(kubeconfig)]

    def kubectl(self, *args: str, given: str = "") -> str:
        done = subprocess.run(
            [*self._kubectl, *args], input=given, capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def apply(self, *documents: dict[str, Any]) -> None:
        self.kubectl("apply", "--server-side", "-f", "-", given="---\n".join(map(yaml.safe_dump, documents)))

    def list(self, kind: str, *args: str) -> list[dict[str, Any]]:
        items: list[dict[str, Any]] = json.loads(self.kubectl("get", kind, "-o", "json", *args))["items"]
        return items

    def condition(self, type_: str) -> dict[str, Any]:
        [service] = self.list("llmservices")
        conditions = (service.get("status") or {}).get("conditions") or []
        return next((each for each in conditions if each["type"] == type_), {})

    def gpu_nodes(self) -> list[dict[str, Any]]:
        return self.list("nodes", "-l", "karpenter.sh/nodepool")


def eventually(check: Callable[[], Any], *, timeout_s: float = 90.0) -> Any:
    deadline = time.monotonic() + timeout_s
    while True:
        answer = check()
        if answer:
            return answer
        assert time.monotonic() < deadline, f"not within {timeout_s:g} s; the last answer was {answer!r}"
        time.sleep(0.5)


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    """A cluster whose only node has no GPU."""
    with ControlPlane(kwok_nodes=1) as plane:
        cluster = Cluster(plane.kubeconfig)
        home = ensure({"karpenter"}) / "karpenter"
        for path in (*sorted(CRDS.glob("*.yaml")), *sorted(home.resolve().parent.glob("*.yaml"))):
            cluster.kubectl("apply", "--server-side", "-f", str(path))
        cluster.kubectl("wait", "crd", "--all", "--for=condition=Established", "--timeout=30s")
        yield cluster


@pytest.fixture
def karpenter(cluster: Cluster, tmp_path: Path) -> Iterator[Path]:
    """Karpenter at work; its log."""
    types = tmp_path / "instance-types.json"
    types.write_text(json.dumps([instance_type(name) for name in INSTANCE_TYPES]))
    log = tmp_path / "karpenter.log"
    environment = {
        **os.environ,
        "KUBECONFIG": str(cluster.kubeconfig),
        "DISABLE_LEADER_ELECTION": "true",
        "SYSTEM_NAMESPACE": "kube-system",
        "KUBERNETES_MIN_VERSION": "1.19.0-0",
        "INSTANCE_TYPES_FILE_PATH": str(types),
        "METRICS_PORT": str(free_port()),
        "HEALTH_PROBE_PORT": str(free_port()),
        "BATCH_IDLE_DURATION": "500ms",
    }
    with log.open("wb") as output:
        process = subprocess.Popen(
            [str(ensure({"karpenter"}) / "karpenter")], env=environment, stdout=output, stderr=output
        )
    yield log
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(timeout=10)
    except subprocess.TimeoutExpired:
        process.kill()


@pytest.fixture
def controller(cluster: Cluster, tmp_path: Path) -> Iterator[Process]:
    process = Process(str(cluster.kubeconfig), "default", tmp_path / "controller.log")
    yield process
    process.end(signal.SIGKILL)


def instance_type(name: str) -> dict[str, Any]:
    _, gpus, _, _, price = INSTANCE_TYPES[name]
    requirements = [
        {"key": "karpenter.sh/capacity-type", "operator": "In", "values": ["on-demand"]},
        {"key": "topology.kubernetes.io/zone", "operator": "In", "values": ["zone-a"]},
    ]
    return {
        "name": name,
        "offerings": [{"Price": price, "Available": True, "Requirements": requirements}],
        "architecture": "amd64",
        "operatingSystems": ["linux"],
        "resources": {"cpu": "32", "memory": "256Gi", "ephemeral-storage": "1Ti", "nvidia.com/gpu": str(gpus)},
    }


def profile(name: str, node: str) -> dict[str, Any]:
    """What the profiler would find on a node of this instance type."""
    product, gpus, memory_bytes, capability, _ = INSTANCE_TYPES[name]
    devices = [
        {
            "index": index,
            "uuid": f"GPU-{node}-{index}",
            "product": product,
            "memoryBytes": memory_bytes,
            "computeCapability": capability,
            "health": {"state": "Healthy"},
        }
        for index in range(gpus)
    ]
    return {
        "apiVersion": "uellm.io/v1alpha1",
        "kind": "GPUNodeProfile",
        "metadata": {"name": node},
        "status": {"source": "NVML", "devices": devices},
    }


def node_class(name: str, directory: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    """The class of an instance type, as an administrator makes it."""
    description = directory / f"{name}.yaml"
    description.write_text(yaml.safe_dump(profile(name, name)))
    arguments = ["--class-name", name, "--label", f"{INSTANCE_TYPE}={name}"]
    assert main(["profile", "--simulate", str(description), "-o", "class", *arguments]) == 0
    document: dict[str, Any] = yaml.safe_load(capsys.readouterr().out)
    return document


def node_pool(name: str, labels: dict[str, str]) -> dict[str, Any]:
    """A pool of one instance type whose nodes carry these labels."""
    own = {key: value for key, value in labels.items() if key != INSTANCE_TYPE}
    return {
        "apiVersion": "karpenter.sh/v1",
        "kind": "NodePool",
        "metadata": {"name": name},
        "spec": {
            "template": {
                "metadata": {"labels": own},
                "spec": {
                    "requirements": [{"key": INSTANCE_TYPE, "operator": "In", "values": [name]}],
                    "taints": [{"key": "nvidia.com/gpu", "effect": "NoSchedule"}],
                    "nodeClassRef": {"group": "karpenter.kwok.sh", "kind": "KWOKNodeClass", "name": "default"},
                },
            },
            "disruption": {"consolidationPolicy": "WhenEmpty", "consolidateAfter": "0s"},
        },
    }


def test_an_empty_cluster_grows_by_the_node_that_the_plan_asks_for_and_shrinks_after_the_service(
    cluster: Cluster,
    karpenter: Path,
    controller: Process,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    classes = [node_class(name, tmp_path, capsys) for name in INSTANCE_TYPES]
    pools = [node_pool(each["metadata"]["name"], each["spec"]["labels"]) for each in classes]
    kwok_class = {"apiVersion": "karpenter.kwok.sh/v1alpha1", "kind": "KWOKNodeClass", "metadata": {"name": "default"}}
    cluster.apply(kwok_class, *pools, *classes)
    assert cluster.gpu_nodes() == []
    cluster.apply(SERVICE)

    try:
        # A node of the right type comes: the cheaper T4 does not hold the model, and eight GPUs are not needed.
        node = eventually(lambda: next(iter(cluster.gpu_nodes()), None))
        assert node["metadata"]["labels"][INSTANCE_TYPE] == "sim-h100"
        name = node["metadata"]["name"]
        [service] = cluster.list("llmservices")
        assert service["status"]["plan"]["nodeClasses"] == ["sim-h100", "sim-8xh100"]

        # The pod is bound, and with the node's profile the plan is verified.
        pod = eventually(lambda: next((pod for pod in cluster.list("pods") if pod["spec"].get("nodeName")), None))
        assert pod["spec"]["nodeName"] == name
        document = profile("sim-h100", name)
        cluster.apply({key: document[key] for key in ("apiVersion", "kind", "metadata")})
        patch = json.dumps({"status": document["status"]})
        cluster.kubectl("patch", "gpunodeprofile", name, "--subresource=status", "--type=merge", "-p", patch)
        eventually(lambda: cluster.list("llmservices")[0]["status"]["plan"].get("nodes") == [name])
        assert "nodeClasses" not in cluster.list("llmservices")[0]["status"]["plan"]
        assert [each["metadata"]["uid"] for each in cluster.list("pods")] == [pod["metadata"]["uid"]]

        # Without the service, the node goes.
        cluster.kubectl("delete", "llmservice", "llama")
        eventually(lambda: not cluster.gpu_nodes(), timeout_s=180)
    except AssertionError as error:
        error.add_note(_seen(cluster, karpenter, controller))
        raise


def test_a_label_that_no_pool_carries_is_why_no_node_comes(
    cluster: Cluster,
    karpenter: Path,
    controller: Process,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    document = node_class("sim-h100", tmp_path, capsys)
    pool = node_pool("sim-h100", {})
    kwok_class = {"apiVersion": "karpenter.kwok.sh/v1alpha1", "kind": "KWOKNodeClass", "metadata": {"name": "default"}}
    cluster.apply(kwok_class, pool, document)
    cluster.apply(SERVICE)
    try:
        eventually(lambda: cluster.condition("Ready").get("reason") == "WaitingForNode")
        assert "nvidia.com/gpu.count=1" in cluster.condition("Ready")["message"]
        missing = "nvidia.com/gpu.compute.major, nvidia.com/gpu.count, nvidia.com/gpu.memory"
        eventually(lambda: f"no NodePool carries {missing}" in cluster.condition("Ready")["message"])
        refused = eventually(lambda: [line for line in karpenter.read_text().splitlines() if "gpu.count" in line])
        assert "does not have known values" in refused[0]
        assert cluster.gpu_nodes() == []
        # With the labels, the node comes.
        cluster.apply(node_pool("sim-h100", document["spec"]["labels"]))
        eventually(cluster.gpu_nodes)
    except AssertionError as error:
        error.add_note(_seen(cluster, karpenter, controller))
        raise


def _seen(cluster: Cluster, karpenter: Path, controller: Process) -> str:
    """What there was when a check failed."""
    shown = cluster.kubectl("get", "llmservices,pods,nodes,nodeclaims,nodepools,gpunodeclasses", "-o", "wide")
    return "\n".join([shown, karpenter.read_text()[-6000:], controller.text()[-3000:]])
