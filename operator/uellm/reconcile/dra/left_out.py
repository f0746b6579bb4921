"""The claim of a revision without GPUs that became unusable since it was frozen. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from uellm.hardware import PublishedGpu
from uellm.planner.handover.selectors import left_out
from uellm.reconcile.profiled_node import ProfiledNode


def without(claim: Mapping[str, Any], nodes: Iterable[ProfiledNode]) -> dict[str, Any]:
    """The spec of a claim, without the excluded and quarantined GPUs of these nodes.

    A GPU is named only where it might be given.
    """
    devices = claim["devices"]
    gpus = (device for node in nodes for device in node.facts.devices if not device.usable)
    out = [device.published for device in gpus if device.published is not None]
    return {**claim, "devices": {**devices, "requests": [_request_without(each, out) for each in devices["requests"]]}}


def _request_without(request: Mapping[str, Any], unusable: Sequence[PublishedGpu]) -> dict[str, Any]:
    if "exactly" in request:
        return {**request, "exactly": _devices_without(request["exactly"], unusable)}
    return {**request, "firstAvailable": [_devices_without(each, unusable) for each in request["firstAvailable"]]}


def _devices_without(devices: Mapping[str, Any], unusable: Sequence[PublishedGpu]) -> dict[str, Any]:
    selectors = [each["cel"]["expression"] for each in devices["selectors"]]
    added = [{"cel": {"expression": each}} for each in left_out(selectors, unusable)]
    return {**devices, "selectors": [*devices["selectors"], *added]}
