"""Watches on every kind but LLMServices, which kopf watches; their events go to the Watcher."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import aclosing
from typing import Any

from uellm.controller.resync import label_selector
from uellm.controller.rights import lacking
from uellm.controller.watcher import Watcher
from uellm.kube import LLMSERVICE, SYNCED, Event, Forbidden, Kind, Kube
from uellm.reconcile.cache import WATCHED_KINDS, place_of

KOPFS_KINDS = (LLMSERVICE,)
OWN_KINDS = tuple(kind for kind in WATCHED_KINDS if kind not in KOPFS_KINDS)


FORBIDDEN_S = 60.0
"""A right that was just granted takes effect within seconds."""


class Watches:
    """One watch a kind. They end only when they are cancelled, or where the operator lacks a right from the start."""

    def __init__(self, kube: Kube, watcher: Watcher, *, forbidden_s: float = FORBIDDEN_S) -> None:
        self._forbidden_s = forbidden_s
        self._kube = kube
        self._watcher = watcher
        self._synced = {kind: asyncio.Event() for kind in OWN_KINDS}

    async def synced(self) -> None:
        """Wait until every kind has been listed once."""
        for each in self._synced.values():
            await each.wait()

    def follow(self) -> list[Coroutine[Any, Any, None]]:
        """The watches, to be run at the same time. Each raises CannotBeDone where its kind stays forbidden."""
        return [self._follow(kind) for kind in OWN_KINDS]

    async def _follow(self, kind: Kind) -> None:
        events = self._kube.watch(
            kind,
            label_selector=label_selector(kind),
            on_contact=lambda: self._watcher.on_contact(kind),
            forbidden_s=self._forbidden_s,
        )
        try:
            await follow(events, self._watcher, kind, self._synced[kind].set)
        except Forbidden as error:
            raise lacking(kind, error) from error


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
