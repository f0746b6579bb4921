"""Planned and actual placement of each pod, and the condition that compares them. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

from uellm.api.scalars import UUID
from uellm.documents import UnreadableDocument
from uellm.hardware import Device
from uellm.placement_report import PlacementReport
from uellm.planner.result import Plan
from uellm.reconcile.conditions import Condition
from uellm.reconcile.names import revision_label
from uellm.reconcile.pods.engine_readiness import living
from uellm.reconcile.pods.groups import group_index, replica_of, without_workers, worker_index
from uellm.reconcile.profiled_node import ProfiledNode

MAX_PLACEMENTS = 32
MAX_DEVICES = 64
"""Of a pod."""
MAX_REPORTED = 512
"""Of a replica, which may span nodes."""
MAX_LAYERS = 10_000
TYPE = "PlacementVerified"

_REASON = r"^[A-Z][A-Za-z0-9]{0,62}$"


class ReportedPlacement(NamedTuple):
    """The launcher's placement report, as far as it is valid."""

    start: str
    """The start of the engine's container that it is about; see `engine_start`."""
    uuids: tuple[str, ...] = ()
    """Devices in use, in rank order."""
    layers: tuple[int, ...] = ()
    tensor: int = 0
    pipeline: int = 0
    error: tuple[str, str] | None = None
    """Reason and message of a launcher that found no placement."""


def read_report(start: str, document: Mapping[str, Any]) -> ReportedPlacement:
    """Parse a report. Pods are not trusted: what is malformed or out of bounds is skipped."""
    try:
        report = PlacementReport.from_dict(document)
    except UnreadableDocument as error:
        return ReportedPlacement(start, error=("UnreadableReport", str(error)))
    if report.error is not None:
        known = report.error.reason if re.search(_REASON, report.error.reason) else "LauncherFailed"
        return ReportedPlacement(start, error=(known, report.error.message))
    uuids = (device.uuid for device in report.devices[:MAX_REPORTED])
    return ReportedPlacement(
        start,
        uuids=tuple(uuid for uuid in uuids if len(uuid) <= 128 and re.search(UUID, uuid)),
        layers=tuple(map(_bounded, report.layers[:MAX_REPORTED])),
        tensor=_bounded(report.tensor),
        pipeline=_bounded(report.pipeline),
    )


def _bounded(count: int) -> int:
    return count if count <= MAX_LAYERS else 0


class PlacementCheck(NamedTuple):
    """Planned and actual devices of a pod: an entry of `status.placements`."""

    pod: str
    node: str
    planned: tuple[str, ...]
    actual: tuple[str, ...]
    layers: tuple[int, ...]
    matches: str
    """True, False or Unknown."""
    error: tuple[str, str] | None = None
    revision: str = ""
    of_replica: tuple[int, ...] = ()
    """The layers of all stages, where the pod has a part of them."""

    def to_dict(self) -> dict[str, Any]:
        """The entry; empty fields are left out."""
        entry = {
            "pod": self.pod,
            "node": self.node,
            "revision": self.revision,
            "planned": list(self.planned[:MAX_DEVICES]),
            "actual": list(self.actual[:MAX_DEVICES]),
            "layers": list(self.layers[:MAX_DEVICES]),
            "matchesPlan": self.matches,
        }
        return {name: value for name, value in entry.items() if value}


def placements(
    plan: Plan,
    pods: Iterable[Mapping[str, Any]],
    reports: Mapping[str, ReportedPlacement],
    nodes: Sequence[ProfiledNode],
    claimed: Mapping[str, tuple[str, ...]] = MappingProxyType({}),
) -> list[PlacementCheck]:
    """The placement of each pod that has a node, in the given order.

    Only the first was planned on exact devices. A pod that claims its GPUs is to use what its claim holds. `claimed`:
    by pod uid, in the order of the stages. Of a group, the leader reports for all; each pod has its own part.
    """
    bound = [pod for pod in living(pods) if pod["spec"].get("nodeName")]
    held = {**_held(nodes, {pod["metadata"]["uid"] for pod in bound}), **claimed}
    checks = ((pod, reports.get(pod["metadata"]["uid"]), claimed.get(pod["metadata"]["uid"], ())) for pod in bound)
    if plan.nodes_per_replica > 1:
        grouped = placements_of_groups(plan, bound, reports)
        return [each._replace(revision=_revision(pod)) for pod, each in zip(bound, grouped, strict=True)]
    known = _known(nodes) if plan.claims else {}
    return [
        (
            _claimed(plan, pod, report, own, known)
            if plan.claims and own
            else _placed(plan, pod, report, held, first=pod is bound[0] and not plan.claims)
        )._replace(revision=_revision(pod))
        for pod, report, own in checks
    ]


def placements_of_groups(
    plan: Plan, pods: Sequence[Mapping[str, Any]], reports: Mapping[str, ReportedPlacement]
) -> list[PlacementCheck]:
    """The placement of each of these pods, whose replicas span nodes. The first group was planned on exact devices."""
    first = min((index for pod in pods if (index := group_index(pod)) is not None), default=0)
    told = {replica_of(pod): reports.get(pod["metadata"]["uid"]) for pod in without_workers(pods)}
    return [
        _part(plan, pod, told.get(replica_of(pod)), plan.devices if group_index(pod) == first else ()) for pod in pods
    ]


def _part(
    plan: Plan, pod: Mapping[str, Any], report: ReportedPlacement | None, planned: tuple[str, ...]
) -> PlacementCheck:
    """A pod's part of what its group does: GPUs and stages follow one another from pod to pod."""
    name, node, index = pod["metadata"]["name"], pod["spec"]["nodeName"], worker_index(pod)
    gpus, stages = plan.gpus_per_replica // plan.nodes_per_replica, plan.pipeline // plan.nodes_per_replica
    own = planned[index * gpus : (index + 1) * gpus]
    if report is None or report.error:
        told = report.error if report is not None and index == 0 else None
        return PlacementCheck(name, node, own, (), (), "Unknown", told)
    return PlacementCheck(
        name,
        node,
        own,
        report.uuids[index * gpus : (index + 1) * gpus],
        report.layers[index * stages : (index + 1) * stages],
        "True" if _as_planned(plan, report, planned) else "False",
        of_replica=report.layers,
    )


def _known(nodes: Sequence[ProfiledNode]) -> dict[str, Device]:
    return {device.uuid: device for node in nodes for device in node.facts.devices}


def _claimed(
    plan: Plan,
    pod: Mapping[str, Any],
    report: ReportedPlacement | None,
    own: tuple[str, ...],
    known: Mapping[str, Device],
) -> PlacementCheck:
    """A pod and its claim. `known`: what GPUs are; a claim that somebody changed may hold others than planned."""
    name, node = pod["metadata"]["name"], pod["spec"]["nodeName"]
    if report is None or report.error:
        return PlacementCheck(name, node, own, own, (), "Unknown", report.error if report else None)
    asked = [stage for stage in plan.stages for _ in range(plan.tensor)]
    fits = len(asked) == len(report.uuids) and all(
        device is None or (device.product == stage.product and device.memory_bytes >= stage.memory_bytes)
        for stage, device in zip(asked, map(known.get, report.uuids), strict=True)
    )
    # NVIDIA's driver tells a container its GPUs and not their order, which matters only where they are unlike.
    same = sorted(report.uuids) == sorted(own) and report.layers == plan.layers
    return PlacementCheck(name, node, own, report.uuids, report.layers, "True" if same and fits else "False")


def _revision(pod: Mapping[str, Any]) -> str:
    """By its label; empty where somebody wrote something else there."""
    name = revision_label(pod)
    return name if re.search(r"^[0-9a-f]{10}$", name) else ""


def _held(nodes: Sequence[ProfiledNode], pods: set[str]) -> dict[str, tuple[str, ...]]:
    held: dict[str, tuple[str, ...]] = {}
    for profiled in nodes:
        for uuid, holder in profiled.holders.items():
            if holder in pods:
                held[holder] = (*held.get(holder, ()), uuid)
    return held


def _placed(
    plan: Plan,
    pod: Mapping[str, Any],
    report: ReportedPlacement | None,
    held: Mapping[str, tuple[str, ...]],
    *,
    first: bool,
) -> PlacementCheck:
    planned = plan.devices if first else ()
    name, node = pod["metadata"]["name"], pod["spec"]["nodeName"]
    if report is None or report.error:
        # The node's profile shows the devices, but neither their order nor their layers.
        actual = held.get(pod["metadata"]["uid"], ())
        return PlacementCheck(name, node, planned, actual, (), "Unknown", report.error if report else None)
    matches = "True" if _as_planned(plan, report, planned) else "False"
    return PlacementCheck(name, node, planned, report.uuids, report.layers, matches)


def _as_planned(plan: Plan, report: ReportedPlacement, planned: tuple[str, ...]) -> bool:
    if planned:
        return report.uuids == planned and report.layers == plan.layers
    shape = (report.tensor, report.pipeline, len(report.uuids))
    return shape == (plan.tensor, plan.pipeline, plan.gpus_per_replica)


def verified(placed: Sequence[PlacementCheck], *, claims: bool = False) -> Condition:
    """The condition PlacementVerified. Other devices than planned are no fault where the kubelet chooses them.

    `claims`: the pods claim their GPUs, so they must use what their claims hold, in its order.
    """
    failed = next((each for each in placed if each.error), None)
    if failed is not None and failed.error is not None:
        reason, message = failed.error
        return Condition(TYPE, "False", reason, f"pod {failed.pod}: {message}")
    other = next((each for each in placed if each.matches == "False"), None)
    if other is not None and claims:
        return Condition(TYPE, "False", "NotAsClaimed", _unlike_claim(other))
    if other is not None:
        return Condition(TYPE, "True", "OtherDevices", _difference(other))
    silent = [each.pod for each in placed if each.matches == "Unknown"]
    if silent or not placed:
        message = f"no report yet from pod {silent[0]}" if silent else "no pod has a node yet"
        return Condition(TYPE, "Unknown", "NoReport", message)
    return Condition(TYPE, "True", "AsPlanned", "every pod runs the planned layers on the planned devices")


def _unlike_claim(placed: PlacementCheck) -> str:
    if placed.planned == placed.actual:
        how = f"{_listed(placed.actual)} with layers {_listed(placed.layers)}, which are not what the plan claims"
        return f"the claim of pod {placed.pod} holds {how}: was it changed by hand? Delete the pod for a new claim"
    return (
        f"pod {placed.pod} runs on {_listed(placed.actual)} and its claim holds {_listed(placed.planned)}: its layers "
        "were placed on the GPUs that the container has"
    )


def _difference(placed: PlacementCheck) -> str:
    got = f"{_listed(placed.actual)} with layers {_listed(placed.layers)}"
    if not placed.planned:
        return f"pod {placed.pod} runs another shape than planned: {got}"
    return f"pod {placed.pod} was given {got} instead of {_listed(placed.planned)}; its layers were placed on those"


def _listed(values: Iterable[object]) -> str:
    return ",".join(str(value) for value in values) or "none"
