"""Objects of the cluster with only the fields that the operator reads, so that a large cluster fits into memory."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from uellm.api.names import PLAN_ANNOTATION
from uellm.documents import UnreadableDocument
from uellm.kube.kinds import NODE, POD, RESOURCECLAIM, RESOURCESLICE, Kind
from uellm.planner.handover.annotation import PlanAnnotation
from uellm.reconcile.additions import CHECKED, others_fields
from uellm.reconcile.children.disruption import MARKS
from uellm.reconcile.dra.slices import is_of_gpus
from uellm.reconcile.names import COST_ANNOTATION, OWN_COST_ANNOTATION

Object = dict[str, Any]

_POD_METADATA = (
    "name",
    "namespace",
    "uid",
    "resourceVersion",
    "labels",
    "creationTimestamp",
    "deletionTimestamp",
)
_MARKS = {*MARKS, COST_ANNOTATION, OWN_COST_ANNOTATION}
_POD_STATUS = ("phase", "podIP", "conditions", "containerStatuses", "initContainerStatuses", "message", "reason")


def _without_managed_fields(obj: Mapping[str, Any]) -> Object:
    if "managedFields" not in obj["metadata"]:
        return dict(obj)
    return {**obj, "metadata": {name: value for name, value in obj["metadata"].items() if name != "managedFields"}}


def _lean_child(kind: Kind, obj: Mapping[str, Any]) -> Object:
    """A child, with what others have set in its spec."""
    others = others_fields(kind, obj["metadata"].get("managedFields"))
    kept = _without_managed_fields(obj)
    return {**kept, "metadata": {**kept["metadata"], "managedFields": others}} if others else kept


def _lean_pod(pod: Mapping[str, Any]) -> Object:
    """The fields of a pod that are used here; a whole engine pod is ten times as large."""
    metadata, status = pod["metadata"], pod.get("status") or {}
    spec = pod.get("spec") or {}
    return {
        "gpus": _planned_gpus(metadata),
        "metadata": {**{name: metadata[name] for name in _POD_METADATA if name in metadata}, **_marks(metadata)},
        "spec": {name: spec[name] for name in ("nodeName", "schedulerName", "schedulingGates") if name in spec},
        "status": {name: status[name] for name in _POD_STATUS if name in status},
    }


def _marks(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Of a pod's annotations, which hold its whole plan, those that keep autoscalers away, and what its end costs."""
    kept = {name: value for name, value in (metadata.get("annotations") or {}).items() if name in _MARKS}
    return {"annotations": kept} if kept else {}


def _lean_node(node: Mapping[str, Any]) -> Object:
    """The fields of a node by which the scheduler may refuse it; its status is large and changes all the time."""
    metadata, spec = node["metadata"], node.get("spec") or {}
    return {
        "metadata": {name: metadata[name] for name in ("name", "uid", "resourceVersion", "labels") if name in metadata},
        "spec": {name: spec[name] for name in ("taints", "unschedulable") if name in spec},
    }


def _lean_slice(resource_slice: Mapping[str, Any]) -> Object:
    """A ResourceSlice; of other drivers' only what tells them apart."""
    if is_of_gpus(resource_slice):
        return _without_managed_fields(resource_slice)
    spec = resource_slice.get("spec") or {}
    return {"metadata": _identity(resource_slice), "spec": {"driver": spec.get("driver")}}


def _lean_claim(claim: Mapping[str, Any]) -> Object:
    """What a ResourceClaim holds and for whom; its spec says what was asked for."""
    metadata, status = claim["metadata"], claim.get("status") or {}
    about = {name: metadata[name] for name in ("labels", "ownerReferences") if name in metadata}
    devices = (status.get("allocation") or {}).get("devices")
    return {
        "metadata": {**_identity(claim), **about},
        "status": {"allocation": {"devices": devices}, "reservedFor": status.get("reservedFor") or []},
    }


def _identity(obj: Mapping[str, Any]) -> Object:
    metadata = obj["metadata"]
    return {name: metadata[name] for name in ("name", "namespace", "uid", "resourceVersion") if name in metadata}


_LEANER = {POD: _lean_pod, NODE: _lean_node, RESOURCESLICE: _lean_slice, RESOURCECLAIM: _lean_claim}


def lean(kind: Kind, obj: Mapping[str, Any]) -> Object:
    """The object without what nobody here reads."""
    return _lean_child(kind, obj) if kind in CHECKED else _LEANER.get(kind, _without_managed_fields)(obj)


def _planned_gpus(metadata: Mapping[str, Any]) -> int | None:
    """GPUs of a pod, by its plan; None where its annotation cannot be read."""
    try:
        return PlanAnnotation.from_json(metadata["annotations"][PLAN_ANNOTATION]).gpus
    except (KeyError, TypeError, UnreadableDocument):
        return None  # somebody changed the annotation; the service's plan is used instead
