"""The claim that the operator makes for a service's model. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from uellm.api import LLMService
from uellm.reconcile.names import child_metadata, weights_name
from uellm.reconcile.obstacle import Obstacle

CLAIM_DELETED = "ClaimDeleted"


def claim_manifest(document: Mapping[str, Any], service: LLMService) -> dict[str, Any] | None:
    """The claim, owned by the LLMService `document`; None where the service needs none of ours."""
    cache = service.spec.model.cache
    if cache is None or cache.size is None:
        return None
    spec: dict[str, Any] = {
        "accessModes": list(cache.access_modes or ()),
        "resources": {"requests": {"storage": cache.size}},
    }
    if cache.storage_class_name is not None:
        spec["storageClassName"] = cache.storage_class_name
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": child_metadata(document, weights_name(service.name)),
        "spec": spec,
    }


def claim_obstacle(manifest: Mapping[str, Any], live: Mapping[str, Any]) -> Obstacle | None:
    """Why the claim that there is cannot become, or stay, the one that is wanted; None where it can."""
    name, wanted, has = manifest["metadata"]["name"], manifest["spec"], live["spec"]
    if "deletionTimestamp" in live["metadata"]:
        return Obstacle(
            CLAIM_DELETED,
            f"claim {name} is being deleted, and no pod that moves can start from it; it goes when no pod mounts it "
            "any more: set spec.suspend until it is gone; its files are downloaded anew then",
        )
    fields = {"accessModes": "access modes", "storageClassName": "storage class"}
    for field, words in fields.items():
        if field in wanted and wanted[field] != has.get(field):
            return Obstacle(
                "ClaimDiffers",
                f"claim {name} has {words} {_shown(has.get(field))}, and spec.model.cache.{field} is "
                f"{_shown(wanted[field])}, to which a claim cannot be changed: restore the field, or set "
                "spec.suspend, delete the claim and resume when it is gone; its files are downloaded anew then",
            )
    return None


def _shown(value: Any) -> str:
    return ", ".join(value) if isinstance(value, list) else str(value or "none")
