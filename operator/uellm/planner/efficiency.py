"""What turns measured rates into times: defaults from published measurements, or what `uellm calibrate` fitted."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from uellm.errors import BadInput
from uellm.planner import constants as c
from uellm.planner.kernels import DEFAULT, Kernels
from uellm.planner.vllm.version import engine_version

_PUBLISHED = "fitted to published measurements of vLLM"
_KEYS = ("compute", "memory", "stepOverheadSeconds", "perSequenceSeconds")


@dataclass(frozen=True, slots=True)
class Efficiency:
    """Shares of the measured rates that a transformer's layers reach, and the further costs of a step."""

    compute: float = c.COMPUTE_EFFICIENCY
    memory: float = c.MEMORY_EFFICIENCY
    step_overhead_s: float = c.STEP_OVERHEAD_S
    per_sequence_s: float = c.PER_SEQUENCE_S
    layer_s: float = c.LAYER_S
    """What each layer adds to every step."""
    expert_layer_s: float = c.EXPERT_LAYER_S
    """What a layer with routed experts adds besides."""
    prompt_layer_s: float = c.PROMPT_LAYER_S
    """What each layer adds to a step with tokens of a prompt."""
    request_s: float = c.REQUEST_S
    """What a request takes before it reaches the engine."""
    prompt_token_s: float = c.PROMPT_TOKEN_S
    """What each token of its prompt adds to that."""
    attention: float = c.ATTENTION_EFFICIENCY
    """Share of the measured compute rate that attention to a prompt reaches."""
    kernels: Kernels = DEFAULT
    source: str = ""
    """The engine whose measurements they were fitted to; empty for the defaults."""

    @classmethod
    def of_version(cls, text: str, *, eager: bool = False) -> Efficiency:
        """The defaults for a version of vLLM, by its number. `eager`: without CUDA graphs."""
        overlaps = engine_version(text).overlaps
        return cls(
            per_sequence_s=c.PER_SEQUENCE_S if overlaps else c.SERIAL_PER_SEQUENCE_S,
            prompt_layer_s=c.PROMPT_LAYER_S if overlaps else c.SERIAL_PROMPT_LAYER_S,
            layer_s=c.LAYER_S + (c.EAGER_LAYER_S if eager else 0.0),
        )

    @classmethod
    def calibrated(
        cls, compute: float, memory: float, step_overhead_s: float, per_sequence_s: float, source: str = ""
    ) -> Efficiency:
        """Fitted to whole steps: the overhead of a step includes that of its layers."""
        return cls(
            compute=compute,
            attention=min(compute, c.ATTENTION_EFFICIENCY),
            memory=memory,
            step_overhead_s=step_overhead_s,
            per_sequence_s=per_sequence_s,
            layer_s=0.0,
            expert_layer_s=0.0,
            prompt_layer_s=0.0,
            source=source,
        )

    @property
    def target_share(self) -> float:
        """The share of a target that a load may take by these predictions."""
        return 1.0 if self.source else c.UNCALIBRATED_SHARE

    @property
    def sentence(self) -> str:
        """The plan's statement about its predictions."""
        basis = f"calibrated by measurements of {self.source}" if self.source else _PUBLISHED
        return (
            f"predictions are a roofline at {self.compute:.0%} of the measured compute and {self.memory:.0%} of the "
            f"measured memory rates, {basis}"
        )

    def to_dict(self) -> dict[str, Any]:
        """`efficiency` of an engine's file."""
        values = (self.compute, self.memory, self.step_overhead_s, self.per_sequence_s)
        return {**dict(zip(_KEYS, values, strict=True)), "source": self.source}

    @classmethod
    def from_dict(cls, data: Any, where: str = "efficiency") -> Efficiency:
        """The inverse of `to_dict`. Raises BadInput."""
        if not isinstance(data, Mapping):
            raise BadInput(where, f"must be an object of {', '.join(_KEYS)}: calibrate with measured stages to get one")
        values = []
        for key in _KEYS:
            value = data.get(key)
            if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value < 0:
                raise BadInput(f"{where}.{key}", f"must be a number of 0 or more, and is {value!r}")
            values.append(float(value))
        if not (values[0] and values[1]):
            raise BadInput(where, "compute and memory must be above 0")
        compute, memory, overhead, per_sequence = values
        return cls.calibrated(compute, memory, overhead, per_sequence, str(data.get("source") or "an engine"))
