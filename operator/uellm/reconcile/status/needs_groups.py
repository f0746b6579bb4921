"""Whether the cluster has what replicas that span nodes need. Pure."""

from __future__ import annotations

from uellm.kube.kinds import LEADERWORKERSET
from uellm.planner.result import Plan
from uellm.reconcile.download.on_nodes import NO_NODE_CACHE
from uellm.reconcile.model_claim import is_on_nodes
from uellm.reconcile.observe import Observed
from uellm.reconcile.obstacle import Obstacle
from uellm.reconcile.optional_kinds import Availability

NEEDS_LEADER_WORKER_SET = "NeedsLeaderWorkerSet"


def needs_groups(observed: Observed, plan: Plan) -> Obstacle | None:
    """Why the plan's pods cannot be made here; None where they can."""
    if plan.nodes_per_replica > 1 and observed.service is not None and is_on_nodes(observed.service):
        return Obstacle(
            NO_NODE_CACHE,
            f"spec.model.cache.nodeLocal: a replica spans {plan.nodes_per_replica} nodes, whose pods would wait for "
            "each other's downloads: take a claim (claimName, or size and accessModes)",
        )
    available = observed.available.get(LEADERWORKERSET, Availability.NOT_INSTALLED)
    if plan.nodes_per_replica == 1 or available is Availability.SERVED:
        return None
    if available is Availability.FORBIDDEN:
        return Obstacle(
            "Forbidden",
            f"the operator may not read {LEADERWORKERSET.plural} of {LEADERWORKERSET.api_version}: give its "
            "ClusterRole the rights that UELLM's chart has",
        )
    return Obstacle(
        NEEDS_LEADER_WORKER_SET,
        f"a replica spans {plan.nodes_per_replica} nodes, and the cluster has no {LEADERWORKERSET.kind} "
        f"({LEADERWORKERSET.api_version}): install LeaderWorkerSet 0.8 or later, and the pods are made within seconds; "
        "or set spec.placement.multiNode to Never",
    )
