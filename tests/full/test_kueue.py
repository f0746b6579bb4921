"""The real Kueue queues the pods of services: they wait, are admitted and give way, and the operator stays sane.

etcd, the API server, the scheduler, Kueue and its webhooks, and the operator are the real ones. kwok plays the
nodes and the pods on them.
"""

from __future__ import annotations

import asyncio
import base64
import itertools
import os
import shutil
import subprocess
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster.conftest import gpu_node, profile_of, wait_until
from helpers.controller_process import Process
from helpers.models import LLAMA_8B
from helpers.sizes import GIB
from uellm.kube import CRD, LLMSERVICE, POD, Kube
from uellm.kube.kinds import DEPLOYMENT, WORKLOAD
from uellm_devcluster import ControlPlane
from uellm_devcluster.binaries import ensure
from uellm_devcluster.local import free_ports
from uellm_devcluster.pki import Authority

pytestmark = [
    pytest.mark.timeout(1800),
    pytest.mark.skipif(os.geteuid() != 0, reason="Kueue runs in a root directory of its own, which needs root"),
]

__all__ = ["gpu_node"]

ROOT = Path(__file__).parents[2]
MANAGER = "uellm-tests"
API = "kueue.x-k8s.io/v1beta2"
QUEUE, PRIORITY = "kueue.x-k8s.io/queue-name", "kueue.x-k8s.io/priority-class"
GPU = "nvidia.com/gpu"
QUOTA_GPUS = 2
OURS = {"deployments", "pods", "workloads", "clusterqueues", "localqueues", "resourceflavors", "cohorts"}
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
            "integrations": {"frameworks": ["pod", "deployment"]},
            "featureGates": {"VisibilityOnDemand": False},
        }

    def stop(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self.process.kill()

    def webhooks(self) -> Iterator[dict[str, Any]]:
        """Its webhooks as it publishes them, at this machine's address."""
        bundle = base64.b64encode(self.authority.pair.certificate).decode()
        for document in yaml.safe_load_all((self.home.resolve().parent / "manifests.yaml").read_text()):
            kept = []
            for webhook in document["webhooks"]:
                if {each.partition("/")[0] for rule in webhook["rules"] for each in rule["resources"]} & OURS:
                    path = webhook["clientConfig"]["service"]["path"]
                    kept.append({**webhook, "clientConfig": {"url": f"{self.url}{path}", "caBundle": bundle}})
            document["metadata"]["name"] = f"kueue-{document['metadata']['name']}"
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


@pytest.fixture(scope="module")
def plane() -> Iterator[ControlPlane]:
    with ControlPlane(kwok_nodes=1) as plane:
        yield plane


@pytest.fixture
async def kube(plane: ControlPlane) -> AsyncIterator[Kube]:
    async with await Kube.connect(kubeconfig=str(plane.kubeconfig)) as kube:
        yield kube


@pytest.fixture
async def kueue(plane: ControlPlane, kube: Kube, tmp_path: Path) -> AsyncIterator[Kueue]:
    """Kueue at work, with a queue `team` that has two GPUs, and a queue `other` that has none."""
    for path in sorted((ROOT / "manifests" / "crds").glob("*.yaml")):
        apply(plane.kubeconfig, yaml.safe_load(path.read_text()))
    home = (ensure({"kueue"}) / "kueue").resolve().parent
    names = []
    for path in sorted(home.glob("kueue.x-k8s.io_*.yaml")):
        crd = yaml.safe_load(path.read_text())
        names.append(crd["metadata"]["name"])
        apply(plane.kubeconfig, crd)
    for name in names:
        await wait_until(lambda name=name: established(kube, name), timeout_s=60)
    kueue = Kueue(plane, tmp_path)
    try:
        await wait_until(lambda: listens(kueue), timeout_s=180, every_s=0.5)
        apply(plane.kubeconfig, *kueue.webhooks())
        await wait_until(lambda: made_queues(plane), timeout_s=60, every_s=1.0)
        yield kueue
    finally:
        kueue.stop()


async def established(kube: Kube, name: str) -> bool:
    conditions = ((await kube.get(CRD, name) or {}).get("status") or {}).get("conditions") or []
    return any(each["type"] == "Established" and each["status"] == "True" for each in conditions)


async def listens(kueue: Kueue) -> bool:
    assert kueue.process.poll() is None, kueue.log.read_text()[-6000:]
    return "Serving webhook server" in kueue.log.read_text()


async def made_queues(plane: ControlPlane) -> bool:
    quotas = [
        {"name": name, "nominalQuota": str(QUOTA_GPUS) if name == GPU else amount}
        for name, amount in {**PLENTY, GPU: ""}.items()
    ]
    groups = [
        {"coveredResources": [each["name"] for each in quotas], "flavors": [{"name": "any", "resources": quotas}]}
    ]
    queues = [
        kueue_object(
            "ClusterQueue",
            name,
            spec={
                "namespaceSelector": {},
                "resourceGroups": groups if name == "gpus" else [],
                "preemption": {"withinClusterQueue": "LowerPriority"},
            },
        )
        for name in ("gpus", "nothing")
    ]
    try:
        apply(
            plane.kubeconfig,
            kueue_object("ResourceFlavor", "any", spec={}),
            *queues,
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
    """A cluster with Kueue, a node of four GPUs, and the operator."""

    def __init__(self, kube: Kube, kueue: Kueue, start: Callable[[], Process]) -> None:
        self.kube, self.kueue, self.start = kube, kueue, start
        self.operator = start()

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
                self.operator = self.start()
            await asyncio.sleep(0.2)
        logs = f"{self.operator.text()[-3000:]}\n{self.kueue.log.read_text()[-3000:]}"
        raise AssertionError(f"not within {within_s:g} s; found {found}\n{logs}")


@pytest.fixture
async def world(plane: ControlPlane, kube: Kube, kueue: Kueue, gpu_node: Any, tmp_path: Path) -> AsyncIterator[World]:
    await gpu_node([24 * GIB] * 4)
    logs = (tmp_path / f"operator-{number}.log" for number in itertools.count())
    world = World(kube, kueue, lambda: Process(str(plane.kubeconfig), "default", next(logs)))
    try:
        yield world
    finally:
        if not world.operator.ended:
            world.operator.end()


@pytest.fixture
def apply_profile(kube: Kube) -> Callable[..., Awaitable[None]]:
    async def apply_profile(name: str, memory_bytes: list[int], **fields: Any) -> None:
        profile = profile_of(name, memory_bytes, **fields)
        await kube.apply({key: profile[key] for key in ("apiVersion", "kind", "metadata")}, manager=MANAGER)
        await kube.apply_status(profile, manager=MANAGER)

    return apply_profile


async def failures(kube: Kube, *names: str) -> list[Any]:
    found = [await kube.get(LLMSERVICE, name, "default") or {} for name in names]
    return [each["status"]["podFailures"] for each in found if "podFailures" in each.get("status", {})]


async def test_services_wait_are_admitted_and_give_way_by_the_words_and_the_quota_of_kueue(world: World, kube: Kube):
    await world.service("first", replicas=QUOTA_GPUS)
    await world.becomes(lambda: world.seats("first"), (QUOTA_GPUS, 0))
    deployment = await kube.get(DEPLOYMENT, "first-engine", "default")
    assert deployment is not None
    assert (
        deployment["metadata"]["labels"][QUEUE] == deployment["spec"]["template"]["metadata"]["labels"][QUEUE] == "team"
    )
    (workload, *_) = await kube.list(WORKLOAD, "default")
    assert workload["spec"]["priorityClassRef"]["name"] == "low"

    # The quota is used up, though the node has two more GPUs.
    await world.service("second")
    await world.becomes(lambda: world.seats("second"), (0, 1))
    await world.becomes(
        lambda: world.ready("second"), lambda found: found[0] == "Queued" and "unused quota" in found[1]
    )
    _, message = await world.ready("second")
    (pod,) = await world.pods("second")
    assert message.startswith(f"0 of 1 replicas serve; pod {pod['metadata']['name']} waits in the queue team: ")
    assert GPU in message

    # A higher priority takes the quota of one of the first's pods. The next one waits, and nothing has failed.
    await world.service("urgent", priority="high")
    await world.becomes(lambda: world.seats("urgent"), (1, 0))
    await world.becomes(lambda: world.seats("first"), (QUOTA_GPUS - 1, 1))
    await world.becomes(lambda: world.ready("first"), lambda found: found[0] == "Queued")
    assert await failures(kube, "first", "second", "urgent") == []

    # What waits without quota keeps no GPU from others: four GPUs, two in use.
    await world.service("unqueued", queue="", replicas=2)
    await world.becomes(lambda: world.seats("unqueued"), (2, 0))
    await kube.delete(LLMSERVICE, "unqueued", "default")

    # Quota that becomes free goes to those who wait.
    await kube.delete(LLMSERVICE, "urgent", "default")
    await kube.delete(LLMSERVICE, "second", "default")
    await world.becomes(lambda: world.seats("first"), (QUOTA_GPUS, 0))
    await world.becomes(lambda: world.ready("first"), lambda found: found[0] not in ("Queued", "Preempted"))

    # Kueue lets no Deployment whose pods serve change its queue. Suspended, it may.
    await world.service("first", queue="other", replicas=QUOTA_GPUS)
    await world.becomes(lambda: world.ready("first"), lambda found: found[0] == "Forbidden" and QUEUE in found[1])
    assert await world.seats("first") == (QUOTA_GPUS, 0)
    await world.service("first", queue="other", replicas=QUOTA_GPUS, suspend=True)
    await world.becomes(lambda: world.pods("first"), [])
    await world.becomes(lambda: queue_of(kube), "other")
    await world.service("first", queue="other", replicas=QUOTA_GPUS)
    await world.becomes(lambda: world.seats("first"), (0, QUOTA_GPUS))
    await world.becomes(lambda: world.ready("first"), lambda found: found[0] == "Queued" and "other" in found[1])
    assert await failures(kube, "first") == []


async def queue_of(kube: Kube) -> str:
    found = await kube.get(DEPLOYMENT, "first-engine", "default") or {"metadata": {}}
    return str((found["metadata"].get("labels") or {}).get(QUEUE))
