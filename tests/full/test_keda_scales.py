"""The HPA controller, by itself and under the real KEDA, sets an LLMService's replicas by its requests in progress.

A real operator carries the number out, and the figures are those of real sidecars. The test plays the pods, which are
kwok's: a sidecar runs at each one's address. What is applied are the examples of the documentation.
"""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import yaml

from cluster.conftest import wait_until
from helpers.controller_process import Process
from helpers.keda import keda
from helpers.metrics_api import CustomMetrics, register
from helpers.models import LLAMA_8B
from helpers.sidecars_of_pods import SidecarsOfPods
from helpers.sizes import GIB
from uellm.kube import LLMSERVICE, POD, Kube
from uellm.kube.kinds import DEPLOYMENT
from uellm.pod_interface import METRICS_PORT
from uellm_devcluster.binaries import ensure
from uellm_devcluster.demo.shell import Shell
from uellm_devcluster.local import free_ports
from uellm_devcluster.packages import unpacked

# KEDA may have to be built first.
pytestmark = pytest.mark.timeout(3600)

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"
NAMESPACE, NAME = "chat", "llama-8b"
SERVICE: dict[str, Any] = {
    "apiVersion": LLMSERVICE.api_version,
    "kind": LLMSERVICE.kind,
    "metadata": {"name": NAME, "namespace": NAMESPACE},
    "spec": {
        "model": {"uri": "file:///models/llama", "config": LLAMA_8B, "maxModelLen": 4096},
        "placement": {"schedulerName": "default-scheduler"},
    },
}
REQUESTS = 20
"""More than two replicas are to have by the examples' 8 for each, and not more than three."""
HPA_S = 180.0
"""The HPA controller looks every 15 s, and again where nobody had answered yet."""


@pytest.fixture
def shell(kubeconfig: str) -> Shell:
    return Shell(ensure({"kubectl"}), Path(kubeconfig))


@pytest.fixture
async def service(kube: Kube, shell: Shell, gpu_node: Callable[..., Awaitable[str]]) -> AsyncIterator[None]:
    """The namespace and its LLMService."""
    await gpu_node([24 * GIB] * 4)
    await asyncio.to_thread(shell.run, f"kubectl create namespace {NAMESPACE}")
    await kube.apply(SERVICE, manager="user")
    yield
    await asyncio.to_thread(shell.run, f"kubectl delete namespace {NAMESPACE} --wait=true")


@pytest.fixture
async def pods(kube: Kube, service: None, kubeconfig: str, tmp_path: Path) -> AsyncIterator[SidecarsOfPods]:
    """The operator at work, and sidecars in the pods that it makes."""
    started: list[Process] = []

    async def operate() -> None:
        # On a busy machine it may lose its lease, and ends: the kubelet would start it again.
        while True:
            if not started or started[-1].ended:
                started.append(Process(kubeconfig, NAMESPACE, tmp_path / "operator.log"))
            await asyncio.sleep(0.5)

    pods = SidecarsOfPods(kube, NAMESPACE, NAME, tmp_path)
    tasks = [asyncio.create_task(operate()), asyncio.create_task(pods.follow())]
    yield pods
    for task in tasks:
        task.cancel()
    await pods.close()
    if not started[-1].ended:
        started[-1].end(signal.SIGKILL)


@pytest.fixture
async def client() -> AsyncIterator[aiohttp.ClientSession]:
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=None)) as client:
        yield client


@pytest.fixture
async def custom_metrics(
    kube: Kube, shell: Shell, pods: SidecarsOfPods, client: aiohttp.ClientSession, tmp_path: Path
) -> AsyncIterator[CustomMetrics]:
    """What an adapter would tell the HPA of the sidecars' metrics."""

    async def values(namespace: str, selector: str, metric: str) -> dict[str, float]:
        found = await kube.list(POD, namespace, label_selector=selector)
        each = {pod["metadata"]["name"]: pod["status"].get("podIP", "") for pod in found}
        read = {name: await pods.metric(client, address, metric) for name, address in each.items()}
        return {name: value for name, value in read.items() if value is not None}

    server = CustomMetrics("uellm_requests_active", values)
    port = await server.start(tmp_path)
    group, version = server.GROUP, server.VERSION
    await asyncio.to_thread(register, shell, tmp_path, group, version, namespace=NAMESPACE, port=port)
    wait = f"kubectl wait apiservice/{version}.{group} --for=condition=Available --timeout=60s"
    await asyncio.to_thread(shell.run, wait)
    yield server
    # A namespace does not end while an API does not answer.
    await asyncio.to_thread(shell.run, f"kubectl delete apiservice {version}.{group}")
    await server.stop()


@pytest.fixture
async def prometheus(kube: Kube, service: None, tmp_path: Path) -> AsyncIterator[str]:
    """Prometheus over the service's pods, with the labels that the chart's PodMonitor gives them; its address."""
    pods = {"job_name": "engines", "file_sd_configs": [{"files": [str(tmp_path / "pods.json")]}]}
    configuration = {"global": {"scrape_interval": "5s", "scrape_timeout": "5s"}, "scrape_configs": [pods]}
    (tmp_path / "prometheus.yaml").write_text(yaml.safe_dump(configuration))
    (port,) = free_ports("prometheus").values()
    command = [str(unpacked("prometheus") / "usr" / "bin" / "prometheus")]
    command += [f"--config.file={tmp_path / 'prometheus.yaml'}", f"--storage.tsdb.path={tmp_path / 'data'}"]
    # Debian's Prometheus does not find pods by itself.
    telling = asyncio.create_task(tell_pods(kube, tmp_path / "pods.json"))
    with (tmp_path / "prometheus.log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            *command, f"--web.listen-address=127.0.0.1:{port}", stdout=log, stderr=log
        )
    yield f"http://127.0.0.1:{port}"
    telling.cancel()
    process.terminate()
    await process.wait()


async def tell_pods(kube: Kube, file: Path) -> None:
    """Keep the file of Prometheus' targets up to date, until cancelled."""
    told: list[dict[str, Any]] = []
    while True:
        found = await kube.list(POD, NAMESPACE, label_selector="uellm.io/service")
        targets = [
            {
                "targets": [f"{pod['status']['podIP']}:{METRICS_PORT}"],
                "labels": {
                    "namespace": NAMESPACE,
                    "pod": pod["metadata"]["name"],
                    "llmservice": pod["metadata"]["labels"]["uellm.io/service"],
                },
            }
            for pod in found
            if pod["status"].get("podIP")
        ]
        if targets != told:
            fresh = file.with_suffix(".new")
            fresh.write_text(json.dumps(targets))
            fresh.rename(file)
            told = targets
        await asyncio.sleep(0.2)


@pytest.fixture
def real_keda(shell: Shell, kubeconfig: str, service: None, tmp_path: Path) -> Iterator[None]:
    """KEDA at work."""
    (tmp_path / "keda").mkdir()
    with keda(shell, Path(kubeconfig), tmp_path / "keda"):
        yield
        # KEDA takes its finalizer off.
        shell.run(f"kubectl delete scaledobject {NAME} -n {NAMESPACE}")
        shell.run("kubectl delete apiservice v1beta1.external.metrics.k8s.io")


async def apply(shell: Shell, directory: Path, document: dict[str, Any]) -> None:
    (directory / "applied.json").write_text(json.dumps(document))
    await asyncio.to_thread(shell.run, f"kubectl apply -f {directory / 'applied.json'}")


def hpa_example() -> dict[str, Any]:
    """The example, without its long wait."""
    document: dict[str, Any] = yaml.safe_load((EXAMPLES / "hpa.yaml").read_text())
    document["spec"]["behavior"]["scaleDown"]["stabilizationWindowSeconds"] = 0
    return document


async def scale(shell: Shell) -> dict[str, Any]:
    path = f"/apis/{LLMSERVICE.api_version}/namespaces/{NAMESPACE}/llmservices/{NAME}/scale"
    found: dict[str, Any] = json.loads(await asyncio.to_thread(shell.run, f"kubectl get --raw {path}"))
    return found


async def serves(kube: Kube, shell: Shell, replicas: int) -> None:
    """Wait until so many replicas are asked for in the spec and are ready."""

    async def holds() -> bool:
        told = await scale(shell)
        deployment = await kube.get(DEPLOYMENT, f"{NAME}-engine", NAMESPACE) or {"spec": {}}
        ready = (deployment.get("status") or {}).get("readyReplicas", 0)
        asked = told["spec"].get("replicas", 1)
        return {asked, told["status"].get("replicas", 0), ready, deployment["spec"].get("replicas")} == {replicas}

    try:
        await wait_until(holds, timeout_s=HPA_S, every_s=0.5)
    except AssertionError as error:
        error.add_note(shell.run(f"kubectl describe hpa,llmservice -n {NAMESPACE}"))
        raise


async def looks(shell: Shell, name: str) -> None:
    """Wait until an HPA has a number of its own."""

    async def holds() -> bool:
        command = f"kubectl get hpa {name} -n {NAMESPACE} -o json --ignore-not-found"
        found = json.loads(await asyncio.to_thread(shell.run, command) or "{}")
        conditions = found.get("status", {}).get("conditions", [])
        return any((each["type"], each["status"]) == ("ScalingActive", "True") for each in conditions)

    try:
        await wait_until(holds, timeout_s=HPA_S, every_s=0.5)
    except AssertionError as error:
        error.add_note(shell.run(f"kubectl describe hpa -n {NAMESPACE}"))
        raise


async def follows_the_load_up_and_down(
    kube: Kube, shell: Shell, pods: SidecarsOfPods, client: aiohttp.ClientSession
) -> None:
    asked = await pods.ask(client, REQUESTS)
    await serves(kube, shell, 3)
    selector = (await scale(shell))["status"]["selector"]
    found = await kube.list(POD, NAMESPACE, label_selector=selector)
    assert [pod["metadata"]["labels"]["uellm.io/service"] for pod in found] == [NAME] * 3
    pods.answer()
    assert {await task for task in asked} == {200}
    await serves(kube, shell, 1)


async def test_with_an_hpa_replicas_follow_the_load_up_and_down(custom_metrics, pods, kube, shell, client, tmp_path):
    await serves(kube, shell, 1)
    await apply(shell, tmp_path, hpa_example())
    await looks(shell, NAME)
    await follows_the_load_up_and_down(kube, shell, pods, client)
    # The HPA controller asks for the pods by the scale's selector.
    assert set(custom_metrics.selectors) == {(await scale(shell))["status"]["selector"]}


async def test_with_keda_replicas_follow_the_load_up_and_down(
    real_keda, prometheus, pods, kube, shell, client, tmp_path
):
    await serves(kube, shell, 1)
    document = yaml.safe_load((EXAMPLES / "scaled-object.yaml").read_text())
    behaviour = document["spec"]["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]
    behaviour["scaleDown"]["stabilizationWindowSeconds"] = 0
    document["spec"]["triggers"][0]["metadata"]["serverAddress"] = prometheus
    await apply(shell, tmp_path, document)
    await looks(shell, f"keda-hpa-{NAME}")
    await follows_the_load_up_and_down(kube, shell, pods, client)


async def test_with_autoscaling_the_number_in_the_spec_has_no_effect_and_a_condition_says_so(
    custom_metrics, pods, kube, shell, client, tmp_path
):
    spec = {**SERVICE["spec"], "autoscaling": {"minReplicas": 1, "maxReplicas": 1}}
    await kube.apply({**SERVICE, "spec": spec}, manager="user")
    await serves(kube, shell, 1)
    await apply(shell, tmp_path, hpa_example())
    await looks(shell, NAME)
    asked = await pods.ask(client, REQUESTS)

    async def ignored() -> bool:
        document = await kube.get(LLMSERVICE, NAME, NAMESPACE)
        assert document is not None
        messages = {each["type"]: each["message"] for each in document["status"]["conditions"]}
        told = messages.get("Scaling", "").endswith("spec.replicas is not looked at")
        return bool(document["spec"].get("replicas", 1) == 3 and told)

    await wait_until(ignored, timeout_s=HPA_S, every_s=0.5)
    deployment = await kube.get(DEPLOYMENT, f"{NAME}-engine", NAMESPACE)
    assert deployment is not None
    assert deployment["spec"]["replicas"] == 1
    pods.answer()
    assert {await task for task in asked} == {200}
