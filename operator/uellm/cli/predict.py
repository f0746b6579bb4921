"""`uellm predict`: times and memory of engines that a file describes, each on one product of GPU under one load."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from typing import Any

from uellm.cli.arguments import add_output
from uellm.cli.files import read_json
from uellm.errors import BadInput, UellmError
from uellm.planner.prediction.point import read_point
from uellm.planner.prediction.serve import Outcome, predict_point
from uellm.text import aligned


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    parser.add_argument(
        "points", metavar="POINTS.json", help="a list of engines with their loads (- for standard input)"
    )
    add_output(parser, "table", "json")


def run(args: argparse.Namespace) -> int:
    """Predict every point and print."""
    points = read_json(args.points)
    if not isinstance(points, list):
        raise BadInput(args.points, "must be a list of points")
    found = documents(points)
    print(json.dumps(found) if args.output == "json" else _table(found))
    return 0


def documents(points: list[Any]) -> dict[str, dict[str, Any]]:
    """By id: the predicted figures, or why there are none."""
    found: dict[str, dict[str, Any]] = {}
    for index, point in enumerate(points):
        if not isinstance(point, Mapping):
            raise BadInput(f"[{index}]", "must be an object, one point")
        name = str(point.get("id", index))
        if name in found:
            raise BadInput(f"[{index}].id", f"{name!r} stands there twice")
        try:
            found[name] = _document(predict_point(read_point(point)))
        except UellmError as error:
            found[name] = {"error": str(error)}
    return found


def _document(found: Outcome) -> dict[str, Any]:
    return {
        "tpotMilliseconds": found.tpot_s * 1e3,
        "ttftMilliseconds": found.ttft_s * 1e3,
        "outputTokensPerSecond": found.output_tokens_per_s,
        "requestsPerSecond": found.requests_per_s,
        "weightBytesPerGpu": found.memory.weight_bytes,
        "kvBytesAvailable": found.memory.kv_bytes,
        "kvTokens": found.memory.kv_tokens,
    }


def _table(found: Mapping[str, Mapping[str, Any]]) -> str:
    """A line for each point, and the reasons of those that are refused below."""
    rows = [("ID", "TTFT ms", "TPOT ms", "TOKENS/S", "REQUESTS/S", "WEIGHTS GiB", "KV GiB", "KV TOKENS")]
    rows += [
        (
            name,
            f"{each['ttftMilliseconds']:.1f}",
            f"{each['tpotMilliseconds']:.2f}",
            f"{each['outputTokensPerSecond']:.1f}",
            f"{each['requestsPerSecond']:.3g}",
            f"{each['weightBytesPerGpu'] / 2**30:.2f}",
            f"{each['kvBytesAvailable'] / 2**30:.2f}",
            str(each["kvTokens"]),
        )
        for name, each in found.items()
        if "error" not in each
    ]
    lines = aligned(rows, right=range(1, len(rows[0]))) if len(rows) > 1 else []
    return "\n".join([*lines, *(f"{name}: {each['error']}" for name, each in found.items() if "error" in each)])
