"""The plan and its parts, and their form in `status.plan`: camelCase, units in the names, no floats."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from uellm.hardware import DEVICE_PLUGIN, DRA
from uellm.planner import constants as c
from uellm.planner.adapter_slots import AdapterSlots


@dataclass(frozen=True, slots=True)
class SloVerdict:
    """Whether the targets are predicted to be met. If not: what is impossible, and the smallest change that helps."""

    feasible: bool
    constraint: str = ""
    change: str = ""

    def to_dict(self) -> dict[str, Any]:
        """`status.plan.slo`."""
        entry: dict[str, Any] = {"feasible": self.feasible}
        if self.constraint:
            entry["constraint"] = self.constraint
        if self.change:
            entry["change"] = self.change
        return entry

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> SloVerdict:
        """The inverse of `to_dict`."""
        return cls(bool(data["feasible"]), data.get("constraint", ""), data.get("change", ""))


@dataclass(frozen=True, slots=True)
class SearchFigures:
    """How the plan was found.

    The number of shapes, those pruned by a bound without a look at every node, the placements evaluated, and the gap
    between the split of layers and the best one.
    """

    shapes: int
    left_out: int
    placements: int
    gap: float
    """Relative difference of the split's cost to its proven lower bound; 0: it is optimal."""

    def to_dict(self) -> dict[str, Any]:
        """`status.plan.search`."""
        return {
            "shapes": self.shapes,
            "leftOut": self.left_out,
            "placements": self.placements,
            "optimal": self.gap <= c.GAP_TOLERANCE,
            "gapPercent": f"{max(0.0, self.gap) * 100:.2f}",
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> SearchFigures:
        """The inverse of `to_dict`, up to its rounding."""
        gap = float(data.get("gapPercent", 0)) / 100
        return cls(int(data["shapes"]), int(data["leftOut"]), int(data["placements"]), gap)


@dataclass(frozen=True, slots=True)
class MemoryUse:
    """Bytes on each GPU of one stage, by kind.

    `kv` is the KV cache that the engine allocates. `free` is the rest of the device's whole memory, including the
    margin that vLLM's utilisation leaves.
    """

    weights: int
    kv: int
    activations: int
    graphs: int
    context: int
    free: int
    adapters: int = 0
    """LoRA slots."""
    encoder: int = 0
    """Images and videos: what encoding takes beyond `activations`, and their embeddings."""

    @property
    def required(self) -> int:
        """Bytes in use."""
        beside = self.adapters + self.encoder
        return self.weights + self.kv + self.activations + self.graphs + self.context + beside

    def to_dict(self) -> dict[str, int]:
        """`status.plan.stages[].memory`."""
        return {
            "weights": self.weights,
            **({"adapters": self.adapters} if self.adapters else {}),
            "kv": self.kv,
            "activations": self.activations,
            **({"encoder": self.encoder} if self.encoder else {}),
            "graphs": self.graphs,
            "context": self.context,
            "free": self.free,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> MemoryUse:
        """The inverse of `to_dict`."""
        kinds = ("weights", "kv", "activations", "graphs", "context", "free", "adapters", "encoder")
        return cls(*(int(data.get(kind, 0)) for kind in kinds))


@dataclass(frozen=True, slots=True)
class Stage:
    """One pipeline stage: the `tensor` devices (intended for the first replica) that hold the same layers."""

    devices: tuple[str, ...]
    memory_bytes: int
    """The least memory of each device, everything included."""
    product: str
    """Empty if the plan does not name one."""
    memory: MemoryUse

    def to_dict(self) -> dict[str, Any]:
        """`status.plan.stages[]`."""
        requires: dict[str, Any] = {"memoryBytes": self.memory_bytes}
        if self.product:
            requires["product"] = self.product
        return {"devices": list(self.devices), "requires": requires, "memory": self.memory.to_dict()}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Stage:
        """The inverse of `to_dict`."""
        requires = data.get("requires") or {}
        return cls(
            devices=tuple(data.get("devices") or ()),
            memory_bytes=int(requires.get("memoryBytes", 0)),
            product=requires.get("product", ""),
            memory=MemoryUse.from_dict(data.get("memory") or {}),
        )


@dataclass(frozen=True, slots=True)
class Predicted:
    """The predicted performance of a replica. Times and rates are None where devices are not measured.

    An embedder or a reranker has no TPOT, and its TTFT is the time of the whole answer.
    """

    kv_cache_tokens: int
    ttft_ms: float | None = None
    tpot_ms: float | None = None
    requests_per_s: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """`status.plan.predicted`: whole milliseconds, at least 1; the rate as a string."""
        entry: dict[str, Any] = {"kvCacheTokens": self.kv_cache_tokens}
        if self.ttft_ms is not None:
            entry["ttftMilliseconds"] = max(1, round(self.ttft_ms))
        if self.tpot_ms is not None:
            entry["tpotMilliseconds"] = max(1, round(self.tpot_ms))
        if self.requests_per_s is not None:
            entry["requestsPerSecond"] = f"{self.requests_per_s:.2f}"
        return entry

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Predicted:
        """The inverse of `to_dict`, up to its rounding."""
        return cls(
            kv_cache_tokens=int(data.get("kvCacheTokens", 0)),
            ttft_ms=_float(data.get("ttftMilliseconds")),
            tpot_ms=_float(data.get("tpotMilliseconds")),
            requests_per_s=_float(data.get("requestsPerSecond")),
        )


@dataclass(frozen=True, slots=True)
class Alternative:
    """A shape that was considered and rejected, and why."""

    gpus: int
    tensor: int
    pipeline: int
    layers: tuple[int, ...]
    """Empty if no split exists."""
    nodes: tuple[str, ...]
    """The nodes for which it was considered."""
    rejected: str

    def to_dict(self) -> dict[str, Any]:
        """`status.plan.alternatives[]`."""
        return {
            "gpusPerReplica": self.gpus,
            "tensor": self.tensor,
            "pipeline": self.pipeline,
            "layers": list(self.layers),
            "nodes": list(self.nodes),
            "rejected": self.rejected,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Alternative:
        """The inverse of `to_dict`."""
        return cls(
            gpus=int(data["gpusPerReplica"]),
            tensor=int(data["tensor"]),
            pipeline=int(data["pipeline"]),
            layers=tuple(data.get("layers") or ()),
            nodes=_shared(data.get("nodes") or ()),
            rejected=data["rejected"],
        )


@dataclass(frozen=True, slots=True)
class Plan:
    """How one replica is placed: the shape of every replica, and the devices intended for the first."""

    gpus_per_replica: int
    tensor: int
    pipeline: int
    layers: tuple[int, ...]
    max_num_batched_tokens: int
    max_num_seqs: int
    kv_cache_bytes: int
    """Per GPU; the engine's flag."""
    stages: tuple[Stage, ...]
    nodes: tuple[str, ...]
    """Every node that admits the shape, best first."""
    predicted: Predicted
    recommended_replicas: int | None
    """None: no rate was given, or nothing is measured."""
    assumptions: tuple[str, ...] = ()
    alternatives: tuple[Alternative, ...] = ()
    profile_hash: str = ""
    kv_cache_tokens_required: int = 0
    """The KV cache that devices in place of these must have room for, in tokens."""
    binding: str = ""
    """The limit that it reaches first."""
    slo: SloVerdict | None = None
    """None: there is no target, or nothing is predicted."""
    search: SearchFigures | None = None
    reason: str = ""
    """Why it was made, or why it replaced another one."""
    node_classes: tuple[str, ...] = ()
    """Classes whose nodes hold it, best first, where it was planned for a node that has not joined; it then has no
    nodes and no devices."""
    adapters: AdapterSlots | None = None
    """Slots for LoRA adapters; None: the engine serves none."""
    allocation: str = DEVICE_PLUGIN
    """How its pods are given their GPUs: DevicePlugin or DRA."""
    nodes_per_replica: int = 1
    """Nodes that a replica spans, each with the same number of GPUs and of consecutive stages."""

    @property
    def claims(self) -> bool:
        """Whether its pods claim their GPUs by DRA."""
        return self.allocation == DRA

    @property
    def devices(self) -> tuple[str, ...]:
        """Uuids of the devices intended for the first replica, in rank order."""
        return tuple(uuid for stage in self.stages for uuid in stage.devices)

    def with_shared_names(self) -> Plan:
        """The same plan with the names of nodes that other plans already have.

        It names every node that it fits on. As texts of its own, those would be most of what a plan takes.
        """
        others = tuple(replace(each, nodes=_shared(each.nodes)) for each in self.alternatives)
        return replace(self, nodes=_shared(self.nodes), alternatives=others)

    def to_dict(self) -> dict[str, Any]:
        """`status.plan`."""
        entry: dict[str, Any] = {
            "gpusPerReplica": self.gpus_per_replica,
            "tensor": self.tensor,
            "pipeline": self.pipeline,
            "layers": list(self.layers),
            "maxNumBatchedTokens": self.max_num_batched_tokens,
            "maxNumSeqs": self.max_num_seqs,
            "kvCacheBytes": self.kv_cache_bytes,
            "kvCacheTokensRequired": self.kv_cache_tokens_required,
            "stages": [stage.to_dict() for stage in self.stages],
            "nodes": list(self.nodes),
            **({"nodeClasses": list(self.node_classes)} if self.node_classes else {}),
            "predicted": self.predicted.to_dict(),
            "assumptions": list(self.assumptions),
            "alternatives": [alternative.to_dict() for alternative in self.alternatives],
            "profileHash": self.profile_hash,
        }
        if self.recommended_replicas is not None:
            entry["recommendedReplicas"] = self.recommended_replicas
        if self.slo is not None:
            entry["slo"] = self.slo.to_dict()
        if self.search is not None:
            entry["search"] = self.search.to_dict()
        if self.adapters is not None:
            entry["adapters"] = self.adapters.to_dict()
        if self.claims:
            entry["allocation"] = self.allocation
        if self.nodes_per_replica > 1:
            entry["nodesPerReplica"] = self.nodes_per_replica
        return entry | {name: text for name, text in (("binding", self.binding), ("reason", self.reason)) if text}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Plan:
        """The inverse of `to_dict`. Raises KeyError or ValueError if the document is not a plan."""
        return cls(
            gpus_per_replica=int(data["gpusPerReplica"]),
            tensor=int(data["tensor"]),
            pipeline=int(data["pipeline"]),
            layers=tuple(int(count) for count in data["layers"]),
            max_num_batched_tokens=int(data["maxNumBatchedTokens"]),
            max_num_seqs=int(data.get("maxNumSeqs", 0)),
            kv_cache_bytes=int(data.get("kvCacheBytes", 0)),
            kv_cache_tokens_required=int(data.get("kvCacheTokensRequired", 0)),
            stages=tuple(Stage.from_dict(stage) for stage in data.get("stages") or ()),
            nodes=_shared(data.get("nodes") or ()),
            predicted=Predicted.from_dict(data.get("predicted") or {}),
            recommended_replicas=data.get("recommendedReplicas"),
            assumptions=tuple(data.get("assumptions") or ()),
            alternatives=tuple(Alternative.from_dict(entry) for entry in data.get("alternatives") or ()),
            profile_hash=data.get("profileHash", ""),
            binding=data.get("binding", ""),
            slo=SloVerdict.from_dict(data["slo"]) if data.get("slo") else None,
            search=SearchFigures.from_dict(data["search"]) if data.get("search") else None,
            reason=data.get("reason", ""),
            node_classes=tuple(data.get("nodeClasses") or ()),
            adapters=AdapterSlots.from_dict(data.get("adapters")),
            allocation=data.get("allocation") or DEVICE_PLUGIN,
            nodes_per_replica=int(data.get("nodesPerReplica", 1)),
        )


def _shared(names: Iterable[str]) -> tuple[str, ...]:
    return tuple(map(sys.intern, names))


def _float(value: Any) -> float | None:
    return None if value is None else float(value)
