"""The node's GPUNodeProfile: read, write, and watch for its deletion; labels and Events on the node."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import aclosing, asynccontextmanager
from datetime import UTC, datetime
from typing import Any

from uellm.hardware import DRA_DRIVER
from uellm.kube import DELETED, GPUNODEPROFILE, NODE, POD, RESOURCESLICE, Forbidden, Kube, NotFound, Unavailable
from uellm.profiler.events import Turn, event

MANAGER = "uellm-profiler"
CALL_TIMEOUT_S = 20.0
"""Shorter than the client's own timeout, so that work resumes soon after a silent API server is back."""


class Store:
    """One node's profile. Every method raises KubeError."""

    def __init__(self, kube: Kube, node: str) -> None:
        self._kube = kube
        self._node = node
        self._there = False

    async def read(self) -> dict[str, Any]:
        """The status that this or an earlier process wrote last; empty if there is none."""
        async with _in_time():
            profile = await self._kube.get(GPUNODEPROFILE, self._node)
        return (profile or {}).get("status") or {}

    async def pods(self) -> list[dict[str, Any]]:
        """The node's pods."""
        async with _in_time():
            return await self._kube.list(POD, field_selector=f"spec.nodeName={self._node}")

    async def profilers(self, namespace: str, labels: str) -> list[dict[str, Any]]:
        """The pods of all profilers: those in a namespace with these labels, `key=value,...`."""
        async with _in_time():
            return await self._kube.list(POD, namespace, label_selector=labels, cached=True)

    async def published(self) -> frozenset[str]:
        """UUIDs of the GPUs that NVIDIA's DRA driver hands out on the node; none on a server that knows no DRA."""
        async with _in_time():
            try:
                slices = await self._kube.list(RESOURCESLICE, field_selector=f"spec.nodeName={self._node}")
            except (NotFound, Forbidden):
                return frozenset()
        devices = [
            device
            for each in slices
            if each["spec"]["driver"] == DRA_DRIVER
            for device in each["spec"].get("devices") or ()
        ]
        uuids = [(device.get("attributes") or {}).get("uuid") or {} for device in devices]
        return frozenset(uuid["string"] for uuid in uuids if "string" in uuid)

    async def write(self, status: dict[str, Any]) -> None:
        """Write the status; create the object first if it may not exist."""
        async with _in_time():
            if not self._there:
                await self._kube.apply(await self._object(), manager=MANAGER)
                self._there = True
            try:
                await self._kube.apply_status({**self._head(), "status": status}, manager=MANAGER)
            except NotFound:
                self._there = False
                raise

    async def label(self, labels: Mapping[str, str]) -> None:
        """Make these the profiler's labels on its own node; others that it wrote before are removed."""
        node = {"apiVersion": NODE.api_version, "kind": NODE.kind, "metadata": {"name": self._node, "labels": labels}}
        async with _in_time():
            await self._kube.apply(node, manager=MANAGER)

    async def tell(self, turns: Iterable[Turn]) -> None:
        """Make an Event on the node for each change of a GPU's health."""
        async with _in_time():
            if (node := await self._kube.get(NODE, self._node)) is None:
                return
            for turn in turns:
                await self._kube.create(event(turn, node, datetime.now(UTC)))

    async def deletions(self) -> AsyncIterator[None]:
        """Yield each time the profile is deleted, without end."""
        events = self._kube.watch(GPUNODEPROFILE, field_selector=f"metadata.name={self._node}")
        async with aclosing(events):
            async for event in events:
                if event.type == DELETED:
                    self._there = False
                    yield None

    async def _object(self) -> dict[str, Any]:
        node = await self._kube.get(NODE, self._node)
        if node is None:
            raise NotFound(404, "NotFound", f"the cluster has no node {self._node!r}: check --node")
        owner = {"apiVersion": "v1", "kind": "Node", "name": self._node, "uid": node["metadata"]["uid"]}
        profile = self._head()
        profile["metadata"] |= {
            "labels": {"app.kubernetes.io/managed-by": "uellm"},
            # The profile is deleted with its node.
            "ownerReferences": [owner],
        }
        return profile

    def _head(self) -> dict[str, Any]:
        return {
            "apiVersion": GPUNODEPROFILE.api_version,
            "kind": GPUNODEPROFILE.kind,
            "metadata": {"name": self._node},
        }


@asynccontextmanager
async def _in_time() -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(CALL_TIMEOUT_S):
            yield
    except TimeoutError as error:
        raise Unavailable(0, "Timeout", f"no answer from the API server in {CALL_TIMEOUT_S:.0f} s") from error
