"""The ResourceClaimTemplate of a revision whose pods claim their GPUs: each pod gets a claim of its own from it.

It has the name of the revision, and what that froze, without the GPUs that are excluded or quarantined now. Its spec
cannot be changed, so it is replaced where these change: pods that run keep their claims, and nothing rolls.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from uellm.api.names import REVISION_LABEL
from uellm.hardware import DRA_DRIVER, PCIE_ROOT, ClaimNeeds, StageRequest
from uellm.reconcile.names import child_metadata, labels, revision_name

CLAIM_NAME = "gpus"
"""Of the claim among those of the pod, and in the engine's container."""
KIND = "ResourceClaimTemplate"
API_VERSION = "resource.k8s.io/v1"


def claim_template(document: Mapping[str, Any], revision: str, claim_spec: Mapping[str, Any]) -> dict[str, Any]:
    """The template for a revision of the LLMService `document`."""
    service = document["metadata"]["name"]
    metadata = child_metadata(document, revision_name(service, revision))
    metadata["labels"] |= {REVISION_LABEL: revision}
    return {
        "apiVersion": API_VERSION,
        "kind": KIND,
        "metadata": metadata,
        "spec": {"metadata": {"labels": labels(service)}, "spec": dict(claim_spec)},
    }


def claim_spec(needs: ClaimNeeds) -> dict[str, Any]:
    """The spec of a pod's claim: a request for each stage, in their order."""
    devices: dict[str, Any] = {"requests": [_request(each) for each in needs.requests]}
    if needs.same_root:
        devices["constraints"] = [{"requests": [name], "matchAttribute": PCIE_ROOT} for name in needs.same_root]
    return {"devices": devices}


def _request(stage: StageRequest) -> dict[str, Any]:
    if not stage.preferred:
        return {"name": stage.name, "exactly": _devices(stage, stage.selectors)}
    ways = [_devices(stage, (*stage.selectors, each)) for each in stage.preferred]
    alternatives = [{"name": f"linked-{index}", **way} for index, way in enumerate(ways)]
    return {"name": stage.name, "firstAvailable": [*alternatives, {"name": "any", **_devices(stage, stage.selectors)}]}


def _devices(stage: StageRequest, selectors: tuple[str, ...]) -> dict[str, Any]:
    return {
        "deviceClassName": DRA_DRIVER,
        "allocationMode": "ExactCount",
        "count": stage.count,
        "selectors": [{"cel": {"expression": each}} for each in selectors],
    }


def stage_of(request: str) -> int:
    """The stage that a result of an allocation is for: its `request` is `stage-N`, or `stage-N/ALTERNATIVE`."""
    number = request.partition("/")[0].removeprefix("stage-")
    return int(number) if number.isdecimal() else -1
