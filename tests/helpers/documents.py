"""A valid LLMService, and changed copies of it as tests/data/llmservice-cases.yaml describes them."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import yaml

CASES: list[dict[str, Any]] = yaml.safe_load(
    (Path(__file__).parents[1] / "data/llmservice-cases.yaml").read_text(encoding="utf-8")
)
VALID_SERVICE: dict[str, Any] = {
    "apiVersion": "uellm.io/v1alpha1",
    "kind": "LLMService",
    "metadata": {"name": "llama"},
    "spec": {"model": {"uri": "hf://meta-llama/Llama-3.1-8B"}},
}


def changed_service(case: dict[str, Any]) -> dict[str, Any]:
    """`VALID_SERVICE` with the values of `set` and without the paths of `drop`."""
    document = copy.deepcopy(VALID_SERVICE)
    for path, value in case.get("set", {}).items():
        part, last = _parent(document, path)
        part[last] = value
    for path in case.get("drop", ()):
        part, last = _parent(document, path)
        del part[last]
    return document


def _parent(document: dict[str, Any], path: str) -> tuple[dict[str, Any], str]:
    *parents, last = path.split(".")
    for parent in parents:
        document = document.setdefault(parent, {})
    return document, last
