"""How a plan's pods are given their GPUs: by the device plugin, or by claims where the plan gains by them."""

from __future__ import annotations

from dataclasses import replace

from uellm.errors import PlanError
from uellm.hardware import AUTO, DEVICE_PLUGIN, DRA
from uellm.planner import decision
from uellm.planner.constants import LEAST_GAIN_OF_CLAIMS
from uellm.planner.handover.revalidate import Outlook, outlook
from uellm.planner.nodes.pools import Pool, pools_of
from uellm.planner.nodes.tensor_groups import kind_of
from uellm.planner.request import PlanRequest
from uellm.planner.result import Plan

_NOTE = "placement.allocation Auto: each replica claims its GPUs by DRA: "


def plan(request: PlanRequest) -> Plan:
    """The plan; with allocation Auto the better of both ways. Raises PlanError as `decision.plan` does."""
    if request.allocation != AUTO:
        return decision.plan(request)
    plugin = replace(request, allocation=DEVICE_PLUGIN)
    claims = replace(request, allocation=DRA)
    needed = any(device.claims_only for offer in request.nodes for device in offer.node.devices)
    if not needed and not _may_gain(claims):
        return decision.plan(plugin)
    try:
        first = decision.plan(plugin)
    except PlanError as error:
        return _instead_of(error, claims)
    try:
        other = decision.plan(claims)
    except PlanError:
        return first
    if first.nodes_per_replica > 1 and (other.slo is None or other.slo.feasible):
        return _explained(other, "a device plugin has no plan on one node")
    why = _gain(outlook(first, plugin), outlook(other, claims), request.objective)
    return _explained(other, why) if why else first


def _may_gain(request: PlanRequest) -> bool:
    """Whether GPUs of a node differ in kind or by their links: among equal ones the kubelet's choice is as good."""
    return any(_unlike(pool) for pool in pools_of(request))


def _unlike(pool: Pool) -> bool:
    own = {device.uuid for device in pool.devices}
    links = {link.kind for link in pool.links if link.a in own and link.b in own}
    return len({kind_of(device) for device in pool.devices}) > 1 or len(links) > 1


def _instead_of(error: PlanError, claims: PlanRequest) -> Plan:
    try:
        return _explained(decision.plan(claims), f"a device plugin has no plan ({error.reason})")
    except PlanError:
        raise error from None


def _explained(made: Plan, why: str) -> Plan:
    return replace(made, assumptions=(f"{_NOTE}{why}", *made.assumptions))


def _gain(plugin: Outlook | None, claims: Outlook | None, objective: str) -> str:
    """What claims gain; empty where that is too little, or is not known."""
    if plugin is None or claims is None:
        return ""
    if plugin.keeps != claims.keeps:
        return "only so the targets are met" if claims.keeps else ""
    if objective == "Latency":
        before, after, what = plugin.end_to_end_s, claims.end_to_end_s, "s a request"
    elif objective == "Throughput":
        # Seconds a request take the place of requests a second, so that less is better as elsewhere.
        before, after, what = 1 / plugin.requests_per_s, 1 / claims.requests_per_s, "s between requests"
    else:
        before, after, what = plugin.gpus_in_all, claims.gpus_in_all, "GPUs in all"
    if after > before * (1 - LEAST_GAIN_OF_CLAIMS):
        return ""
    return f"{after:.3g} {what} instead of {before:.3g} with a device plugin"
