"""The part of a plan that each node of a group holds: some of its stages, one after the other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from uellm.planner.assignment.assign import Task
from uellm.planner.spans import spans


def parts_of(layers: Sequence[int], nodes: int) -> list[tuple[int, ...]]:
    """The layers of each node's stages.

    >>> parts_of((3, 5, 4, 4), 2)
    [(3, 5), (4, 4)]
    """
    stages = len(layers) // nodes
    return [tuple(layers[at : at + stages]) for at in range(0, len(layers), stages)]


def part_tasks(task: Task, layers: Sequence[int], nodes: int) -> list[Task]:
    """A task for each node, split as planned. Only the first holds what comes before the layers, as the last what
    comes after them."""
    found, at = [], 0
    for part in parts_of(layers, nodes):
        end = at + spans(part)[-1][1]
        found.append(
            replace(
                task,
                layer_bytes=task.layer_bytes[at:end],
                layer_kv_bytes=task.layer_kv_bytes[at:end],
                first_bytes=task.first_bytes if at == 0 else 0,
                last_bytes=task.last_bytes if end == len(task.layer_bytes) else 0,
                layers_override=part,
            )
        )
        at = end
    return found
