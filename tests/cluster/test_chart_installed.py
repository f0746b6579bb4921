"""The chart installed, upgraded and uninstalled by helm on a real API server."""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import grpc
import pytest
import yaml

from uellm.gateway.catalog import Service, ServiceKey
from uellm.gateway.fleet import Fleet
from uellm.gateway.kube_view import KubeView
from uellm.kube import Kube
from uellm.profiler.kubelet.podresources_pb2 import ListPodResourcesResponse
from uellm.profiler.kubelet.podresources_pb2_grpc import (
    PodResourcesListerServicer,
    add_PodResourcesListerServicer_to_server,
)
from uellm.proxying.outcome import Refusal
from uellm_devcluster import ControlPlane, tinymodel
from uellm_devcluster.binaries import ensure
from uellm_devcluster.local import free_ports

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]

CHART = Path(__file__).parents[2] / "charts" / "uellm"
NAMESPACE = "uellm-system"
PROFILER_NAMESPACE = "uellm-system-profiler"
SERVICE = {
    "apiVersion": "uellm.io/v1alpha1",
    "kind": "LLMService",
    "metadata": {"name": "llama", "namespace": "default"},
    "spec": {"model": {"uri": "hf://meta-llama/Llama-3.1-8B"}},
}
Run = Callable[..., str]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """Run kubectl and helm against an API server of their own, on which the chart is installed."""
    programs = ensure({"kubectl", "helm"})
    with ControlPlane(scheduler=False) as plane:
        home = tmp_path_factory.mktemp("home")
        environment = {"PATH": os.environ["PATH"], "HOME": str(home), "KUBECONFIG": str(plane.kubeconfig)}

        def command(*args: str, given: Any = None) -> str:
            done = subprocess.run(
                [str(programs / args[0]), *args[1:]],
                env=environment,
                input=None if given is None else json.dumps(given),
                capture_output=True,
                text=True,
                timeout=120,
                check=False,
            )
            assert done.returncode == 0, f"{' '.join(args)}: {done.stderr}"
            return done.stdout

        values = str(CHART / "values-simulated.yaml")
        command("helm", "install", "uellm", str(CHART), "-n", NAMESPACE, "--create-namespace", "--values", values)
        command("kubectl", "wait", "--for=condition=Established", "crd/llmservices.uellm.io", "--timeout=30s")
        yield command


def pods_of(run: Run, namespace: str) -> list[dict[str, Any]]:
    workloads = json.loads(run("kubectl", "get", "deployments,daemonsets", "-n", namespace, "-o", "json"))["items"]
    return [
        {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": workload["metadata"]["name"], "namespace": "trial"},
            "spec": workload["spec"]["template"]["spec"] | {"serviceAccountName": "default"},
        }
        for workload in workloads
    ]


def allowed(run: Run, account: str, *questions: str) -> list[str]:
    """The questions (`verb group/plural[/subresource] [namespace]`) that are allowed for a service account."""
    reviews = {"apiVersion": "v1", "kind": "List", "items": [review(account, question) for question in questions]}
    answers = run("kubectl", "create", "-f", "-", "-o", "jsonpath={.status.allowed} ", given=reviews).split()
    return [question for question, answer in zip(questions, answers, strict=True) if answer == "true"]


def review(account: str, question: str) -> dict[str, Any]:
    verb, resource, *namespace = question.split()
    group, plural, *subresource = resource.split("/")
    attributes = {
        "verb": verb,
        "group": group,
        "resource": plural,
        "subresource": "".join(subresource),
        "namespace": "".join(namespace),
    }
    return {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SubjectAccessReview",
        "spec": {"user": f"system:serviceaccount:{account}", "resourceAttributes": attributes},
    }


def test_pods_outside_the_profilers_namespace_are_admitted_under_restricted(run: Run) -> None:
    run("kubectl", "create", "namespace", "trial")
    run("kubectl", "label", "namespace", "trial", "pod-security.kubernetes.io/enforce=restricted")
    run("kubectl", "wait", "--for=create", "serviceaccount/default", "-n", "trial", "--timeout=30s")
    pods = pods_of(run, NAMESPACE)
    assert {pod["metadata"]["name"] for pod in pods} == {"uellm-operator", "uellm-scheduler", "uellm-gateway"}
    for pod in pods:
        run("kubectl", "create", "--dry-run=server", "-f", "-", given=pod)


def test_the_operator_may_write_children_and_statuses_and_nothing_secret(run: Run) -> None:
    children = ("apps/deployments", "/services", "/configmaps", "policy/poddisruptionbudgets")
    may = [f"{verb} {child} team-a" for child in children for verb in ("create", "patch", "delete")]
    may += ["patch uellm.io/llmservices/status team-a", f"create coordination.k8s.io/leases {NAMESPACE}"]
    may += ["create /pods team-a", *(f"{verb} /persistentvolumeclaims team-a" for verb in ("create", "patch"))]
    may_not = ["create coordination.k8s.io/leases team-a", "get /secrets team-a", "delete uellm.io/llmservices team-a"]
    may_not += ["delete /persistentvolumeclaims team-a", "get /pods/log team-a", "create /pods/exec team-a"]
    may += ["list rbac.authorization.k8s.io/clusterrolebindings"]
    may_not += ["create rbac.authorization.k8s.io/clusterrolebindings"]
    assert allowed(run, f"{NAMESPACE}:uellm-operator", *may, *may_not) == may


def test_the_profiler_may_write_profiles_and_labels_of_nodes_alone(run: Run) -> None:
    may = ["patch uellm.io/gpunodeprofiles/status", "patch /nodes", "create events.k8s.io/events default"]
    may_not = ["delete /nodes", "patch /pods default", "create events.k8s.io/events team-a", "get /secrets default"]
    assert allowed(run, f"{PROFILER_NAMESPACE}:uellm-profiler", *may, *may_not) == may


def test_a_profilers_token_writes_to_its_own_node_and_profile_alone(run: Run, tmp_path: Path) -> None:
    for name in ("node-a", "node-b"):
        run("kubectl", "create", "-f", "-", given={"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}})
    run("kubectl", "create", "-f", "-", given=profile_named("node-b"))
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "profiler-a", "namespace": PROFILER_NAMESPACE},
        "spec": {
            "nodeName": "node-a",
            "serviceAccountName": "uellm-profiler",
            "containers": [{"name": "profiler", "image": "none"}],
        },
    }
    run("kubectl", "create", "-f", "-", given=pod)
    bound = ("--bound-object-kind", "Pod", "--bound-object-name", "profiler-a")
    own = as_account(run, tmp_path / "own", f"{PROFILER_NAMESPACE}:uellm-profiler", *bound)
    run("kubectl", *own, "create", "-f", "-", given=profile_named("node-a"))
    observed = json.dumps({"status": {"source": "Simulated"}})
    status = ("--subresource=status", "--type=merge", "-p", observed)
    run("kubectl", *own, "patch", "gnp/node-a", *status)
    run("kubectl", *own, "label", "node/node-a", "uellm.io/gpu.count=1")

    elsewhere = "a profiler writes to its own node and its own node's profile alone"
    until_refused(run, elsewhere, *own, "label", "node/node-b", "uellm.io/gpu.count=1")
    assert elsewhere in refused(run, *own, "create", "-f", "-", given=profile_named("node-c"))
    assert elsewhere in refused(run, *own, "patch", "gnp/node-b", *status)
    assert elsewhere in refused(
        run, *own, "patch", "gnp/node-b", "--type=merge", "-p", '{"metadata": {"labels": {"a": "b"}}}'
    )
    assert elsewhere in refused(run, *own, "label", "node/node-b", "uellm.io/gpu.count=1")
    assert "a profiler changes labels alone" in refused(run, *own, "annotate", "node/node-a", "a=b")
    assert "labels of uellm.io alone" in refused(run, *own, "label", "node/node-a", "team=ml")

    # A token of the same account that names no node, as of a Secret.
    unbound = as_account(run, tmp_path / "unbound", f"{PROFILER_NAMESPACE}:uellm-profiler")
    assert elsewhere in refused(run, *unbound, "patch", "gnp/node-a", *status)
    # Nobody else is held to it.
    run("kubectl", "patch", "gnp/node-b", *status)
    run("kubectl", "delete", "node/node-a", "node/node-b", "gnp/node-a", "gnp/node-b")


def profile_named(name: str) -> dict[str, Any]:
    return {"apiVersion": "uellm.io/v1alpha1", "kind": "GPUNodeProfile", "metadata": {"name": name}}


def refused(run: Run, *args: str, given: Any = None) -> str:
    """What kubectl says when the API server refuses."""
    with pytest.raises(AssertionError) as caught:
        run("kubectl", *args, given=given)
    return str(caught.value)


def until_refused(run: Run, why: str, *args: str) -> None:
    """Wait until the policy is in force that forbids this: the API server reads new ones once a second."""
    deadline_s = time.monotonic() + 30
    said = "it was allowed"
    while why not in said:
        assert time.monotonic() < deadline_s, said
        try:
            run("kubectl", *args, "--dry-run=server")
        except AssertionError as refusal:
            said = str(refusal)


def as_account(run: Run, kubeconfig: Path, account: str, *args: str) -> tuple[str, ...]:
    """Arguments of kubectl that make it a service account, by a token that is made with `args`."""
    namespace, name = account.split(":")
    token = run("kubectl", "create", "token", name, "-n", namespace, *args).strip()
    admin = yaml.safe_load(run("kubectl", "config", "view", "--raw"))
    for user in admin["users"]:
        user["user"] = {"token": token}
    kubeconfig.write_text(yaml.safe_dump(admin))
    return ("--kubeconfig", str(kubeconfig))


def test_the_scheduler_may_bind_pods_and_its_extender_read_profiles(run: Run) -> None:
    may = ["create /pods/binding team-a", "watch uellm.io/gpunodeprofiles"]
    may_not = ["patch uellm.io/gpunodeprofiles/status", "get /secrets team-a"]
    assert allowed(run, f"{NAMESPACE}:uellm-scheduler", *may, *may_not) == may


def test_the_gateway_may_read_services_and_endpoints_and_ask_for_replicas_alone(run: Run) -> None:
    reads = [f"{verb} {kind} team-a" for kind in GATEWAY_READS for verb in ("get", "list", "watch")]
    may = [*reads, "patch uellm.io/llmservices team-a"]
    may_not = ["update uellm.io/llmservices team-a", "delete uellm.io/llmservices team-a", "get /secrets team-a"]
    may_not += ["patch uellm.io/llmservices/status team-a", "patch uellm.io/llmservices/scale team-a"]
    may_not += ["patch discovery.k8s.io/endpointslices team-a", "list /pods team-a", "list /configmaps team-a"]
    assert allowed(run, f"{NAMESPACE}:uellm-gateway", *may, *may_not) == may


GATEWAY_READS = ("uellm.io/llmservices", "discovery.k8s.io/endpointslices")


def test_the_gateway_changes_one_annotation_and_nothing_else(run: Run, tmp_path: Path) -> None:
    run("kubectl", "create", "-f", "-", given=FACED)
    own = as_account(run, tmp_path / "own", f"{NAMESPACE}:uellm-gateway")
    patch = (*own, "patch", "llm/faced", "--type=merge", "-p")
    run("kubectl", *patch, json.dumps({"metadata": {"annotations": {"uellm.io/wanted-at": "2026-01-01T00:00:00Z"}}}))

    alone, nothing_else = "the annotation uellm.io/wanted-at alone", "changes one annotation of an LLMService"
    until_refused(run, alone, *patch, json.dumps({"metadata": {"annotations": {"a": "b"}}}))
    for metadata in ({"annotations": {"uellm.io/efficiency": "{}"}}, {"annotations": {"a": "b"}}):
        assert alone in refused(run, *patch, json.dumps({"metadata": metadata}))
    for metadata in ({"labels": {"a": "b"}}, {"finalizers": ["a.b/c"]}):
        assert nothing_else in refused(run, *patch, json.dumps({"metadata": metadata}))
    assert nothing_else in refused(run, *patch, json.dumps({"spec": {"replicas": 5}}))
    # Nobody else is held to it.
    run("kubectl", "annotate", "llm/faced", "a=b")
    assert alone in refused(run, *patch, json.dumps({"metadata": {"annotations": {"a": None}}}))
    run("kubectl", "delete", "llm/faced")


def test_the_gateway_follows_services_and_endpoints_and_asks_with_its_own_account(run: Run, tmp_path: Path) -> None:
    _, kubeconfig = as_account(run, tmp_path / "own", f"{NAMESPACE}:uellm-gateway")
    run("kubectl", "create", "-f", "-", given=FACED)

    async def follow() -> None:
        fleet = Fleet()
        async with await Kube.connect(kubeconfig=kubeconfig) as kube:
            view = KubeView(kube, fleet, ["default"])
            following = asyncio.create_task(view.run())
            key = ServiceKey("default", "faced")
            await until(lambda: view.complete and key in fleet.catalog.services)
            service = fleet.catalog.services[key]
            await view.want(service)
            wanted = ["kubectl", "get", "llm/faced", "-o", r"jsonpath={.metadata.annotations.uellm\.io/wanted-at}"]
            assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", run(*wanted))
            assert await view.keys(service) is None

            replicas = fleet.replicas(service.key)
            assert len(replicas) == 0
            run("kubectl", "create", "-f", "-", given=ENDPOINTS)
            await until(lambda: len(replicas) == 1)
            run("kubectl", "delete", "endpointslice/faced-1")
            await until(lambda: len(replicas) == 0)
            run("kubectl", "delete", "llm/faced")
            await until(lambda: key not in fleet.catalog.services)
            following.cancel()
            fleet.close()
            await asyncio.wait({following})

    asyncio.run(follow())


def test_the_gateway_reads_the_keys_of_a_namespace_that_lets_it(run: Run, tmp_path: Path) -> None:
    _, kubeconfig = as_account(run, tmp_path / "own", f"{NAMESPACE}:uellm-gateway")
    for kind, args in (
        ("secret", ("generic", "keys", "--from-literal=key=right")),
        ("role", ("gateway-keys", "--verb=get", "--resource=secrets", "--resource-name=keys")),
        ("rolebinding", ("gateway-keys", "--role=gateway-keys", f"--serviceaccount={NAMESPACE}:uellm-gateway")),
    ):
        run("kubectl", "create", kind, *args)

    async def read() -> None:
        async with await Kube.connect(kubeconfig=kubeconfig) as kube:
            keys = await KubeView(kube, Fleet()).keys(
                Service(ServiceKey("default", "faced"), ("faced",), keys_secret="keys")
            )
        assert keys is not None
        keys.check("POST", "/v1/completions", "right")
        with pytest.raises(Refusal):
            keys.check("POST", "/v1/completions", "wrong")

    asyncio.run(read())


FACED = {
    **SERVICE,
    "metadata": {"name": "faced", "namespace": "default"},
    "spec": {**SERVICE["spec"], "auth": {"apiKeysSecretRef": {"name": "closed"}}},
}
ENDPOINTS = {
    "apiVersion": "discovery.k8s.io/v1",
    "kind": "EndpointSlice",
    "metadata": {
        "name": "faced-1",
        "namespace": "default",
        "labels": {"kubernetes.io/service-name": "faced", "uellm.io/service": "faced"},
    },
    "addressType": "IPv4",
    "ports": [{"name": "http", "port": 8000}],
    "endpoints": [{"addresses": ["192.0.2.1"], "conditions": {"ready": True}}],
}


async def until(holds: Callable[[], Any], within_s: float = 30.0) -> None:
    """Wait for what a watch brings."""
    async with asyncio.timeout(within_s):
        while not holds():  # noqa: ASYNC110 - the view has no event for it
            await asyncio.sleep(0.05)


def test_who_edits_a_namespace_edits_its_services(run: Run) -> None:
    run(
        "kubectl", "create", "rolebinding", "dev", "--clusterrole=edit", "--serviceaccount=default:dev", "-n", "default"
    )
    may = ["create uellm.io/llmservices default", "patch uellm.io/llmservices/scale default"]
    may_not = ["patch uellm.io/llmservices/status default", "create uellm.io/llmservices team-a"]
    deadline_s = time.monotonic() + 30
    # The cluster aggregates our rules into its own role in the background.
    while not (found := allowed(run, "default:dev", *may, *may_not)) and time.monotonic() < deadline_s:
        pass
    assert found == may


@contextmanager
def process_as(run: Run, account: str, directory: Path, *args: str) -> Iterator[Path]:
    """`uellm ARGS` with the rights of a service account; returns its log."""
    kubeconfig, log = directory / "kubeconfig", directory / "log"
    as_account(run, kubeconfig, account)
    program = str(Path(sys.executable).with_name("uellm"))
    environment = {**os.environ, "KUBECONFIG": str(kubeconfig)}
    with log.open("w") as output:
        process = subprocess.Popen([program, *args], env=environment, stdout=output, stderr=subprocess.STDOUT)
        try:
            yield log
        finally:
            process.terminate()
            process.wait(20)


def test_the_operator_does_its_work_with_the_rights_that_it_has(run: Run, tmp_path: Path) -> None:
    profile = {"apiVersion": "uellm.io/v1alpha1", "kind": "GPUNodeProfile", "metadata": {"name": "gpu-node"}}
    device = {"index": 0, "uuid": "GPU-a", "product": "Simulated", "memoryBytes": 24 * 2**30}
    run("kubectl", "create", "-f", "-", given=profile)
    status = json.dumps({"status": {"source": "Simulated", "devices": [device]}})
    run("kubectl", "patch", "gnp/gpu-node", "--subresource=status", "--type=merge", "-p", status)
    service = {**SERVICE, "metadata": {"name": "tiny", "namespace": "default"}}
    service["spec"] = {"model": {"uri": "file:///models/tiny", "config": tinymodel.config()}}
    images = [f"--{role}-image=example.com/{role}:1" for role in ("sidecar", "launcher", "inspector")]
    args = ["controller", *images, f"--namespace={NAMESPACE}", "--health-listen=127.0.0.1:0"]
    with process_as(run, f"{NAMESPACE}:uellm-operator", tmp_path, *args) as log:
        run("kubectl", "create", "-f", "-", given=service)
        run("kubectl", "wait", "--for=condition=Planned", "llm/tiny", "--timeout=60s")
        for child in ("deployment/tiny-engine", "service/tiny", "configmap/tiny-config", "pdb/tiny"):
            run("kubectl", "wait", "--for=create", child, "--timeout=30s")
        run("kubectl", "patch", "llm/tiny", "--type=merge", "-p", '{"spec": {"suspend": true}}')
        run("kubectl", "wait", "--for=jsonpath={.spec.replicas}=0", "deployment/tiny-engine", "--timeout=30s")
        run("kubectl", "delete", "llm/tiny", "--timeout=30s")
    assert "orbidden" not in log.read_text()


def test_the_extender_reads_with_the_rights_that_it_has(run: Run, tmp_path: Path) -> None:
    (port,) = free_ports("extender").values()
    args = ["extender", f"--listen=127.0.0.1:{port}"]
    deadline_s = time.monotonic() + 30
    with process_as(run, f"{NAMESPACE}:uellm-scheduler", tmp_path, *args) as log:
        while not ready(f"http://127.0.0.1:{port}/readyz"):
            assert time.monotonic() < deadline_s, log.read_text()


def test_the_gateway_runs_with_the_rights_that_it_has(run: Run, tmp_path: Path) -> None:
    api, metrics = free_ports("api", "metrics").values()
    args = ["gateway", f"--listen=127.0.0.1:{api}", f"--metrics-listen=127.0.0.1:{metrics}"]
    deadline_s = time.monotonic() + 30
    with process_as(run, f"{NAMESPACE}:uellm-gateway", tmp_path, *args) as log:
        while not ready(f"http://127.0.0.1:{metrics}/readyz"):
            assert time.monotonic() < deadline_s, log.read_text()
        assert ready(f"http://127.0.0.1:{api}/v1/models")


def ready(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as response:
            return bool(response.status == 200)
    except OSError:
        return False


@contextmanager
def pod_resources(socket: Path) -> Iterator[None]:
    """A kubelet's PodResources socket; it has no pods."""

    class NoPods(PodResourcesListerServicer):
        def List(self, request: Any, context: Any) -> Any:  # noqa: N802
            return ListPodResourcesResponse()

    socket.parent.mkdir(parents=True)
    server = grpc.server(ThreadPoolExecutor(1))
    add_PodResourcesListerServicer_to_server(NoPods(), server)
    server.add_insecure_port(f"unix:{socket}")
    server.start()
    try:
        yield
    finally:
        server.stop(grace=None)


@pytest.fixture
def short_path() -> Iterator[Path]:
    """A directory for sockets, whose paths may have 107 characters: pytest's own are too long for some."""
    with TemporaryDirectory(prefix="uellm") as name:
        yield Path(name)


def test_the_dra_driver_publishes_and_reads_claims_with_the_rights_that_it_has(run: Run, short_path: Path) -> None:
    chart = ("helm", "upgrade", "uellm", str(CHART), "-n", NAMESPACE, "--values", str(CHART / "values-simulated.yaml"))
    run(*chart, "--set", "simulated.dra.enabled=true", "--set", "simulated.dra.nodes={node-2}")
    assert run("kubectl", "get", "deviceclass/gpu.nvidia.com", "-o", "jsonpath={.spec.selectors[0].cel.expression}")
    account = f"{PROFILER_NAMESPACE}:uellm-dra-driver"
    may_not = ["patch resource.k8s.io/resourceclaims team-a", "patch /nodes", "list /pods", "get /secrets team-a"]
    reads = "get resource.k8s.io/resourceclaims team-a"
    assert allowed(run, account, reads, *may_not) == [reads]

    run("kubectl", "create", "-f", "-", given={"apiVersion": "v1", "kind": "Node", "metadata": {"name": "node-2"}})
    described = yaml.safe_load((CHART / "values-simulated.yaml").read_text())["simulated"]["nodes"]["node-2"]
    (short_path / "node-2.yaml").write_text(yaml.safe_dump(described))
    (short_path / "cdi").mkdir()
    (short_path / "plugins_registry").mkdir()
    args = ["dra-driver", "--node=node-2", f"--simulate={short_path}/node-2.yaml", f"--kubelet-dir={short_path}"]
    slice_ = "resourceslice/node-2-gpu.nvidia.com"
    with (
        pod_resources(short_path / "pod-resources" / "kubelet.sock"),
        process_as(run, account, short_path, *args, f"--cdi-dir={short_path}/cdi") as log,
    ):
        run("kubectl", "wait", "--for=create", slice_, "--timeout=60s")
        # One that was deleted comes back, because the driver watches it.
        run("kubectl", "delete", slice_)
        run("kubectl", "wait", "--for=create", slice_, "--timeout=60s")
    assert "orbidden" not in log.read_text()
    assert run("kubectl", "get", "resourceslices", "-o", "name") == ""
    run("kubectl", "delete", "node/node-2")
    run(*chart)
    assert "gpu.nvidia.com" not in run("kubectl", "get", "deviceclasses", "-o", "name")


def test_services_outlive_an_upgrade_and_an_uninstallation(run: Run) -> None:
    run("kubectl", "create", "-f", "-", given=SERVICE)
    before = run("kubectl", "get", "llm/llama", "-o", "jsonpath={.metadata.uid} {.metadata.generation}")
    values = ["--values", str(CHART / "values-simulated.yaml")]
    run("kubectl", "create", "secret", "generic", "pull", "-n", PROFILER_NAMESPACE)
    run("helm", "upgrade", "uellm", str(CHART), "-n", NAMESPACE, *values, "--set", "images.tag=next")
    run("helm", "uninstall", "uellm", "-n", NAMESPACE)
    assert run("kubectl", "get", "deployments", "-n", NAMESPACE, "-o", "name") == ""
    assert run("kubectl", "get", "llm/llama", "-o", "jsonpath={.metadata.uid} {.metadata.generation}") == before
    assert "pull" in run("kubectl", "get", "secrets", "-n", PROFILER_NAMESPACE, "-o", "name")
    # CRDs and namespace that the earlier release kept do not block it.
    run("helm", "install", "uellm", str(CHART), "-n", NAMESPACE, *values)
    assert run("kubectl", "get", "llm/llama", "-o", "jsonpath={.metadata.uid} {.metadata.generation}") == before


def test_a_release_of_another_name_and_namespace_takes_over_what_the_former_one_kept(run: Run) -> None:
    run("kubectl", "create", "-f", "-", given={**SERVICE, "metadata": {"name": "kept", "namespace": "default"}})
    before = run("kubectl", "get", "llm/kept", "-o", "jsonpath={.metadata.uid} {.metadata.generation}")
    run("helm", "uninstall", "uellm", "-n", NAMESPACE)
    install = ["helm", "install", "renamed", str(CHART), "-n", "renamed-system", "--create-namespace"]
    with pytest.raises(AssertionError, match="invalid ownership metadata"):
        run(*install)
    run(*install, "--take-ownership")
    run("helm", "uninstall", "renamed", "-n", "renamed-system")
    values = ["--values", str(CHART / "values-simulated.yaml")]
    run("helm", "install", "uellm", str(CHART), "-n", NAMESPACE, *values, "--take-ownership")
    assert run("kubectl", "get", "llm/kept", "-o", "jsonpath={.metadata.uid} {.metadata.generation}") == before
    run("kubectl", "delete", "llm/kept")


def test_the_priority_of_pods_that_measure_may_change_with_an_upgrade(run: Run) -> None:
    upgrade = ("helm", "upgrade", "uellm", str(CHART), "-n", NAMESPACE, "--reset-then-reuse-values")
    for priority, name in (("-500", "uellm-measuring-500"), ("-1000", "uellm-measuring")):
        run(*upgrade, "--set", f"measuring.priority={priority}")
        assert run("kubectl", "get", f"priorityclass/{name}", "-o", "jsonpath={.value}") == priority


def test_the_scheduler_gets_a_second_replica_and_loses_it_again(run: Run) -> None:
    upgrade = ("helm", "upgrade", "uellm", str(CHART), "-n", NAMESPACE, "--reset-then-reuse-values")
    get = ("kubectl", "get", "deployment/uellm-scheduler", "-n", NAMESPACE, "-o")
    for replicas, strategy in ((1, "Recreate"), (2, "RollingUpdate"), (1, "Recreate")):
        run(*upgrade, "--server-side=true", "--force-conflicts", "--set", f"scheduler.replicas={replicas}")
        assert run(*get, "jsonpath={.spec.replicas} {.spec.strategy.type}") == f"{replicas} {strategy}"


def test_a_second_gateway_is_installed_beside_the_release_with_the_operator(run: Run) -> None:
    run("kubectl", "create", "namespace", "team-b")
    alone = ["--set", "operator.enabled=false", "--set", "gateway.namespaces={team-b}"]
    run("helm", "install", "gateway-b", str(CHART), "-n", "team-b", *alone)
    deployments = run("kubectl", "get", "deployments", "-n", "team-b", "-o", "name").split()
    assert deployments == ["deployment.apps/gateway-b-uellm-gateway"]
    may = "patch uellm.io/llmservices team-b"
    account = "team-b:gateway-b-uellm-gateway"
    assert allowed(run, account, may, "patch uellm.io/llmservices default") == [may]
    run("helm", "uninstall", "gateway-b", "-n", "team-b")
    assert "llmservices.uellm.io" in run("kubectl", "get", "crds", "-o", "name")
