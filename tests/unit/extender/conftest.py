"""Profiles, pods and plans as the API server returns them, and a stand-in for the planner's check."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest

from helpers.sizes import GIB
from uellm.extender.snapshot import Snapshot
from uellm.hardware import GPU_RESOURCE, Node
from uellm.planner.handover.annotation import PlanAnnotation
from uellm.planner.refusals.kinds import PlanRefusal
from uellm.planner.refusals.sentences import sentence


def plan(gpus: int = 2, **fields: Any) -> str:
    document = {
        "version": 1,
        "gpus": gpus,
        "tensor": 1,
        "pipeline": gpus,
        "resourceName": GPU_RESOURCE,
        "layerBytes": GIB,
        "layerKvBytes": 1 << 20,
        "firstStageBytes": 0,
        "lastStageBytes": 0,
        "reservedBytes": {"fixed": GIB, "fraction": "0.08"},
        "layers": None,
        "layerCount": 8,
        "service": "default/llama",
    }
    return json.dumps({**document, **fields})


def pod(
    name: str = "p", *, uid: str = "", node: str = "", text: str | None = None, phase: str = "Pending"
) -> dict[str, Any]:
    metadata: dict[str, Any] = {"name": name, "namespace": "default", "uid": uid or f"uid-{name}"}
    if text is not None:
        metadata["annotations"] = {"uellm.io/plan": text}
    return {"metadata": metadata, "spec": {"nodeName": node} if node else {}, "status": {"phase": phase}}


def profile(name: str, gpus: int = 4, *, taken: Mapping[int, str] | None = None, **fields: Any) -> dict[str, Any]:
    devices = [
        {
            "index": index,
            "uuid": f"{name}-{index}",
            "memoryBytes": 24 * GIB,
            **({"allocatedTo": {"podUID": taken[index]}} if taken and index in taken else {}),
            **fields,
        }
        for index in range(gpus)
    ]
    return {"metadata": {"name": name}, "status": {"source": "Simulated", "devices": devices}}


@dataclass(frozen=True)
class TooSmall(PlanRefusal):
    node: str


@sentence.register
def _(refusal: TooSmall) -> str:
    return f"too small: {refusal.node}"


class RefusalOn:
    """Refuses the given nodes, and counts its calls."""

    def __init__(self, *refused: str) -> None:
        self.refused = refused
        self.asked: list[str] = []

    def __call__(self, plan: PlanAnnotation, node: Node, free: Sequence[str]) -> PlanRefusal | None:
        self.asked.append(node.name)
        return TooSmall(node.name) if node.name in self.refused else None


def snapshot_of(*profiles: dict[str, Any], pods: Sequence[dict[str, Any]] = ()) -> Snapshot:
    snapshot = Snapshot()
    for each in profiles:
        snapshot.put_profile(each)
    for each in pods:
        snapshot.put_pod(each)
    return snapshot


@pytest.fixture
def make() -> SimpleNamespace:
    return SimpleNamespace(plan=plan, pod=pod, profile=profile, refusal_on=RefusalOn, snapshot=snapshot_of)
