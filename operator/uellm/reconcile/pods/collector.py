"""What the sidecars of running pods report: asked for when it is due, and kept until the pod is gone."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Generic, TypeVar

from uellm.reconcile.names import uid_of

Fetch = Callable[[str], Awaitable[Mapping[str, Any] | None]]
"""Pod IP -> the report, or None where there is none yet."""

T = TypeVar("T")


class Collector(ABC, Generic[T]):
    """The last report of each pod, by its uid. Subclasses say when a pod is asked."""

    def __init__(self, fetch: Fetch, clock: Callable[[], float]) -> None:
        self._fetch = fetch
        self._clock = clock
        self._known: dict[str, T] = {}
        self._asked_at_s: dict[str, float] = {}

    def of(self, pods: Sequence[Mapping[str, Any]]) -> dict[str, T]:
        """The reports of these pods, by uid."""
        return {uid: self._known[uid] for pod in pods if (uid := uid_of(pod)) in self._known}

    def keep(self, uids: set[str]) -> None:
        """Drop the reports of all pods but these."""
        for uid in self._asked_at_s.keys() - uids:
            self._drop(uid)

    async def _ask(self, pods: Sequence[Mapping[str, Any]]) -> None:
        """Ask these pods at the same time."""
        await asyncio.gather(*(self._ask_one(pod) for pod in pods))

    async def _ask_one(self, pod: Mapping[str, Any]) -> None:
        self._asked_at_s[uid_of(pod)] = self._clock()
        self._take(pod, await self._fetch(pod["status"]["podIP"]))

    @abstractmethod
    def _take(self, pod: Mapping[str, Any], document: Mapping[str, Any] | None) -> None:
        """Take note of a pod's answer; None: it gave none."""

    def _drop(self, uid: str) -> None:
        del self._asked_at_s[uid]
        self._known.pop(uid, None)
