"""The file that describes one engine (scenarios/engine-*.json): its step times and its limits."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from uellm.errors import BadInput
from uellm.step_time import STEP_FIELDS, STEP_FORMULA, StepTime

_LIMITS = ("kvBlocks", "blockTokens", "maxNumSeqs", "maxNumBatchedTokens", "maxModelLen")


@dataclass(frozen=True, slots=True)
class EngineFile:
    """An engine for `uellm evaluate` and the sidecar: its step times and its limits."""

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
            raise BadInput(f"{where}.stepSeconds", f"must be an object of {', '.join(STEP_FIELDS)} in seconds")
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


def _count(data: Mapping[str, Any], name: str, where: str) -> int:
    value = data.get(name)
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise BadInput(f"{where}.{name}", f"must be a whole number of 1 or more, and is {value!r}")
    return value
