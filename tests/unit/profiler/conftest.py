"""Stand-ins for the profiler's surroundings: a kubelet on real sockets, a cluster in memory."""
# ruff: noqa: N802 (the names are gRPC's)

from __future__ import annotations

import asyncio
import copy
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import pytest

from helpers.fake_nvml import FakeGPU, FakeNVML, FakeNVMLError, board
from uellm.hardware import GPU_RESOURCE
from uellm.kube import GPUNODEPROFILE, NODE, POD, RESOURCESLICE, SYNCED, Event, Kind, KubeError, NotFound
from uellm.profiler.kubelet import deviceplugin_pb2 as dp
from uellm.profiler.kubelet import deviceplugin_pb2_grpc as dp_grpc
from uellm.profiler.kubelet import podresources_pb2 as pr
from uellm.profiler.kubelet import podresources_pb2_grpc as pr_grpc


@pytest.fixture
def nvml() -> Any:
    """The classes `GPU` and `Library`, `board` for known products, and the error."""
    return SimpleNamespace(GPU=FakeGPU, Library=FakeNVML, Error=FakeNVMLError, board=board)


class FakeKubelet(dp_grpc.RegistrationServicer, pr_grpc.PodResourcesListerServicer):
    """The kubelet's side of both APIs, on real sockets in a directory; `start` and `stop` play its restarts."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.pod_resources_socket = str(directory / "pod-resources.sock")
        self.registered: asyncio.Queue[dp.RegisterRequest] = asyncio.Queue()
        self.pods: list[pr.PodResources] = []
        self.allocatable: list[pr.ContainerDevices] = []
        self.refuse = ""
        self._server: grpc.aio.Server | None = None

    async def start(self) -> None:
        # Like the real one, it removes every socket from the plugins' directory.
        for socket in self.directory.glob("*.sock"):
            socket.unlink()
        self._server = grpc.aio.server()
        dp_grpc.add_RegistrationServicer_to_server(self, self._server)
        pr_grpc.add_PodResourcesListerServicer_to_server(self, self._server)
        self._server.add_insecure_port(f"unix:{self.directory / 'kubelet.sock'}")
        self._server.add_insecure_port(f"unix:{self.pod_resources_socket}")
        await self._server.start()

    async def stop(self) -> None:
        if self._server is not None:
            await self._server.stop(grace=None)
            self._server = None

    async def Register(self, request: Any, context: Any) -> Any:
        if self.refuse:
            await context.abort(grpc.StatusCode.UNKNOWN, self.refuse)
        self.registered.put_nowait(request)
        return dp.Empty()

    async def List(self, request: Any, context: Any) -> Any:
        return pr.ListPodResourcesResponse(pod_resources=self.pods)

    async def GetAllocatableResources(self, request: Any, context: Any) -> Any:
        return pr.AllocatableResourcesResponse(devices=self.allocatable)

    def give(self, namespace: str, name: str, *ids: str, resource: str = GPU_RESOURCE) -> None:
        devices = [pr.ContainerDevices(resource_name=resource, device_ids=ids)] if ids else []
        container = pr.ContainerResources(name="main", devices=devices)
        self.pods.append(pr.PodResources(namespace=namespace, name=name, containers=[container]))


@pytest.fixture
async def kubelet(tmp_path: Path) -> AsyncIterator[FakeKubelet]:
    kubelet = FakeKubelet(tmp_path)
    await kubelet.start()
    yield kubelet
    await kubelet.stop()


class FakeCluster:
    """The part of `Kube` that the profiler uses, in memory. Each of the next calls raises one of `errors`."""

    def __init__(self, node: str = "node-1") -> None:
        self.objects: dict[tuple[str, str], dict[str, Any]] = {}
        self.writes: list[dict[str, Any]] = []
        self.errors: list[KubeError] = []
        self.events: list[dict[str, Any]] = []
        self.no_events: KubeError | None = None
        self.failures = 0
        self.lists_of_pods = 0
        self.published: list[dict[str, Any]] = []
        self.changed = asyncio.Condition()
        self._watchers: list[asyncio.Queue[Event]] = []
        self.put(NODE, {"metadata": {"name": node, "uid": f"uid-of-{node}"}})

    def put(self, kind: Kind, obj: dict[str, Any]) -> None:
        self.objects[kind.kind, obj["metadata"]["name"]] = obj

    def put_node_uid(self, uid: str, node: str = "node-1") -> None:
        self.objects["Node", node]["metadata"]["uid"] = uid

    def pod(self, name: str, uid: str, *, phase: str = "Running", leaving: bool = False) -> None:
        metadata = {"namespace": "default", "name": name, "uid": uid}
        if leaving:
            metadata["deletionTimestamp"] = "2026-01-01T00:00:00Z"
        self.put(POD, {"metadata": metadata, "spec": {"nodeName": "node-1"}, "status": {"phase": phase}})

    async def get(self, kind: Kind, name: str, namespace: str | None = None) -> dict[str, Any] | None:
        self._fail()
        return copy.deepcopy(self.objects.get((kind.kind, name)))

    async def list(self, kind: Kind, namespace: str | None = None, **selectors: str) -> list[dict[str, Any]]:
        self._fail()
        assert selectors == {"field_selector": "spec.nodeName=node-1"}
        if kind is RESOURCESLICE:
            return [{"spec": {"driver": "gpu.nvidia.com", "devices": self.published}}]
        assert kind is POD
        self.lists_of_pods += 1
        return [copy.deepcopy(obj) for (of, _), obj in self.objects.items() if of == "Pod"]

    async def apply(self, obj: dict[str, Any], *, manager: str, **_: Any) -> dict[str, Any]:
        self._fail()
        assert manager
        known = self.objects.setdefault((obj["kind"], obj["metadata"]["name"]), {})
        metadata = {**known.get("metadata", {}), **obj["metadata"]}
        known.update(copy.deepcopy({**obj, "metadata": metadata}))
        async with self.changed:
            self.changed.notify_all()
        return known

    async def apply_status(self, obj: dict[str, Any], *, manager: str) -> dict[str, Any]:
        self._fail()
        known = self.objects.get((obj["kind"], obj["metadata"]["name"]))
        if known is None:
            raise NotFound(404, "NotFound", "not there")
        known["status"] = copy.deepcopy(obj["status"])
        async with self.changed:
            self.writes.append(known["status"])
            self.changed.notify_all()
        return known

    async def create(self, obj: dict[str, Any]) -> dict[str, Any]:
        assert obj["kind"] == "Event"
        if self.no_events is not None:
            raise self.no_events
        async with self.changed:
            self.events.append(obj)
            self.changed.notify_all()
        return obj

    async def watch(self, kind: Kind, **_: Any) -> AsyncIterator[Event]:
        queue: asyncio.Queue[Event] = asyncio.Queue()
        self._watchers.append(queue)
        yield Event(SYNCED, {})
        while True:
            yield await queue.get()

    def delete_profile(self, node: str = "node-1") -> None:
        obj = self.objects.pop((GPUNODEPROFILE.kind, node))
        for queue in self._watchers:
            queue.put_nowait(Event("DELETED", obj))

    def status(self, node: str = "node-1") -> dict[str, Any]:
        return (self.objects.get((GPUNODEPROFILE.kind, node)) or {}).get("status") or {}

    def device(self, uuid: str) -> dict[str, Any]:
        return next((device for device in self.status().get("devices", ()) if device["uuid"] == uuid), {})

    def uuids(self) -> list[str]:
        return [device["uuid"] for device in self.status().get("devices", ())]

    async def until(self, holds: Callable[[], bool]) -> None:
        """Wait for a write after which `holds` is true."""
        async with asyncio.timeout(10), self.changed:
            await self.changed.wait_for(holds)

    def _fail(self) -> None:
        if self.errors:
            self.failures += 1
            raise self.errors.pop(0)


@pytest.fixture
def cluster() -> FakeCluster:
    return FakeCluster()


class Log(logging.Handler):
    """The profiler's log messages; `said` waits for one."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []
        self._more = asyncio.Event()

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())
        self._more.set()

    async def said(self, text: str) -> None:
        async with asyncio.timeout(10):
            while not self.count(text):
                self._more.clear()
                await self._more.wait()

    def count(self, text: str) -> int:
        return sum(text in line for line in self.lines)


@pytest.fixture
async def log() -> AsyncIterator[Log]:
    log, logger = Log(), logging.getLogger("uellm.profiler")
    logger.addHandler(log)
    yield log
    logger.removeHandler(log)


@pytest.fixture
async def background() -> AsyncIterator[Callable[[Any], asyncio.Task[Any]]]:
    """Start a coroutine as a task that is cancelled at the end of the test."""
    tasks: list[asyncio.Task[Any]] = []

    def start(coroutine: Any) -> asyncio.Task[Any]:
        tasks.append(asyncio.create_task(coroutine))
        return tasks[-1]

    yield start
    for task in tasks:
        task.cancel()
        with suppress(asyncio.CancelledError, Exception):
            await task
