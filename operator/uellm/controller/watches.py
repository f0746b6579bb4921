"""Watches on every kind but LLMServices, which kopf watches; their events go to the Watcher."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import aclosing
from typing import Any

from uellm.controller.resync import label_selector
from uellm.controller.watcher import Watcher
from uellm.kube import LLMSERVICE, SYNCED, Event, Kind, Kube
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
        events = self._kube.watch(
            kind, label_selector=label_selector(kind), on_contact=lambda: self._watcher.on_contact(kind)
        )
        await follow(events, self._watcher, kind, self._synced[kind].set)


async def follow(
    events: AsyncGenerator[Event, None], watcher: Watcher, kind: Kind, on_synced: Callable[[], object]
) -> None:
    """Pass the events of a new watch on. `on_synced` is called after each list, when the watcher knows all of it."""
    before, listed, synced = watcher.known(kind), set[tuple[str, str]](), False
    async with aclosing(events):
        async for event in events:
            if event.type == SYNCED:
                if not synced:
                    watcher.on_listed(kind, listed, before)
                synced = True
                on_synced()
            else:
                if not synced:
                    listed.add(place_of(event.object))
                watcher.on_event(kind, event.type, event.object)
