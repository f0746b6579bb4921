"""Services whose pods the API server has refused for a minute. What no pod can take is promised to nobody.

A Deployment tells of a refusal. A LeaderWorkerSet does not, so its pods count as refused where they are not there. The
minute begins anew whenever a pod comes or goes: a pod that is ending may be what the quota still counts.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import NamedTuple

from uellm.kube.kinds import LEADERWORKERSET
from uellm.reconcile.names import Key, uid_of
from uellm.reconcile.observe import Observed
from uellm.reconcile.pods.refusal import pods_refused

PATIENCE = timedelta(seconds=60)
"""A webhook that is away for a moment refuses nothing for good."""


class _Shortfall(NamedTuple):
    """Pods are lacking since then, beside these."""

    since: datetime
    pods: frozenset[str]


class RefusedPods:
    """What was seen of each service whose pods are refused."""

    def __init__(self) -> None:
        self._shortfalls: dict[Key, _Shortfall] = {}

    def look(self, observed: Observed, now: datetime) -> bool:
        """Whether pods have been refused for a minute. Call it in each pass."""
        if not _is_short(observed):
            self.forget(observed.key)
            return False
        known, pods = self._shortfalls.get(observed.key), frozenset(map(uid_of, observed.pods))
        if known is None or known.pods != pods:
            refused = pods_refused(observed.deployment) if known is None else None
            since = refused.since if refused is not None and refused.since is not None else now
            known = self._shortfalls[observed.key] = _Shortfall(since, pods)
        return now >= known.since + PATIENCE

    def due_in_s(self, key: Key, now: datetime) -> float | None:
        """In how many seconds a minute is over; None where no pods are refused, or it is over."""
        known = self._shortfalls.get(key)
        left_s = 0.0 if known is None else (known.since + PATIENCE - now).total_seconds()
        return left_s if left_s > 0 else None

    def forget(self, key: Key) -> None:
        """The service is gone, or has its pods."""
        self._shortfalls.pop(key, None)


def _is_short(observed: Observed) -> bool:
    """Whether the service lacks pods that it should have."""
    if observed.workload is None:
        return False
    kind, live = observed.workload
    if kind != LEADERWORKERSET:
        return pods_refused(live) is not None
    unfinished = [pod for pod in observed.pods if pod["status"].get("phase") not in ("Failed", "Succeeded")]
    return len(unfinished) < int(live["spec"].get("replicas", 1)) * int(live["spec"]["leaderWorkerTemplate"]["size"])
