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


class PinnedTemplate(NamedTuple):
    """A pod template as an operator made it, and the shape of the plan that it was made for.

    A newer operator may make templates in another way; until the spec or the shape changes it keeps to the old one, for
    its own upgrade is no reason to load a model again.
    """

    shape: str
    template: Mapping[str, Any]

    def to_json(self) -> str:
        """The form in which it is written on a Deployment."""
        return json.dumps(self._asdict(), sort_keys=True, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> PinnedTemplate | None:
        """The inverse of `to_json`; None for what is not its output."""
        try:
            read = json.loads(text)
            return cls(str(read["shape"]), dict(read["template"]))
        except (ValueError, KeyError, TypeError):
            return None


def shape_of(plan: Plan) -> str:
    """What of a plan pods are made from, whichever operator makes them."""
    layers = ",".join(str(count) for count in plan.layers)
    return f"tp{plan.tensor} pp{plan.pipeline} layers {layers} on {','.join(plan.nodes)}"


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
    pinned: PinnedTemplate | None = None  # of the Deployment, where the spec is still the one that it was made for
