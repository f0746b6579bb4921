"""Watches a kind of another project, which may not be installed, and may be installed or removed at any time."""

from __future__ import annotations

import asyncio
import logging

from uellm.controller.resync import label_selector
from uellm.controller.watcher import Watcher
from uellm.controller.watches import follow
from uellm.kube import Forbidden, Kind, Kube, NotFound
from uellm.reconcile.cache import Cache
from uellm.reconcile.optional_kinds import Availability

logger = logging.getLogger(__name__)

LOOK_S = 5.0
"""How often a kind that is not there is looked for."""


class OptionalWatch:
    """The watch of one kind. kopf's would end the operator, or log the same error for ever."""

    def __init__(self, kube: Kube, cache: Cache, watcher: Watcher, kind: Kind, *, look_s: float = LOOK_S) -> None:
        self._kube = kube
        self._cache = cache
        self._watcher = watcher
        self._kind = kind
        self._look_s = look_s

    async def keep(self) -> None:
        """Run until cancelled."""
        while True:
            try:
                await self._watch()
            except NotFound:
                self._found(Availability.NOT_INSTALLED)
            except Forbidden:
                self._found(Availability.FORBIDDEN)
            await asyncio.sleep(self._look_s)

    async def _watch(self) -> None:
        events = self._kube.watch(self._kind, label_selector=label_selector(self._kind), optional=True)
        await follow(events, self._watcher, self._kind, lambda: self._found(Availability.SERVED))

    def _found(self, availability: Availability) -> None:
        if self._cache.available[self._kind] is availability:
            return
        logger.info("%s of %s: %s", self._kind.plural, self._kind.api_version, availability.value)
        self._cache.available[self._kind] = availability
        if availability is not Availability.SERVED:
            self._cache.replace(self._kind, (), before=self._cache.snapshot(self._kind))
        self._watcher.mark_all()
