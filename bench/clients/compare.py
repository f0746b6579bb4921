"""Whether a client handed back the same from the engine and through the sidecar. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

SAME, DIFFERS, UNSTEADY, BROKEN = "same", "differs", "unsteady", "broken"
"""Unsteady: two runs against the engine alone differ, so nothing can be said. Broken: the engine alone answers with an
error where it should not, or the other way round, so the case shows nothing."""
ERRORS = {"unknown model", "bad parameter", "prompt too long"}
"""The cases whose answer is an error."""

_OWN_EACH_TIME = {"id", "created", "created_at", "completed_at", "request_id", "_request_id", "timestamp", "call_id"}
_OWN_EACH_TIME |= {"response_id", "run_id", "tool_call_id", "response_ms", "provider_response_id", "item_id"}
_IDS = re.compile(
    r"\b(?:chatcmpl|cmpl|resp|msg|rs|fc|call|chatcmpl-tool|run|lc_run-|modelperm|req|toolu)[-_][-_0-9a-zA-Z]{8,}"
    r"|\b[0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12}\b|\b[0-9a-f]{32}\b"
)
_ADDRESS = re.compile(r"127\.0\.0\.1:\d+")


def masked(value: Any) -> Any:
    """The value without what is new each time: ids, times of creation, ports."""
    if isinstance(value, dict):
        return {name: _kept(name, each) for name, each in value.items()}
    if isinstance(value, list):
        return [masked(each) for each in value]
    if isinstance(value, str):
        return _ADDRESS.sub("ENDPOINT", _IDS.sub("ID", value))
    return value


def _kept(name: str, value: Any) -> Any:
    if name in _OWN_EACH_TIME and isinstance(value, str | int | float):
        # A model's id is its name.
        return value if value in ("tiny",) else "MASKED"
    return masked(value)


def differences(one: Any, other: Any, where: str = "") -> Iterator[str]:
    """One line for each place where two masked values differ."""
    if isinstance(one, dict) and isinstance(other, dict):
        for name in dict.fromkeys((*one, *other)):
            if name not in one or name not in other:
                yield f"{where}.{name}: only {'directly' if name in one else 'through the sidecar'}"
            else:
                yield from differences(one[name], other[name], f"{where}.{name}")
    elif isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        for index, pair in enumerate(zip(one, other, strict=True)):
            yield from differences(*pair, f"{where}[{index}]")
    elif one != other:
        yield f"{where}: {one!r} directly, {other!r} through the sidecar"


def compared(direct: dict[str, Any], through: dict[str, Any], again: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """For each case: its verdict and its differences. `again` is a second run against the engine alone, if any."""
    found = {}
    for feature, value in direct.items():
        lines = list(differences(masked(value), masked(through.get(feature))))
        verdict = DIFFERS if lines else SAME
        if raised(value) != (feature in ERRORS):
            verdict, lines = BROKEN, [f"directly: {value!r}"[:300]]
        elif lines and feature in again and masked(again[feature]) != masked(value):
            verdict = UNSTEADY
        found[feature] = {"verdict": verdict, "differences": lines}
    return found


def raised(value: Any) -> bool:
    """Whether the client raised an error."""
    return isinstance(value, dict) and "raised" in value
