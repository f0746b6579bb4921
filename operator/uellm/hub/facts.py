"""What a look-up ends in: the model's facts, or why there are none."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from uellm.models import Tensor

RefusalReason = Literal[
    "Gated",
    "NoSuchRepository",
    "NoSuchRevision",
    "NoConfiguration",
    "RateLimited",
    "Unreachable",
    "AddressRefused",
    "InvalidAnswer",
]


@dataclass(frozen=True)
class ModelFacts:
    """What is known of a model before anything of it is downloaded."""

    commit: str
    """The commit that the revision stood for; the revision itself where the hub does not tell."""
    config: dict[str, Any]
    """config.json, with the section of hf_quant_config.json where the repository has that file."""
    tensors: Mapping[str, Tensor] | None
    """The headers of all safetensors files; None where the repository has none."""


@dataclass(frozen=True)
class LookUpRefusal:
    """Why there are no facts."""

    reason: RefusalReason
    message: str
    """One sentence for a person: fact, cause, what to do."""
    retry_after_s: float | None = None
    """When to ask again, where the hub says so."""
