"""A plan as text for people: the decision, the memory of every device, the predictions and the reasons."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator

from uellm.cli.plan_links import link_figures, node_hops, node_of
from uellm.hardware import Device
from uellm.planner.handover.publish import planned_engine
from uellm.planner.request import PlanRequest
from uellm.planner.result import Alternative, Plan, SearchFigures, SloVerdict
from uellm.planner.spans import spans
from uellm.planner.units import size
from uellm.text import aligned, and_more

WIDTH = 116
MOST_NODES = 8
KINDS = ("weights", "adapters", "kv", "activations", "encoder", "graphs", "context", "free")


def render(plan: Plan, request: PlanRequest) -> str:
    """The whole text."""
    return "\n".join(
        [
            *_decision(plan, request),
            "",
            *_stages(plan, request),
            "",
            f"engine     {' '.join(planned_engine(plan, request).args)}",
            f"predicted  {_predicted(plan)}",
            *_bullets("assumed or set", plan.assumptions),
            *_bullets("rejected", [_alternative(entry) for entry in plan.alternatives]),
        ]
    )


def _decision(plan: Plan, request: PlanRequest) -> Iterator[str]:
    shape = f"{plan.gpus_per_replica} = tp{plan.tensor} x pp{plan.pipeline}"
    yield f"{request.service}  {request.architecture.name}, {request.architecture.parameters:,} parameters"
    over = f", over {plan.nodes_per_replica} nodes" if plan.nodes_per_replica > 1 else ""
    yield f"GPUs       {shape} a replica{over}"
    yield f"layers     {','.join(str(count) for count in plan.layers)}"
    yield f"nodes      {and_more(plan.nodes, MOST_NODES)} (best first)"
    yield from _network(plan, request)
    if plan.recommended_replicas is not None:
        yield f"replicas   {plan.recommended_replicas} for the workload; the spec has {request.replicas}"
    if plan.adapters is not None:
        yield f"adapters   {plan.adapters.slots} slots of rank {plan.adapters.rank}"
    if plan.slo is not None:
        yield from _labelled("targets", "predicted to be met" if plan.slo.feasible else _unmet(plan.slo))
    if plan.binding:
        yield from _labelled("limit", plan.binding)
    if plan.search is not None:
        yield f"search     {_search(plan.search)}"


def _network(plan: Plan, request: PlanRequest) -> Iterator[str]:
    """The links that a plan over several nodes needs, with their figures."""
    for stage, link, source in node_hops(plan, request):
        one, other = (node_of(uuid, request) for uuid in (link.a, link.b))
        yield f"network    stage {stage} to {stage + 1}, {one} to {other}: {link_figures(link)} ({source})"


def _unmet(verdict: SloVerdict) -> str:
    return f"NOT FEASIBLE: {verdict.constraint}; this would help: {verdict.change}"


def _labelled(name: str, sentence: str) -> list[str]:
    return textwrap.wrap(
        sentence, WIDTH, initial_indent=f"{name:<11}", subsequent_indent=" " * 11, break_on_hyphens=False
    )


def _search(figures: SearchFigures) -> str:
    pruned = f", {figures.left_out} pruned by their bound" if figures.left_out else ""
    split = "optimal split" if figures.to_dict()["optimal"] else f"split within {figures.gap:.2%} of optimal"
    return f"{figures.shapes} shapes{pruned}, {figures.placements} placements computed, {split}"


def _stages(plan: Plan, request: PlanRequest) -> Iterator[str]:
    known = {device.uuid: device for offer in request.nodes for device in offer.node.devices}
    used = {kind for stage in plan.stages for kind in stage.memory.to_dict()}
    kinds = [kind for kind in KINDS if kind in used]
    several = plan.nodes_per_replica > 1
    header = ["STAGE", "LAYERS", *(kind.upper() for kind in kinds), "OF", *(["NODE"] if several else []), "DEVICE"]
    rows = [header]
    for index, (stage, (a, b)) in enumerate(zip(plan.stages, spans(plan.layers), strict=True)):
        memory = stage.memory.to_dict()
        for uuid in stage.devices:
            sizes = [size(memory.get(kind, 0)) for kind in kinds]
            on = [node_of(uuid, request)] if several else []
            rows.append([str(index), f"{a}-{b - 1}", *sizes, size(known[uuid].memory_bytes), *on, _name(known[uuid])])
    yield from aligned(rows, right=range(len(header) - 1))


def _name(device: Device) -> str:
    return f"gpu-{device.index} {device.product} {device.uuid}".replace("  ", " ")


def _predicted(plan: Plan) -> str:
    predicted = plan.predicted
    parts = [f"{predicted.kv_cache_tokens:,} KV tokens"]
    if predicted.ttft_ms is not None:
        parts.append(f"TTFT {predicted.ttft_ms:.1f} ms")
    if predicted.tpot_ms is not None:
        parts.append(f"TPOT {predicted.tpot_ms:.2f} ms")
    if predicted.requests_per_s is not None:
        parts.append(f"up to {predicted.requests_per_s:.2f} requests/s")
    return ", ".join(parts)


def _alternative(entry: Alternative) -> str:
    shape = f"{entry.gpus} = tp{entry.tensor} x pp{entry.pipeline}"
    layers = f", layers {','.join(str(count) for count in entry.layers)}" if entry.layers else ""
    return f"{shape}{layers}: {entry.rejected}"


def _bullets(title: str, sentences: tuple[str, ...] | list[str]) -> Iterator[str]:
    if sentences:
        yield ""
        yield f"{title}:"
    for sentence in sentences:
        yield textwrap.fill(sentence, WIDTH, initial_indent="- ", subsequent_indent="  ", break_on_hyphens=False)
