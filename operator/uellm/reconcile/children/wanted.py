"""What children are made from."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from uellm.api.llmservice import LLMService
from uellm.planner.request import PlanRequest
from uellm.planner.result import Plan


class Images(NamedTuple):
    """The images of the engine's pod."""

    engine: str
    sidecar: str
    launcher: str

    def to_json(self) -> str:
        """The form in which they are written on a Deployment."""
        return json.dumps(self._asdict(), separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> Images | None:
        """The inverse of `to_json`; None for what is not its output."""
        try:
            read = json.loads(text)
            return cls(str(read["engine"]), str(read["sidecar"]), str(read["launcher"]))
        except (ValueError, KeyError, TypeError):
            return None


@dataclass(frozen=True)
class Wanted:
    """A service, its plan, and what the operator adds."""

    document: Mapping[str, Any]  # the LLMService as the API server has it
    service: LLMService
    plan: Plan
    request: PlanRequest
    images: Images
    replicas: int
    spec_mark: str  # generation and digest of the spec that this is made for
