"""The links of a node in a drawing: thin between all GPUs, thick if the plan sends data over them."""

from __future__ import annotations

from itertools import combinations, pairwise
from typing import NamedTuple

from uellm.cli import svg
from uellm.hardware import NETWORK, Link, Node
from uellm.planner.handover.revalidate import as_allocated, planned_pools
from uellm.planner.nodes.network import ASSUMED_NETWORK, network_links
from uellm.planner.request import PlanRequest
from uellm.planner.result import MemoryUse, Plan
from uellm.planner.spans import spans
from uellm.planner.units import three_digits

CARD = (200, 118)  # width and height of a GPU's card
ABOVE_CARDS = 67  # from the first row of a node's cards up to the space between its frame and the one above
UNKNOWN = "#9aa5b1"
LINKS = {
    "NVLink": "#2e9e4f",
    "PIX": "#2b7bba",
    "PXB": "#5aa7d6",
    "PHB": "#d9822b",
    "NODE": "#c2553f",
    "SYS": "#8e3b46",
    NETWORK: "#6a4c93",
}

Spots = dict[str, tuple[float, float]]  # upper left corner of each GPU's card, by uuid


class Role(NamedTuple):
    """The role of a GPU in the plan."""

    stage: int
    first: int
    """Its first layer."""
    end: int
    """The layer after its last."""
    rank: int
    """Its rank in the tensor-parallel group."""
    memory: MemoryUse


def roles_of(plan: Plan) -> dict[str, Role]:
    """The role of each device of the first replica, by uuid."""
    roles = {}
    for index, (stage, (first, end)) in enumerate(zip(plan.stages, spans(plan.layers), strict=True)):
        for rank, uuid in enumerate(stage.devices):
            roles[uuid] = Role(index, first, end, rank, stage.memory)
    return roles


def _between(node: Node) -> dict[tuple[str, str], Link]:
    known = {(link.a, link.b): link for link in node.links}
    return {**{(b, a): link for (a, b), link in known.items()}, **known}


def _centre(spot: tuple[float, float]) -> tuple[float, float]:
    return spot[0] + CARD[0] / 2, spot[1] + CARD[1] / 2


def thin_links(node: Node, spots: Spots) -> list[str]:
    """Every link that was measured."""
    ways, parts = _between(node), []
    for a, b in combinations(spots, 2):
        if (link := ways.get((a, b))) is not None:
            colour = LINKS.get(link.kind, UNKNOWN)
            parts.append(svg.line(*_centre(spots[a]), *_centre(spots[b]), colour, width=1.5, opacity=0.35))
    return parts


def group_lines(node: Node, roles: dict[str, Role], spots: Spots) -> list[str]:
    """Lines between the GPUs that share layers."""
    ways, parts = _between(node), []
    for a, b in combinations([uuid for uuid in spots if uuid in roles], 2):
        if roles[a].stage == roles[b].stage:
            link = ways.get((a, b))
            colour = UNKNOWN if link is None else LINKS.get(link.kind, UNKNOWN)
            parts.append(svg.line(*_centre(spots[a]), *_centre(spots[b]), colour, width=5, opacity=0.8))
    return parts


def hops(node: Node, roles: dict[str, Role], spots: Spots) -> list[str]:
    """Arrows from each stage to the next, from the first GPU of one to the first GPU of the other."""
    ways = _between(node)
    heads = sorted((uuid for uuid in spots if uuid in roles and roles[uuid].rank == 0), key=lambda u: roles[u].stage)
    parts = []
    for a, b in pairwise(heads):
        link = ways.get((a, b))
        colour = UNKNOWN if link is None else LINKS.get(link.kind, UNKNOWN)
        parts.append(svg.group([svg.arrow(_way(spots[a], spots[b]), colour)], _label(link, roles[a].stage)))
    return parts


def _way(a: tuple[float, float], b: tuple[float, float]) -> list[tuple[float, float]]:
    """The path of an arrow: above the cards within a row, and through the space between two rows."""
    (ax, _), (bx, _) = _centre(a), _centre(b)
    if a[1] == b[1]:
        side = 26 if bx > ax else -26
        return [(ax + side, a[1]), ((ax + bx) / 2, a[1] - 34), (bx - side, b[1])]
    down = b[1] > a[1]
    start, end = (a[1] + CARD[1], b[1]) if down else (a[1], b[1] + CARD[1])
    return [(ax + 12, start), ((ax + bx) / 2 + 12, (start + end) / 2), (bx + 12, end)]


def _label(link: Link | None, stage: int) -> str:
    label = f"from stage {stage} to stage {stage + 1}"
    if link is None:
        return f"{label}: link not measured"
    return f"{label}: {link_figures(link)}"


def link_figures(link: Link) -> str:
    """Kind, rate and latency of a link, as far as they are known."""
    if link.kind == NETWORK and link.bytes_per_s and link.latency_s:
        figures = f"{three_digits(link.bytes_per_s / 1e9)} GB/s, {three_digits(link.latency_s * 1e6)} µs"
        return f"{link.kind} {figures}"
    figures = f" {link.bytes_per_s / 1e9:.0f} GB/s" if link.bytes_per_s else ""
    return f"{link.kind}{figures}"


def node_of(uuid: str, request: PlanRequest) -> str:
    """The node of a device."""
    return next(offer.node.name for offer in request.nodes if any(device.uuid == uuid for device in offer.node.devices))


class NetworkHop(NamedTuple):
    """A crossing of the network between two nodes of a plan."""

    stage: int
    """The last one before it."""
    link: Link
    """From the first GPU of this stage to that of the next, with the figures that the plan counts with."""
    source: str
    """Where these are from."""


def node_hops(plan: Plan, request: PlanRequest) -> list[NetworkHop]:
    """The crossings of a plan over several nodes; none of another plan."""
    if plan.nodes_per_replica == 1:
        return []
    devices = {device.uuid: device for offer in request.nodes for device in offer.node.devices}
    each = plan.pipeline // plan.nodes_per_replica
    heads = [devices[stage.devices[0]] for stage in plan.stages if stage.devices]
    own = {device.uuid for device in heads}
    groups = planned_pools(plan, as_allocated(plan, request))
    rates = (group.network for group in groups if own <= {device.uuid for device in group.devices})
    rate = next(rates, ASSUMED_NETWORK)
    source = "the slowest measured" if rate.pairs else "assumed"
    return [
        NetworkHop(index, network_links([[heads[index]], [heads[index + 1]]], rate)[0], source)
        for index in range(each - 1, len(heads) - 1, each)
    ]


def network_arrows(plan: Plan, request: PlanRequest, spots: Spots) -> list[str]:
    """Arrows from each node's last stage to the next node's first, with the figures of the network."""
    parts = []
    for stage, link, source in node_hops(plan, request):
        way = _way(spots[link.a], spots[link.b])
        above = min(spots[uuid][1] for uuid in _neighbours(link.b, request)) - ABOVE_CARDS
        figures = svg.text(way[1][0] + 10, above, f"{link_figures(link)}, {source}", size=11, fill=LINKS[NETWORK])
        parts.append(svg.group([svg.arrow(way, LINKS[NETWORK]), figures], f"{_label(link, stage)}, {source}"))
    return parts


def _neighbours(uuid: str, request: PlanRequest) -> list[str]:
    """The devices of its node."""
    name = node_of(uuid, request)
    return [device.uuid for offer in request.nodes if offer.node.name == name for device in offer.node.devices]
