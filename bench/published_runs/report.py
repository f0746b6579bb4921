"""Errors of predictions by kind of point, as text, Markdown and a plot."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from published_runs.rows import Row
from uellm.text import aligned

FIGURES = ("TPOT", "TTFT", "tokens/s")
BY: dict[str, Callable[[Row], str]] = {
    "GPU": lambda row: str(row.point["gpu"]),
    "family": lambda row: row.family,
    "precision": lambda row: row.precision,
    "TP": lambda row: f"tp{row.point['tensor']}",
    "batch": lambda row: row.batch,
    "source": lambda row: row.source,
}


@dataclass(frozen=True)
class Compared:
    """A row with what is predicted of it: TPOT and TTFT in seconds, tokens per second; None: nothing."""

    row: Row
    predicted: tuple[float | None, float | None, float | None]

    @property
    def pairs(self) -> tuple[tuple[float, float] | None, ...]:
        """Of each figure, what is measured and what is predicted."""
        measured = (self.row.tpot_s, self.row.ttft_s, self.row.tokens_per_s)
        return tuple(
            (one, other) if one and other else None for one, other in zip(measured, self.predicted, strict=True)
        )


def errors(found: Iterable[Compared]) -> dict[str, dict[str, float]]:
    """By figure: the number of points, the median and the p90 of the relative error, and the median with its sign."""
    result = {}
    for index, name in enumerate(FIGURES):
        signed = [other / one - 1 for each in found if (pair := each.pairs[index]) for one, other in [pair]]
        if signed:
            result[name] = {**spread(signed), "bias": statistics.median(signed)}
    return result


def spread(signed: Sequence[float]) -> dict[str, float]:
    """Number, median and p90 of the sizes of errors."""
    sizes = sorted(abs(each) for each in signed)
    return {"points": len(sizes), "median": statistics.median(sizes), "p90": sizes[int(0.9 * (len(sizes) - 1))]}


def breakdown(found: Sequence[Compared]) -> dict[str, dict[str, dict[str, dict[str, float]]]]:
    """By kind and its values: the errors."""
    result: dict[str, dict[str, dict[str, dict[str, float]]]] = {"all": {"": errors(found)}}
    for kind, key in BY.items():
        values = sorted({key(each.row) for each in found}, key=lambda value: (len(value), value))
        result[kind] = {value: errors([each for each in found if key(each.row) == value]) for value in values}
    return result


def lines(table: dict[str, Any], separator: str = "") -> list[str]:
    """The breakdown as a table; with `separator` "|" in Markdown."""
    head = ["BY", ""]
    for name in FIGURES:
        head += [f"{name} n", "median", "p90", "bias"]
    rows = [head]
    for kind, values in table.items():
        for value, found in values.items():
            row = [kind, value]
            for name in FIGURES:
                row += _cells(found.get(name))
            rows.append(row)
    if not separator:
        return aligned(rows, right=range(2, len(head)))
    ruled = [rows[0], ["---"] * 2 + ["--:"] * (len(head) - 2), *rows[1:]]
    return ["| " + " | ".join(row) + " |" for row in ruled]


def _cells(found: dict[str, float] | None) -> list[str]:
    if found is None:
        return [""] * 4
    return [
        f"{found['points']:.0f}",
        f"{found['median'] * 100:.1f} %",
        f"{found['p90'] * 100:.0f} %",
        f"{found['bias'] * 100:+.0f} %",
    ]


def plot(found: Sequence[Compared], file: Path) -> None:
    """Predicted over measured, a point for each point, a colour for each family."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 3, figsize=(13, 4.4))
    families = sorted({each.row.family for each in found})
    for index, (name, axis) in enumerate(zip(("TPOT, ms", "TTFT, ms", "output tokens/s"), axes, strict=True)):
        scale = 1.0 if index == 2 else 1e3
        shown = [(each.row.family, pair) for each in found if (pair := each.pairs[index])]
        for family in families:
            of = [pair for name_of, pair in shown if name_of == family]
            if of:
                axis.scatter([one * scale for one, _ in of], [other * scale for _, other in of], s=7, label=family)
        ends = [min(min(pair) for _, pair in shown) * scale, max(max(pair) for _, pair in shown) * scale]
        axis.plot(ends, ends, color="black", linewidth=0.8)
        axis.set(xscale="log", yscale="log", xlabel=f"measured {name}", ylabel="predicted")
    axes[0].legend(fontsize=7, frameon=False)
    figure.tight_layout()
    matplotlib.rcParams["svg.hashsalt"] = "uellm"
    figure.savefig(file, metadata={"Date": None} if file.suffix == ".svg" else None)
    pyplot.close(figure)
