"""The Deployment: replicas of the engine's pod."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from uellm.reconcile.children.desired_state import DesiredState
from uellm.reconcile.children.rollout import NO_SURGE, Surge, given_up, rolling_update
from uellm.reconcile.children.stand_in import NO_STAND_IN, StandIn
from uellm.reconcile.drift import signed
from uellm.reconcile.kueue import queue_labels
from uellm.reconcile.names import (
    APPLIED_ANNOTATION,
    IMAGES_ANNOTATION,
    OWNER_ANNOTATION,
    ROLLOUT_ANNOTATION,
    SPEC_ANNOTATION,
    STAND_IN_ANNOTATION,
    TEMPLATE_ANNOTATION,
    child_metadata,
    deployment_name,
    selector,
)

# The Deployment counts as failed only after the engine's own startup timeout and this margin.
_PROGRESS_MARGIN_S = 600


def deployment(desired: DesiredState) -> dict[str, Any]:
    """The pods of the plan, replaced by the service's own rollout rules when their template changes."""
    spec, metadata = desired.service.spec, child_metadata(desired.document, deployment_name(desired.service.name))
    template = _template(desired)
    update = rolling_update(desired.service, desired.live, template, desired.surge)
    metadata["labels"] |= queue_labels(desired.document)
    metadata["annotations"] |= {
        **({ROLLOUT_ANNOTATION: update.why} if update.why else {}),
        **({STAND_IN_ANNOTATION: desired.stand_in.note} if desired.stand_in.note else {}),
        **_former_annotations(desired),
    }
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": metadata,
        "spec": {
            "replicas": desired.replicas + desired.stand_in.extra,
            "selector": {"matchLabels": selector(desired.service.name)},
            "strategy": update.strategy(),
            "revisionHistoryLimit": 3,
            "progressDeadlineSeconds": int(spec.engine.startup_timeout_s) + _PROGRESS_MARGIN_S,
            "template": template,
        },
    }


def _template(desired: DesiredState) -> Mapping[str, Any]:
    if desired.revision is not None:
        return desired.revision.template
    assert desired.pinned is not None, "pods without a revision keep their template"
    return desired.pinned.template


def _former_annotations(desired: DesiredState) -> dict[str, str]:
    """What a release without revisions stored on the Deployment, while its pods are left alone."""
    if desired.revision is not None or desired.pinned is None:
        return {}
    return {
        SPEC_ANNOTATION: desired.spec_mark,
        IMAGES_ANNOTATION: desired.images.to_json(),
        TEMPLATE_ANNOTATION: desired.pinned.to_json(),
    }


def frozen(
    document: Mapping[str, Any],
    live: Mapping[str, Any],
    replicas: int,
    stand_in: StandIn = NO_STAND_IN,
    surge: Surge = NO_SURGE,
) -> dict[str, Any]:
    """The Deployment or LeaderWorkerSet as it is, but with this number of replicas, and a stand-in.

    Used while the spec cannot be carried out: a wrong spec does not take down pods that serve, but a smaller number of
    replicas still takes effect, and a rollout that is under way comes to its end.
    """
    metadata = child_metadata(document, live["metadata"]["name"])
    # Kueue lets no Deployment whose pods serve change its queue.
    metadata["labels"] |= queue_labels(live)
    kept = live["metadata"].get("annotations") or {}
    metadata["annotations"] |= {
        name: kept[name]
        for name in (SPEC_ANNOTATION, IMAGES_ANNOTATION, TEMPLATE_ANNOTATION, OWNER_ANNOTATION, ROLLOUT_ANNOTATION)
        if name in kept
    }
    if stand_in.note:
        metadata["annotations"][STAND_IN_ANNOTATION] = stand_in.note
    wanted, spec = replicas + stand_in.extra, live["spec"]
    if (update := given_up(live, surge)) is not None:
        metadata["annotations"][ROLLOUT_ANNOTATION] = update.why
        spec = {**spec, "strategy": update.strategy()}
    manifest = {
        "apiVersion": live["apiVersion"],
        "kind": live["kind"],
        "metadata": metadata,
        "spec": {**spec, "replicas": wanted},
    }
    # Only these can have changed: if they have not, the old digest stays and nothing is written.
    same = (
        update is None
        and int(live["spec"].get("replicas", 1)) == wanted
        and kept.get(STAND_IN_ANNOTATION, "") == stand_in.note
    )
    if same and APPLIED_ANNOTATION in kept:
        metadata["annotations"][APPLIED_ANNOTATION] = kept[APPLIED_ANNOTATION]
        return manifest
    return signed(manifest)
