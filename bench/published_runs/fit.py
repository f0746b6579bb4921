"""Fits the cost model's figures to measured points, by least squares on the logarithm of predicted over measured.

Which requests are in a step does not depend on the figures (cost/replay.py), so the steps of every point are worked out
once. Each step's time is then a sum of terms, and a fit of all figures takes seconds. Points that differ in little more
than their load count together as a few; a point far off counts by its distance, not its square. Figures stay near the
values at which the search starts unless the points say otherwise.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import least_squares

from published_runs.rows import Row
from uellm.planner.cost.pipeline import Pipeline
from uellm.planner.cost.replay import Counts, LoopSteps
from uellm.planner.efficiency import Efficiency
from uellm.planner.kernels import KernelName, Kernels, KernelShare, kernel_name
from uellm.planner.prediction.point import Point, read_point
from uellm.planner.prediction.serve import closed_loop, pipeline_of
from uellm.planner.vllm.version import engine_version

Array = NDArray[np.float64]
Figures = Mapping[str, float]

NAMES: tuple[KernelName, ...] = ("16-bit", "fp8", "fp8-block", "nvfp4", "mxfp4", "unpacked")
# Where the search starts, and how far (as a factor of e) a figure goes before it costs as much as a tenth of an error.
START: dict[str, tuple[float, float]] = {
    "compute": (0.87, 0.15),
    "attention": (0.5, 0.5),
    "memory": (0.95, 0.1),
    "step_overhead_s": (4e-4, 0.7),
    "layer_s": (40e-6, 0.7),
    "expert_layer_s": (9e-6, 0.7),
    "per_sequence_s": (8e-6, 0.7),
    "serial_per_sequence_s": (60e-6, 0.7),
    "prompt_layer_s": (281e-6, 0.7),
    "serial_prompt_layer_s": (281e-6, 0.7),
    "request_s": (10e-3, 0.7),
    "prompt_token_s": (14e-6, 0.7),
    "linear.fp8": (1.0, 0.3),
    "linear.fp8-block": (0.7, 0.3),
    "linear.nvfp4": (2.9, 0.3),
    "linear.unpacked": (0.85, 0.3),
    "experts.16-bit": (0.6, 0.7),
    "experts.fp8": (0.5, 0.7),
    "experts.nvfp4": (1.5, 0.7),
    "experts.mxfp4": (1.5, 0.7),
    "experts.unpacked": (0.5, 0.7),
    "read.16-bit": (0.7, 0.7),
    "read.fp8": (0.7, 0.7),
    "read.nvfp4": (0.8, 0.7),
    "read.mxfp4": (0.8, 0.7),
    "read.unpacked": (0.6, 0.7),
}
# No point has them: kernels of FP8 experts by block and by matrix count as one, and dense MXFP4 as dense NVFP4.
SAME = {"linear.mxfp4": "linear.nvfp4", "experts.fp8-block": "experts.fp8", "read.fp8-block": "read.fp8"}
EAGER_LAYER_S = 300e-6
PRIOR_WEIGHT, OUTLIER, TTFT_WEIGHT, TOKENS_WEIGHT = 0.5, 0.08, 0.5, 0.7
ALIKE = 0.4
"""So many points alike count as their number to the power of 1 - 2 * ALIKE."""
BINS_PER_E = 12
"""Steps whose tokens differ by less than this are taken together."""


@dataclass(frozen=True)
class Terms:
    """The steps of all points [n], in seconds at the whole measured rates, and how often they come."""

    point: NDArray[np.intp]
    columns: Mapping[str, Array]
    linear: NDArray[np.str_]
    experts: NDArray[np.str_]


class Fitted:
    """Points with their steps."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self.rows, self.points = [], list[Point]()
        terms: dict[str, list[float]] = {}
        index, linear, experts = list[int](), list[str](), list[str]()
        for row in rows:
            point = read_point(row.point)
            if point.pipeline > 1 or point.requests_per_s is not None:
                continue  # their steps depend on times
            pipeline = pipeline_of(point, WHOLE)
            for step in _steps(point):
                for name, value in _terms(pipeline, point, *step).items():
                    terms.setdefault(name, []).append(value)
                index.append(len(self.points))
                stage = pipeline.stages[0].load
                linear.append(kernel_name(stage.devices[0], stage.linear_kernel))
                experts.append(kernel_name(stage.devices[0], stage.expert_kernel))
            self.rows.append(row)
            self.points.append(point)
        columns = {name: np.array(values) for name, values in terms.items()}
        self.terms = Terms(np.array(index), columns, np.array(linear), np.array(experts))
        self.weights = _weights(self.rows)
        self.measured = np.array([[row.tpot_s, row.ttft_s, row.tokens_per_s] for row in self.rows], float).T
        self.cached = np.array([row.cached for row in self.rows])

    def predicted(self, figures: Figures) -> Array:
        """[3, points]: TPOT and TTFT in seconds, output tokens per second; nan where a point has none."""
        terms, count = self.terms.columns, len(self.points)
        seconds = _step_s(self.terms, figures)

        def total(values: Array) -> Array:
            return np.bincount(self.terms.point, values, count)

        closed = np.array([point.decode_batch is None for point in self.points])
        prompts = total(terms["prompts"]) / np.maximum(1, total(np.ones(len(seconds))))
        clients = np.array([point.concurrency or 1 for point in self.points])
        tokens = np.array([[point.prompt_tokens, point.output_tokens] for point in self.points]).T
        before = figures["request_s"] + figures["prompt_token_s"] * tokens[0]
        tpot = total(seconds * terms["decoding"]) / np.maximum(1, total(terms["decoding"]))
        ttft = total(seconds * terms["waiting"]) / prompts + before
        whole = total(seconds * terms["steps"]) + before * prompts / clients
        return np.array([tpot, np.where(closed, ttft, np.nan), np.where(closed, prompts * tokens[1] / whole, np.nan)])

    def fit(self, kept: NDArray[np.bool_], start: Figures | None = None, turns: int = 40) -> dict[str, float]:
        """The figures for the points that are `kept`."""
        first = dict(start or {name: value for name, (value, _) in START.items()})

        def misses(logs: Array) -> Array:
            figures = dict(zip(first, np.exp(logs), strict=True))
            error = np.log(self.predicted(figures) / self.measured) * self.weights * kept
            error *= np.array([[1.0], [TTFT_WEIGHT], [TOKENS_WEIGHT]])
            error[1, self.cached] = 0.0
            prior = [PRIOR_WEIGHT * math.log(figures[name] / value) / far for name, (value, far) in START.items()]
            return np.concatenate([np.nan_to_num(error).ravel(), prior])

        logs = np.log(list(first.values()))
        found = least_squares(misses, logs, loss="soft_l1", f_scale=OUTLIER, max_nfev=turns)
        return {name: float(f"{math.exp(value):.3g}") for name, value in zip(first, found.x, strict=True)}

    def held_out(self, figures: Figures) -> Array:
        """[3, points]: every group of points predicted by a fit to all others."""
        groups = np.array([row.group for row in self.rows])
        result = np.full((3, len(self.rows)), np.nan)
        for group in sorted(set(groups)):
            out = groups == group
            result[:, out] = self.predicted(self.fit(~out, figures, turns=12))[:, out]
        return result


def efficiency(figures: Figures, point: Point) -> Efficiency:
    """The figures as the cost model takes them, for the engine of a point."""
    serial = "" if engine_version(point.engine_version).overlaps else "serial_"
    return Efficiency(
        compute=figures["compute"],
        attention=figures["attention"],
        memory=figures["memory"],
        step_overhead_s=figures["step_overhead_s"],
        per_sequence_s=figures[f"{serial}per_sequence_s"],
        layer_s=figures["layer_s"] + EAGER_LAYER_S * point.eager,
        expert_layer_s=figures["expert_layer_s"],
        prompt_layer_s=figures[f"{serial}prompt_layer_s"],
        request_s=figures["request_s"],
        prompt_token_s=figures["prompt_token_s"],
        kernels=Kernels(
            {name: KernelShare(_share(figures, "linear", name), 1.0) for name in NAMES},
            {name: KernelShare(_share(figures, "experts", name), _share(figures, "read", name)) for name in NAMES},
        ),
    )


def _share(figures: Figures, kind: str, name: str) -> float:
    key = f"{kind}.{name}"
    return figures.get(SAME.get(key, key), 1.0)


_ONE = dict.fromkeys(NAMES, KernelShare(1.0, 1.0))
WHOLE = Efficiency(
    compute=1.0,
    attention=1.0,
    memory=1.0,
    step_overhead_s=0.0,
    per_sequence_s=0.0,
    layer_s=0.0,
    expert_layer_s=0.0,
    prompt_layer_s=0.0,
    request_s=0.0,
    prompt_token_s=0.0,
    kernels=Kernels(_ONE, _ONE),
)


def _steps(point: Point) -> list[tuple[float, float, Counts, int]]:
    """Prompt tokens, sequences, how often, and the requests of the point; steps of nearly the same size as one."""
    if point.decode_batch is not None:
        return [(0.0, point.decode_batch, Counts(1, point.decode_batch, 0), 1)]
    replay: LoopSteps = closed_loop(point)
    bins: dict[tuple[int, int], list[float]] = {}
    for (tokens, sequences), counts in replay.sizes.items():
        key = (_bin(tokens), _bin(sequences))
        sums = bins.setdefault(key, [0.0] * 5)
        for place, value in enumerate(
            (tokens * counts.steps, sequences * counts.steps, counts.steps, counts.decoding, counts.waiting)
        ):
            sums[place] += value
    return [
        (tokens / steps, sequences / steps, Counts(int(steps), int(decoding), int(waiting)), replay.load.prompts)
        for tokens, sequences, steps, decoding, waiting in bins.values()
    ]


def _bin(tokens: int) -> int:
    return round(math.log(tokens) * BINS_PER_E) + 1 if tokens else 0


def _terms(
    pipeline: Pipeline, point: Point, prefill: float, sequences: float, counts: Counts, prompts: int
) -> dict[str, float]:
    stage, tokens = pipeline.stages[0], prefill + sequences
    load, rows = stage.load, sequences + (1.0 if prefill else 0.0)
    return {
        "linear_compute": tokens * stage.linear.compute_s,
        "linear_read": stage.linear.memory_s,
        "experts_compute": tokens * stage.experts.compute_s,
        "experts_read": stage.experts.memory_s * stage.touched(tokens),
        "head_compute": rows * load.head_flops / stage.compute_per_s,
        "head_read": load.head_bytes / stage.memory_per_s,
        "held_compute": sequences * stage.held_flops / stage.compute_per_s,
        "held_read": sequences * stage.held_bytes / stage.memory_per_s,
        "seen": prefill * stage.seen_flops / stage.attention_per_s,
        "link": stage.parts(prefill, sequences).link_s,
        "layers": load.layers,
        "expert_layers": load.expert_layers,
        "prompt_layers": load.layers if prefill else 0.0,
        "sequences": sequences,
        "serial": 0.0 if engine_version(point.engine_version).overlaps else 1.0,
        "eager": load.layers * EAGER_LAYER_S if point.eager else 0.0,
        "steps": counts.steps,
        "decoding": counts.decoding,
        "waiting": counts.waiting,
        "prompts": prompts,
    }


def _step_s(terms: Terms, figures: Figures) -> Array:
    of, compute, memory = terms.columns, figures["compute"], figures["memory"]
    linear = _by_kernel(terms.linear, lambda name: _share(figures, "linear", name))
    experts = _by_kernel(terms.experts, lambda name: _share(figures, "experts", name))
    read = _by_kernel(terms.experts, lambda name: _share(figures, "read", name))
    serial = of["serial"] > 0
    per_sequence = np.where(serial, figures["serial_per_sequence_s"], figures["per_sequence_s"])
    prompt_layer = np.where(serial, figures["serial_prompt_layer_s"], figures["prompt_layer_s"])
    result: Array = (
        figures["step_overhead_s"]
        + per_sequence * of["sequences"]
        + figures["layer_s"] * of["layers"]
        + of["eager"]
        + figures["expert_layer_s"] * of["expert_layers"]
        + prompt_layer * of["prompt_layers"]
        + np.maximum(of["linear_compute"] / (compute * linear), of["linear_read"] / memory)
        + np.maximum(of["experts_compute"] / (compute * experts), of["experts_read"] / (memory * read))
        + np.maximum(of["head_compute"] / compute, of["head_read"] / memory)
        + np.maximum(of["held_compute"] / compute, of["held_read"] / memory)
        + of["seen"] / figures["attention"]
        + of["link"]
    )
    return result


def _by_kernel(kernels: NDArray[np.str_], share: Callable[[KernelName], float]) -> Array:
    result = np.ones(len(kernels))
    for name in NAMES:
        result[kernels == name] = share(name)
    return result


def _weights(rows: Sequence[Row]) -> Array:
    """Points that differ in little more than their load count together as a few."""
    keys = [(row.source, str(row.point["config"]), row.point["gpu"], row.point["tensor"]) for row in rows]
    counts = Counter(keys)
    return np.array([counts[key] ** -ALIKE for key in keys])
