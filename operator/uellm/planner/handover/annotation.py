"""The pod's annotation `uellm.io/plan`: what a node must have for the pod's plan.

Written by reconcile into the pod template, read by the scheduler extender. It depends on the shape of the plan and on
the spec alone: neither a new node nor a new measurement may change a byte of the template.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from uellm.documents import VERSION, parsed, reading
from uellm.hardware import Node
from uellm.planner.assignment.assign import Task
from uellm.planner.assignment.every_subset import refusal
from uellm.planner.assignment.parts import part_tasks
from uellm.planner.cost.rates import Costs
from uellm.planner.nodes.pools import pools_of_offer
from uellm.planner.refusals.kinds import NoGpuOfResource, PlanRefusal
from uellm.planner.request import NodeOffer

_NAME = "the pod's annotation uellm.io/plan"


@dataclass(frozen=True, slots=True)
class PlanAnnotation:
    """The content of the annotation."""

    gpus: int
    """GPUs that the pod requests, at least one."""
    resource_name: str
    """The extended resource by which it requests them."""
    pipeline: int
    task: Task
    """What is placed on the GPUs; its costs and policy are not part of the annotation."""
    service: str
    """namespace/name"""
    nodes: int = 1
    """Pods of a replica, each on a node of its own or not, with as many of the stages; then the split is fixed."""

    def parts(self) -> tuple[PlanAnnotation, ...]:
        """What each pod of a replica is to hold, as if it were a replica of its own."""
        layers = self.task.layers_override
        if self.nodes == 1 or layers is None:
            return (self,)
        stages, tasks = self.pipeline // self.nodes, part_tasks(self.task, layers, self.nodes)
        return tuple(replace(self, pipeline=stages, task=task, nodes=1) for task in tasks)

    def to_json(self) -> str:
        """The annotation's text."""
        return json.dumps(self.to_dict(), separators=(",", ":"))

    def to_dict(self) -> dict[str, Any]:
        """The JSON form; layers that are all alike are one number."""
        task = self.task
        return {
            "version": VERSION,
            "gpus": self.gpus,
            "tensor": task.tensor,
            "pipeline": self.pipeline,
            "resourceName": self.resource_name,
            "layerBytes": _one_or_all(task.layer_bytes),
            "layerKvBytes": _one_or_all(task.layer_kv_bytes),
            "firstStageBytes": task.first_bytes,
            "lastStageBytes": task.last_bytes,
            "reservedBytes": {"fixed": task.fixed_bytes, "fraction": task.margin},
            "layers": None if task.layers_override is None else list(task.layers_override),
            "layerCount": len(task.layer_bytes),
            "service": self.service,
            **({"nodes": self.nodes} if self.nodes > 1 else {}),
        }

    @classmethod
    def from_json(cls, text: str) -> PlanAnnotation:
        """The inverse of `to_json`. Raises UnreadableDocument."""
        return cls.from_dict(parsed(_NAME, text))

    @classmethod
    def from_dict(cls, document: Any) -> PlanAnnotation:
        """The inverse of `to_dict`. Raises UnreadableDocument."""
        with reading(_NAME, document) as data:
            reserved, layers, count = data["reservedBytes"], data["layers"], int(data["layerCount"])
            gpus, nodes = data["gpus"], int(data.get("nodes", 1))
            if not isinstance(gpus, int) or gpus < 1:
                raise ValueError(f"gpus must be a positive number, not {gpus!r}")
            if nodes > 1 and (not layers or len(layers) % nodes):
                raise ValueError(f"the layers of {nodes} nodes are {layers!r}")
            return cls(
                gpus=gpus,
                resource_name=str(data["resourceName"]),
                pipeline=int(data["pipeline"]),
                task=Task(
                    layer_bytes=_all(data["layerBytes"], count),
                    layer_kv_bytes=_all(data["layerKvBytes"], count),
                    first_bytes=int(data["firstStageBytes"]),
                    last_bytes=int(data["lastStageBytes"]),
                    fixed_bytes=int(reserved["fixed"]),
                    margin=str(reserved["fraction"]),
                    tensor=int(data["tensor"]),
                    costs=Costs(),
                    layers_override=None if layers is None else tuple(int(number) for number in layers),
                ),
                service=str(data["service"]),
                nodes=max(1, nodes),
            )


def refusal_on(annotation: PlanAnnotation, node: Node, free: Sequence[str]) -> PlanRefusal | None:
    """None where any choice of the node's free devices holds a pod of the plan, whose replicas are on one node each,
    else why not."""
    for pool in pools_of_offer(NodeOffer(node, tuple(free))):
        if pool.resource_name == annotation.resource_name:
            return refusal(pool, annotation.task, annotation.pipeline)
    return NoGpuOfResource(annotation.gpus, annotation.resource_name)


def _one_or_all(values: Sequence[int]) -> int | list[int]:
    return values[0] if len(set(values)) == 1 else list(values)


def _all(value: Any, count: int) -> tuple[int, ...]:
    if isinstance(value, int):
        return (value,) * count
    return tuple(int(number) for number in value)
