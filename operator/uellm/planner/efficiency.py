"""The four figures that turn measured rates into times: from `uellm calibrate`, else the defaults in constants.py."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from uellm.errors import BadInput
from uellm.planner import constants as c

_KEYS = ("compute", "memory", "stepOverheadSeconds", "perSequenceSeconds")


@dataclass(frozen=True, slots=True)
class Efficiency:
    """Shares of the measured rates that a transformer's layers reach, and the further costs of a step."""

    compute: float = c.COMPUTE_EFFICIENCY
    memory: float = c.MEMORY_EFFICIENCY
    step_overhead_s: float = c.STEP_OVERHEAD_S
    per_sequence_s: float = c.PER_SEQUENCE_S
    source: str = ""
    """The engine whose measurements they were fitted to; empty for the defaults."""

    @property
    def sentence(self) -> str:
        """The plan's statement about its predictions."""
        where = f"calibrated by measurements of {self.source}" if self.source else "not calibrated"
        return (
            f"predictions are a roofline at {self.compute:.0%} of the measured compute and {self.memory:.0%} of the "
            f"measured memory rates, {where}"
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
        return cls(compute, memory, overhead, per_sequence, str(data.get("source") or "an engine"))
