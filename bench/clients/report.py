"""The matrix as a table, and what it says about success. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from clients.compare import SAME
from uellm.text import aligned

FEATURES = [
    "answer",
    "stream",
    "stream, usage",
    "async",
    "tool",
    "structured",
    "other routes",
    "many at once",
    "left stream",
    "unknown model",
    "bad parameter",
    "prompt too long",
]


@dataclass
class Row:
    """One client."""

    client: str
    version: str = ""
    cases: dict[str, dict[str, Any]] = field(default_factory=dict)
    """By feature: `verdict`, `differences`, and the values."""
    problem: str = ""
    """Why there are no cases: it cannot be installed, or its probe failed."""

    @property
    def passed(self) -> bool:
        """Every case ran and is the same."""
        return not self.problem and bool(self.cases) and all(case["verdict"] == SAME for case in self.cases.values())


def table(rows: list[Row]) -> str:
    """Clients by features; then a line for each difference and each client that could not run."""
    cells = [["CLIENT", "VERSION", *(feature.upper() for feature in FEATURES)]]
    for row in rows:
        verdicts = ["-" if row.problem else row.cases.get(name, {}).get("verdict", "") for name in FEATURES]
        cells.append([row.client, row.version, *verdicts])
    lines = aligned(cells)
    for row in rows:
        if row.problem:
            lines.append(f"{row.client}: {row.problem}")
        for feature, case in row.cases.items():
            lines += [f"{row.client}, {feature}: {each}" for each in case["differences"]]
    return "\n".join(lines)
