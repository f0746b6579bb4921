"""The plan document that the launcher reads."""

from __future__ import annotations

from typing import Any


def plan_document(**changes: Any) -> dict[str, Any]:
    """A plan of eight layers on an L4 and a T4, and a spare T4; `changes` replace its fields."""
    devices = {
        uuid: {"uuid": uuid, "index": index, "product": product, "memoryBytes": memory, "node": "node-1"}
        for index, (uuid, product, memory) in enumerate(
            [("GPU-a", "NVIDIA L4", 24 << 30), ("GPU-b", "NVIDIA T4", 16 << 30), ("GPU-c", "NVIDIA T4", 16 << 30)]
        )
    }
    document: dict[str, Any] = {
        "version": 1,
        "platform": "cpu",
        "plan": {
            "gpusPerReplica": 2,
            "tensor": 1,
            "pipeline": 2,
            "layers": [5, 3],
            "maxNumBatchedTokens": 2048,
            "stages": [{"devices": ["GPU-a"]}, {"devices": ["GPU-b"]}],
        },
        "instance": {
            "layers": 8,
            "layerBytes": [2 << 30] * 8,
            "layerKvBytes": [1 << 30] * 8,
            "firstStageBytes": 1 << 30,
            "lastStageBytes": 1 << 30,
        },
        "reservedBytes": {"fixed": 1 << 30, "fraction": "0.08"},
        "policy": "HELR",
        "layersOverride": [5, 3],
        "tensor": 1,
        "devices": devices,
        "links": {"node-1": []},
        "engine": {"model": "/models/tiny", "revision": "", "servedName": "tiny", "args": ["--max-num-seqs", "8"]},
    }
    return document | changes
