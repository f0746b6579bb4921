"""The LeaderWorkerSet: replicas that span nodes, each a group of pods that starts, ends and is replaced as a whole."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from uellm.reconcile.children.desired_state import DesiredState
from uellm.reconcile.kueue import queue_labels
from uellm.reconcile.names import child_metadata, deployment_name
from uellm.reconcile.pods.groups import complete_groups

Object = Mapping[str, Any]

HOW_TO_MAKE_ANEW = (
    "no LeaderWorkerSet in a queue can be changed so: set spec.suspend to true, and then to false, and it is made anew"
)
"""What to do where only a new one can be what is wanted, and the live one's replicas serve."""
_TEMPLATES = ("leaderTemplate", "workerTemplate")


def leader_worker_set(desired: DesiredState) -> dict[str, Any]:
    """The groups of the plan. Left to the operator, they are replaced one at a time, on the GPUs that they have."""
    revision, rollout = desired.revision, desired.service.spec.rollout
    assert revision is not None, "pods without a revision are those of a release without groups"
    surge, unavailable = (0, 1) if rollout is None else (rollout.max_surge, rollout.max_unavailable)
    metadata = child_metadata(desired.document, deployment_name(desired.service.name))
    metadata["labels"] |= queue_labels(desired.document)
    return {
        "apiVersion": "leaderworkerset.x-k8s.io/v1",
        "kind": "LeaderWorkerSet",
        "metadata": metadata,
        "spec": {
            "replicas": desired.replicas,
            # The launchers of a group agree before the engine starts, so no pod may wait for another to be ready.
            "startupPolicy": "LeaderCreated",
            "rolloutStrategy": {
                "type": "RollingUpdate",
                "rollingUpdateConfiguration": {"maxSurge": surge, "maxUnavailable": unavailable},
            },
            "leaderWorkerTemplate": {
                "size": revision.nodes,
                "restartPolicy": "RecreateGroupOnPodRestart",
                "leaderTemplate": revision.template,
                "workerTemplate": revision.worker_template,
            },
        },
    }


def as_deployment(groups: Object, pods: Iterable[Object] = ()) -> dict[str, Any]:
    """A live LeaderWorkerSet in the form of a Deployment, whose pods are the leaders.

    Its status still counts a group as ready for a while after a pod of it has ended, so that is asked of the `pods`.
    """
    spec, status = groups["spec"], groups.get("status") or {}
    ready = min(int(status.get("readyReplicas") or 0), complete_groups(pods, spec["leaderWorkerTemplate"]["size"]))
    return {
        "metadata": groups["metadata"],
        "spec": {
            "replicas": spec.get("replicas", 1),
            "template": spec["leaderWorkerTemplate"].get("leaderTemplate") or {"metadata": {}, "spec": {}},
        },
        "status": {
            **{name: status.get(name) or 0 for name in ("replicas", "updatedReplicas")},
            "readyReplicas": ready,
            "availableReplicas": ready,
            # It does not say which generation it is about; pods of another revision are found out by their label.
            "observedGeneration": groups["metadata"].get("generation") or 0,
        },
    }


def as_new(groups: Object) -> dict[str, Any]:
    """The same LeaderWorkerSet under another name, no longer than its own, and only ever tried: could it be made?"""
    return {**groups, "metadata": {**groups["metadata"], "name": f"{groups['metadata']['name'][:-1]}0"}}


def kept_size(groups: Object, live: Object) -> str:
    """Why the live LeaderWorkerSet keeps the size of its groups; empty where that does not change, or may.

    Kueue lets it change, but counts a group's pods once, when it queues the group, and ends those that are more.
    """
    before, after = (each["spec"]["leaderWorkerTemplate"].get("size") for each in (live, groups))
    if before == after or not queue_labels(live):
        return ""
    return f"Kueue has queued groups of {before} pods, and they are to be of {after}"


def trial_deployments(groups: Object) -> Iterator[dict[str, Any]]:
    """Deployments of its templates, only ever tried: the API server does not check the pods of a LeaderWorkerSet."""
    for name in _TEMPLATES:
        template = groups["spec"]["leaderWorkerTemplate"][name]
        selected = {"matchLabels": template["metadata"]["labels"]}
        metadata = {**groups["metadata"], "name": f"{groups['metadata']['name']}-{name[0]}"}
        yield {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": metadata,
            "spec": {"replicas": 0, "selector": selected, "template": template},
        }
