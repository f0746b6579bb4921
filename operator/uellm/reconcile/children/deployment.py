"""The Deployment: replicas of the engine's pod."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from uellm.reconcile.children.pod import pod_template
from uellm.reconcile.children.wanted import PinnedTemplate, Wanted, shape_of
from uellm.reconcile.names import (
    APPLIED_ANNOTATION,
    IMAGES_ANNOTATION,
    OWNER_ANNOTATION,
    SPEC_ANNOTATION,
    TEMPLATE_ANNOTATION,
    child_metadata,
    deployment_name,
    selector,
)
from uellm.reconcile.same import signed

# A Deployment calls itself failed after this; the engine's own startup timeout has to run out first.
_PROGRESS_MARGIN_S = 600


def deployment(wanted: Wanted) -> dict[str, Any]:
    """The pods of the plan, replaced by the service's own rollout rules when their template changes."""
    spec, metadata = wanted.service.spec, child_metadata(wanted.document, deployment_name(wanted.service.name))
    pinned = _template(wanted)
    metadata["annotations"] |= {
        SPEC_ANNOTATION: wanted.spec_mark,
        IMAGES_ANNOTATION: wanted.images.to_json(),
        TEMPLATE_ANNOTATION: pinned.to_json(),
    }
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": metadata,
        "spec": {
            "replicas": wanted.replicas,
            "selector": {"matchLabels": selector(wanted.service.name)},
            "strategy": {
                "type": "RollingUpdate",
                "rollingUpdate": {"maxSurge": spec.rollout.max_surge, "maxUnavailable": spec.rollout.max_unavailable},
            },
            "revisionHistoryLimit": 3,
            "progressDeadlineSeconds": int(spec.engine.startup_timeout_s) + _PROGRESS_MARGIN_S,
            "template": pinned.template,
        },
    }


def _template(wanted: Wanted) -> PinnedTemplate:
    shape = shape_of(wanted.plan)
    if wanted.pinned is not None and wanted.pinned.shape == shape:
        return wanted.pinned
    return PinnedTemplate(shape, pod_template(wanted))


def frozen(document: Mapping[str, Any], live: Mapping[str, Any], replicas: int) -> dict[str, Any]:
    """The Deployment as it is, with this number of replicas: for as long as the spec cannot be had.

    Pods that serve are not taken down because a new spec is wrong; that they are to be fewer, or none, still counts.
    """
    metadata = child_metadata(document, live["metadata"]["name"])
    kept = live["metadata"].get("annotations") or {}
    metadata["annotations"] |= {
        name: kept[name]
        for name in (SPEC_ANNOTATION, IMAGES_ANNOTATION, TEMPLATE_ANNOTATION, OWNER_ANNOTATION)
        if name in kept
    }
    manifest = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": metadata,
        "spec": {**live["spec"], "replicas": replicas},
    }
    # Nothing but the number can have changed, so an unchanged number keeps its digest and asks for no write.
    if int(live["spec"].get("replicas", 1)) == replicas and APPLIED_ANNOTATION in kept:
        metadata["annotations"][APPLIED_ANNOTATION] = kept[APPLIED_ANNOTATION]
        return manifest
    return signed(manifest)
