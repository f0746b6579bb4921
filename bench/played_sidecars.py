"""Sidecars of kwok's pods, played by this process: they report that they run what they should.

kwok's pods answer nobody, and the operator asks pods that do not answer again and again, which a cluster that works
never costs. Each pod has a loopback address of its own, on which its sidecar is played.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

from uellm.api.names import SERVICE_LABEL
from uellm.api.running_report import RunningReport
from uellm.api.sidecar_document import content_digest
from uellm.kube import CONFIGMAP, DELETED, POD, SYNCED, Kube
from uellm.placement_report import BoundDevice, PlacementReport
from uellm.pod_interface import METRICS_PORT, PLACEMENT_PATH, RUNNING_PATH, SIDECAR_FILE
from uellm.reconcile.names import config_name, revision_label


class PlayedSidecars:
    """The sidecars of every engine's pod of a namespace."""

    def __init__(self, kube: Kube, namespace: str) -> None:
        self._kube = kube
        self._namespace = namespace
        self._pods: dict[str, Mapping[str, Any]] = {}
        """By address."""
        self._digests: dict[str, str] = {}
        """Of sidecar.yaml, by the ConfigMap's name."""
        self._servers: dict[str, asyncio.Server] = {}

    @asynccontextmanager
    async def played(self) -> AsyncIterator[None]:
        """Play them for as long as the block runs."""
        tasks = [asyncio.create_task(each) for each in (self._follow_pods(), self._follow_configmaps())]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            for server in self._servers.values():
                server.close()

    async def _follow_pods(self) -> None:
        async for event in self._kube.watch(POD, namespace=self._namespace, label_selector=SERVICE_LABEL):
            if event.type == SYNCED:
                continue
            address = (event.object.get("status") or {}).get("podIP")
            if event.type == DELETED or not address:
                continue  # its address may be another pod's by now
            self._pods[address] = event.object
            if address not in self._servers:
                self._servers[address] = await asyncio.start_server(self._answer, address, METRICS_PORT)

    async def _follow_configmaps(self) -> None:
        async for event in self._kube.watch(CONFIGMAP, namespace=self._namespace, label_selector=SERVICE_LABEL):
            content = (event.object.get("data") or {}).get(SIDECAR_FILE)
            if content is not None:
                self._digests[event.object["metadata"]["name"]] = content_digest(content.encode())

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        address = writer.get_extra_info("sockname")[0]
        try:
            while head := (await reader.readuntil(b"\r\n\r\n")).decode():
                report = self._report(address, head.split(" ")[1])
                status, body = ("404 Not Found", b"") if report is None else ("200 OK", json.dumps(report).encode())
                writer.write(f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    def _report(self, address: str, path: str) -> dict[str, Any] | None:
        pod = self._pods[address]
        metadata, spec = pod["metadata"], pod["spec"]
        if path == RUNNING_PATH:
            digest = self._digests.get(config_name(metadata["labels"][SERVICE_LABEL]), "")
            return RunningReport(revision_label(pod), digest).to_dict()
        if path == PLACEMENT_PATH:
            device = BoundDevice(f"GPU-{spec['nodeName']}-0")
            return PlacementReport(
                pod=metadata["name"], node=spec["nodeName"], devices=(device,), layers=(1,), tensor=1, pipeline=1
            ).to_dict()
        return None
