"""The ResourceClaim of a plan: for each stage a request that its GPUs satisfy and no GPU that would not do.

Which GPUs may serve a stage depends on what they are. Where links between GPUs of one kind differ, a stage that shares
layers is kept together by its PCIe root complex if that tells them apart. Otherwise groups that are linked as well as
the planned one are preferred by their uuids, and any GPUs of the kind are taken where none of those is free.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations

from uellm.hardware import LINK_KINDS, Attribute, ClaimNeeds, Device, Node, PublishedGpu, StageRequest
from uellm.planner.constants import MOST_PREFERRED_GROUPS, SPEED_TOLERANCE
from uellm.planner.cost.rates import Links, flops_per_s
from uellm.planner.handover.selectors import CAPABILITY, PRODUCT, conditions, one_of
from uellm.planner.nodes.pools import drivers_known, is_claimable
from uellm.planner.nodes.tensor_groups import best_groups
from uellm.planner.request import PlanRequest
from uellm.planner.result import Plan, Stage


def claim_needs(plan: Plan, request: PlanRequest) -> ClaimNeeds:
    """What the pods of a plan with allocation DRA claim."""
    nodes = _claimable([offer.node for offer in request.nodes])
    requests, same_root = [], list[str]()
    for index, stage in enumerate(plan.stages):
        name = f"stage-{index}"
        able = [[device for device in node.devices if may_serve(device, stage, nodes)] for node in nodes]
        group = [device for node in nodes for device in node.devices if device.uuid in stage.devices]
        preferred: tuple[str, ...] = ()
        if plan.tensor > 1 and _links_matter(group, nodes, able):
            if _root_tells(group, nodes, able):
                same_root.append(name)
            else:
                preferred = _preferred(group, nodes, able)
        requests.append(StageRequest(name, plan.tensor, _selectors(stage, nodes, able), preferred))
    return ClaimNeeds(tuple(requests), tuple(same_root))


def _claimable(nodes: Sequence[Node]) -> list[Node]:
    """The nodes with the GPUs that a claim may ask for."""
    published_only = drivers_known(nodes)
    return [
        replace(node, devices=tuple(each for each in node.devices if is_claimable(each, published_only=published_only)))
        for node in nodes
    ]


def may_serve(device: Device, stage: Stage, nodes: Sequence[Node]) -> bool:
    """Whether a GPU may take the place of the planned ones: usable, of their product, large and fast enough."""
    planned = [each for node in nodes for each in node.devices if each.uuid in stage.devices]
    if not device.usable or device.memory_bytes < stage.memory_bytes:
        return False
    if not planned:
        return device.product == stage.product
    alike = (device.product, device.compute_capability) == (planned[0].product, planned[0].compute_capability)
    return alike and all(_as_fast(device, each) for each in planned)


def published(device: Device) -> PublishedGpu:
    """The GPU as its driver publishes it, or as it would by its profile."""
    if device.published is not None:
        return device.published
    named = [Attribute(PRODUCT, "string", device.product)] if device.product else []
    if device.compute_capability:
        named.append(Attribute(CAPABILITY, "version", f"{device.compute_capability}.0"))
    return PublishedGpu(device.uuid, device.as_built.memory_bytes, tuple(sorted(named)))


def _as_fast(device: Device, planned: Device) -> bool:
    pairs = (
        (device.memory_bytes_per_s, planned.memory_bytes_per_s),
        (flops_per_s(device), flops_per_s(planned)),
    )
    return all(one is None or other is None or one >= other * (1 - SPEED_TOLERANCE) for one, other in pairs)


def _selectors(stage: Stage, nodes: Sequence[Node], able: Sequence[Sequence[Device]]) -> tuple[str, ...]:
    chosen = {device.uuid for alike in able for device in alike}
    everyone = [device for node in nodes for device in node.devices]
    wanted = [published(device) for device in everyone if device.uuid in chosen]
    others = [published(device) for device in everyone if device.uuid not in chosen]
    return tuple(each.cel() for each in conditions(wanted, others, stage.memory_bytes))


def _rank(a: Device, b: Device, links: Links) -> int:
    kind = links.between(a.uuid, b.uuid).kind
    return LINK_KINDS.index(kind) if kind in LINK_KINDS else len(LINK_KINDS)


def _worst(group: Sequence[Device], links: Links) -> int:
    return max((_rank(a, b, links) for a, b in combinations(group, 2)), default=0)


def _group_rank(group: Sequence[Device], nodes: Sequence[Node]) -> int:
    """The slowest link of the planned group."""
    own = {device.uuid for device in group}
    home = next((node for node in nodes if own <= {device.uuid for device in node.devices}), None)
    return 0 if home is None else _worst(group, Links(home.links))


def _links_matter(group: Sequence[Device], nodes: Sequence[Node], able: Sequence[Sequence[Device]]) -> bool:
    """Whether other GPUs of the kind on a node are linked worse than the planned group."""
    rank = _group_rank(group, nodes)
    return any(_worst(alike, Links(node.links)) > rank for node, alike in zip(nodes, able, strict=True))


def _root_tells(group: Sequence[Device], nodes: Sequence[Node], able: Sequence[Sequence[Device]]) -> bool:
    """Whether the planned group shares a PCIe root complex, and all that share one are linked as well."""
    roots = {published(device).pcie_root for device in group}
    if len(roots) != 1 or "" in roots:
        return False
    rank = _group_rank(group, nodes)
    for node, alike in zip(nodes, able, strict=True):
        links, by_root = Links(node.links), dict[str, list[Device]]()
        for device in alike:
            by_root.setdefault(published(device).pcie_root, []).append(device)
        if "" in by_root or any(_worst(members, links) > rank for members in by_root.values()):
            return False
    return True


def _preferred(group: Sequence[Device], nodes: Sequence[Node], able: Sequence[Sequence[Device]]) -> tuple[str, ...]:
    """Disjoint groups that are linked as well as the planned one, which comes first; by their uuids."""
    rank, size, planned = _group_rank(group, nodes), len(group), {device.uuid for device in group}
    found = [tuple(sorted(planned))] if planned else []
    for node, alike in zip(nodes, able, strict=True):
        links, rest = Links(node.links), [device for device in alike if device.uuid not in planned]
        pairs = tuple(tuple(0 if a is b else _rank(a, b, links) for b in rest) for a in rest)
        for positions in best_groups(pairs, len(rest) // size, size):
            members = [rest[position] for position in positions]
            if _worst(members, links) <= rank:
                found.append(tuple(sorted(device.uuid for device in members)))
    return tuple(one_of(uuids) for uuids in found[:MOST_PREFERRED_GROUPS])
