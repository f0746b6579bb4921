"""The document of `uellm evaluate queue` or `fleet` as a table for people."""

from __future__ import annotations

from typing import Any

from uellm.text import aligned

_COLUMNS = ("CHUNK", "ATTAINED", "GOODPUT/S", "TTFT p50/p99", "TPOT p50/p99", "E2E p50/p99",
            "TOKENS/S", "SHED", "PREEMPTED", "JAIN", "US/DECISION")  # fmt: skip


def table(document: dict[str, Any]) -> str:
    """One line for each result, the upper bound, and then the attainment by class."""
    results = document["results"]
    heads = ["SPEED", "POLICY", "SEED"]
    if any("route" in result for result in results):
        heads.insert(1, "ROUTE")
    rows = [[*heads, *_COLUMNS], *(_row(result) for result in results)]
    lines = [f"{document['trace']}: {document['requests']} requests", *aligned(rows)]
    classes = sorted({name for result in results for name in result["attainment"]} - {"all"})
    if len(classes) > 1:
        lines += ["", *aligned([[*heads, *classes], *(_by_class(r, classes) for r in results)])]
    for speed, most in document.get("bound", {}).items():
        lines += ["", f"no policy attains more than {most:.4f} at x{speed}"]
    return "\n".join(lines)


def _row(result: dict[str, Any]) -> list[str]:
    times = [_times(result[key]) for key in ("ttftSeconds", "tpotSeconds", "e2eSeconds")]
    return [
        *_head(result),
        _known(result["maxBatchedTokens"], "{}"),
        f"{result['attainment']['all']:.4f}",
        f"{result['goodputPerSecond']:.2f}",
        *times,
        f"{result['outputTokensPerSecond']:.0f}",
        str(result["shed"]),
        str(result["preempted"]),
        f"{result['jain']:.3f}",
        _known(result["schedulerMicroseconds"], "{:.1f}"),
    ]


def _known(value: float | None, form: str) -> str:
    return "-" if value is None else form.format(value)


def _head(result: dict[str, Any]) -> list[str]:
    route = [result["route"]] if "route" in result else []
    return [f"{result['speed']:g}", *route, result["policy"], str(result["seed"])]


def _by_class(result: dict[str, Any], classes: list[str]) -> list[str]:
    attained = (result["attainment"].get(name) for name in classes)
    return [*_head(result), *("-" if share is None else f"{share:.4f}" for share in attained)]


def _times(seconds: dict[str, float | None]) -> str:
    return "/".join(duration(seconds[name]) for name in ("p50", "p99"))


def duration(seconds: float | None) -> str:
    """A time in a readable unit."""
    if seconds is None:
        return "-"
    return f"{seconds * 1e3:.0f}ms" if seconds < 1 else f"{seconds:.1f}s"
