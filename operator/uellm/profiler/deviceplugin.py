"""A described node's GPUs, offered to the kubelet by its device-plugin API as NVIDIA's plugin offers real ones.

kubelet.sock there?  -> serve on a socket beside it -> Register -> the kubelet calls ListAndWatch and stays
kubelet.sock another one, our socket gone, or no call left open: the kubelet was started again -> from the top
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import grpc

from uellm.errors import BadInput
from uellm.hardware import GPU_RESOURCE
from uellm.profiler.kubelet import deviceplugin_pb2 as api
from uellm.profiler.kubelet import deviceplugin_pb2_grpc as stubs
from uellm.profiler.podresources import CHANNEL_OPTIONS
from uellm.profiler.sample import NoGPUs, Sample

PLUGIN_DIR = "/var/lib/kubelet/device-plugins"
VISIBLE_DEVICES = "NVIDIA_VISIBLE_DEVICES"
API_VERSION = "v1beta1"
REGISTER_TIMEOUT_S = 15.0  # the kubelet dials back within the call, for up to 10 s
POLL_S = 1.0
CALL_BACK_S = 5.0
"""The kubelet opens ListAndWatch right after a registration; without one for this long it has lost us."""

logger = logging.getLogger(__name__)


class Offer(NamedTuple):
    """A device as the kubelet sees it."""

    uuid: str
    healthy: bool
    numa_node: int | None


def offers(sample: Sample, resource: str = GPU_RESOURCE) -> tuple[Offer, ...]:
    """The devices that pods ask for by `resource`, in the order of their index."""
    devices = sorted(sample.devices, key=lambda device: (device["index"], device["uuid"]))
    return tuple(
        Offer(
            device["uuid"],
            (device.get("health") or {}).get("state", "Healthy") == "Healthy",
            device["numaNode"] if device.get("numaNode", -1) >= 0 else None,
        )
        for device in devices
        if device.get("resourceName", GPU_RESOURCE) == resource
    )


def preferred(devices: Sequence[Offer], available: Sequence[str], required: Sequence[str], size: int) -> list[str]:
    """The `size` devices to take: what is required, then from one NUMA node, the fullest that has enough.

    Taking from the fullest leaves whole nodes to those who need more; ties go to the lower node, within a node the
    order is that of the index.
    """
    order = {device.uuid: position for position, device in enumerate(devices)}
    numa = {device.uuid: device.numa_node for device in devices}
    near = {numa.get(uuid) for uuid in required}
    rest = sorted(set(available) - set(required), key=lambda uuid: (order.get(uuid, len(order)), uuid))
    missing = size - len(required)
    groups: dict[int | None, list[str]] = {}
    for uuid in rest:
        groups.setdefault(numa.get(uuid), []).append(uuid)
    fitting = [node for node, group in groups.items() if len(group) >= missing and (not required or node in near)]
    if fitting:
        first = min(fitting, key=lambda node: (len(groups[node]), -1 if node is None else node))
        rest = groups[first]
    return [*required, *rest[:missing]]


class Servicer(stubs.DevicePluginServicer):
    """Answers the kubelet from `devices`. `streams` counts its open calls of ListAndWatch."""

    def __init__(self) -> None:
        self.streams = 0
        self.devices: tuple[Offer, ...] = ()
        self._changed = asyncio.Event()

    def offer(self, devices: tuple[Offer, ...]) -> bool:
        """Offer these devices from now on; whether they differ from those before."""
        if devices == self.devices:
            return False
        self.devices = devices
        self._changed.set()
        self._changed = asyncio.Event()
        return True

    async def GetDevicePluginOptions(self, request: Any, context: Any) -> Any:  # noqa: D102, N802
        return options()

    async def ListAndWatch(self, request: Any, context: Any) -> AsyncIterator[Any]:  # noqa: D102, N802
        self.streams += 1
        try:
            while True:
                changed = self._changed
                yield api.ListAndWatchResponse(devices=[_device(device) for device in self.devices])
                await changed.wait()
        finally:
            self.streams -= 1

    async def GetPreferredAllocation(self, request: Any, context: Any) -> Any:  # noqa: D102, N802
        answers = [
            api.ContainerPreferredAllocationResponse(
                deviceIDs=preferred(
                    self.devices, one.available_deviceIDs, one.must_include_deviceIDs, one.allocation_size
                )
            )
            for one in request.container_requests
        ]
        return api.PreferredAllocationResponse(container_responses=answers)

    async def Allocate(self, request: Any, context: Any) -> Any:  # noqa: D102, N802
        known = {device.uuid for device in self.devices}
        for one in request.container_requests:
            unknown = sorted(set(one.devices_ids) - known)
            if unknown:
                await context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"no such device: {', '.join(unknown)}")
            logger.info("allocated %s", ",".join(one.devices_ids))
        answers = [
            api.ContainerAllocateResponse(envs={VISIBLE_DEVICES: ",".join(one.devices_ids)})
            for one in request.container_requests
        ]
        return api.AllocateResponse(container_responses=answers)


class DevicePlugin:
    """Serves and registers for as long as it runs; a cancelled `run` takes its socket away."""

    def __init__(
        self,
        sample: Callable[[], Sample],
        *,
        plugin_dir: str | Path = PLUGIN_DIR,
        resource: str = GPU_RESOURCE,
        poll_s: float = POLL_S,
    ) -> None:
        self._sample = sample
        self._resource = resource
        self._poll_s = poll_s
        self._kubelet = Path(plugin_dir) / "kubelet.sock"
        self._socket = Path(plugin_dir) / f"uellm-{resource.replace('/', '-')}.sock"
        self._servicer = Servicer()
        self._said = ""

    async def run(self) -> None:
        """Offer the devices. Raises BadInput where the description is bad at the start; later the last good stands."""
        with suppress(NoGPUs):
            self._servicer.offer(offers(self._sample(), self._resource))
        while True:
            self._refresh()
            # A node with nothing to offer is left alone: an offer of nothing would take the resource from whoever
            # else offers it there.
            if self._servicer.devices:
                await self._offer_once()
            await asyncio.sleep(self._poll_s)

    async def _offer_once(self) -> None:
        kubelet = _identity(self._kubelet)
        if kubelet is None:
            self._say(f"no kubelet at {self._kubelet}; waiting for it")
            return
        async with self._serving() as own:
            if await self._register():
                await self._while_registered(kubelet, own)

    @asynccontextmanager
    async def _serving(self) -> AsyncIterator[tuple[int, ...] | None]:
        with suppress(FileNotFoundError):
            self._socket.unlink()
        server = grpc.aio.server()
        stubs.add_DevicePluginServicer_to_server(self._servicer, server)
        server.add_insecure_port(f"unix:{self._socket}")
        await server.start()
        own = _identity(self._socket)
        try:
            yield own
        finally:
            if _identity(self._socket) == own:
                self._socket.unlink()
            await server.stop(grace=None)

    async def _register(self) -> bool:
        request = api.RegisterRequest(
            version=API_VERSION, endpoint=self._socket.name, resource_name=self._resource, options=options()
        )
        try:
            async with grpc.aio.insecure_channel(f"unix:{self._kubelet}", options=CHANNEL_OPTIONS) as channel:
                await stubs.RegistrationStub(channel).Register(request, timeout=REGISTER_TIMEOUT_S)
        except grpc.aio.AioRpcError as error:
            self._say(f"the kubelet does not register {self._resource}: {error.code().name.lower()}: {error.details()}")
            return False
        self._said = ""
        logger.info("registered %s at the kubelet", self._resource)
        return True

    async def _while_registered(self, kubelet: tuple[int, ...], own: tuple[int, ...] | None) -> None:
        loop = asyncio.get_running_loop()
        last_call = loop.time()
        while loop.time() - last_call < CALL_BACK_S:
            self._refresh()
            await asyncio.sleep(self._poll_s)
            if _identity(self._kubelet) != kubelet or _identity(self._socket) != own:
                break
            if self._servicer.streams:
                last_call = loop.time()
        logger.info("the kubelet has gone or was started again")

    def _refresh(self) -> None:
        try:
            devices = offers(self._sample(), self._resource)
        except (BadInput, NoGPUs) as error:
            self._say(f"{error}; what was offered stays" if self._servicer.devices else str(error))
            return
        if self._servicer.offer(devices):
            logger.info("offering %d devices, %d healthy", len(devices), sum(device.healthy for device in devices))

    def _say(self, text: str) -> None:
        if text != self._said:
            self._said = text
            logger.warning(text)


def options() -> Any:
    """What this plugin can do beyond the minimum."""
    return api.DevicePluginOptions(get_preferred_allocation_available=True)


def _device(device: Offer) -> Any:
    topology = None if device.numa_node is None else api.TopologyInfo(nodes=[api.NUMANode(ID=device.numa_node)])
    return api.Device(ID=device.uuid, health="Healthy" if device.healthy else "Unhealthy", topology=topology)


def _identity(path: Path) -> tuple[int, ...] | None:
    """What tells a file from another one that took its name; an inode's number alone is soon used again."""
    try:
        stat = os.stat(path)
    except OSError:
        return None
    return stat.st_dev, stat.st_ino, stat.st_ctime_ns
