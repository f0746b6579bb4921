"""The plot of `uellm evaluate queue`: attainment and p99 latencies against the load."""

from __future__ import annotations

import importlib
import os
from collections import defaultdict
from pathlib import Path
from typing import Any

from uellm.errors import BadInput, CannotBeDone

_PANELS = (
    ("ttftSeconds", "p99 TTFT, seconds"),
    ("tpotSeconds", "p99 TPOT, seconds"),
    ("e2eSeconds", "p99 E2E, seconds"),
)
_MARKS = "osD^vPX*<>"
_KINDS = (".svg", ".png", ".pdf")


def check(path: Path) -> None:
    """Check that the plot can be written before hours of replay. Raises BadInput, CannotBeDone."""
    if path.suffix.lower() not in _KINDS:
        raise BadInput("--plot", f"{path} must end in {', '.join(_KINDS)}")
    if not os.access(path.parent, os.W_OK | os.X_OK) or path.is_dir():
        raise BadInput("--plot", f"{path} cannot be written")
    _pyplot()


def _pyplot() -> Any:
    try:
        importlib.import_module("matplotlib").use("Agg")
        return importlib.import_module("matplotlib.pyplot")
    except ImportError as error:
        raise CannotBeDone("matplotlib is not installed: pip install 'uellm-operator[evaluate]'") from error


def plot(document: dict[str, Any], path: Path) -> None:
    """Write the plot of the means over the seeds. Raises BadInput if the file cannot be written."""
    pyplot = _pyplot()
    figure, axes = pyplot.subplots(2, 2, figsize=(11, 8), sharex=True, layout="constrained")
    for mark, (policy, by_speed) in zip(_MARKS * 9, _by_policy(document["results"]).items(), strict=False):
        speeds = sorted(by_speed)
        style = {"marker": mark, "label": policy, "linewidth": 1.6, "markersize": 5}
        axes[0, 0].plot(speeds, [_mean(by_speed[x], "attainment", "all") for x in speeds], **style)
        for axis, (key, _) in zip(axes.flat[1:], _PANELS, strict=True):
            axis.plot(speeds, [_mean(by_speed[x], key, "p99") for x in speeds], **style)
    _bound(axes[0, 0], document.get("bound", {}))
    _label(axes, document)
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
    try:
        figure.savefig(path, dpi=150)
    except OSError as error:
        raise BadInput("--plot", f"{path} cannot be written: {error}") from error
    finally:
        pyplot.close(figure)


def _by_policy(results: list[dict[str, Any]]) -> dict[str, dict[float, list[dict[str, Any]]]]:
    grouped: dict[str, dict[float, list[dict[str, Any]]]] = defaultdict(lambda: defaultdict(list))
    chunks = {result["maxBatchedTokens"] for result in results}
    for result in results:
        policy = f"{result['policy']}, {result['route']}" if "route" in result else result["policy"]
        name = policy if len(chunks) == 1 else f"{policy}, chunk {result['maxBatchedTokens']}"
        grouped[name][result["speed"]].append(result)
    return grouped


def _mean(results: list[dict[str, Any]], key: str, name: str) -> float | None:
    values = [result[key][name] for result in results if result[key][name] is not None]
    return sum(values) / len(values) if values else None


def _bound(axis: Any, bounds: dict[str, float]) -> None:
    if bounds:
        speeds = sorted(bounds, key=float)
        style = {"color": "black", "linestyle": "--", "linewidth": 1.2, "label": "upper bound"}
        axis.plot([float(speed) for speed in speeds], [bounds[speed] for speed in speeds], **style)


def _label(axes: Any, document: dict[str, Any]) -> None:
    axes[0, 0].set(ylabel="share of requests that meet every target", ylim=(0, 1.02))
    for axis, (_, label) in zip(axes.flat[1:], _PANELS, strict=True):
        axis.set(ylabel=label, yscale="log")
    for axis in axes.flat:
        axis.grid(alpha=0.3)
    for axis in axes[1]:
        axis.set_xlabel("load: speed-up of the trace")
    axes[0, 0].get_figure().suptitle(f"{document['trace']}, {document['requests']} requests")
