"""Fits the step-time model, and the efficiencies behind predictions, to measurements.

MEASUREMENTS.json:

    {"name": "llama on cpu",
     "limits": {"kvBlocks": 512, "blockTokens": 128, "maxNumSeqs": 16, "maxNumBatchedTokens": 512, "maxModelLen": 2048},
     "steps": [{"prefillTokens": 128, "kvTokens": 900, "sequences": 7, "seconds": 0.031}, ...],
     "stages": [{"flops": 1.1e9, "weightBytes": 5.4e7, "otherBytes": 1.2e6, "sequences": 7, "flopsPerSecond": 4.0e10,
                 "memoryBytesPerSecond": 1.1e10, "seconds": 0.024}, ...]}

`steps` are steps of an engine: prompt tokens computed, KV tokens held by its sequences, sequences, time. `stages` is
optional. It contains steps of one stage: its FLOPs, its layers' weight bytes, other bytes read (KV cache, LM head), and
the rates that the profiler measured on its device. The five figures of the step-time model are fitted to `steps`, and
the efficiencies to `stages`:

    stage = max(flops / (rate * compute), weightBytes / (rate * memory)) + otherBytes / (rate * memory)
            + perSequence * sequences + stepOverhead
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from uellm.errors import BadInput
from uellm.planner.calibration.fitting import Array, Fit, fit, predicted
from uellm.planner.cost.engine_file import EngineFile
from uellm.planner.efficiency import Efficiency
from uellm.step_time import StepTime

STEP_FIELDS = ("prefillTokens", "kvTokens", "sequences", "seconds")
STAGE_FIELDS = ("flops", "weightBytes", "otherBytes", "sequences", "flopsPerSecond", "memoryBytesPerSecond", "seconds")
# Each of the five figures needs a few measurements. Every FOLDS-th measurement is held out in turn, to measure the
# error on data that was not fitted.
LEAST_MEASUREMENTS = 15
FOLDS = 5
# If columns are so nearly proportional, noise decides which of them gets the time.
MOST_CORRELATION = 0.9995


@dataclass(frozen=True, slots=True)
class FitReport:
    """Predicted against measured times; errors are relative to the measured time."""

    measurements: int
    median_error: float
    p90_error: float
    r_squared: float
    rank_correlation: float
    held_out_median_error: float

    def to_dict(self) -> dict[str, Any]:
        """The JSON form."""
        return {
            "measurements": self.measurements,
            "medianError": self.median_error,
            "p90Error": self.p90_error,
            "rSquared": self.r_squared,
            "rankCorrelation": self.rank_correlation,
            "heldOutMedianError": self.held_out_median_error,
        }


@dataclass(frozen=True, slots=True)
class Calibration:
    """An engine's file and the quality of the fit; efficiencies where stages were measured."""

    engine: EngineFile
    steps: FitReport
    efficiency: Efficiency | None = None
    stages: FitReport | None = None

    def to_dict(self) -> dict[str, Any]:
        """The engine's file: scenarios/engine-*.json, and `efficiency` for `uellm plan --calibration`."""
        extra = {} if self.efficiency is None else {"efficiency": self.efficiency.to_dict()}
        return {**self.engine.to_dict(), **extra}


def calibrate(data: Any, where: str = "measurements") -> Calibration:
    """The calibration for a document of measurements. Raises BadInput with the field and what to measure instead."""
    if not isinstance(data, Mapping):
        raise BadInput(where, "is not a JSON object")
    name = str(data.get("name") or "engine")
    table = _table(data.get("steps"), STEP_FIELDS, f"{where}.steps")
    step, steps = _steps(table, f"{where}.steps")
    limits = data.get("limits")
    if not isinstance(limits, Mapping):
        raise BadInput(f"{where}.limits", "must be an object of the engine's limits: kvBlocks, blockTokens, ...")
    engine = EngineFile.from_dict({**limits, "name": name, "stepSeconds": step.to_dict()}, f"{where}.limits")
    if data.get("stages") is None:
        return Calibration(engine, steps)
    efficiency, stages = calibrate_stages(data["stages"], name, f"{where}.stages")
    return Calibration(engine, steps, efficiency, stages)


def _steps(table: Array, where: str) -> tuple[StepTime, FitReport]:
    prefill, kv, sequences, seconds = table.T
    if not (prefill > 0).any():
        raise BadInput(where, "no step computes tokens of a prompt: measure some with prefillTokens of 100 and more")
    if prefill.min() > 0.1 * prefill.max():
        raise BadInput(where, "every step computes a large chunk: measure some that only decode, prefillTokens 0")
    _independent({"kvTokens": kv, "sequences": sequences}, where)
    one, none = np.ones(len(table)), np.zeros(len(table))
    first = np.column_stack([one, none, kv, sequences, one])
    second = np.column_stack([none, prefill, kv, sequences, one])
    found = fit(first, second, seconds, prefill)
    values = [float(value) for value in found.values]
    if not values[1]:
        raise BadInput(where, "longer prompts take no longer: these are no times of an engine's steps")
    return StepTime(*values), _report(first, second, seconds, prefill, found)


def calibrate_stages(rows: Any, name: str, where: str = "stages") -> tuple[Efficiency, FitReport]:
    """The efficiencies of a list of measured `stages`, and the quality of the fit. `name`: what was measured."""
    table = _table(rows, STAGE_FIELDS, where)
    flops, weights, other, sequences, compute, memory, seconds = table.T
    if not (compute.min() > 0 and memory.min() > 0):
        raise BadInput(where, "flopsPerSecond and memoryBytesPerSecond must be above 0")
    if np.ptp(weights / memory) == 0:
        raise BadInput(
            where, "all stages read as long as one another, like their overhead: measure two numbers of layers"
        )
    one, none = np.ones(len(table)), np.zeros(len(table))
    first = np.column_stack([none, (weights + other) / memory, sequences, one])
    second = np.column_stack([flops / compute, other / memory, sequences, one])
    order = (flops / compute) / np.maximum(weights / memory, 1e-300)
    found = fit(first, second, seconds, order)
    slow_compute, slow_memory, per_sequence, overhead = (float(value) for value in found.values)
    if not (slow_compute and slow_memory):
        missing = "compute" if not slow_compute else "memory"
        raise BadInput(where, f"no stage is bound by {missing}: measure both long prompts and steps that only decode")
    efficiency = Efficiency.calibrated(1 / slow_compute, 1 / slow_memory, overhead, per_sequence, name)
    return efficiency, _report(first, second, seconds, order, found)


def _table(rows: Any, fields: Sequence[str], where: str) -> Array:
    if not isinstance(rows, Sequence) or isinstance(rows, str):
        raise BadInput(where, f"must be a list of objects of {', '.join(fields)}")
    if len(rows) < LEAST_MEASUREMENTS:
        raise BadInput(where, f"{len(rows)} measurements are too few: give {LEAST_MEASUREMENTS} or more")
    table = np.array([[_number(row, field, f"{where}[{index}]") for field in fields] for index, row in enumerate(rows)])
    if (table[:, -1] <= 0).any():
        index = int(np.argmax(table[:, -1] <= 0))
        raise BadInput(f"{where}[{index}].seconds", "must be above 0")
    return table


def _number(row: Any, field: str, where: str) -> float:
    value = row.get(field) if isinstance(row, Mapping) else None
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value < 0:
        raise BadInput(f"{where}.{field}", f"must be a number of 0 or more, and is {value!r}")
    return float(value)


def _independent(columns: Mapping[str, Array], where: str) -> None:
    """Refuse figures that vary only together or not at all, because their times cannot be separated."""
    for name, column in columns.items():
        if np.ptp(column) == 0:
            raise BadInput(where, f"{name} is the same in every step, so its cost cannot be determined: vary it")
    (one, left), (other, right) = columns.items()
    if abs(float(np.corrcoef(left, right)[0, 1])) > MOST_CORRELATION:
        raise BadInput(
            where,
            f"{one} and {other} vary only together: vary the context at the same number of sequences",
        )


def _report(first: Array, second: Array, seconds: Array, order: Array, found: Fit) -> FitReport:
    predicted_s = predicted(first, second, found.values)
    errors = np.abs(predicted_s - seconds) / seconds
    spread = float(np.sum((seconds - seconds.mean()) ** 2))
    return FitReport(
        measurements=len(seconds),
        median_error=float(np.median(errors)),
        p90_error=float(np.quantile(errors, 0.9)),
        r_squared=1.0 - float(np.sum((predicted_s - seconds) ** 2)) / spread if spread else 0.0,
        rank_correlation=rank_correlation(predicted_s, seconds),
        held_out_median_error=_held_out(first, second, seconds, order),
    )


def _held_out(first: Array, second: Array, seconds: Array, order: Array) -> float:
    """The median error on every fifth measurement in turn, with a fit to the others."""
    fold = np.arange(len(seconds)) % FOLDS
    errors = []
    for index in range(FOLDS):
        kept, out = fold != index, fold == index
        values = fit(first[kept], second[kept], seconds[kept], order[kept]).values
        errors.append(np.abs(predicted(first[out], second[out], values) - seconds[out]) / seconds[out])
    return float(np.median(np.concatenate(errors)))


def rank_correlation(one: Array, other: Array) -> float:
    """Spearman's rank correlation: ties get their mean rank; 0 where either side is constant."""
    left, right = _ranks(one), _ranks(other)
    if not (np.ptp(left) and np.ptp(right)):
        return 0.0
    return float(np.corrcoef(left, right)[0, 1])


def _ranks(values: Array) -> Array:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    return (ends - (counts - 1) / 2)[inverse]
