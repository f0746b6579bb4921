"""Registers the driver at the kubelet, publishes the node's devices, and keeps both current until cancelled.

plugins_registry/<driver>-reg.sock  the kubelet finds it, also after its own restart, and asks for the other:
plugins/<driver>/dra.sock           prepare and unprepare
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import grpc

from uellm.errors import BadInput
from uellm.hardware import DRA_DRIVER
from uellm.kube import KubeError
from uellm.profiler.dra.devices import PublishedDevice
from uellm.profiler.dra.driver import DraServicer
from uellm.profiler.dra.slice import NodeSlice
from uellm.profiler.kubelet import dra_pb2_grpc, pluginregistration_pb2, pluginregistration_pb2_grpc
from uellm.profiler.podresources import KubeletSilent
from uellm.profiler.sample import NoGPUs, Sample

KUBELET_DIRECTORY = "/var/lib/kubelet"
PLUGIN_TYPE = "DRAPlugin"
SERVICE_VERSION = "v1.DRAPlugin"
POLL_S = 1.0

logger = logging.getLogger(__name__)


class RegistrationServicer(pluginregistration_pb2_grpc.RegistrationServicer):
    """Tells the kubelet what this plugin is."""

    def __init__(self, endpoint: Path) -> None:
        self._endpoint = endpoint

    async def GetInfo(self, request: Any, context: Any) -> Any:  # noqa: D102, N802
        return pluginregistration_pb2.PluginInfo(
            type=PLUGIN_TYPE, name=DRA_DRIVER, endpoint=str(self._endpoint), supported_versions=[SERVICE_VERSION]
        )

    async def NotifyRegistrationStatus(self, request: Any, context: Any) -> Any:  # noqa: D102, N802
        if request.plugin_registered:
            logger.info("registered %s at the kubelet; its GPUs are simulated", DRA_DRIVER)
        else:
            logger.warning("the kubelet does not register %s: %s", DRA_DRIVER, request.error)
        return pluginregistration_pb2.RegistrationStatusResponse()


class DraServer:
    """Serves, registers and publishes until cancelled; `run` then removes its sockets and the slice."""

    def __init__(
        self,
        sample: Callable[[], Sample],
        servicer: DraServicer,
        node_slice: NodeSlice,
        *,
        kubelet_directory: str | Path = KUBELET_DIRECTORY,
        poll_s: float = POLL_S,
    ) -> None:
        self._sample = sample
        self._servicer = servicer
        self._slice = node_slice
        self._poll_s = poll_s
        self._socket = Path(kubelet_directory) / "plugins" / DRA_DRIVER / "dra.sock"
        self._registration = Path(kubelet_directory) / "plugins_registry" / f"{DRA_DRIVER}-reg.sock"
        self._changed = asyncio.Event()
        self._said: dict[str, str] = {}

    async def run(self) -> None:
        """Offer the devices. Raises BadInput if the description is bad at the start; later the last good one stays."""
        with suppress(NoGPUs):
            self._servicer.sample = self._sample()
        async with AsyncExitStack() as stack:
            # In this order: the kubelet calls as soon as it finds the second.
            await stack.enter_async_context(
                _serving(self._socket, dra_pb2_grpc.add_DRAPluginServicer_to_server, self._servicer)
            )
            await stack.enter_async_context(
                _serving(
                    self._registration,
                    pluginregistration_pb2_grpc.add_RegistrationServicer_to_server,
                    RegistrationServicer(self._socket),
                )
            )
            try:
                async with asyncio.TaskGroup() as tasks:
                    for loop in (self._observe, self._publish, self._watch):
                        tasks.create_task(loop())
            except ExceptionGroup as group:
                raise group.exceptions[0] from None
            finally:
                with suppress(KubeError):
                    await self._slice.remove()

    async def _observe(self) -> None:
        before: tuple[PublishedDevice, ...] | None = None
        while True:
            self._refresh()
            try:
                await self._servicer.look()
            except KubeletSilent as error:
                self._say("kubelet", str(error))
            else:
                self._said.pop("kubelet", None)
                # Nothing is published before it is known what pods have.
                if (devices := self._servicer.devices()) != before:
                    self._changed.set()
                before = devices
            await asyncio.sleep(self._poll_s)

    async def _publish(self) -> None:
        await self._changed.wait()
        while True:
            self._changed.clear()
            devices = self._servicer.devices()
            try:
                if await self._slice.publish(devices):
                    names = " ".join(device.name for device in devices)
                    logger.info("published %d simulated GPUs: %s", len(devices), names)
                self._said.pop("slice", None)
            except KubeError as error:
                self._say("slice", f"the ResourceSlice is not written: {error}")
                await asyncio.sleep(self._poll_s)
            else:
                await self._changed.wait()

    async def _watch(self) -> None:
        await self._changed.wait()
        async for _ in self._slice.deletions():
            self._changed.set()

    def _refresh(self) -> None:
        try:
            self._servicer.sample = self._sample()
        except (BadInput, NoGPUs) as error:
            self._say("description", f"{error}; the published devices stay")
        else:
            self._said.pop("description", None)

    def _say(self, about: str, text: str) -> None:
        if self._said.get(about) != text:
            self._said[about] = text
            logger.warning(text)


@asynccontextmanager
async def _serving(socket: Path, add: Callable[[Any, grpc.aio.Server], None], servicer: Any) -> AsyncIterator[None]:
    """Serve on a socket. The kubelet notices that a file is made anew, so an old one is removed first."""
    os.makedirs(socket.parent, exist_ok=True)
    with suppress(FileNotFoundError):
        os.unlink(socket)
    server = grpc.aio.server()
    add(servicer, server)
    server.add_insecure_port(f"unix:{socket}")
    await server.start()
    try:
        yield
    finally:
        with suppress(FileNotFoundError):
            os.unlink(socket)
        await server.stop(grace=None)
