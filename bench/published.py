"""Predictions beside published measurements of vLLM: errors by GPU, family of models, precision, TP and batch.

    python bench/published.py --measurements DIRECTORY [--json FILE] [--docs DIRECTORY] [--fit]

DIRECTORY holds serving.csv.gz and memory.csv: published points with their source, figures alone; they are no part of
this project. Every usable point is predicted as `uellm predict` does it. `--docs` writes the page with its plot, and
published-fit.json. `--fit` fits the cost model's figures again, to all groups of sources, and tells how well each group
is predicted by a fit to the others; the figures in use are those of planner/constants.py and planner/kernels.py.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from published_runs.fit import Fitted
from published_runs.report import Compared, breakdown, lines, plot, spread
from published_runs.rows import Row, memory, serving

from uellm.errors import UellmError
from uellm.planner.prediction.point import read_point
from uellm.planner.prediction.serve import memory_of, predict_point

GIB = 1 << 30
PAGE = """# Predictions beside published measurements

`bench/published.py` writes this page: {count} published points of vLLM, with sources and versions that nobody chose for
this purpose, predicted by the cost model that plans are made with. The same configuration measured on another version
of vLLM differs by 11 % in TPOT and 16 % in TTFT (medians).

![predicted over measured](published.svg)

## The model as it is

Errors are relative to the measured value; bias is the median error with its sign.

{table}

## Memory

{memory}
"""
HELD_OUT = """
## On points that were not fitted

Each source, and each family of models of the largest source, predicted by a fit to all the others. The figures of these
fits and of the fit to all are in [published-fit.json](published-fit.json).

{table}
"""


def main() -> int:
    """Predict, compare, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--measurements", type=Path)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--docs", type=Path)
    parser.add_argument("--fit", action="store_true")
    args = parser.parse_args()
    if args.measurements is None:
        print("no measurements: give --measurements a directory with serving.csv.gz and memory.csv")
        return 0
    rows = serving(args.measurements)
    found = [compared(row) for row in rows]
    result: dict[str, Any] = {"table": breakdown(found), "memory": memory_errors(args.measurements)}
    print("\n".join(lines(result["table"])), "", *memory_lines(result["memory"]), sep="\n")
    if args.fit:
        result["fit"] = fitted(rows)
        print("\nEach group predicted by a fit to the others:", *lines(result["fit"]["heldOut"]), sep="\n")
        print(json.dumps(result["fit"]["figures"], indent=1))
    if args.json:
        args.json.write_text(json.dumps(result, indent=1))
    if args.docs:
        write_docs(args.docs, result, found)
    return 0


def compared(row: Row) -> Compared:
    """The row with its prediction."""
    try:
        outcome = predict_point(read_point(row.point))
    except UellmError as error:
        print(f"{row.point['id']}: {error}", file=sys.stderr)
        return Compared(row, (None, None, None))
    if row.point.get("decodeBatch"):
        return Compared(row, (outcome.tpot_s, None, outcome.output_tokens_per_s))
    return Compared(row, (outcome.tpot_s, outcome.ttft_s, outcome.output_tokens_per_s))


def memory_errors(directory: Path) -> dict[str, dict[str, float]]:
    """Errors of weights and of the bytes for KV cache, on one GPU."""
    weights, cache = [], []
    for point, line in memory(directory):
        try:
            found = memory_of(read_point(point))
        except UellmError:
            continue
        if line["weights_gib_per_gpu"]:
            weights.append(found.weight_bytes / GIB / float(line["weights_gib_per_gpu"]) - 1)
        if line["kv_cache_gib_per_gpu"]:
            cache.append(found.kv_bytes / GIB / float(line["kv_cache_gib_per_gpu"]) - 1)
    return {"weights": spread(weights), "KV cache": spread(cache)}


def memory_lines(found: dict[str, dict[str, float]]) -> list[str]:
    """A line for each."""
    return [
        f"{name} on a GPU: {each['points']} start-up logs, median error {each['median']:.1%}, p90 {each['p90']:.0%}"
        for name, each in found.items()
    ]


def fitted(rows: Sequence[Row]) -> dict[str, Any]:
    """The figures of a fit to all rows, and how well fits predict what they have not seen."""
    points = Fitted(rows)
    figures = points.fit(np.ones(len(points.rows), bool))
    held_out = points.held_out(figures)
    return {
        "figures": figures,
        "fitted": breakdown(_pairs(points, points.predicted(figures))),
        "heldOut": breakdown(_pairs(points, held_out)),
    }


def _pairs(points: Fitted, predicted: Any) -> list[Compared]:
    values = [[None if np.isnan(value) else float(value) for value in column] for column in predicted.T]
    return [Compared(row, (one, two, three)) for row, (one, two, three) in zip(points.rows, values, strict=True)]


def write_docs(directory: Path, result: dict[str, Any], found: list[Compared]) -> None:
    """The page, its plot and the fit."""
    directory.mkdir(parents=True, exist_ok=True)
    kept = directory / "published-fit.json"
    if "fit" in result:
        kept.write_text(json.dumps(result["fit"], indent=1) + "\n")
    page = PAGE.format(
        count=len(found),
        table="\n".join(lines(result["table"], "|")),
        memory="\n".join(f"- {line}" for line in memory_lines(result["memory"])),
    )
    if kept.exists():
        page += HELD_OUT.format(table="\n".join(lines(json.loads(kept.read_text())["heldOut"], "|")))
    (directory / "published.md").write_text(page)
    plot(found, directory / "published.svg")


if __name__ == "__main__":
    sys.exit(main())
