"""ResourceClaims: which GPUs they hold, and for which pods. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from uellm.hardware import DRA_DRIVER
from uellm.reconcile.children.claim_template import stage_of
from uellm.reconcile.dra.slices import DeviceRef

Object = Mapping[str, Any]


class HeldDevice(NamedTuple):
    """A GPU that a claim holds."""

    ref: DeviceRef
    holder: str
    """Uid of the pod that it is reserved for; of the claim where it is not reserved."""


def held_by(claim: Object) -> tuple[HeldDevice, ...]:
    """The GPUs that are allocated to a claim, in the order of its requests. Access for administrators takes none."""
    status = claim.get("status") or {}
    results = (((status.get("allocation") or {}).get("devices")) or {}).get("results") or ()
    holder = pod_of(claim) or str(claim["metadata"].get("uid") or "")
    own = [each for each in results if each.get("driver") == DRA_DRIVER and not each.get("adminAccess")]
    own.sort(key=lambda each: stage_of(str(each.get("request") or "")))
    return tuple(HeldDevice(DeviceRef(each["driver"], each["pool"], each["device"]), holder) for each in own)


def pod_of(claim: Object) -> str:
    """Uid of the pod that a claim is for: the one that it is reserved for, else its owner; empty for none."""
    reserved = [each for each in (claim.get("status") or {}).get("reservedFor") or () if each.get("resource") == "pods"]
    owners = [each for each in claim["metadata"].get("ownerReferences") or () if each.get("kind") == "Pod"]
    return next((str(each["uid"]) for each in (*reserved, *owners)), "")
