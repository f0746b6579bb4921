"""Whether the replicas of a service have a place, and for how long one has looked for it. Pure."""

from __future__ import annotations

from datetime import datetime

from uellm.reconcile.observe import Observed
from uellm.reconcile.pods.engine_readiness import living
from uellm.reconcile.pods.groups import replica_of
from uellm.reconcile.times import moment

STRANDED_AFTER_S = 60


def homes(observed: Observed) -> set[str]:
    """The nodes of its pods."""
    return {name for pod in living(observed.pods) if (name := pod["spec"].get("nodeName"))}


def all_placed(observed: Observed) -> bool:
    """True where every replica has a node."""
    alive = living(observed.pods)
    waiting = {replica_of(pod) for pod in alive if not pod["spec"].get("nodeName")}
    return len({replica_of(pod) for pod in alive} - waiting) >= observed.replicas


def is_stranded(observed: Observed, now: datetime) -> bool:
    """True where a replica may need another plan to find a place."""
    deployment = observed.deployment
    if deployment is not None and observed.replicas and deployment["spec"].get("replicas") == 0:
        return True  # it is being resumed: its GPUs may have been taken
    return stranded_in_s(observed, now) == 0.0


def stranded_in_s(observed: Observed, now: datetime) -> float | None:
    """Seconds until a pod that finds no place calls for another plan; None where no pod waits."""
    since = observed.unschedulable_since
    if since is None:
        return None
    return max(0.0, STRANDED_AFTER_S - (now - moment(since)).total_seconds())
