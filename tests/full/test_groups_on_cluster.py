"""A replica that spans two nodes: real kubelets, the real LeaderWorkerSet with its webhooks, and real vLLM on both.

Three nodes have one small GPU each, and the model needs two. A client in the cluster goes through the gateway.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from e2e.conftest import Service
from full.test_fleet_on_cluster import run_client
from helpers import leader_worker_set, real_engine
from uellm_devcluster.demo import cluster, readback, traffic
from uellm_devcluster.demo.shell import Shell
from uellm_devcluster.demo.story import Story
from uellm_devcluster.local import free_port

pytestmark = pytest.mark.timeout(3600)

PROMPTS = ("Tell me about placement.", "What is a pipeline?")
TOKENS = 16
START_S = 600.0
"""Two engines on the cores of one machine."""
NODES = ("node-1", "node-2", "node-3")
MEMORY_BYTES = 300 << 20
"""Of each node's GPU: too little for the model, and enough for most of it."""
LAYERS = [3, 5]
PLANTED = "planted"
KINDS = (
    "pods,deployments,replicasets,services,configmaps,poddisruptionbudgets,"
    "leaderworkersets,statefulsets,controllerrevisions,endpointslices"
)


def simulated(name: str) -> dict[str, Any]:
    """A node with one GPU, as the chart's values describe it."""
    rates = {"bf16GigaflopsPerSecond": 2400, "fp16GigaflopsPerSecond": 2400, "memoryBytesPerSecond": 24_000_000_000}
    device = {
        "index": 0,
        "uuid": f"GPU-5{name[-1]}000000-0000-0000-0000-000000000001",
        "product": "Simulated Steady 300M",
        "computeCapability": "8.0",
        "memoryBytes": MEMORY_BYTES,
        "numaNode": 0,
        "pciBusId": "0000:10:00.0",
        "health": {"state": "Healthy"},
        "measured": rates,
    }
    return {"source": "Simulated", "driverVersion": "simulated", "devices": [device], "links": []}


@pytest.fixture(scope="module")
def three_nodes(root: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shell]:
    """A cluster of its own, in the place of the other tests' one."""
    directory = tmp_path_factory.mktemp("groups")
    values = directory / "values.yaml"
    nodes = {name: simulated(name) for name in NODES}
    values.write_text(yaml.safe_dump({"simulated": {"nodes": nodes}}))
    story = Story()
    cluster.down()
    try:
        shell = cluster.bring_up(story, cluster.find_programs(story), nodes=len(NODES), values=[values])
        cluster.wait_for_profiles(shell, dict.fromkeys(NODES, 1))
        leader_worker_set.install(shell, directory)
        yield shell
    finally:
        cluster.down()


@dataclass
class Group:
    """The service, whose replica is a group, and a client in the cluster that goes through the gateway."""

    service: Service
    client: str
    expected: list[str]

    @property
    def shell(self) -> Shell:
        return self.service.shell

    def pods(self) -> dict[str, dict[str, Any]]:
        return {pod["metadata"]["name"]: pod for pod in self.service.pods()}

    def uids(self) -> set[str]:
        return {pod["metadata"]["uid"] for pod in self.service.pods()}

    def nodes(self) -> set[str]:
        return {str(pod["spec"].get("nodeName")) for pod in self.service.pods()}

    def status(self) -> dict[str, Any]:
        return dict(self.service.get().get("status") or {})

    def report(self) -> dict[str, Any]:
        return dict(json.loads(self.shell.run(f"kubectl exec {self.client} -- cat /tmp/report")))

    def until(self, holds: Callable[[], bool], seconds: float = START_S) -> None:
        def state() -> str:
            pods = {name: pod["status"] for name, pod in self.pods().items()}
            return json.dumps({"service": self.status().get("conditions"), "pods": pods})

        Service.until(holds, seconds, state)

    def is_ready(self) -> bool:
        """Whether the service says so. A group of which a pod is missing or does not run never is."""
        ready = cluster.is_ready(self.service.get(), 1)
        if ready:
            pods = self.service.pods()
            assert len(pods) == 2, [pod["metadata"]["name"] for pod in pods]
            assert all(runs(pod) for pod in pods), [pod["status"] for pod in pods]
        return ready

    def ready_again(self, before: set[str]) -> float:
        """Wait until another group than `before` serves; the seconds that it took."""
        begun_s = time.monotonic()
        self.until(lambda: not before & self.uids())
        self.until(self.is_ready)
        assert not before & self.uids()
        return time.monotonic() - begun_s

    def texts(self) -> list[str]:
        with traffic.port_forward(self.shell, f"service/{self.service.name}", 80) as port:
            return [traffic.stream_chat(port, self.service.name, each, max_tokens=TOKENS).text for each in PROMPTS]

    def clients(self, number: int) -> None:
        self.shell.python(self.client, f"open('/tmp/clients', 'w').write('{number}')")


def runs(pod: dict[str, Any]) -> bool:
    """Whether all containers of a pod run and are ready."""
    return any((each["type"], each["status"]) == ("Ready", "True") for each in pod["status"].get("conditions") or ())


@pytest.fixture(scope="module")
def on_one_node(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """What one vLLM answers that holds all layers, without a cluster."""
    port, log = free_port(), tmp_path_factory.mktemp("alone") / "log"
    model = cluster.MODELS / cluster.SERVICE
    options = ["--dtype", "float32", "--max-model-len", 2048, "--served-model-name", "tiny", "--port", port]
    options += [
        "--host",
        "127.0.0.1",
        "--kv-cache-memory-bytes",
        "64M",
        "--max-num-seqs",
        4,
        "-cc.mode=2",
        "-cc.backend=eager",
    ]
    command = [sys.executable, "-m", "vllm.entrypoints.cli.main", "serve", model, *options]
    process = real_engine.start(command, log)
    try:
        real_engine.wait_for(f"http://127.0.0.1:{port}/health", process, log)
        return [traffic.stream_chat(port, "tiny", each, max_tokens=TOKENS).text for each in PROMPTS]
    finally:
        real_engine.end(process)


@pytest.fixture
def group(three_nodes: Shell, on_one_node: list[str], tmp_path: Path) -> Iterator[Group]:
    service = Service(three_nodes, "tiny-group", tmp_path)
    spec = service.document["spec"]
    spec["workload"]["requestsPerSecond"] = "1"
    spec["placement"] = {"multiNode": "Allowed"}
    spec["parallelism"] = {"layers": LAYERS}
    spec["template"]["spec"] |= leader_worker_set.DNS_OF_POD
    name = f"client-{service.name}"
    with service.applied():
        try:
            run_client(service.shell, name, service.name)
            yield Group(service, name, on_one_node)
        finally:
            service.shell.run(f"kubectl delete pod/{name} --force --grace-period=0 --ignore-not-found")


def test_a_replica_over_two_nodes_serves_and_is_replaced_as_a_whole(group: Group) -> None:
    """Each step begins where the one before it ended."""
    for step in (
        two_nodes_become_one_replica,
        the_engines_run_the_partition_of_the_status,
        the_tokens_are_those_of_one_node,
        a_killed_worker_ends_the_group_and_requests_without_a_token_are_served,
        another_partition_is_refused_and_the_next_group_serves,
        a_drained_node_moves_the_group,
        deletion_leaves_nothing,
    ):
        begun_s = time.monotonic()
        step(group)
        print(f"{step.__name__}: {time.monotonic() - begun_s:.0f} s", flush=True)


def two_nodes_become_one_replica(group: Group) -> None:
    group.until(group.is_ready)
    status = group.status()
    assert (status["plan"]["nodesPerReplica"], status["plan"]["layers"]) == (2, LAYERS)
    assert len(group.nodes()) == 2
    live = group.shell.json(f"kubectl get leaderworkerset/{group.service.name}-engine")
    assert live["status"]["readyReplicas"] == 1
    selector = f"--selector uellm.io/service={group.service.name}"
    assert group.shell.json(f"kubectl get deployments {selector}")["items"] == []


def the_engines_run_the_partition_of_the_status(group: Group) -> None:
    def verified() -> bool:
        return group.service.condition("PlacementVerified").get("status") == "True"

    group.until(verified, 60)
    placements = group.status()["placements"]
    assert [each["layers"] for each in placements] == [[count] for count in LAYERS]
    for pod in group.pods().values():
        found = readback.environments(group.shell, pod["metadata"]["name"])
        assert found
        assert {partition for partition, _ in found} == {",".join(map(str, LAYERS))}
        own = next(each for each in placements if each["pod"] == pod["metadata"]["name"])
        assert own["node"] == pod["spec"]["nodeName"]
        assert readback.allocated(group.shell, pod) == tuple(own["actual"]) != ()


def the_tokens_are_those_of_one_node(group: Group) -> None:
    assert group.texts() == group.expected
    assert all(group.expected)


def a_killed_worker_ends_the_group_and_requests_without_a_token_are_served(group: Group) -> None:
    before, lost = group.uids(), group.report()
    worker = f"{group.service.name}-engine-0-1"
    group.clients(2)
    group.until(lambda: group.report()["good"] > lost["good"])
    kill_engine(group.shell, worker)
    seconds = group.ready_again(before)
    served = group.report()["good"]
    group.until(lambda: group.report()["good"] >= served + 4)
    group.clients(0)
    after = group.report()
    print(f"after a killed worker: ready again in {seconds:.0f} s; {after}", flush=True)
    assert after["lost"] == []
    assert len(after["cut"]) - len(lost["cut"]) <= 2
    assert group.texts() == group.expected


def kill_engine(shell: Shell, pod: str) -> None:
    """End vLLM's processes in a pod, as a fault of a GPU does."""
    program = (
        "import glob, os, signal\n"
        "for path in glob.glob('/proc/[0-9]*/cmdline'):\n"
        "    pid = int(path.split('/')[2])\n"
        "    if open(path, 'rb').read().startswith(b'VLLM::'):\n"
        "        os.kill(pid, signal.SIGKILL)\n"
    )
    shell.python(f"{pod} --container engine", program)


def another_partition_is_refused_and_the_next_group_serves(group: Group) -> None:
    """Somebody's webhook gives the workers another plan while a changed spec rolls the group."""
    before = group.uids()
    (volume,) = (
        each["configMap"]["name"]
        for each in group.pods()[f"{group.service.name}-engine-0-1"]["spec"]["volumes"]
        if each["name"] == "revision"
    )
    planted = group.shell.json(f"kubectl get configmap/{volume}")
    plan = json.loads(planted["data"]["plan.json"])
    plan["plan"]["layers"] = plan["layersOverride"] = [4, 4]
    data = planted["data"] | {"plan.json": json.dumps(plan)}
    with planted_plan(group, data):
        group.service.document["spec"]["engine"] = {"env": [{"name": "ROLLED", "value": "once"}]}
        group.service.apply()
        # The group is made anew again and again, so what its last pods said is told by the service.
        group.until(lambda: "GroupDiffers" in group.service.condition("Ready").get("message", ""))
        condition = group.service.condition("Ready")
        print(condition["message"], flush=True)
        assert condition["status"] == "False"
        assert "runs the plan" in condition["message"]
    seconds = group.ready_again(before)
    print(f"after a changed spec and a refused group: ready in {seconds:.0f} s", flush=True)
    (revision,) = {pod["metadata"]["labels"]["uellm.io/revision"] for pod in group.service.pods()}
    assert revision == group.status()["revision"]
    assert group.texts() == group.expected


@contextmanager
def planted_plan(group: Group, data: dict[str, str]) -> Iterator[None]:
    """While it lasts, workers are created with another plan."""
    worker = f"object.metadata.name == '{group.service.name}-engine-0-1'"
    mutation = (
        f'Object{{spec: Object.spec{{volumes: [Object.spec.volumes{{name: "revision", '
        f'configMap: Object.spec.volumes.configMap{{name: "{PLANTED}"}}}}]}}}}'
    )
    rules = [{"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["pods"]}]
    policy = {
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "MutatingAdmissionPolicy",
        "metadata": {"name": PLANTED},
        "spec": {
            "matchConstraints": {"resourceRules": rules},
            "matchConditions": [{"name": "worker", "expression": worker}],
            "failurePolicy": "Fail",
            "reinvocationPolicy": "Never",
            "mutations": [
                {"patchType": "ApplyConfiguration", "applyConfiguration": {"expression": mutation}},
            ],
        },
    }
    binding = {
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "MutatingAdmissionPolicyBinding",
        "metadata": {"name": PLANTED},
        "spec": {"policyName": PLANTED},
    }
    configmap = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": PLANTED}, "data": data}
    apply(group.service, policy, binding, configmap)
    try:
        yield
    finally:
        group.shell.run(f"kubectl delete mutatingadmissionpolicybinding/{PLANTED} mutatingadmissionpolicy/{PLANTED}")
        group.shell.run(f"kubectl delete configmap/{PLANTED}")


def apply(service: Service, *documents: dict[str, Any]) -> None:
    path = service.scratch / "applied.yaml"
    path.write_text(yaml.safe_dump_all(documents))
    service.shell.run(f"kubectl apply -f {path}")


def a_drained_node_moves_the_group(group: Group) -> None:
    before = group.uids()
    node = group.pods()[f"{group.service.name}-engine-0-1"]["spec"]["nodeName"]
    namespaces = f"--pod-selector uellm.io/service={group.service.name}"
    begun_s = time.monotonic()
    group.shell.run(
        f"kubectl drain {node} --ignore-daemonsets --delete-emptydir-data {namespaces} --timeout=200s", timeout_s=240
    )
    try:
        group.ready_again(before)
        print(f"after a drain: ready in {time.monotonic() - begun_s:.0f} s", flush=True)
        assert group.nodes() == set(NODES) - {node}
        assert group.texts() == group.expected
    finally:
        group.shell.run(f"kubectl uncordon {node}")


def deletion_leaves_nothing(group: Group) -> None:
    shell, name = group.shell, group.service.name
    shell.run(f"kubectl delete llmservice/{name} --timeout=60s")

    def left() -> list[str]:
        found = shell.run(f"kubectl get {KINDS} --output name").split()
        return [each for each in found if name in each and "client" not in each]

    group.service.until(lambda: not left(), 180, lambda: f"still there: {left()}")
    for each in NODES:
        (profile,) = [shell.json(f"kubectl get gpunodeprofile/{each}")]
        assert "allocatedTo" not in json.dumps(profile["status"]["devices"]), profile
