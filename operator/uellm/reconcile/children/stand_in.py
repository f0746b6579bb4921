"""A stand-in for a replica whose node is being emptied, and how many replicas may be evicted meanwhile. Pure.

`kubectl drain`, the Cluster Autoscaler and Karpenter mark a node first and then evict its pods. Where the cluster has
GPUs for one more replica, a stand-in starts first. Until it serves, the budget allows no eviction. Then it allows one,
and the evicted pod is not replaced. Without such GPUs, or where the stand-in will not serve, an eviction is allowed at
once: no drain waits for what does not come.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from uellm.reconcile.children.rollout import Surge, is_rolling
from uellm.reconcile.names import STAND_IN_ANNOTATION
from uellm.reconcile.pods.pod_state import is_ready

_FOR, _GIVEN_UP = "for ", "given up for "


class StandIn(NamedTuple):
    """The decision: whether there is a stand-in, and how many replicas may be evicted."""

    extra: int = 0
    """Replicas besides the wanted number: 1 or 0."""
    budget: int = 1
    """Replicas that may be evicted at a time."""
    note: str = ""
    """Kept on the Deployment: the nodes for which there is a stand-in, or for which it was given up, and why."""


NO_STAND_IN = StandIn()


def stand_in(
    live: Mapping[str, Any] | None,
    replicas: int,
    pods: Iterable[Mapping[str, Any]],
    leaving: frozenset[str],
    surge: Surge,
) -> StandIn:
    """The decision for now. `live`: the Deployment; `pods`: living ones; `leaving`: nodes that are being emptied."""
    pods = tuple(pods)
    if not replicas or is_rolling(live):
        return NO_STAND_IN
    nodes = ",".join(sorted({pod["spec"]["nodeName"] for pod in pods if pod["spec"].get("nodeName") in leaving}))
    if not nodes or live is None:
        # An eviction by kubectl follows its node's mark within milliseconds, so the budget is closed beforehand.
        # Karpenter would never mark a node whose pod has a closed budget.
        return StandIn(0, 0 if surge.room and not surge.announced else 1)
    before = note_of(live)
    if before.partition(": ")[0] == _GIVEN_UP + nodes:
        return StandIn(0, 1, before)
    if before.startswith(_FOR) and surge.hopeless:
        return StandIn(0, 1, f"{_GIVEN_UP}{nodes}: {surge.hopeless}")
    if not before.startswith(_FOR) and not surge.room:
        return NO_STAND_IN
    serving = sum(is_ready(pod) for pod in pods)
    return StandIn(1, 1 if serving > replicas else 0, _FOR + nodes)


def note_of(live: Mapping[str, Any] | None) -> str:
    """What was noted on the Deployment."""
    return str((((live or {}).get("metadata") or {}).get("annotations") or {}).get(STAND_IN_ANNOTATION) or "")


def has_stand_in(live: Mapping[str, Any]) -> bool:
    """Whether one of the Deployment's replicas is a stand-in."""
    return note_of(live).startswith(_FOR)


def given_up(live: Mapping[str, Any]) -> str:
    """Why a stand-in was given up for a node that is still being emptied; empty for none."""
    note = note_of(live)
    return note.partition(": ")[2] if note.startswith(_GIVEN_UP) else ""
