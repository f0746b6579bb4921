"""What a look-up ends in: the model's facts, or why there are none."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, NamedTuple

from uellm.hub.adapter import AdapterFacts
from uellm.models import Tensor

RefusalReason = Literal[
    "Gated",
    "NoSuchRepository",
    "NoSuchRevision",
    "NoConfiguration",
    "NoWeights",
    "RateLimited",
    "Unreachable",
    "Unreadable",
    "AddressRefused",
    "InvalidAnswer",
    "InvalidAdapter",
    "ChecksumMismatch",
    "VolumeFull",
    "Unwritable",
]


@dataclass(frozen=True, eq=False)
class ModelFacts:
    """What is known of a model before anything of it is downloaded.

    Facts are compared by identity, so that whatever is worked out from them can be kept with them.
    """

    commit: str
    """The commit that the revision stood for, or the revision where the hub does not tell; empty for a directory."""
    config: dict[str, Any]
    """config.json, with the section of hf_quant_config.json where the repository has that file, and a field that says
    whether it has a modules.json."""
    tensors: Mapping[str, Tensor] | None
    """The headers of all safetensors files; None where there are none, or where they are too long to be kept."""
    files: int = 0
    """Number of safetensors files."""
    adapters: tuple[AdapterFacts, ...] = ()
    """Of the service's LoRA adapters."""
    draft: DraftFacts | None = None
    """Of the model or head that drafts for speculation, where it is one of its own."""

    @cached_property
    def tensor_bytes(self) -> int:
        """Bytes of all tensors; 0 where they are not known."""
        return sum(each.size for each in (self.tensors or {}).values())


class DraftFacts(NamedTuple):
    """What is known of a model or head that drafts."""

    source: str
    """`hf://`, its repository, `@` and its revision; or its path in the engine's container."""
    facts: ModelFacts


@dataclass(frozen=True)
class LookUpRefusal:
    """Why there are no facts, or no copy."""

    reason: RefusalReason
    message: str
    """One sentence for a person: fact, cause, what to do."""
    retry_after_s: float | None = None
    """When to ask again, where the hub says so."""
