"""Profiles, pods and plans as the API server has them, and a stand-in for the planner's word."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from helpers.sizes import GIB
from uellm.extender.snapshot import Snapshot
from uellm.hardware import Node


def plan(gpus: int = 2, nodes: Sequence[str] = (), **fields: Any) -> str:
    return json.dumps({"gpus": gpus, "resourceName": "nvidia.com/gpu", "nodes": list(nodes), **fields})


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


class Fits:
    """Says no for the nodes it is told, and counts how often it is asked."""

    def __init__(self, *refused: str) -> None:
        self.refused = refused
        self.asked: list[str] = []

    def __call__(self, plan: Mapping[str, Any], node: Node, free: Sequence[str]) -> str | None:
        self.asked.append(node.name)
        return f"too small: {node.name}" if node.name in self.refused else None


def snapshot_of(*profiles: dict[str, Any], pods: Sequence[dict[str, Any]] = ()) -> Snapshot:
    snapshot = Snapshot()
    for each in profiles:
        snapshot.put_profile(each)
    for each in pods:
        snapshot.put_pod(each)
    return snapshot


@pytest.fixture
def make() -> SimpleNamespace:
    return SimpleNamespace(plan=plan, pod=pod, profile=profile, fits=Fits, snapshot=snapshot_of)
