"""Turns events of the cluster into cache updates and keys to reconcile. It makes no decisions."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping
from typing import Any

from uellm.controller.queue import FIRST
from uellm.kube import DELETED
from uellm.kube.kinds import (
    DEVICECLASS,
    GPUNODECLASS,
    GPUNODEPROFILE,
    LLMSERVICE,
    NODE,
    POD,
    RESOURCECLAIM,
    RESOURCESLICE,
    Kind,
)
from uellm.reconcile.cache import WATCHED_KINDS, Cache
from uellm.reconcile.names import Key, key_of, possible_owners
from uellm.reconcile.stored import Stored

# Profiles change in bursts (profilers start, a pod takes four devices): one pass after the burst is enough.
SETTLE_S = 1.0

Mark = Callable[[Key, float], None]


class Watcher:
    """Receives events. `waiting` lists the services that wait for GPUs of others."""

    def __init__(
        self, cache: Cache, mark: Mark, waiting: Callable[[], list[Key]], *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._cache = cache
        self._mark = mark
        self._waiting = waiting
        self._clock = clock
        self._heard_s: dict[Kind, float] = {}
        self._generations: dict[Key, Any] = {}
        """Of each service, as the last event had it. The cache may have learned of a change before, from the answer to
        a write of our own."""

    def on_event(self, kind: Kind, event: str | None, obj: Mapping[str, Any]) -> None:
        """One event. `event` is DELETED, or anything else for an object that exists."""
        self._heard_s[kind] = self._clock()
        if kind == GPUNODEPROFILE:
            self._on_profile(event, obj)
        elif kind == GPUNODECLASS:
            self._on_node_class(event, obj)
        elif kind == NODE:
            self._on_node(event, obj)
        elif kind == LLMSERVICE:
            self._on_service(event, obj)
        elif kind in (DEVICECLASS, RESOURCESLICE):
            self._on_published(kind, event, obj)
        elif kind == RESOURCECLAIM:
            self._on_claim(event, obj)
        else:
            self._on_child(kind, event, obj)

    def known(self, kind: Kind) -> Mapping[tuple[str, str], Stored]:
        """What is known of a kind before a watch lists it."""
        return self._cache.snapshot(kind)

    def on_listed(
        self, kind: Kind, listed: Collection[tuple[str, str]], before: Mapping[tuple[str, str], Stored]
    ) -> None:
        """The first list of a watch is complete: what was known before and is not on it has vanished."""
        for place, known in before.items():
            if place not in listed and self._cache.still_has(kind, place, known):
                self.on_event(kind, DELETED, known.object)

    def on_contact(self, kind: Kind) -> None:
        """The API server has said something about a kind, if only that nothing has changed."""
        self._heard_s[kind] = self._clock()

    def on_lists(self) -> None:
        """The cache was filled by full lists of every kind."""
        self._heard_s = dict.fromkeys(WATCHED_KINDS, self._clock())

    def ages_s(self) -> dict[str, float]:
        """Seconds since the last sign of life or full list, by kind."""
        return {kind.plural: self._clock() - at_s for kind, at_s in self._heard_s.items()}

    def mark_all(self, after_s: float = 0.0) -> None:
        """Let every service be reconciled."""
        for key in self._cache.service_keys():
            self._mark(key, after_s)

    def _on_profile(self, event: str | None, obj: Mapping[str, Any]) -> None:
        name = obj["metadata"]["name"]
        before = self._cache.profiled_node(name)
        self._store(GPUNODEPROFILE, event, obj)
        after = self._cache.profiled_node(name)
        # A profile is written every few seconds, but what a plan depends on seldom changes.
        if before is None or after is None or before.facts != after.facts:
            if before is not after:
                self.mark_all(SETTLE_S)
        elif not before.holders.items() <= after.holders.items():
            # A GPU was freed, or went from one pod to another. One that was taken makes room for nobody.
            self._others_may_fit()

    def _on_node_class(self, event: str | None, obj: Mapping[str, Any]) -> None:
        before = self._cache.get(GPUNODECLASS, obj["metadata"]["name"])
        self._store(GPUNODECLASS, event, obj)
        after = self._cache.get(GPUNODECLASS, obj["metadata"]["name"])
        # Of a class, only the spec is planned on; its status is the operator's own.
        if (before or {}).get("spec") != (after or {}).get("spec"):
            self.mark_all(SETTLE_S)

    def _on_node(self, event: str | None, obj: Mapping[str, Any]) -> None:
        name = obj["metadata"]["name"]
        before = _marks(self._cache.node(name))
        self._store(NODE, event, obj)
        # A node's status is written every few seconds, but labels and taints seldom change.
        if _marks(self._cache.node(name)) != before and self._cache.get(GPUNODEPROFILE, name) is not None:
            self.mark_all(SETTLE_S)

    def _on_published(self, kind: Kind, event: str | None, obj: Mapping[str, Any]) -> None:
        before = self._cache.hardware_version
        self._store(kind, event, obj)
        if self._cache.hardware_version != before:
            self.mark_all(SETTLE_S)

    def _on_claim(self, event: str | None, obj: Mapping[str, Any]) -> None:
        before = self._cache.room_version
        self._on_child(RESOURCECLAIM, event, obj)
        if self._cache.room_version != before:
            self._others_may_fit()

    def _on_service(self, event: str | None, obj: Mapping[str, Any]) -> None:
        key = key_of(obj)
        cached = self._cache.service(key)
        before = self._generations.pop(key, None if cached is None else _generation(cached))
        self._store(LLMSERVICE, event, obj)
        after = self._cache.service(key)
        if after is not None:
            self._generations[key] = _generation(obj)
        # A pass may have found that it is gone, and dropped it from the cache, before this event came.
        gone = event == DELETED and after is None
        changed = gone or (before is not None and before != _generation(obj))
        # What a person has just changed waits for no resync and no cold start.
        self._mark(key, FIRST if changed else 0.0)
        if changed:
            self._others_may_fit()

    def _on_child(self, kind: Kind, event: str | None, obj: Mapping[str, Any]) -> None:
        self._store(kind, event, obj)
        # Even if the cache had it already from the answer to our own write: the pass that wrote it had not seen it.
        for owner in possible_owners(obj):
            if self._cache.has_service(owner):
                self._mark(owner, 0.0)
        if kind == POD and event == DELETED:
            self._others_may_fit()

    def _store(self, kind: Kind, event: str | None, obj: Mapping[str, Any]) -> None:
        if event == DELETED:
            self._cache.remove(kind, obj)
        else:
            self._cache.put(kind, obj)

    def _others_may_fit(self) -> None:
        for key in self._waiting():
            self._mark(key, SETTLE_S)


def _marks(node: Mapping[str, Any] | None) -> Any:
    return None if node is None else (node["metadata"].get("labels"), node["spec"])


def _generation(service: Mapping[str, Any]) -> Any:
    return service["metadata"].get("generation"), service["metadata"].get("deletionTimestamp")
