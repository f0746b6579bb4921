"""Places the layers of a model on several nodes: consecutive stages on each, in the order of the nodes.

Planner and launcher both use it, as they use assign.py on one node. GPUs that share a layer are chosen within a node.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from uellm.hardware import Device, Link
from uellm.planner.assignment.assign import Assignment, Task, instance_of, position_names
from uellm.planner.nodes.tensor_groups import group_choices, group_kinds
from uellm.planner.refusals.kinds import PlanRefusal, TooFewGroups


def assign_over(
    nodes: Sequence[Sequence[Device]], links: Sequence[Link], task: Task, stages: int
) -> Assignment | PlanRefusal:
    """The best placement of `stages` stages, equally many on each node, or why there is none.

    `nodes`: the devices of each node in the order of the stages, of one kind on each node; `links`: those within the
    nodes, and from each node to the next. `stages` is a multiple of the number of nodes.
    """
    # With numpy; see `uellm.planner.placement.solver`.
    from uellm.planner.placement.chain import place_chain

    each = stages // len(nodes)
    groups: list[tuple[Device, ...]] = []
    for devices in nodes:
        if (found := len(group_kinds(devices, task.tensor))) < each:
            return TooFewGroups(each, task.tensor, found)
        groups += next(group_choices(devices, links, task.tensor, each, task.costs))[:each]
    placement = place_chain(instance_of(groups, links, task), task.objective, task.fixed_layers(stages))
    if placement.refusal is not None:
        return placement.refusal.renamed(position_names(groups))
    cost = placement.cost or 0.0
    return Assignment(tuple(groups), placement.layers, cost, cost)


def node_of_stage(stage: int, stages: int, nodes: int) -> int:
    """The position of the node that holds a stage."""
    return stage // (stages // nodes)


def hops_over_network(assignment: Assignment, nodes: int) -> list[tuple[Device, Device]]:
    """The first devices of each two consecutive stages that are on different nodes."""
    stages = len(assignment.groups)
    return [
        (one[0], other[0])
        for index, (one, other) in enumerate(pairwise(assignment.groups))
        if node_of_stage(index, stages, nodes) != node_of_stage(index + 1, stages, nodes)
    ]
