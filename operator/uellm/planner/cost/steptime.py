"""How long one step of an engine takes, and the file that says so for one engine (scenarios/engine-*.json).

    step = max(floor, perPrefillToken * prefill tokens) + perKvToken * KV tokens + perSequence * sequences + overhead

A step reads every weight once, which is the floor, and computes with them for every token of a prompt; the larger of
the two shows. It then reads the KV cache of its sequences, and pays per sequence for sampling and once for launching.
Tokens that are decoded cost no prefill: they ride on the reading of the weights.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from uellm.errors import BadInput

STEP_FORMULA = "max(floor, perPrefillToken*prefillTokens) + perKvToken*kvTokens + perSequence*sequences + overhead"
_TIMES = ("floor", "perPrefillToken", "perKvToken", "perSequence", "overhead")
GRADES = 24
"""Values a decade of a rounded figure: no more than 5 % from the true one."""

_LIMITS = ("kvBlocks", "blockTokens", "maxNumSeqs", "maxNumBatchedTokens", "maxModelLen")


@dataclass(frozen=True, slots=True)
class StepTime:
    """The five figures of the formula, in seconds; none is negative."""

    floor_s: float
    per_prefill_token_s: float
    per_kv_token_s: float
    per_sequence_s: float
    overhead_s: float

    def step_s(self, prefill_tokens: float, kv_tokens: float, sequences: float) -> float:
        """Seconds of a step.

        `prefill_tokens` of prompts are computed, `kv_tokens` are held by all sequences in it, `sequences` are in it.
        """
        return (
            max(self.floor_s, self.per_prefill_token_s * prefill_tokens)
            + self.per_kv_token_s * kv_tokens
            + self.per_sequence_s * sequences
            + self.overhead_s
        )

    @property
    def floor_tokens(self) -> float:
        """Prefill tokens that cost no more than reading the weights; a smaller chunk wastes the difference."""
        return self.floor_s / self.per_prefill_token_s if self.per_prefill_token_s > 0 else math.inf

    def rounded(self) -> StepTime:
        """Each figure as the nearest of GRADES a decade: equal devices, measured again, mostly give the same."""
        figures = (self.floor_s, self.per_prefill_token_s, self.per_kv_token_s, self.per_sequence_s, self.overhead_s)
        return StepTime(*(_graded(figure) for figure in figures))

    def to_dict(self) -> dict[str, float]:
        """`stepSeconds` of the engine's file."""
        values = (self.floor_s, self.per_prefill_token_s, self.per_kv_token_s, self.per_sequence_s, self.overhead_s)
        return dict(zip(_TIMES, values, strict=True))

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], where: str = "stepSeconds") -> StepTime:
        """The inverse of `to_dict`. Raises BadInput."""
        values = [_number(data, name, where) for name in _TIMES]
        if not any(values):
            raise BadInput(where, "every time is 0: a step takes some time")
        return cls(*values)


@dataclass(frozen=True, slots=True)
class EngineFile:
    """An engine as `uellm evaluate` and the sidecar know it: its step times and its limits."""

    name: str
    step: StepTime
    kv_blocks: int
    block_tokens: int
    max_num_seqs: int
    max_num_batched_tokens: int
    max_model_len: int

    @property
    def kv_tokens(self) -> int:
        """Tokens that the KV cache holds."""
        return self.kv_blocks * self.block_tokens

    def to_dict(self) -> dict[str, Any]:
        """The form of scenarios/engine-*.json."""
        limits = (
            self.kv_blocks,
            self.block_tokens,
            self.max_num_seqs,
            self.max_num_batched_tokens,
            self.max_model_len,
        )
        return {
            "name": self.name,
            "stepSeconds": self.step.to_dict(),
            "stepFormula": STEP_FORMULA,
            **dict(zip(_LIMITS, limits, strict=True)),
        }

    @classmethod
    def from_dict(cls, data: Any, where: str = "engine") -> EngineFile:
        """The inverse of `to_dict`; `where` begins the field's path in errors. Raises BadInput."""
        if not isinstance(data, Mapping):
            raise BadInput(where, "is not a JSON object")
        step = data.get("stepSeconds")
        if not isinstance(step, Mapping):
            raise BadInput(f"{where}.stepSeconds", f"must be an object of {', '.join(_TIMES)} in seconds")
        limits = [_count(data, name, where) for name in _LIMITS]
        return cls(str(data.get("name") or "engine"), StepTime.from_dict(step, f"{where}.stepSeconds"), *limits)

    @classmethod
    def read(cls, path: Path) -> EngineFile:
        """The engine of a file. Raises BadInput."""
        try:
            data = json.loads(path.read_text())
        except OSError as error:
            raise BadInput(str(path), f"cannot be read: {error.strerror}") from error
        except (ValueError, RecursionError) as error:
            raise BadInput(str(path), f"is not JSON: {error}") from error
        return cls.from_dict(data, path.name)


def _graded(value: float) -> float:
    if value <= 0:
        return 0.0
    return float(f"{10 ** (round(GRADES * math.log10(value)) / GRADES):.2e}")


def _number(data: Mapping[str, Any], name: str, where: str) -> float:
    value = data.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value < 0:
        raise BadInput(f"{where}.{name}", f"must be a number of seconds, 0 or more, and is {value!r}")
    return float(value)


def _count(data: Mapping[str, Any], name: str, where: str) -> int:
    value = data.get(name)
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise BadInput(f"{where}.{name}", f"must be a whole number of 1 or more, and is {value!r}")
    return value
