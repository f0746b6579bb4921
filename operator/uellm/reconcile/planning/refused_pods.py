"""Services whose pods the API server has refused for a minute. What no pod can take is promised to nobody.

A Deployment tells of a refusal. A LeaderWorkerSet does not, so its pods count as refused where they are not there.

A pod that ends may be what the quota still counted, as in a rollout in place. Kubernetes tries to make the next one
after about as long as it has been refused. So whenever a pod comes or goes, the minute begins anew, and that time is
added.
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
LONGEST_RETRY = timedelta(seconds=1000)
"""Between two tries of Kubernetes' own controllers."""


class _Shortfall(NamedTuple):
    """Pods that are lacking beside others."""

    first: datetime
    """When they began to lack."""
    since: datetime
    """When one of the others came or went last."""
    pods: frozenset[str]
    """The others, by uid."""

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
        known, pods = self._shortfalls.get(observed.key), frozenset(map(uid_of, observed.pods))
        if known is None:
            refused = pods_refused(observed.deployment)
            first = now if refused is None or refused.since is None else min(refused.since, now)
            known = _Shortfall(first, first, pods)
        elif known.pods != pods:
            known = _Shortfall(known.first, now, pods)
        self._shortfalls[observed.key] = known
        return now >= known.until

    def due_in_s(self, key: Key, now: datetime) -> float | None:
        """In how many seconds `look` finds that they have been; None where no pods are refused, or it is so already."""
        known = self._shortfalls.get(key)
        left_s = 0.0 if known is None else (known.until - now).total_seconds()
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
