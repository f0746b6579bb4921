"""Offers simulated GPUs through the kubelet's device-plugin API, as NVIDIA's plugin offers real ones.

kubelet.sock exists -> serve on a socket beside it -> Register -> the kubelet keeps a ListAndWatch call open
kubelet.sock replaced, our socket removed, or no call open: the kubelet was restarted -> begin again
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import grpc

from uellm.errors import BadInput
from uellm.hardware import GPU_RESOURCE, SIMULATED_DEVICES_VARIABLE, Device, Link
from uellm.planner.handover.device_facts import NO_FACTS, DeviceFacts, facts_among
from uellm.profiler.device_names import Names
from uellm.profiler.kubelet import deviceplugin_pb2 as api
from uellm.profiler.kubelet import deviceplugin_pb2_grpc as stubs
from uellm.profiler.podresources import CHANNEL_OPTIONS, Kubelet, KubeletSilent, Listed
from uellm.profiler.sample import NoGPUs, Sample

PLUGIN_DIR = "/var/lib/kubelet/device-plugins"
VISIBLE_DEVICES = "NVIDIA_VISIBLE_DEVICES"
API_VERSION = "v1beta1"
REGISTER_TIMEOUT_S = 15.0  # the kubelet dials back within the call, for up to 10 s
POLL_S = 1.0
CALL_BACK_S = 5.0
"""The kubelet calls ListAndWatch right after a registration; without a call for this long it has lost the plugin."""

logger = logging.getLogger(__name__)


class OfferedDevice(NamedTuple):
    """A device as the kubelet sees it."""

    uuid: str
    healthy: bool
    numa_node: int | None
    name: str = ""
    """What the kubelet calls it; empty: its UUID. A device that is lent to several pods has a name for each."""

    @property
    def id(self) -> str:
        """Its name at the kubelet."""
        return self.name or self.uuid


def offers(sample: Sample, resource: str = GPU_RESOURCE, claimed: Collection[str] = ()) -> tuple[OfferedDevice, ...]:
    """The devices of the extended resource `resource`, ordered by index.

    `claimed`: UUIDs of those that pods have through a DRA driver; these can be allocated no second time.
    """
    devices = sorted(sample.devices, key=lambda device: (device["index"], device["uuid"]))
    return tuple(
        OfferedDevice(
            device["uuid"],
            (device.get("health") or {}).get("state", "Healthy") == "Healthy" and device["uuid"] not in claimed,
            device["numaNode"] if device.get("numaNode", -1) >= 0 else None,
            name,
        )
        for device in devices
        for name in sample.plugin_names.of(device)
        if device.get("resourceName", GPU_RESOURCE) == resource
    )


def preferred(
    devices: Sequence[OfferedDevice], available: Sequence[str], required: Sequence[str], size: int
) -> list[str]:
    """The `size` devices to allocate: the required ones, then devices of one NUMA node, the fullest with enough.

    Allocating from the fullest node leaves whole nodes to larger requests. Ties go to the lower node; within a node
    devices are taken by index.
    """
    order = {device.id: position for position, device in enumerate(devices)}
    numa = {device.id: device.numa_node for device in devices}
    near = {numa.get(name) for name in required}
    rest = sorted(set(available) - set(required), key=lambda name: (order.get(name, len(order)), name))
    missing = size - len(required)
    groups: dict[int | None, list[str]] = {}
    for name in rest:
        groups.setdefault(numa.get(name), []).append(name)
    fitting = [node for node, group in groups.items() if len(group) >= missing and (not required or node in near)]
    if fitting:
        first = min(fitting, key=lambda node: (len(groups[node]), -1 if node is None else node))
        rest = groups[first]
    return [*required, *rest[:missing]]


class Servicer(stubs.DevicePluginServicer):
    """Answers the kubelet from `devices`. `streams`: its open calls of ListAndWatch.

    `facts`: what the devices are. A container is handed those of its own, because no driver could tell it.
    """

    def __init__(self) -> None:
        self.streams = 0
        self.facts = NO_FACTS
        self.devices: tuple[OfferedDevice, ...] = ()
        self._changed = asyncio.Event()

    def offer(self, devices: tuple[OfferedDevice, ...]) -> bool:
        """Offer these devices from now on; return whether they differ from the previous ones."""
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
        known = {device.id: device.uuid for device in self.devices}
        for one in request.container_requests:
            unknown = sorted(set(one.devices_ids) - known.keys())
            if unknown:
                await context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"no such device: {', '.join(unknown)}")
            logger.info("allocated %s", ",".join(one.devices_ids))
        answers = [
            # A container sees a GPU once, also where it has several shares of it.
            api.ContainerAllocateResponse(
                envs=self._environment(tuple(dict.fromkeys(known[each] for each in one.devices_ids)))
            )
            for one in request.container_requests
        ]
        return api.AllocateResponse(container_responses=answers)

    def _environment(self, uuids: tuple[str, ...]) -> dict[str, str]:
        facts = facts_among(uuids, self.facts.devices, self.facts.links)
        return {VISIBLE_DEVICES: ",".join(uuids), SIMULATED_DEVICES_VARIABLE: facts.to_json()}


class DevicePluginServer:
    """Serves and registers until cancelled; `run` then removes its socket."""

    def __init__(
        self,
        sample: Callable[[], Sample],
        *,
        plugin_dir: str | Path = PLUGIN_DIR,
        resource: str = GPU_RESOURCE,
        kubelet: Kubelet | None = None,
        poll_s: float = POLL_S,
    ) -> None:
        self._sample = sample
        self._pod_resources = kubelet
        self._claimed: frozenset[str] = frozenset()
        self._base_resource = resource
        self._resource = resource
        self._poll_s = poll_s
        self._kubelet = Path(plugin_dir) / "kubelet.sock"
        self._socket = Path(plugin_dir) / f"uellm-{resource.replace('/', '-')}.sock"
        self._servicer = Servicer()
        self._said = ""

    async def run(self) -> None:
        """Offer the devices. Raises BadInput if the description is bad at the start; later the last good one stays."""
        with suppress(NoGPUs):
            self._offer(self._sample())
        while True:
            await self._refresh()
            # Without devices nothing is registered: an empty offer would take the resource from another plugin.
            if self._servicer.devices:
                await self._offer_once()
            await asyncio.sleep(self._poll_s)

    async def _offer_once(self) -> None:
        kubelet = _identity(self._kubelet)
        if kubelet is None:
            self._say(f"no kubelet at {self._kubelet}; waiting for it")
            return
        async with self._serving() as own:
            resource = self._resource
            if await self._register():
                await self._while_registered(kubelet, own, resource)

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

    async def _while_registered(self, kubelet: tuple[int, ...], own: tuple[int, ...] | None, resource: str) -> None:
        loop = asyncio.get_running_loop()
        last_call = loop.time()
        while loop.time() - last_call < CALL_BACK_S:
            await self._refresh()
            await asyncio.sleep(self._poll_s)
            if self._resource != resource:
                logger.info("the devices have the resource %s now", self._resource)
                return
            if _identity(self._kubelet) != kubelet or _identity(self._socket) != own:
                break
            if self._servicer.streams:
                last_call = loop.time()
        logger.info("the kubelet has gone or was restarted")

    async def _refresh(self) -> None:
        try:
            sample = self._sample()
        except (BadInput, NoGPUs) as error:
            self._say(f"{error}; the offered devices stay" if self._servicer.devices else str(error))
            return
        if self._pod_resources is not None:
            with suppress(KubeletSilent):
                listed = await self._pod_resources.held()
                claims = {each: pod for each, pod in listed.devices.items() if each.claimed}
                self._claimed = frozenset(Names(sample).held(Listed(claims)).devices)
        if self._offer(sample):
            devices = self._servicer.devices
            logger.info("offering %d devices, %d healthy", len(devices), sum(device.healthy for device in devices))

    def _offer(self, sample: Sample) -> bool:
        self._servicer.facts = sample_facts(sample)
        self._resource = sample.plugin_names.resource(self._base_resource)
        return self._servicer.offer(offers(sample, self._base_resource, self._claimed))

    def _say(self, text: str) -> None:
        if text != self._said:
            self._said = text
            logger.warning(text)


def options() -> Any:
    """Options of this plugin: it supports preferred allocations."""
    return api.DevicePluginOptions(get_preferred_allocation_available=True)


def sample_facts(sample: Sample) -> DeviceFacts:
    """What the devices of a description are."""
    devices = [Device.from_dict(entry) for entry in sample.devices]
    return DeviceFacts({device.uuid: device for device in devices}, tuple(map(Link.from_dict, sample.links)))


def _device(device: OfferedDevice) -> Any:
    topology = None if device.numa_node is None else api.TopologyInfo(nodes=[api.NUMANode(ID=device.numa_node)])
    return api.Device(ID=device.id, health="Healthy" if device.healthy else "Unhealthy", topology=topology)


def _identity(path: Path) -> tuple[int, ...] | None:
    """Identity of a file; inode numbers alone are soon reused."""
    try:
        stat = os.stat(path)
    except OSError:
        return None
    return stat.st_dev, stat.st_ino, stat.st_ctime_ns
