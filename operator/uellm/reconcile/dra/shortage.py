"""Why a pod's claim is allocated nothing, in terms of GPUs: the scheduler names only nodes. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from uellm.planner.result import Plan
from uellm.reconcile.profiled_node import ProfiledNode


def shortage(plan: Plan, nodes: Iterable[ProfiledNode]) -> str:
    """What the claim of a replica asks for, and how many such GPUs there are and are free."""
    wanted = Counter(stage.product for stage in plan.stages for _ in range(plan.tensor))
    there, free = Counter[str](), Counter[str]()
    for node in nodes:
        unheld = set(node.free_for(set()))
        for device in node.facts.devices:
            if device.published is not None and device.usable:
                there[device.product] += 1
                free[device.product] += device.uuid in unheld
    parts = (
        f"{count} x {product or 'GPU'} in one node ({free[product]} of {there[product]} are free)"
        for product, count in wanted.items()
    )
    return f"its claim asks for {' and '.join(parts)}"
