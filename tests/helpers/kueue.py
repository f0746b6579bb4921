"""The real Kueue beside a control plane, and a world in which it queues the pods of services."""

from __future__ import annotations

import asyncio
import base64
import itertools
import os
import shutil
import subprocess
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import yaml

from cluster.conftest import wait_until
from helpers.controller_process import Process
from helpers.models import LLAMA_8B
from uellm.kube import CRD, LLMSERVICE, POD, Kube
from uellm_devcluster import ControlPlane
from uellm_devcluster.binaries import ensure
from uellm_devcluster.local import free_ports
from uellm_devcluster.pki import Authority

ROOT = Path(__file__).parents[2]
API = "kueue.x-k8s.io/v1beta2"
QUEUE, PRIORITY = "kueue.x-k8s.io/queue-name", "kueue.x-k8s.io/priority-class"
GPU = "nvidia.com/gpu"
QUOTA_GPUS = 2
# As in Kueue's own configuration, of those that services make.
FRAMEWORKS = ["pod", "deployment", "statefulset", "leaderworkerset.x-k8s.io/leaderworkerset"]
OURS = {
    "deployments",
    "statefulsets",
    "leaderworkersets",
    "pods",
    "workloads",
    "clusterqueues",
    "localqueues",
    "resourceflavors",
    "cohorts",
}
NAMESPACED = {"LocalQueue", "Workload"}
PLENTY = {"cpu": "1k", "memory": "1Ti", "ephemeral-storage": "1Ti"}
MODEL = {"uri": "file:///models/llama", "maxModelLen": 4096, "config": LLAMA_8B}


class Kueue:
    """Kueue's manager, in a root directory of its own: it wants certificates at a fixed place."""

    def __init__(self, plane: ControlPlane, directory: Path) -> None:
        self.authority = Authority("kueue")
        ports = free_ports("webhook", "health")
        self.url = f"https://127.0.0.1:{ports['webhook']}"
        self.home = ensure({"kueue"}).resolve() / "kueue"
        self.log = directory / "kueue.log"
        root = directory / "root"
        for certificates in (root / "certs", root / "etc/kueue/metrics/certs"):
            certificates.mkdir(parents=True)
            self.authority.server("kueue", names=["localhost"], addresses=["127.0.0.1"]).write(certificates, "tls")
        shutil.copy(self.home.resolve(), root / "kueue")
        shutil.copy(plane.kubeconfig, root / "kubeconfig")
        (root / "config.yaml").write_text(yaml.safe_dump(self._configuration(ports)))
        (root / "tmp").mkdir()
        command = [
            "chroot",
            str(root),
            "/kueue",
            "--config=/config.yaml",
            "--kubeconfig=/kubeconfig",
            "--zap-log-level=2",
        ]
        self._ready = f"http://127.0.0.1:{ports['health']}/readyz"
        with self.log.open("wb") as output:
            self.process = subprocess.Popen(
                command, env={"no_proxy": "*", "PATH": os.environ["PATH"]}, stdout=output, stderr=output
            )

    @staticmethod
    def _configuration(ports: dict[str, int]) -> dict[str, Any]:
        return {
            "apiVersion": "config.kueue.x-k8s.io/v1beta2",
            "kind": "Configuration",
            "namespace": "kueue-system",
            "health": {"healthProbeBindAddress": f"127.0.0.1:{ports['health']}"},
            "metrics": {"bindAddress": "0"},
            "webhook": {"host": "127.0.0.1", "port": ports["webhook"], "certDir": "/certs"},
            "leaderElection": {"leaderElect": False},
            "internalCertManagement": {"enable": False},
            "integrations": {"frameworks": FRAMEWORKS},
            "featureGates": {"VisibilityOnDemand": False},
        }

    def stop(self) -> None:
        end(self.process)

    def webhooks(self) -> Iterator[dict[str, Any]]:
        """Its webhooks for what is used here."""
        documents = yaml.safe_load_all((self.home.resolve().parent / "manifests.yaml").read_text())
        return webhooks_at(documents, self.url, self.authority, "kueue", OURS)


def end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(timeout=20)
    except subprocess.TimeoutExpired:
        process.kill()


def webhooks_at(
    documents: Iterable[dict[str, Any]], url: str, authority: Authority, name: str, resources: set[str]
) -> Iterator[dict[str, Any]]:
    """Webhooks as a manager publishes them, at this machine's address; those for some of these resources."""
    bundle = base64.b64encode(authority.pair.certificate).decode()
    for document in documents:
        kept = []
        for webhook in document["webhooks"]:
            if {each.partition("/")[0] for rule in webhook["rules"] for each in rule["resources"]} & resources:
                path = webhook["clientConfig"]["service"]["path"]
                kept.append({**webhook, "clientConfig": {"url": f"{url}{path}", "caBundle": bundle}})
        document["metadata"]["name"] = f"{name}-{document['metadata']['name']}"
        yield {**document, "webhooks": kept}


def apply(kubeconfig: Path, *documents: dict[str, Any]) -> None:
    """`kubectl apply`, for kinds that the operator's own client does not know."""
    command = [
        str(ensure({"kubectl"}) / "kubectl"),
        "--kubeconfig",
        str(kubeconfig),
        "apply",
        "--server-side",
        "-f",
        "-",
    ]
    text = yaml.safe_dump_all(documents)
    done = subprocess.run(command, input=text, text=True, capture_output=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


def kueue_object(kind: str, name: str, **rest: Any) -> dict[str, Any]:
    metadata = {"name": name, **({"namespace": "default"} if kind in NAMESPACED else {})}
    return {"apiVersion": API, "kind": kind, "metadata": metadata, **rest}


@asynccontextmanager
async def running(plane: ControlPlane, kube: Kube, directory: Path) -> AsyncIterator[Kueue]:
    """Kueue at work, with a queue `team` that has two GPUs, and a queue `other` that has none."""
    for path in sorted((ROOT / "manifests" / "crds").glob("*.yaml")):
        apply(plane.kubeconfig, yaml.safe_load(path.read_text()))
    home = (ensure({"kueue"}) / "kueue").resolve().parent
    await define(plane, kube, home.glob("kueue.x-k8s.io_*.yaml"))
    kueue = Kueue(plane, directory)
    try:
        await serving(kueue.process, kueue.log)
        apply(plane.kubeconfig, *kueue.webhooks())
        await wait_until(lambda: made_queues(plane), timeout_s=60, every_s=1.0)
        yield kueue
    finally:
        kueue.stop()


async def define(plane: ControlPlane, kube: Kube, paths: Iterable[Path]) -> None:
    """Apply these CRDs, and wait until their objects are served."""
    definitions = [yaml.safe_load(path.read_text()) for path in sorted(paths)]
    apply(plane.kubeconfig, *definitions)
    for each in definitions:
        await wait_until(lambda name=each["metadata"]["name"]: established(kube, name), timeout_s=60)


async def established(kube: Kube, name: str) -> bool:
    conditions = ((await kube.get(CRD, name) or {}).get("status") or {}).get("conditions") or []
    return any(each["type"] == "Established" and each["status"] == "True" for each in conditions)


def serves_webhooks(process: subprocess.Popen[bytes], log: Path) -> bool:
    """Whether a manager does, by its log."""
    text = log.read_text()
    assert process.poll() is None, text[-6000:]
    return "Serving webhook server" in text


async def serving(process: subprocess.Popen[bytes], log: Path) -> None:
    """Wait until a manager serves its webhooks."""

    async def serves() -> bool:
        return serves_webhooks(process, log)

    await wait_until(serves, timeout_s=180, every_s=0.5)


def cluster_queue(name: str, gpus: int) -> dict[str, Any]:
    """A queue that has so many GPUs, and of all else plenty; without any, nothing."""
    quotas = [{"name": name, "nominalQuota": amount} for name, amount in {**PLENTY, GPU: str(gpus)}.items()]
    covered = {"coveredResources": [each["name"] for each in quotas], "flavors": [{"name": "any", "resources": quotas}]}
    spec = {
        "namespaceSelector": {},
        "resourceGroups": [covered] if gpus else [],
        "preemption": {"withinClusterQueue": "LowerPriority"},
    }
    return kueue_object("ClusterQueue", name, spec=spec)


async def made_queues(plane: ControlPlane) -> bool:
    try:
        apply(
            plane.kubeconfig,
            kueue_object("ResourceFlavor", "any", spec={}),
            cluster_queue("gpus", QUOTA_GPUS),
            cluster_queue("nothing", 0),
            kueue_object("LocalQueue", "team", spec={"clusterQueue": "gpus"}),
            kueue_object("LocalQueue", "other", spec={"clusterQueue": "nothing"}),
            kueue_object("WorkloadPriorityClass", "low", value=1, description=""),
            kueue_object("WorkloadPriorityClass", "high", value=1000, description=""),
        )
    except AssertionError as error:
        if "connection refused" in str(error):
            return False
        raise
    return True


class World:
    """A cluster with Kueue and nodes, and the operator, which is started anew where it ends."""

    def __init__(self, kube: Kube, kueue: Kueue, kubeconfig: Path, directory: Path) -> None:
        self.kube, self.kueue, self.kubeconfig = kube, kueue, kubeconfig
        self._logs = (directory / f"operator-{number}.log" for number in itertools.count())
        self.operator = self._start()

    def _start(self) -> Process:
        return Process(str(self.kubeconfig), "default", next(self._logs))

    def end(self) -> None:
        if not self.operator.ended:
            self.operator.end()

    async def service(
        self, name: str, *, queue: str = "team", priority: str = "low", replicas: int = 1, **spec: Any
    ) -> None:
        labels = {QUEUE: queue, PRIORITY: priority} if queue else {}
        document = {
            "apiVersion": LLMSERVICE.api_version,
            "kind": LLMSERVICE.kind,
            "metadata": {"name": name, "namespace": "default", "labels": labels},
            "spec": {
                "model": MODEL,
                "workload": {"requestsPerSecond": "1"},
                "placement": {"schedulerName": "default-scheduler", "gpus": {"max": 1}},
                "replicas": replicas,
                **spec,
            },
        }
        await self.kube.apply(document, manager="user")

    async def ready(self, name: str) -> tuple[str, str]:
        """Reason and message of Ready."""
        found = await self.kube.get(LLMSERVICE, name, "default") or {}
        conditions = (found.get("status") or {}).get("conditions") or []
        return next(((each["reason"], each["message"]) for each in conditions if each["type"] == "Ready"), ("", ""))

    async def pods(self, name: str) -> list[dict[str, Any]]:
        found = await self.kube.list(POD, "default", label_selector=f"uellm.io/service={name}")
        return [each for each in found if "deletionTimestamp" not in each["metadata"]]

    async def seats(self, name: str) -> tuple[int, int]:
        """Pods that have a node, and pods that a gate holds back."""
        pods = await self.pods(name)
        return sum(bool(each["spec"].get("nodeName")) for each in pods), sum(
            bool(each["spec"].get("schedulingGates")) for each in pods
        )

    async def becomes(self, what: Callable[[], Awaitable[Any]], wanted: Any, within_s: float = 120.0) -> None:
        deadline, found = time.monotonic() + within_s, None
        while time.monotonic() < deadline:
            found = await what()
            if found == wanted or (callable(wanted) and wanted(found)):
                return
            if self.operator.ended:
                # On a slow machine it may lose its lease; a kubelet would start it again.
                assert "could not be renewed" in self.operator.text(), self.operator.text()[-3000:]
                self.operator = self._start()
            await asyncio.sleep(0.2)
        logs = f"{self.operator.text()[-3000:]}\n{self.kueue.log.read_text()[-3000:]}"
        raise AssertionError(f"not within {within_s:g} s; found {found}\n{logs}")

    async def failures(self, *names: str) -> list[Any]:
        """What the services tell of failed pods."""
        found = [await self.kube.get(LLMSERVICE, name, "default") or {} for name in names]
        return [each["status"]["podFailures"] for each in found if "podFailures" in each.get("status", {})]
