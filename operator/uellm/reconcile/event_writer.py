"""Creates Events. Nobody waits for one, so they may be created when nothing else is to be written."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from typing import Any

import msgspec

from uellm.kube import Fenced, Kube, KubeError
from uellm.kube.slots import Priority, requests
from uellm.reconcile.names import Key

logger = logging.getLogger(__name__)

MOST_WAITING = 20_000
"""More than this are dropped; each takes about 1 KiB, as text."""
FENCED_S = 1.0
"""Between two tries to create an Event while the lease is in doubt."""


class EventWriter:
    """Creates Events at once; with `later`, when nothing else is to be written, which `keep` has to run for."""

    def __init__(self, kube: Kube, *, later: bool = False) -> None:
        self._kube = kube
        self._waiting: asyncio.Queue[tuple[Key, bytes]] | None = None
        if later:
            self._waiting = asyncio.Queue(MOST_WAITING)

    async def write(self, about: Key, event: Mapping[str, Any]) -> None:
        """Create an Event about a service. A pass does not fail because it cannot be created."""
        if self._waiting is None:
            await self._try(about, event)
            return
        try:
            self._waiting.put_nowait((about, msgspec.json.encode(event)))
        except asyncio.QueueFull:
            logger.warning("%s no Event created: %d wait already", about, MOST_WAITING)

    async def keep(self) -> None:
        """Create those that wait, in their order, until cancelled. They also wait until we surely hold the lease."""
        assert self._waiting is not None, "Events are created at once"
        with requests(Priority.LATER):
            while True:
                about, text = await self._waiting.get()
                event = msgspec.json.decode(text)
                while not await self._try(about, event):  # noqa: ASYNC110 - nobody tells when the lease is sure again
                    await asyncio.sleep(FENCED_S)

    async def _try(self, about: Key, event: Mapping[str, Any]) -> bool:
        """Whether no further try is of use: it is created, or cannot be."""
        try:
            await self._kube.create(event)
        except Fenced:
            return False
        except KubeError as error:
            logger.warning("%s no Event created: %s", about, error)
        return True
