"""Compares today's output with the record line by line, except for the lists below.

A document is compared as lines `path = value`, in its own order. JSON and YAML inside strings (plan.json, the pod's
annotation, sidecar.yaml) is parsed. Patterns are those of `fnmatch`; `[]` matches any index of a list.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from difflib import unified_diff
from fnmatch import fnmatchcase
from functools import cache
from itertools import islice
from typing import Any

import yaml

# Fields that are missing in the record, and recorded fields that the code no longer writes.
ADDED: tuple[str, ...] = ("*sidecar.yaml.version", "*annotations.uellm.io/plan.version")
REMOVED: tuple[str, ...] = (
    "*plan.json.instance.workPerByte",
    "*plan.json.instance.a1",
    "*plan.json.instance.a2",
)

# Sentences for people.
SENTENCES = (
    "error.message",
    "*plan.assumptions[]",
    "*plan.alternatives[].rejected",
    "*plan.binding",
    "*plan.slo.constraint",
    "*plan.slo.change",
    "*plan.reason",
)
# Digests of texts that contain sentences.
DIGESTS = ("*metadata.annotations.uellm.io/applied",)
# Fields that may differ with another placement of the same cost.
PLACEMENT = ("*plan.layers[]", "*plan.stages[]*")

MASK = "..."
_DIFFERENCES_SHOWN = 12
_TOLERANCE = 1e-9


def differences(recorded: dict[str, Any], today: dict[str, Any]) -> list[str]:
    """Lines of a diff; empty if the two are equivalent."""
    before, after = _lines(recorded, ADDED + REMOVED), _lines(today, ADDED + REMOVED)
    if before == after:
        return []
    if _same_predictions(recorded, today) and _without_placement(before) == _without_placement(after):
        return []
    shown = unified_diff(_texts(before), _texts(after), "recorded", "today", n=0, lineterm="")
    return list(islice(shown, _DIFFERENCES_SHOWN))


def _same_predictions(recorded: dict[str, Any], today: dict[str, Any]) -> bool:
    """Whether both have the same predictions, up to rounding. If so, their placements have the same cost."""
    before, after = recorded.get("predicted"), today.get("predicted")
    if before is None or after is None:
        return False
    pairs = zip(before, after, strict=True)
    return all(a == b or (None not in (a, b) and math.isclose(a, b, rel_tol=_TOLERANCE)) for a, b in pairs)


def _lines(document: dict[str, Any], left_out: tuple[str, ...]) -> list[tuple[str, str]]:
    lines = []
    for path, value in _leaves({name: value for name, value in document.items() if name != "predicted"}, ""):
        if _matches(path, left_out):
            continue
        masked = _matches(path, SENTENCES) or _matches(path, DIGESTS)
        lines.append((path, MASK if masked else json.dumps(value)))
    return lines


def _leaves(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    opened = _opened(value, path)
    if isinstance(opened, dict) and opened:
        for name, inner in opened.items():
            yield from _leaves(inner, f"{path}.{name}" if path else name)
    elif isinstance(opened, list) and opened:
        for inner in opened:
            yield from _leaves(inner, f"{path}[]")
    else:
        yield path, opened


def _opened(value: Any, path: str) -> Any:
    if not isinstance(value, str):
        return value
    if path.endswith(".yaml"):
        return yaml.safe_load(value)
    return json.loads(value) if value.startswith("{") else value


def _without_placement(lines: list[tuple[str, str]]) -> list[tuple[str, str]]:
    return [line for line in lines if not _matches(line[0], PLACEMENT)]


@cache
def _matches(path: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatchcase(path, pattern.replace("[]", "[[]]")) for pattern in patterns)


def _texts(lines: list[tuple[str, str]]) -> list[str]:
    return [f"{path} = {value}" for path, value in lines]
