"""Services whose pods the API server has refused for a minute. What no pod can take is promised to nobody.

A Deployment tells of a refusal. A LeaderWorkerSet does not, so its pods count as refused where they are not there.

A pod that ends may be what the quota still counted, as in a rollout in place. Kubernetes tries to make the next one
after about as long as it has been refused. So whenever a pod goes, the minute begins anew, and that time is added. That
ends where as many are there again as before: what is lacking then was refused already.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import NamedTuple

from uellm.kube.kinds import LEADERWORKERSET
from uellm.reconcile.names import Key, uid_of
from uellm.reconcile.observe import Observed
from uellm.reconcile.pods.refusal import PATIENCE, pods_refused
from uellm.reconcile.stored import Object

LONGEST_RETRY = timedelta(seconds=1000)
"""Between two tries of Kubernetes' own controllers."""


class _Shortfall(NamedTuple):
    """Pods that are lacking beside others."""

    first: datetime
    """When they began to lack."""
    since: datetime
    """When one of the others went last that none has followed."""
    pods: frozenset[str]
    """The others, by uid."""
    most: int
    """Of the others that were there at a time."""

    @property
    def until(self) -> datetime:
        """Until when those that are lacking may come by themselves."""
        return self.since + PATIENCE + min(self.since - self.first, LONGEST_RETRY)


class RefusedPods:
    """What was seen of each service whose pods are refused."""

    def __init__(self) -> None:
        self._shortfalls: dict[Key, _Shortfall] = {}

    def look(self, observed: Observed, now: datetime) -> bool:
        """Whether pods have been refused for a minute. Call it in each pass."""
        if not _is_short(observed):
            self.forget(observed.key)
            return False
        known, pods = self._shortfalls.get(observed.key), _unfinished(observed.pods)
        if known is None:
            refused = pods_refused(observed.deployment)
            first = now if refused is None or refused.since is None else min(refused.since, now)
            known = _Shortfall(first, first, pods, len(pods))
        else:
            known = _after(known, pods, now)
        self._shortfalls[observed.key] = known
        return now >= known.until

    def lost_none(self, key: Key, pods: Iterable[Object]) -> bool:
        """Whether the pods that `look` saw last are all still among these. The place of one that went is not free."""
        known = self._shortfalls.get(key)
        return known is None or known.pods <= _unfinished(pods)

    def due_in_s(self, key: Key, now: datetime) -> float | None:
        """In how many seconds `look` finds that they have been; None where no pods are refused, or it is so already."""
        known = self._shortfalls.get(key)
        left_s = 0.0 if known is None else (known.until - now).total_seconds()
        return left_s if left_s > 0 else None

    def forget(self, key: Key) -> None:
        """The service is gone, or has its pods."""
        self._shortfalls.pop(key, None)


def _after(known: _Shortfall, pods: frozenset[str], now: datetime) -> _Shortfall:
    """The same, now that these pods are there."""
    if len(pods) >= known.most:
        return _Shortfall(known.first, known.first, pods, len(pods))
    if now >= known.until and known.pods <= pods:
        return known._replace(pods=pods, most=len(pods))  # the places of those that went are given up
    return known._replace(since=known.since if known.pods <= pods else now, pods=pods)


def _unfinished(pods: Iterable[Object]) -> frozenset[str]:
    """Their uids."""
    return frozenset(uid_of(pod) for pod in pods if pod["status"].get("phase") not in ("Failed", "Succeeded"))


def _is_short(observed: Observed) -> bool:
    """Whether the service lacks pods that it should have."""
    if observed.workload is None:
        return False
    kind, live = observed.workload
    if kind != LEADERWORKERSET:
        return pods_refused(live) is not None
    wanted = int(live["spec"].get("replicas", 1)) * int(live["spec"]["leaderWorkerTemplate"]["size"])
    return len(_unfinished(observed.pods)) < wanted
