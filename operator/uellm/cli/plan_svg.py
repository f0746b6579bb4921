"""A drawing of a plan: the best node with the memory, layers and links of every GPU, and the other nodes.

title      the plan, the predictions, and whether the targets are met
best node  a card for each GPU: stage, layers and memory by kind; grey if the plan does not use it
links      thin between all GPUs, by kind; thick arrows from stage to stage, thick lines inside a stage
the rest   small: nodes that would do as well, and nodes that would not
"""

from __future__ import annotations

import textwrap

from uellm.cli import svg
from uellm.cli.plan_links import (
    CARD,
    LINKS,
    Role,
    Spots,
    group_lines,
    hops,
    network_arrows,
    node_of,
    roles_of,
    thin_links,
)
from uellm.hardware import NETWORK, Device, Node
from uellm.planner.request import NodeOffer, PlanRequest
from uellm.planner.result import MemoryUse, Plan
from uellm.planner.units import size
from uellm.text import counted

WIDTH = 960
MARGIN = 24
GAP = (26, 52)
CARDS_IN_A_ROW = 4
SMALL = (104, 36)
SMALL_IN_A_ROW = 8
MOST_SMALL_NODES = 24

KINDS = {
    "weights": "#3b6fb6",
    "adapters": "#8a6d3b",
    "kv": "#3f9b6c",
    "activations": "#e0913a",
    "encoder": "#c45a7b",
    "graphs": "#9467bd",
    "context": "#7f8c99",
    "free": "#e8edf2",
}
LABELS = {"kv": "KV cache", "graphs": "CUDA graphs"}
STAGES = ("#274b7a", "#7a3b5e", "#2f6b52", "#7a5a27", "#4b3f80", "#2b6b78", "#80413f", "#55662b")
GREY, PALE, INK, SOFT = "#9aa5b1", "#f4f6f8", "#1f2933", "#52606d"
GOOD, BAD = "#207a43", "#b3261e"


def draw(plan: Plan, request: PlanRequest) -> str:
    """The drawing, as an SVG document."""
    offers = {offer.node.name: offer for offer in sorted(request.nodes, key=lambda offer: offer.node.name)}
    roles = roles_of(plan)
    best = [offers[name] for name in dict.fromkeys(node_of(uuid, request) for uuid in roles)]
    parts, y = _heading(plan, request)
    spots: Spots = {}
    for offer in best:
        drawn, y = _best_node(offer, roles, y, spots)
        parts += drawn
    parts += network_arrows(plan, request, spots)
    used = {kind for stage in plan.stages for kind in stage.memory.to_dict()}
    drawn, y = _legend([offer.node for offer in best], y, used)
    parts += drawn
    drawn, y = _other_nodes(plan, [offer for offer in offers.values() if offer not in best], y)
    parts += drawn
    return svg.document(WIDTH, y + MARGIN, parts, f"{request.service}: {_decided(plan)}")


def _decided(plan: Plan) -> str:
    gpus = counted(plan.gpus_per_replica, "GPU")
    layers = ",".join(str(count) for count in plan.layers)
    over = f" over {plan.nodes_per_replica} nodes" if plan.nodes_per_replica > 1 else ""
    return f"{gpus} = tensor {plan.tensor} x pipeline {plan.pipeline}{over}, layers {layers}"


def _heading(plan: Plan, request: PlanRequest) -> tuple[list[str], float]:
    model = f"{request.architecture.name}, {request.architecture.parameters / 1e9:.2f} G parameters"
    room = WIDTH - 2 * MARGIN
    rows = [
        svg.text(MARGIN, 36, f"{request.service}: {_decided(plan)}", size=19, bold=True, room=room),
        svg.text(MARGIN, 58, " · ".join([model, *_predicted(plan)]), fill=SOFT, room=room),
    ]
    y = 58.0
    for sentence, fill in _verdict(plan):
        for part in textwrap.wrap(sentence, int(room / (12 * svg.CHARACTER)), break_on_hyphens=False):
            y += 19
            rows.append(svg.text(MARGIN, y, part, fill=fill))
    return rows, y + 18


def _predicted(plan: Plan) -> list[str]:
    predicted = plan.predicted
    parts = [f"{predicted.kv_cache_tokens:,} KV tokens"]
    if predicted.ttft_ms is not None:
        parts.append(f"TTFT {predicted.ttft_ms:.0f} ms")
    if predicted.tpot_ms is not None:
        parts.append(f"TPOT {predicted.tpot_ms:.1f} ms")
    if predicted.requests_per_s is not None:
        parts.append(f"up to {predicted.requests_per_s:.2f} requests/s")
    if plan.recommended_replicas is not None:
        count = plan.recommended_replicas
        parts.append("1 replica" if count == 1 else f"{count} replicas for the workload")
    return parts


def _verdict(plan: Plan) -> list[tuple[str, str]]:
    lines = [(f"Limit: {plan.binding}", SOFT)] if plan.binding else []
    if plan.slo is not None and plan.slo.feasible:
        lines.append(("Targets: predicted to be met", GOOD))
    elif plan.slo is not None:
        lines += [(f"Targets: not feasible: {plan.slo.constraint}", BAD), (f"It takes {plan.slo.change}", BAD)]
    return lines


def _best_node(offer: NodeOffer, roles: dict[str, Role], y: float, every: Spots) -> tuple[list[str], float]:
    """A node of the plan, its devices at the spots that are added to `every`."""
    devices = offer.node.devices
    rows = -(-len(devices) // CARDS_IN_A_ROW)
    height = 34 + rows * (CARD[1] + GAP[1])
    parts = [
        svg.rect(MARGIN, y, WIDTH - 2 * MARGIN, height, PALE, stroke=GREY, radius=8),
        svg.text(MARGIN + 14, y + 23, f"node {offer.node.name}", size=14, bold=True, room=WIDTH - 4 * MARGIN),
    ]
    spots: Spots = {
        device.uuid: (
            MARGIN + 16 + index % CARDS_IN_A_ROW * (CARD[0] + GAP[0]),
            y + 34 + GAP[1] / 2 + index // CARDS_IN_A_ROW * (CARD[1] + GAP[1]),
        )
        for index, device in enumerate(devices)
    }
    every.update(spots)
    parts += thin_links(offer.node, spots)
    parts += group_lines(offer.node, roles, spots)
    parts += [_card(device, offer, roles.get(device.uuid), spots[device.uuid]) for device in devices]
    parts += hops(offer.node, roles, spots)
    return parts, y + height + 22


def _card(device: Device, offer: NodeOffer, role: Role | None, spot: tuple[float, float]) -> str:
    x, y = spot
    width, height = CARD
    colour = GREY if role is None else STAGES[role.stage % len(STAGES)]
    head = f"gpu-{device.index} · {_task(device, offer, role)}"
    parts = [
        svg.rect(x, y, width, height, "#ffffff" if role else "#eceff2", stroke=colour, radius=6),
        svg.rect(x, y, width, 24, colour, radius=6),
        svg.text(x + 8, y + 16, head, size=10.5, fill="#ffffff", bold=True, room=width - 8),
        svg.text(x + 8, y + 41, device.product or "GPU", size=11, fill=INK if role else SOFT, room=width - 16),
    ]
    if role is None:
        parts.append(svg.text(x + 8, y + 84, size(device.memory_bytes), size=11, fill=SOFT))
    else:
        parts += _memory(role.memory, device, x + 8, y + 49)
    parts.append(svg.text(x + 8, y + height - 8, device.uuid, size=8.5, fill=SOFT, room=width - 16))
    return svg.group(parts, f"{device.uuid} {_tooltip(device, role)}".strip())


def _task(device: Device, offer: NodeOffer, role: Role | None) -> str:
    if role is not None:
        layers = f"layer {role.first}" if role.end == role.first + 1 else f"layers {role.first}-{role.end - 1}"
        return f"stage {role.stage}: {layers}"
    if device.excluded_reason:
        return f"excluded: {device.excluded_reason}"
    if not device.usable:
        return f"{device.health_state.lower()}: {device.health_reason}".rstrip(": ")
    return "unused" if device.uuid in offer.free else "in use by others"


def _tooltip(device: Device, role: Role | None) -> str:
    if role is None:
        return size(device.memory_bytes)
    kinds = ", ".join(f"{LABELS.get(kind, kind)} {size(count)}" for kind, count in role.memory.to_dict().items())
    return f"stage {role.stage} rank {role.rank}: {kinds} of {size(device.memory_bytes)}"


def _memory(memory: MemoryUse, device: Device, x: float, y: float) -> list[str]:
    """The memory bar, and its largest parts as text."""
    width, parts, at = CARD[0] - 16, [], x
    for kind, count in memory.to_dict().items():
        share = count / device.memory_bytes * width
        parts.append(svg.rect(at, y, share, 16, KINDS[kind], radius=0))
        at += share
    parts.append(svg.rect(x, y, width, 16, "none", stroke=SOFT, radius=0))
    used = f"weights {size(memory.weights)} · KV {size(memory.kv)}"
    parts.append(svg.text(x, y + 30, used, size=10.5, room=width))
    left = f"free {size(memory.free)} of {size(device.memory_bytes)}"
    parts.append(svg.text(x, y + 44, left, size=10.5, fill=SOFT, room=width))
    return parts


def _legend(nodes: list[Node], y: float, used: set[str]) -> tuple[list[str], float]:
    parts, x = [svg.text(MARGIN, y + 10, "memory", size=11, bold=True)], MARGIN + 60.0
    for kind, colour in KINDS.items():
        if kind not in used:
            continue
        label = LABELS.get(kind, kind)
        parts += [svg.rect(x, y, 12, 12, colour, stroke=GREY, radius=2), svg.text(x + 17, y + 10, label, size=11)]
        x += 32 + len(label) * 6.4
    between = {NETWORK} if len(nodes) > 1 else set[str]()
    kinds = sorted({link.kind for node in nodes for link in node.links} | between, key=list(LINKS).index)
    if kinds:
        x += 14
        parts.append(svg.text(x, y + 10, "links", size=11, bold=True))
        x += 42
    for kind in kinds:
        parts += [svg.line(x, y + 6, x + 18, y + 6, LINKS[kind], width=4), svg.text(x + 23, y + 10, kind, size=11)]
        x += 40 + len(kind) * 6.8
    return parts, y + 34


def _other_nodes(plan: Plan, offers: list[NodeOffer], y: float) -> tuple[list[str], float]:
    order = {name: index for index, name in enumerate(plan.nodes)}
    offers = sorted(offers, key=lambda offer: (order.get(offer.node.name, len(order)), offer.node.name))
    parts: list[str] = []
    for offer in offers[:MOST_SMALL_NODES]:
        drawn, y = _small_node(offer, y, would_do=offer.node.name in order)
        parts += drawn
    if len(offers) > MOST_SMALL_NODES:
        rest = offers[MOST_SMALL_NODES:]
        do = sum(offer.node.name in order for offer in rest)
        parts.append(svg.text(MARGIN, y + 12, f"and {len(rest)} more nodes, {do} of which would do as well", fill=SOFT))
        y += 24
    return parts, y


def _small_node(offer: NodeOffer, y: float, *, would_do: bool) -> tuple[list[str], float]:
    devices = offer.node.devices
    rows = max(1, -(-len(devices) // SMALL_IN_A_ROW))
    height = 28 + rows * (SMALL[1] + 8)
    verdict = "would do as well" if would_do else "not in the plan"
    parts = [
        svg.rect(MARGIN, y, WIDTH - 2 * MARGIN, height, PALE, stroke=GREY, radius=6),
        svg.text(MARGIN + 10, y + 18, f"node {offer.node.name}", bold=True, room=360),
        svg.text(MARGIN + 400, y + 18, verdict, size=11, fill=GOOD if would_do else SOFT),
    ]
    for index, device in enumerate(devices):
        x = MARGIN + 10 + index % SMALL_IN_A_ROW * (SMALL[0] + 9)
        top = y + 26 + index // SMALL_IN_A_ROW * (SMALL[1] + 8)
        free = device.uuid in offer.free
        colour = GOOD if would_do and free else GREY
        task = "free" if free else _task(device, offer, None)
        card = [
            svg.rect(x, top, SMALL[0], SMALL[1], "#ffffff" if free else "#eceff2", stroke=colour),
            svg.text(x + 6, top + 15, f"gpu-{device.index} {size(device.memory_bytes)}", size=10, room=SMALL[0] - 8),
            svg.text(x + 6, top + 28, f"{task} {device.product}", size=9, fill=SOFT, room=SMALL[0] - 8),
        ]
        parts.append(svg.group(card, f"{device.uuid} {device.product} {task}"))
    return parts, y + height + 10
