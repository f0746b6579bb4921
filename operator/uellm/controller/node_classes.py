"""Keeps the status of every GPUNodeClass, and makes classes of nodes that were seen where that is asked for."""

from __future__ import annotations

import asyncio
import logging
from datetime import datetime

from uellm.kube import GPUNODECLASS, AlreadyExists, Kube, KubeError, NotFound
from uellm.reconcile.cache import Cache
from uellm.reconcile.names import MANAGER
from uellm.reconcile.planning.node_classes import with_nodes
from uellm.reconcile.reconciler import utc_now
from uellm.reconcile.status.node_classes import class_status, to_remember
from uellm.reconcile.times import timestamp

logger = logging.getLogger(__name__)

EVERY_S = 2.0
"""How often it looks whether nodes or classes have changed."""
RETRY_S = 30.0


class NodeClassKeeper:
    """Writes what is not as it should be. `remember`: make classes of the kinds of nodes that are seen."""

    def __init__(self, kube: Kube, cache: Cache, *, remember: bool) -> None:
        self._kube = kube
        self._cache = cache
        self._remember = remember
        self._seen: int | None = None

    async def keep(self) -> None:
        """Run until cancelled."""
        while True:
            version, wait_s = self._cache.hardware_version, EVERY_S
            if version != self._seen:
                done = await self.step(utc_now())
                self._seen, wait_s = (version, EVERY_S) if done else (self._seen, RETRY_S)
            await asyncio.sleep(wait_s)

    async def step(self, now: datetime) -> bool:
        """Write what differs. False where the API server did not take it; it is tried again."""
        nodes = with_nodes(self._cache.profiled_nodes(), self._cache.node)
        classes = self._cache.node_classes()
        try:
            for document in to_remember(nodes, classes) if self._remember else ():
                await self._create(document)
            for each in classes:
                await self._write(each.name, now)
        except KubeError as error:
            logger.warning("GPUNodeClasses: %s", error)
            return False
        return True

    async def _create(self, document: dict[str, object]) -> None:
        try:
            await self._kube.create(document)
        except AlreadyExists:
            return  # somebody else's class of this name stays as it is

    async def _write(self, name: str, now: datetime) -> None:
        document = self._cache.get(GPUNODECLASS, name)
        each = next((known for known in self._cache.node_classes() if known.name == name), None)
        if document is None or each is None:
            return
        before = document.get("status") or {}
        nodes = with_nodes(self._cache.profiled_nodes(), self._cache.node)
        generation = int(document["metadata"].get("generation") or 0)
        status = class_status(each, nodes, before, generation=generation, now=timestamp(now))
        if status == before:
            return
        identity = {"apiVersion": document["apiVersion"], "kind": document["kind"], "metadata": {"name": name}}
        try:
            await self._kube.apply_status({**identity, "status": status}, manager=MANAGER)
        except NotFound:
            return  # it was deleted meanwhile
