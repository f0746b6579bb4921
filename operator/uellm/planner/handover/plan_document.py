"""plan.json: the plan's shape, the placement task, and the facts of the classes of GPUs that it was made for.

Written by the controller into a ConfigMap of the service, read by the launcher in the engine's container. It names no
node and no device, so that it stays the same for as long as the plan does.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from uellm.documents import VERSION, parsed, reading
from uellm.hardware import DeviceClass, StageNeeds
from uellm.planner.assignment.assign import Task
from uellm.planner.cost.rates import Costs
from uellm.pod_interface import PLAN_FILE


@dataclass(frozen=True, slots=True)
class PlannedEngine:
    """How the engine is started, except for the sizes of the pipeline, which the launcher adds."""

    model: str
    """A Hugging Face id or a path."""
    revision: str = ""
    served_name: str = ""
    args: tuple[str, ...] = ()
    """The plan's flags, then the user's own."""
    loads_adapters: bool = False
    """LoRA adapters are loaded and unloaded while it runs."""

    def to_dict(self) -> dict[str, Any]:
        """`engine`."""
        return {
            "model": self.model,
            "revision": self.revision,
            "servedName": self.served_name,
            "args": list(self.args),
            **({"loadsAdapters": True} if self.loads_adapters else {}),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> PlannedEngine:
        """The inverse of `to_dict`."""
        return cls(
            model=str(data["model"]),
            revision=str(data.get("revision") or ""),
            served_name=str(data.get("servedName") or ""),
            args=tuple(str(argument) for argument in data.get("args") or ()),
            loads_adapters=bool(data.get("loadsAdapters")),
        )


@dataclass(frozen=True, slots=True)
class PlanDocument:
    """The content of plan.json."""

    gpus: int
    """Of each replica."""
    layers: tuple[int, ...]
    """By stage, on the devices meant for the first replica."""
    platform: str
    """cuda, or cpu for simulated GPUs."""
    task: Task
    engine: PlannedEngine
    classes: tuple[DeviceClass, ...]
    """Of the GPUs on the plan's nodes."""
    kv_tokens: int = 0
    """Tokens for which the task has KV cache; 0: the user set the engine's KV cache, or the model keeps none."""
    kv_factor: int = 1
    """Width of the engine's KV cache over that of the plan."""
    nodes: int = 1
    """That a replica spans. Stage s is on node s // (stages / nodes); each has as many GPUs as the others."""
    claimed: tuple[StageNeeds, ...] = ()
    """By stage, where the pod claims its GPUs: what the claim asked for. Empty where the kubelet picks them."""

    def to_json(self) -> str:
        """Without indentation."""
        return json.dumps(self.to_dict(), separators=(",", ":"), ensure_ascii=False)

    def to_dict(self) -> dict[str, Any]:
        """The JSON form."""
        task = self.task
        return {
            "version": VERSION,
            "plan": {
                "gpusPerReplica": self.gpus,
                "tensor": task.tensor,
                "pipeline": len(self.layers),
                "layers": list(self.layers),
                **({"nodes": self.nodes} if self.nodes > 1 else {}),
            },
            "platform": self.platform,
            "instance": {
                "layers": len(task.layer_bytes),
                "layerBytes": list(task.layer_bytes),
                "layerKvBytes": list(task.layer_kv_bytes),
                "firstStageBytes": task.first_bytes,
                "lastStageBytes": task.last_bytes,
            },
            "reservedBytes": {"fixed": task.fixed_bytes, "fraction": task.margin},
            "policy": task.policy,
            "objective": task.objective,
            "layersOverride": None if task.layers_override is None else list(task.layers_override),
            "tensor": task.tensor,
            "costs": task.costs.to_dict(),
            "kvTokens": self.kv_tokens,
            "kvFactor": self.kv_factor,
            "classes": [each.to_dict() for each in self.classes],
            "engine": self.engine.to_dict(),
            **({"claimed": [each.to_dict() for each in self.claimed]} if self.claimed else {}),
        }

    @classmethod
    def from_json(cls, text: str | bytes, name: str = PLAN_FILE) -> PlanDocument:
        """The inverse of `to_json`. Raises UnreadableDocument, which begins with `name`."""
        return cls.from_dict(parsed(name, text), name)

    @classmethod
    def from_dict(cls, document: Any, name: str = PLAN_FILE) -> PlanDocument:
        """The inverse of `to_dict`. Raises UnreadableDocument."""
        with reading(name, document) as data:
            return cls(
                gpus=int(data["plan"]["gpusPerReplica"]),
                layers=tuple(int(count) for count in data["plan"]["layers"]),
                platform=data["platform"],
                task=_task(data),
                engine=PlannedEngine.from_dict(data["engine"]),
                classes=tuple(map(DeviceClass.from_dict, data["classes"])),
                kv_tokens=int(data.get("kvTokens") or 0),
                kv_factor=int(data.get("kvFactor", 1)),
                nodes=int(data["plan"].get("nodes", 1)),
                claimed=tuple(map(StageNeeds.from_dict, data.get("claimed") or ())),
            )


def _task(data: Mapping[str, Any]) -> Task:
    instance, reserved, override = data["instance"], data["reservedBytes"], data.get("layersOverride")
    return Task(
        layer_bytes=tuple(instance["layerBytes"]),
        layer_kv_bytes=tuple(instance["layerKvBytes"]),
        first_bytes=int(instance["firstStageBytes"]),
        last_bytes=int(instance["lastStageBytes"]),
        fixed_bytes=int(reserved["fixed"]),
        margin=str(reserved["fraction"]),
        tensor=int(data["tensor"]),
        costs=Costs.from_dict(data.get("costs") or {}),
        policy=data["policy"],
        objective=data.get("objective", "latency"),
        layers_override=None if override is None else tuple(override),
    )
