"""Reads numbers and flags out of a config.json and names the field where one is missing or absurd."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from uellm.errors import BadInput

# Beyond any model that exists; keeps a typing error from becoming a plan of petabytes.
LARGEST = 1 << 40
MOST_LAYERS = 4096
# Ways of scaling RoPE whose max_position_embeddings is the scaled length already (vllm/config/model.py).
UNSTRETCHED = ("default", "llama3", "longrope", "su", "mrope", None)


class Config:
    """A config.json, or the part of it that describes the text model."""

    def __init__(self, fields: Mapping[str, Any], prefix: str = "config") -> None:
        self.fields = fields
        self.prefix = prefix

    def size(self, *names: str, default: int | None = None) -> int:
        """The first of `names` that is there, a positive integer. Raises BadInput naming the field."""
        for name in names:
            value = self.fields.get(name)
            if value is not None:
                return self._positive(name, value)
        if default is None:
            raise BadInput(f"{self.prefix}.{names[0]}", "is missing; give it as the model's config.json has it")
        return default

    def layers(self) -> int:
        """The number of layers: each is an entry of a list later, so it is bounded."""
        count = self.size("num_hidden_layers")
        if count > MOST_LAYERS:
            raise BadInput(f"{self.prefix}.num_hidden_layers", f"must be at most {MOST_LAYERS}, not {count}")
        return count

    def longest(self) -> int:
        """Positions that the engine serves: `max_position_embeddings`, stretched as vLLM stretches it for RoPE."""
        positions = self.size("max_position_embeddings")
        rope = self.fields.get("rope_parameters") or self.fields.get("rope_scaling")
        if not isinstance(rope, Mapping):
            return positions
        kind, factor = rope.get("rope_type", rope.get("type")), rope.get("factor", 1.0)
        if kind in UNSTRETCHED or isinstance(factor, bool) or not isinstance(factor, int | float) or factor < 1:
            return positions
        original = rope.get("original_max_position_embeddings")
        if kind == "yarn" and isinstance(original, int):
            positions = original
        return int(positions * factor)

    def flag(self, name: str, default: bool) -> bool:
        """A boolean with the default of the model's own configuration class."""
        value = self.fields.get(name)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise BadInput(f"{self.prefix}.{name}", f"must be true or false, not {value!r}")
        return value

    def _positive(self, name: str, value: Any) -> int:
        whole = isinstance(value, int) and not isinstance(value, bool)
        if isinstance(value, float) and value.is_integer():
            # JSON that went through YAML or a CRD may write 4096.0.
            value, whole = int(value), True
        if not whole or not 0 < value < LARGEST:
            raise BadInput(f"{self.prefix}.{name}", f"must be a positive whole number, not {value!r}")
        return int(value)
