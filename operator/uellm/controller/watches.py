"""Watches on every kind but LLMServices, which kopf watches; their events go to the Watcher."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from contextlib import aclosing
from typing import Any

from uellm.controller.resync import label_selector
from uellm.controller.watcher import Watcher
from uellm.kube import LLMSERVICE, SYNCED, Kind, Kube
from uellm.reconcile.cache import WATCHED_KINDS, place_of

KOPFS_KINDS = (LLMSERVICE,)
OWN_KINDS = tuple(kind for kind in WATCHED_KINDS if kind not in KOPFS_KINDS)


class Watches:
    """One watch a kind. They end only when they are cancelled."""

    def __init__(self, kube: Kube, watcher: Watcher) -> None:
        self._kube = kube
        self._watcher = watcher
        self._synced = {kind: asyncio.Event() for kind in OWN_KINDS}

    async def synced(self) -> None:
        """Wait until every kind has been listed once."""
        for each in self._synced.values():
            await each.wait()

    def follow(self) -> list[Coroutine[Any, Any, None]]:
        """The watches, to be run at the same time."""
        return [self._follow(kind) for kind in OWN_KINDS]

    async def _follow(self, kind: Kind) -> None:
        before, listed = self._watcher.known(kind), set[tuple[str, str]]()
        events = self._kube.watch(
            kind, label_selector=label_selector(kind), on_contact=lambda: self._watcher.on_contact(kind)
        )
        async with aclosing(events):
            async for event in events:
                if event.type == SYNCED:
                    self._watcher.on_listed(kind, listed, before)
                    self._synced[kind].set()
                else:
                    if not self._synced[kind].is_set():
                        listed.add(place_of(event.object))
                    self._watcher.on_event(kind, event.type, event.object)
