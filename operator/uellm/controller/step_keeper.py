"""Keeps the ConfigMap of measured step times: reads it at the start, and writes what is new once a minute."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from typing import Any

from uellm.kube import Kube, KubeError
from uellm.kube.kinds import CONFIGMAP
from uellm.reconcile.names import MANAGER
from uellm.reconcile.step_times.store import CONFIGMAP_NAME, FILE, StepStore

logger = logging.getLogger(__name__)

EVERY_S = 60.0


class StepKeeper:
    """Brings a store and its ConfigMap in one namespace together."""

    def __init__(self, kube: Kube, store: StepStore, namespace: str) -> None:
        self._kube = kube
        self._store = store
        self._namespace = namespace

    async def keep(self) -> None:
        """Run until cancelled."""
        while True:
            await asyncio.sleep(EVERY_S)
            await self.step()

    async def step(self) -> bool:
        """Take over what a person changed, then write what is new. False where the API server did not answer."""
        try:
            configmap = await self._kube.get(CONFIGMAP, CONFIGMAP_NAME, self._namespace)
            self._store.adopt(_content(configmap))
            if not self._store.is_written:
                await self._write(self._store.text())
        except KubeError as error:
            logger.warning("ConfigMap %s/%s: %s", self._namespace, CONFIGMAP_NAME, error)
            return False
        return True

    async def _write(self, text: str) -> None:
        metadata = {"name": CONFIGMAP_NAME, "namespace": self._namespace}
        document = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": {FILE: text}}
        await self._kube.apply(document, manager=MANAGER)
        self._store.written(text)


def _content(configmap: Mapping[str, Any] | None) -> str:
    return str(((configmap or {}).get("data") or {}).get(FILE) or "")
