"""What measured step times are about: a model on a kind of GPU in a shape, and the factors that were measured."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from uellm.step_time import StepFactors, graded

_LONGEST = 128
_MOST = 1e18
_MOST_WAYS = 1024


@dataclass(frozen=True, slots=True, order=True)
class StepBasis:
    """The model, GPU and shape of a prediction that was made without a correction."""

    model: str
    """Digest of model, arguments and calibration; see `model_digest`."""
    product: str
    memory_bytes: int
    flops_per_s: float
    """The rates of the GPU that the prediction was made with."""
    memory_bytes_per_s: float
    tensor: int
    pipeline: int

    @property
    def shape(self) -> tuple[int, int]:
        """Tensor and pipeline."""
        return self.tensor, self.pipeline

    @property
    def place(self) -> tuple[str, str, int, int, int]:
        """Measurements of the same place take each other's place."""
        return self.model, self.product, self.memory_bytes, self.tensor, self.pipeline

    def rounded(self) -> StepBasis:
        """With rounded rates, as those of the step times are."""
        return replace(self, flops_per_s=graded(self.flops_per_s), memory_bytes_per_s=graded(self.memory_bytes_per_s))

    def to_dict(self) -> dict[str, Any]:
        """The JSON form."""
        return {
            "model": self.model,
            "product": self.product,
            "memoryBytes": self.memory_bytes,
            "flopsPerSecond": self.flops_per_s,
            "memoryBytesPerSecond": self.memory_bytes_per_s,
            "tensor": self.tensor,
            "pipeline": self.pipeline,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> StepBasis:
        """The inverse of `to_dict`. Raises KeyError, TypeError or ValueError."""
        return cls(
            _text(data["model"]),
            _text(data["product"]),
            int(number(data["memoryBytes"], 1.0, _MOST)),
            number(data["flopsPerSecond"], 1.0, _MOST),
            number(data["memoryBytesPerSecond"], 1.0, _MOST),
            int(number(data["tensor"], 1, _MOST_WAYS)),
            int(number(data["pipeline"], 1, _MOST_WAYS)),
        )


class Correction(NamedTuple):
    """By which factors the steps of a model on a GPU in a shape differ from what is predicted without a correction."""

    basis: StepBasis
    factors: StepFactors
    steps: int
    """Steps that were measured."""


def number(value: Any, least: float, most: float) -> float:
    """A number within bounds. Raises ValueError."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{value!r} is not a number")
    if not least <= value <= most:
        raise ValueError(f"{value!r} is not between {least:g} and {most:g}")
    return float(value)


def _text(value: Any) -> str:
    if not isinstance(value, str) or not 0 < len(value) <= _LONGEST:
        raise ValueError(f"{value!r} is not a name")
    return value
