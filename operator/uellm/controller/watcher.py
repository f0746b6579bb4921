"""What each event of the cluster makes dirty. It fills the cache and marks keys; it decides nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from uellm.kube import DELETED
from uellm.kube.kinds import GPUNODEPROFILE, LLMSERVICE, NODE, POD, Kind
from uellm.reconcile.cache import Cache
from uellm.reconcile.names import Key, key_of, possible_owners

# Profiles come in bursts (a start of the profilers, a pod that takes four devices); one look after the burst will do.
SETTLE_S = 1.0

Mark = Callable[[Key, float], None]


class Watcher:
    """Hears events; `waiting` names the services that wait for GPUs of others."""

    def __init__(self, cache: Cache, mark: Mark, waiting: Callable[[], list[Key]]) -> None:
        self._cache = cache
        self._mark = mark
        self._waiting = waiting

    def heard(self, kind: Kind, event: str | None, obj: Mapping[str, Any]) -> None:
        """One event: `event` is DELETED, or anything else for an object that is there."""
        if kind == GPUNODEPROFILE:
            self._heard_profile(event, obj)
        elif kind == NODE:
            self._heard_node(event, obj)
        elif kind == LLMSERVICE:
            self._heard_service(event, obj)
        else:
            self._heard_child(kind, event, obj)

    def mark_all(self, after_s: float = 0.0) -> None:
        """Every service is to be looked at."""
        for key in self._cache.service_keys():
            self._mark(key, after_s)

    def _heard_profile(self, event: str | None, obj: Mapping[str, Any]) -> None:
        before = self._cache.fleet()
        self._keep(GPUNODEPROFILE, event, obj)
        # A profile is written every few seconds; what a plan depends on changes seldom.
        if self._cache.fleet() != before:
            self.mark_all(SETTLE_S)

    def _heard_node(self, event: str | None, obj: Mapping[str, Any]) -> None:
        name = obj["metadata"]["name"]
        before = _marks(self._cache.node(name))
        self._keep(NODE, event, obj)
        # Its status changes every few seconds; labels, taints and cordons seldom do.
        if _marks(self._cache.node(name)) != before and self._cache.get(GPUNODEPROFILE, name) is not None:
            self.mark_all(SETTLE_S)

    def _heard_service(self, event: str | None, obj: Mapping[str, Any]) -> None:
        key = key_of(obj)
        before = self._cache.service(key)
        self._keep(LLMSERVICE, event, obj)
        self._mark(key, 0.0)
        after = self._cache.service(key)
        if before is not None and (after is None or _generation(after) != _generation(before)):
            self._others_may_fit()

    def _heard_child(self, kind: Kind, event: str | None, obj: Mapping[str, Any]) -> None:
        self._keep(kind, event, obj)
        # Also where the cache knew it already, out of the answer to a write of ours: that pass had not seen it.
        for owner in possible_owners(obj):
            if self._cache.service(owner) is not None:
                self._mark(owner, 0.0)
        if kind == POD and event == DELETED:
            self._others_may_fit()

    def _keep(self, kind: Kind, event: str | None, obj: Mapping[str, Any]) -> None:
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
