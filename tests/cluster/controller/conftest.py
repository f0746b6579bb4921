"""The reconciler called pass by pass against the real API server: no watches, no clock, each pass reads the state.

operator   test   makes an Operator in the test's namespace; a second one is the operator after a restart
service    test   creates an LLMService in the test's namespace
"""

from __future__ import annotations

import asyncio
import copy
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from helpers.controller_process import Process
from helpers.models import LLAMA_8B
from uellm.api.sidecar_document import content_digest
from uellm.controller.resync import fill_optional
from uellm.kube import LEASE, LLMSERVICE, Conflict, Kind, Kube
from uellm.kube.kinds import CONFIGMAP, DEPLOYMENT, PDB, SERVICE
from uellm.planner.request import PlanRequest
from uellm.planner.result import Plan
from uellm.reconcile.adapters import read_told
from uellm.reconcile.apply import Applier
from uellm.reconcile.cache import CHILD_KINDS, WATCHED_KINDS, Cache
from uellm.reconcile.children import Images
from uellm.reconcile.download.downloads import Downloads
from uellm.reconcile.inspection.inspections import Inspections
from uellm.reconcile.model_claim import NodeCache
from uellm.reconcile.names import Key, controller_of
from uellm.reconcile.optional_kinds import DRA_KINDS, GROUP_KINDS, ROUTING_KINDS, Availability
from uellm.reconcile.planning.answer import PlanningAnswer, PlanningQuestion, answer
from uellm.reconcile.planning.planning import Planning
from uellm.reconcile.planning.render import render
from uellm.reconcile.pods.collectors import Collectors
from uellm.reconcile.pods.measurements import Measurements
from uellm.reconcile.pods.placement_reports import PlacementReports
from uellm.reconcile.pods.pod_state import is_ready
from uellm.reconcile.pods.running import RunningReports
from uellm.reconcile.reconciler import Reconciler
from uellm.reconcile.rendered_plan import RenderedPlan
from uellm.reconcile.step_times.store import StepStore

IMAGES = Images(engine="engine:1", sidecar="sidecar:1", launcher="launcher:1")

# A Llama of 7 layers of 0.4 GiB each (float16), so that one device of 2 GiB cannot hold it and two of 3 GiB can.
MODEL_CONFIG = {**LLAMA_8B, "max_position_embeddings": 8192, "tie_word_embeddings": False}


class Killed(BaseException):
    """Simulates that the operator's process is killed."""


class Watched:
    """A Kube that counts writes, and that can fail at a given one."""

    def __init__(self, kube: Kube) -> None:
        self._kube = kube
        self.writes: list[str] = []
        self.tried = 0
        self.die_after: int | None = None  # the number of writes before it fails; the last of them is done
        self.die_before: int | None = None
        self.drops_image_volumes = False  # as a server does whose feature gate is off
        self.conflicts = 0  # the number of next writes that end in a Conflict

    async def get(self, kind: Kind, name: str, namespace: str | None = None) -> dict[str, Any] | None:
        return await self._kube.get(kind, name, namespace)

    async def list(self, kind: Kind, namespace: str | None = None, **selectors: str) -> list[dict[str, Any]]:
        return await self._kube.list(kind, namespace, **selectors)

    async def create(self, obj: Mapping[str, Any], *, dry_run: bool = False) -> dict[str, Any]:
        if dry_run:
            return await self._kube.create(_without_images(obj) if self.drops_image_volumes else obj, dry_run=True)
        return await self._write(f"create {obj['kind']}", self._kube.create, obj)

    async def apply(self, obj: Mapping[str, Any], *, dry_run: bool = False, **options: Any) -> dict[str, Any]:
        if dry_run:
            self.tried += 1
            return await self._kube.apply(obj, dry_run=True, **options)
        return await self._write(f"apply {obj['kind']}", self._kube.apply, obj, **options)

    async def apply_status(self, obj: Mapping[str, Any], **options: Any) -> dict[str, Any]:
        return await self._write(f"status {obj['kind']}", self._kube.apply_status, obj, **options)

    async def remove_fields(self, obj: Mapping[str, Any], paths: Any, **options: Any) -> dict[str, Any]:
        return await self._write(f"edit {obj['kind']}", self._kube.remove_fields, obj, paths, **options)

    async def annotate(self, kind: Kind, name: str, *args: Any, **options: Any) -> bool:
        return bool(await self._write(f"annotate {kind.kind}", self._kube.annotate, kind, name, *args, **options))

    async def delete(self, kind: Kind, name: str, namespace: str | None = None, **options: Any) -> bool:
        return bool(await self._write(f"delete {kind.kind}", self._kube.delete, kind, name, namespace, **options))

    async def _write(self, what: str, call: Callable[..., Awaitable[Any]], *args: Any, **options: Any) -> Any:
        if self.die_before is not None and len(self.writes) >= self.die_before:
            raise Killed(what)
        if self.conflicts and what != "create Event":
            self.conflicts -= 1
            raise Conflict(409, "Conflict", "the object has been modified; please apply your changes to the latest")
        answer = await call(*args, **options)
        self.writes.append(what)
        if self.die_after is not None and len(self.writes) >= self.die_after:
            raise Killed(what)
        return answer


def _without_images(pod: Mapping[str, Any]) -> dict[str, Any]:
    volumes = [{"name": each["name"]} if "image" in each else each for each in pod["spec"]["volumes"]]
    return {**pod, "spec": {**pod["spec"], "volumes": volumes}}


class Operator:
    """An operator's memory and its passes. A new one is a restarted operator."""

    def __init__(
        self,
        kube: Kube,
        namespace: str,
        *,
        images: Images = IMAGES,
        nodes_per_replica: int = 1,
        node_cache: NodeCache | None = None,
    ) -> None:
        """`nodes_per_replica`: that every plan spans, whatever the planner says."""
        self.kube = Watched(kube)
        self.namespace = namespace
        self.now = datetime.now(UTC)
        self.reports: dict[str, Mapping[str, Any]] = {}  # by pod IP
        self.cache = Cache()
        self.cache.available |= dict.fromkeys(DRA_KINDS, Availability.SERVED)
        self.steps = StepStore()
        self.worker = InProcess(nodes_per_replica)
        self._planning = Planning(self.cache, self.worker, steps=self.steps)
        self.asked_at_s = 0.0
        placements = PlacementReports(self._report, lambda: self.asked_at_s)
        self.measurements: dict[str, Mapping[str, Any]] = {}  # by pod IP
        self.measured_at_s = 0.0
        measurements = Measurements(self._measured, lambda: self.measured_at_s)
        applier = Applier(self.kube, self.cache)
        self.running: dict[str, Mapping[str, Any] | None] = {}  # by pod IP, where a sidecar is not as it should be
        running = RunningReports(self._sidecar, lambda: self.asked_at_s)
        collectors = Collectors(placements, measurements, running)
        self.answers: dict[str, Mapping[str, Any] | None] = {}  # of inspection pods, by pod IP
        inspections = Inspections(applier, self._inspected, "operator:1")
        self.copies: dict[str, Mapping[str, Any] | None] = {}  # how far download pods are, by pod IP
        downloads = Downloads(applier, self._downloaded, "operator:1", node_cache=node_cache)
        self.reconciler = Reconciler(
            self.cache, self._planning, collectors, applier, images, inspections, downloads, clock=lambda: self.now
        )
        self._started = False

    async def observe(self) -> None:
        """Read the state of the cluster."""
        for kind in (*WATCHED_KINDS, *DRA_KINDS):
            before = self.cache.snapshot(kind)
            objects = await self.kube.list(kind, self.namespace if kind.namespaced else None)
            self.cache.replace(kind, objects, before=before)
        for kind in (*ROUTING_KINDS, *GROUP_KINDS):
            await fill_optional(self.kube, self.cache, kind)  # type: ignore[arg-type] # it lists, as the real one
        if not self._started:
            self._planning.promises.restore()
            self._started = True

    def waiting(self) -> list[Key]:
        """The services that are marked when GPUs become free."""
        return self._planning.waiting()

    async def step(self, name: str) -> list[str]:
        """One pass over one service. Returns what it wrote."""
        await self.observe()
        before = len(self.kube.writes)
        await self.reconciler.reconcile(Key(self.namespace, name))
        return self.kube.writes[before:]

    async def write_out(self, name: str) -> None:
        """Passes over one service until one writes nothing. Whether its pods can start does not matter."""
        async for _ in _patiently():
            if not await self.step(name):
                return

    async def settle(self, *names: str) -> None:
        """Passes over all services in turn until none of them writes and Kubernetes' own controllers are done."""
        passes = 0
        async for _ in _patiently():
            written = [write for name in names for write in await self.step(name)]
            passes += bool(written)
            assert passes < 30, f"it never settles; the last pass wrote {written}"
            if not written and all([await self._is_carried_out(name) for name in names]):
                return

    async def serve(self, name: str) -> None:
        """Settle with pods that serve. `settle` alone does not wait for nodes to start them: many tests have none."""
        async for _ in _patiently():
            await self.settle(name)
            document = await self.kube.get(LLMSERVICE, name, self.namespace)
            assert document is not None
            if any((each["type"], each["status"]) == ("Ready", "True") for each in document["status"]["conditions"]):
                return

    async def _is_carried_out(self, name: str) -> bool:
        """Whether the Deployment controller has carried out the Deployment's spec, and counted the pods that serve."""
        deployment = self.cache.get(DEPLOYMENT, f"{name}-engine", self.namespace)
        if deployment is None or controller_of(deployment) is None:
            return True
        status, replicas = deployment.get("status") or {}, deployment["spec"]["replicas"]
        current = status.get("observedGeneration") == deployment["metadata"]["generation"]
        pods = self.cache.pods(Key(self.namespace, name))
        made = status.get("replicas", 0) == status.get("updatedReplicas", 0) == len(pods) == replicas
        return bool(current and made and status.get("readyReplicas", 0) == sum(map(is_ready, pods)))

    def later(self, seconds: float) -> None:
        """Advance the clock."""
        self.now += timedelta(seconds=seconds)
        self.asked_at_s += seconds

    async def _sidecar(self, address: str) -> Mapping[str, Any] | None:
        """What a sidecar would answer, played by the test: its pod's revision, and the configuration of its service."""
        if address in self.running:
            return self.running[address]
        pods = (pod for key in self.cache.service_keys() for pod in self.cache.pods(key))
        labels = next(pod["metadata"]["labels"] for pod in pods if pod["status"].get("podIP") == address)
        config = self.cache.get(CONFIGMAP, f"{labels['uellm.io/service']}-config", self.namespace)
        assert config is not None
        text = config["data"]["sidecar.yaml"]
        report = {"revision": labels["uellm.io/revision"], "configDigest": content_digest(text.encode())}
        told = read_told(config, "sidecar.yaml").of(labels["uellm.io/revision"])
        return {**report, "adapters": [each.name for each in told]}

    async def _inspected(self, address: str) -> Mapping[str, Any] | None:
        return self.answers.get(address)

    async def _downloaded(self, address: str) -> Mapping[str, Any] | None:
        return self.copies.get(address)

    async def _measured(self, address: str) -> Mapping[str, Any] | None:
        return self.measurements.get(address)

    async def _report(self, address: str) -> Mapping[str, Any] | None:
        return self.reports.get(address)


async def _patiently() -> AsyncIterator[None]:
    """Retry for some time."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        yield
        await asyncio.sleep(0.02)
    raise AssertionError("not within 30 s")


class InProcess:
    """The planning worker without its own process."""

    def __init__(self, nodes_per_replica: int) -> None:
        self.nodes_per_replica = nodes_per_replica

    async def answer(self, question: PlanningQuestion) -> PlanningAnswer:
        found = answer(question)
        if self.nodes_per_replica == 1 or found.choice.plan is None:
            return found
        plan = replace(found.choice.plan, nodes_per_replica=self.nodes_per_replica)
        return PlanningAnswer(found.choice._replace(plan=plan), render(plan, question.request))

    async def render(self, plan: Plan, request: PlanRequest) -> RenderedPlan:
        return render(plan, request)


class Service:
    """An LLMService in the cluster."""

    def __init__(self, kube: Kube, namespace: str, name: str) -> None:
        self.kube = kube
        self.namespace = namespace
        self.name = name

    async def create(self, **spec: Any) -> Service:
        await self.kube.apply(llmservice(self.namespace, self.name, **spec), manager="user")
        return self

    async def change(self, change: Callable[[dict[str, Any]], Any]) -> None:
        """Change the spec as a user would."""
        document = await self.get()
        change(document["spec"])
        kept = {name: document["metadata"][name] for name in ("name", "namespace", "uid")}
        await self.kube.apply(
            {**{name: document[name] for name in ("apiVersion", "kind", "spec")}, "metadata": kept}, manager="user"
        )

    async def get(self) -> dict[str, Any]:
        found = await self.kube.get(LLMSERVICE, self.name, self.namespace)
        assert found is not None
        return found

    async def status(self) -> dict[str, Any]:
        return (await self.get()).get("status") or {}

    async def condition(self, type_: str) -> tuple[str, str, str]:
        """Status, reason and message."""
        conditions = (await self.status()).get("conditions") or []
        found = next(entry for entry in conditions if entry["type"] == type_)
        return found["status"], found["reason"], found["message"]

    async def plan(self) -> dict[str, Any]:
        return (await self.status())["plan"]

    async def child(self, kind: Kind) -> dict[str, Any] | None:
        names = {
            DEPLOYMENT: f"{self.name}-engine",
            CONFIGMAP: f"{self.name}-config",
            SERVICE: self.name,
            PDB: self.name,
        }
        return await self.kube.get(kind, names[kind], self.namespace)

    async def revision(self) -> dict[str, Any]:
        """The ConfigMap of the revision in force."""
        name = f"{self.name}-{(await self.status())['revision']}"
        found = await self.kube.get(CONFIGMAP, name, self.namespace)
        assert found is not None
        return found

    async def revisions(self) -> set[str]:
        """The names of all revisions that there are."""
        selector = f"uellm.io/service={self.name},uellm.io/revision"
        found = await self.kube.list(CONFIGMAP, self.namespace, label_selector=selector)
        return {each["metadata"]["labels"]["uellm.io/revision"] for each in found}

    async def deployment(self) -> dict[str, Any]:
        found = await self.child(DEPLOYMENT)
        assert found is not None
        return found

    async def children(self) -> list[str]:
        """The kinds of the existing children."""
        return [kind.kind for kind in CHILD_KINDS if await self.child(kind)]

    async def state(self) -> dict[str, Any]:
        """Everything that belongs to it, without fields that differ between runs or that Kubernetes may still write."""
        parts = {kind.kind: _timeless({**(await self.child(kind) or {}), "status": None}) for kind in CHILD_KINDS}
        status = await self.status()
        whole = _renamed({**parts, "status": _timeless(status)}, self.name)
        # The content that it is the digest of holds the service's name.
        return _renamed(whole, status["revision"], "REVISION") if "revision" in status else whole

    async def delete(self) -> None:
        await self.kube.delete(LLMSERVICE, self.name, self.namespace)


def llmservice(namespace: str, name: str, **spec: Any) -> dict[str, Any]:
    """A valid LLMService; arguments replace fields of its spec."""
    model = {"uri": "file:///models/llama", "config": MODEL_CONFIG, "maxModelLen": 4096}
    return {
        "apiVersion": LLMSERVICE.api_version,
        "kind": LLMSERVICE.kind,
        "metadata": {"name": name, "namespace": namespace},
        "spec": {"model": model, "workload": {"requestsPerSecond": "1"}, **spec},
    }


_TIMES = {
    "uid",
    "resourceVersion",
    "creationTimestamp",
    "generation",
    "managedFields",
    "lastTransitionTime",
    "observedGeneration",
    "clusterIP",
    "clusterIPs",
    "uellm.io/owner",
    "uellm.io/applied",
    "uellm.io/spec",
}


def _timeless(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _timeless(part) for name, part in value.items() if name not in _TIMES}
    return [_timeless(part) for part in value] if isinstance(value, list) else value


def _renamed(value: Any, name: str, to: str = "NAME") -> Any:
    if isinstance(value, dict):
        return {_renamed(key, name, to): _renamed(part, name, to) for key, part in value.items()}
    if isinstance(value, list):
        return [_renamed(part, name, to) for part in value]
    return value.replace(name, to) if isinstance(value, str) else copy.copy(value)


@pytest.fixture
def operator(kube: Kube, namespace: str) -> Callable[..., Operator]:
    return lambda **options: Operator(kube, namespace, **options)


@pytest.fixture
async def service(kube: Kube, namespace: str) -> AsyncIterator[Callable[..., Awaitable[Service]]]:
    async def make(name: str = "llama", **spec: Any) -> Service:
        return await Service(kube, namespace, name).create(**spec)

    yield make
    # Deleting a namespace takes time, and its remaining pods would compete for the next test's GPUs.
    for document in await kube.list(LLMSERVICE, namespace):
        await kube.delete(LLMSERVICE, document["metadata"]["name"], namespace)


@pytest.fixture
def killed() -> type[Killed]:
    return Killed


@pytest.fixture
async def controller(kube, kubeconfig, namespace, tmp_path):
    started = []

    def start():
        started.append(Process(kubeconfig, namespace, tmp_path / f"controller-{len(started)}.log"))
        return started[-1]

    yield start
    for process in started:
        if not process.ended:
            process.end(signal.SIGKILL)
    # Or the next test's operator would wait until the killed one's lease has run out.
    await kube.delete(LEASE, "uellm-controller", namespace)


@pytest.fixture
def planned(eventually):
    async def wait(llama):
        async def is_planned():
            conditions = (await llama.status()).get("conditions") or []
            return any(entry["type"] == "Planned" and entry["status"] == "True" for entry in conditions)

        await eventually(is_planned, timeout_s=40)
        await eventually(lambda: _complete(llama), timeout_s=20)

    return wait


async def _complete(llama):
    return len(await llama.children()) == 4
