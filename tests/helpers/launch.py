"""The plan document that the launcher reads."""

from __future__ import annotations

from typing import Any


def plan_document(**changes: Any) -> dict[str, Any]:
    """A plan of eight layers on an L4 and a T4; `changes` replace its fields."""
    document: dict[str, Any] = {
        "version": 1,
        "platform": "cpu",
        "plan": {
            "gpusPerReplica": 2,
            "tensor": 1,
            "pipeline": 2,
            "layers": [5, 3],
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
        "classes": [
            {"product": "NVIDIA L4", "memoryBytes": 24 << 30},
            {"product": "NVIDIA T4", "memoryBytes": 16 << 30},
        ],
        "engine": {"model": "/models/tiny", "revision": "", "servedName": "tiny", "args": ["--max-num-seqs", "8"]},
    }
    return document | changes
