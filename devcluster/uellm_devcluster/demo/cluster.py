"""The demo on a real cluster, step by step."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from uellm.hardware import GPU_RESOURCE
from uellm.pod_interface import METRICS_PORT
from uellm_devcluster import binaries, images, install, tinymodel
from uellm_devcluster.demo import readback, traffic
from uellm_devcluster.demo.shell import Shell
from uellm_devcluster.demo.story import StepFailed, Story
from uellm_devcluster.errors import ClusterError
from uellm_devcluster.images import CHECKOUT

SERVICE = "tiny-llama"
SAMPLE = CHECKOUT / "manifests" / "samples" / "demo-tiny-llama.yaml"
MODELS = CHECKOUT / "build" / "models"
PROGRAMS = {
    "kube-apiserver",
    "kube-controller-manager",
    "kube-scheduler",
    "kubelet",
    "kube-proxy",
    "kubectl",
    "etcd",
    "containerd",
    "containerd-shim-runc-v2",
    "ctr",
    "helm",
}
# node-2 has too few GPUs for the model, so only node-1 can hold it.
GPUS = {"node-1": 4, "node-2": 1}
_READY_TIMEOUT_S = 300.0


class NoCluster(Exception):
    """This machine cannot run a control plane; the message says why."""


def run(story: Story, programs: Path) -> None:
    """Run every step in order. The first failure ends the demo."""
    shell = bring_up(story, programs)
    try:
        _serve(story, shell)
    except StepFailed:
        print(diagnostics(shell, SERVICE), flush=True)
        raise


def bring_up(story: Story, programs: Path, *, nodes: int = 2, values: Sequence[Path] = ()) -> Shell:
    """Everything up to an installed operator. The end-to-end tests begin with these steps too.

    `values`: files of values for the chart, where the nodes are not the demo's.
    """
    with story.step("a small random-weight Llama"):
        tinymodel.make(MODELS / SERVICE)
    with story.step("images"):
        archive = images.build()
    with story.step(f"cluster up: control plane and {nodes} real nodes"):
        mounts = {_engine_packages(): install.NODE_ENGINE_PATH, MODELS: install.NODE_MODELS_PATH}
        options = [word for host, node in mounts.items() for word in ("--mount", f"{host}:{node}")]
        _uellm("cluster", "up", "--nodes", str(nodes), *options, "--images", str(archive))
        shell = Shell(programs, Path(_uellm("cluster", "kubeconfig").strip()))
        shell.show("kubectl get nodes -o wide")
    with story.step("helm install"):
        shell.show(install.helm_command(*values), timeout_s=240)
        shell.show("kubectl get pods --all-namespaces --selector app.kubernetes.io/part-of=uellm -o wide")
    return shell


def find_programs(story: Story) -> Path:
    """The directory of the cluster's programs. Raises NoCluster where they cannot be provided."""
    with story.step("programs: from the cache, downloaded or built") as step:
        try:
            programs = binaries.ensure(PROGRAMS)
        except ClusterError as error:
            step.note = reason = f"no programs: {error}"
        else:
            step.note = "Kubernetes " + binaries.RELEASES[0].version
            return programs
    raise NoCluster(reason)


def wait_for_profiles(shell: Shell, gpus: Mapping[str, int] = GPUS) -> None:
    """Wait until every node's GPUs are in its profile and advertised to its kubelet."""
    until(lambda: _profiled(shell) == gpus, 60, lambda: f"profiles: {_profiled(shell)}, wanted: {gpus}")


def down() -> None:
    """End the cluster: the demo's last step."""
    _uellm("cluster", "down")


def _serve(story: Story, shell: Shell) -> None:
    with story.step("every node's GPUs in its GPUNodeProfile") as step:
        wait_for_profiles(shell)
        shell.show("kubectl get gpunodeprofiles")
        step.note = "node-1: 4 simulated GPUs, node-2: 1"
    _clear_what_a_killed_demo_left(shell)
    with story.step("uellm plan: what would be decided, and why"):
        _show_plan(shell)
    with story.step("kubectl apply: planned") as step:
        shell.show(f"kubectl apply -f {SAMPLE}")
        shell.show(f"kubectl wait llmservice/{SERVICE} --for=condition=Planned --timeout=60s")
        step.note = _check_plan(shell)
    with story.step("engine ready") as step:
        _watch_until_ready(shell, replicas=1)
        step.note = f"on {install.pods(shell, SERVICE)[0]['spec']['nodeName']}"
    with story.step("plan = reality: layers, devices, allocation read back") as step:
        step.note = _check_placement(shell)
    with traffic.port_forward(shell, f"service/{SERVICE}", 80) as port:
        with story.step("a streamed chat completion") as step:
            answer = traffic.stream_chat(port, SERVICE, "Tell me about placement.", max_tokens=32, show=True)
            step.note = f"{answer.tokens} tokens, first after {answer.ttft_s * 1e3:.0f} ms"
            print()
        with story.step("requests of two SLO classes") as step:
            answers = traffic.of_two_classes(port, SERVICE, ("interactive", "batch"))
            print(traffic.answers_table(answers))
            step.note = f"{len(answers)} answered"
    with story.step("the sidecar's metrics") as step:
        step.note = _show_metrics(shell)
    with story.step("kubectl get llmservices"):
        shell.show("kubectl get llmservices")
    with story.step("kubectl scale: 2 replicas, and back to 1") as step:
        shell.show(f"kubectl scale llmservice/{SERVICE} --replicas=2")
        _watch_until_ready(shell, replicas=2)
        step.note = _check_placement(shell)
        shell.show("kubectl get llmservices")
        shell.show(f"kubectl scale llmservice/{SERVICE} --replicas=1")
        until(lambda: len(install.pods(shell, SERVICE)) == 1, 150, lambda: "the second replica is still there")
    with story.step("kubectl delete: nothing is left") as step:
        shell.show(f"kubectl delete llmservice/{SERVICE} --timeout=60s")
        until(lambda: not children(shell, SERVICE), 150, lambda: f"still there: {children(shell, SERVICE)}")
        step.note = "no pod, Deployment, Service, ConfigMap or PodDisruptionBudget"


def _uellm(*arguments: str) -> str:
    command = [str(Path(sys.executable).with_name("uellm")), *arguments]
    print(f"$ uellm {' '.join(arguments)}", flush=True)
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise StepFailed(f"uellm {' '.join(arguments[:2])} ended with status {done.returncode}")
    print(done.stdout, end="", flush=True)
    return done.stdout


def _engine_packages() -> Path:
    return next(path for path in map(Path, sys.path) if (path / "vllm").is_dir())


def _profiled(shell: Shell) -> dict[str, int]:
    done = shell.attempt("kubectl get gpunodeprofiles -o json")
    profiles = json.loads(done.stdout)["items"] if done.returncode == 0 else []
    allocatable = {
        node["metadata"]["name"]: int(node["status"]["allocatable"].get(GPU_RESOURCE, 0))
        for node in shell.json("kubectl get nodes")["items"]
    }
    counts = {profile["metadata"]["name"]: len(profile.get("status", {}).get("devices", [])) for profile in profiles}
    # Before anything can be placed, the profiler must have found the GPUs and the kubelet must advertise them.
    return {name: count for name, count in counts.items() if allocatable.get(name) == count}


def _clear_what_a_killed_demo_left(shell: Shell) -> None:
    if children(shell, SERVICE):
        print("an earlier demo was interrupted: its service is deleted first")
        shell.show(f"kubectl delete llmservice/{SERVICE} --ignore-not-found --timeout=60s")
        until(lambda: not children(shell, SERVICE), 150, lambda: f"still there: {children(shell, SERVICE)}")


def _show_plan(shell: Shell) -> None:
    profiles = CHECKOUT / "build" / "demo-profiles.yaml"
    profiles.write_text(shell.run("kubectl get gpunodeprofiles -o yaml"))
    print(f"$ uellm plan -f {SAMPLE.name} --profiles <(kubectl get gpunodeprofiles -o yaml)")
    print(_uellm_quietly("plan", "-f", str(SAMPLE), "--profiles", str(profiles)), end="", flush=True)


def _check_plan(shell: Shell) -> str:
    plan = shell.json(f"kubectl get llmservice/{SERVICE}")["status"]["plan"]
    layers = plan["layers"]
    if plan["pipeline"] < 2 or len(set(layers)) < 2:
        raise StepFailed(f"the plan is not uneven over two stages or more: layers {layers}")
    if plan["nodes"] != ["node-1"]:
        raise StepFailed(f"only node-1 fits the model, yet the plan names {plan['nodes']}")
    return f"{plan['gpusPerReplica']} GPUs, layers {','.join(map(str, layers))}, on node-1"


def _uellm_quietly(*arguments: str) -> str:
    command = [str(Path(sys.executable).with_name("uellm")), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise StepFailed(done.stderr.strip())
    return done.stdout


def _watch_until_ready(shell: Shell, *, replicas: int) -> None:
    """Print the service's row whenever it changes, until the requested number of replicas is ready."""
    shown = ""
    deadline_s = time.monotonic() + _READY_TIMEOUT_S
    print("$ kubectl get llmservices --watch", flush=True)
    while True:
        header, *rest = shell.run("kubectl get llmservices").splitlines()
        line = rest[0] if rest else ""
        if line.split()[:-1] != shown.split()[:-1]:  # all columns but the age
            print(line if shown else f"{header}\n{line}", flush=True)
            shown = line
        service = shell.json(f"kubectl get llmservice/{SERVICE}")
        if is_ready(service, replicas):
            return
        if time.monotonic() > deadline_s:
            raise StepFailed(f"not ready within {_READY_TIMEOUT_S:g} s: {_condition(service, 'Ready')}")
        time.sleep(1)


def is_ready(service: dict[str, Any], replicas: int) -> bool:
    """Whether the status belongs to this generation, is Ready, and counts the requested number of replicas."""
    status = service.get("status", {})
    current = status.get("observedGeneration") == service["metadata"]["generation"]
    ready = _condition(service, "Ready").get("status") == "True"
    return bool(current and ready and status.get("readyReplicas") == replicas)


def _condition(service: dict[str, Any], name: str) -> dict[str, Any]:
    conditions = service.get("status", {}).get("conditions", [])
    return next((condition for condition in conditions if condition["type"] == name), {})


def _check_placement(shell: Shell) -> str:
    """Check that status, process environments and the kubelet's PodResources agree about every pod."""
    found = []

    def agreed() -> bool:
        nonlocal found
        found = [readback.of_pod(shell, SERVICE, pod) for pod in install.pods(shell, SERVICE)]
        return all(placement.agrees for placement in found)

    # Status is updated shortly after the pod's report.
    until(agreed, 30, lambda: "; ".join(placement.difference for placement in found))
    print(readback.table(found))
    return "; ".join(f"{placement.partition} on {', '.join(placement.products)}" for placement in found)


def _show_metrics(shell: Shell) -> str:
    pod = install.pods(shell, SERVICE)[0]["metadata"]["name"]
    with traffic.port_forward(shell, f"pod/{pod}", METRICS_PORT) as port:
        text = readback.fetch(f"http://127.0.0.1:{port}/metrics")
    lines = [line for line in text.splitlines() if line.startswith("uellm_") and "_bucket" not in line]
    print("\n".join(lines))
    finished = sum(float(line.split()[-1]) for line in lines if line.startswith("uellm_requests_total"))
    if not finished:
        raise StepFailed("the sidecar's metrics count no request")
    return f"{finished:.0f} requests counted"


def children(shell: Shell, service: str) -> list[str]:
    """Every object that belongs to an LLMService, as kind/name."""
    kinds = "pods,deployments,replicasets,services,configmaps,poddisruptionbudgets"
    return shell.run(f"kubectl get {kinds} --selector uellm.io/service={service} -o name").split()


def until(holds: Callable[[], bool], seconds: float, otherwise: Callable[[], str]) -> None:
    """Poll until `holds()`. Raises StepFailed with `otherwise()` when that takes more than `seconds`."""
    deadline_s = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > deadline_s:
            raise StepFailed(f"{otherwise()} (waited {seconds:g} s)")
        time.sleep(0.5)


def diagnostics(shell: Shell, service: str) -> str:
    """What a person would look at after a failure, before the cluster is removed."""
    parts = ["\n--- state of the cluster, for debugging"]
    for command in (
        "kubectl get pods --all-namespaces -o wide",
        "kubectl get llmservices -o yaml",
        "kubectl get events --all-namespaces --sort-by=.lastTimestamp",
        f"kubectl logs --namespace {install.NAMESPACE} deployment/uellm-operator --tail=60",
        f"kubectl logs --selector uellm.io/service={service} --all-containers --tail=60 --prefix",
    ):
        done = shell.attempt(command)
        parts.append(f"$ {command}\n{done.stdout}{done.stderr}")
    return "\n".join(parts)


def wants_to_keep() -> bool:
    """`KEEP=1 make demo` leaves the cluster running."""
    return os.environ.get("KEEP", "") not in {"", "0"}
