"""The node's ResourceSlice: one pool of the node's name, whose generation grows with each change."""

from __future__ import annotations

import hashlib
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import aclosing
from typing import Any

from uellm.hardware import DRA_DRIVER
from uellm.kube import DELETED, NODE, RESOURCESLICE, Kube, NotFound
from uellm.profiler.dra.devices import PublishedDevice

MANAGER = "uellm-dra-driver"
SIMULATED_LABEL = "uellm.io/simulated"
_CONTENT = "uellm.io/content"
"""Digest of the devices: the API server writes quantities in its own way."""


class NodeSlice:
    """One node's ResourceSlice. Every method raises KubeError."""

    def __init__(self, kube: Kube, node: str) -> None:
        self._kube = kube
        self._node = node
        self.name = f"{node}-{DRA_DRIVER}"

    async def publish(self, devices: Sequence[PublishedDevice]) -> bool:
        """Make the slice hold these devices; false if it does already. Without devices there is no slice."""
        there = await self._kube.get(RESOURCESLICE, self.name)
        if not devices:
            return there is not None and await self.remove()
        content = _digest(devices)
        if there is not None and _annotations(there).get(_CONTENT) == content:
            return False
        generation = 1 if there is None else there["spec"]["pool"]["generation"] + 1
        await self._kube.apply(await self._object(devices, generation, content), manager=MANAGER)
        return True

    async def remove(self) -> bool:
        """Remove the slice: nothing more can be allocated on the node."""
        return await self._kube.delete(RESOURCESLICE, self.name)

    async def deletions(self) -> AsyncIterator[None]:
        """Yield each time somebody deletes it: a kubelet that starts does, until the driver has registered."""
        events = self._kube.watch(RESOURCESLICE, field_selector=f"metadata.name={self.name}")
        async with aclosing(events):
            async for event in events:
                if event.type == DELETED:
                    yield None

    async def _object(self, devices: Sequence[PublishedDevice], generation: int, content: str) -> dict[str, Any]:
        node = await self._kube.get(NODE, self._node)
        if node is None:
            raise NotFound(404, "NotFound", f"the cluster has no node {self._node!r}: check --node")
        owner = {"apiVersion": "v1", "kind": "Node", "name": self._node, "uid": node["metadata"]["uid"]}
        return {
            "apiVersion": RESOURCESLICE.api_version,
            "kind": RESOURCESLICE.kind,
            "metadata": {
                "name": self.name,
                "labels": {"app.kubernetes.io/managed-by": "uellm", SIMULATED_LABEL: "true"},
                "annotations": {_CONTENT: content},
                # It is deleted with its node.
                "ownerReferences": [{**owner, "controller": True}],
            },
            "spec": {
                "driver": DRA_DRIVER,
                "nodeName": self._node,
                "pool": {"name": self._node, "generation": generation, "resourceSliceCount": 1},
                "devices": [device.to_dict() for device in devices],
            },
        }


def _annotations(slice_: Mapping[str, Any]) -> Mapping[str, str]:
    return slice_["metadata"].get("annotations") or {}


def _digest(devices: Sequence[PublishedDevice]) -> str:
    text = json.dumps([device.to_dict() for device in devices], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
