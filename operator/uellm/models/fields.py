"""Reads numbers, flags and lists from a config.json. Errors name the field that is missing or absurd."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from uellm.errors import BadInput
from uellm.models.shown import shown

# Larger than any existing model. A typing error above it is refused.
LARGEST = 1 << 40
MOST_LAYERS = 4096
# RoPE scalings for which max_position_embeddings is already the scaled length (vllm/config/model.py).
UNSTRETCHED = (
    *("default", "llama3", "longrope", "su", "mrope", "yarn", "deepseek_yarn", "telechat3-yarn"),
    *("deepseek_llama_scaling", None),
)
# Names of the longest context. The engine takes the shortest of them (vllm/transformers_utils).
LENGTHS = (
    *("max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "max_target_positions"),
    *("max_sequence_length", "max_seq_length", "seq_len"),
)
OWN_LENGTH = "model_max_length"
"""The engine takes it alone where it is given (Command R)."""
# The engine's default if none of them is present.
ASSUMED_LENGTH = 2048


PREDICTING = ("num_nextn_predict_layers", "mtp_num_hidden_layers", "num_mtp_layers", "num_mtp_modules")
"""How many layers there are for multi-token prediction, behind the model's own."""


class MissingField(BadInput):
    """A field without which nothing can be said."""

    def __init__(self, field: str) -> None:
        super().__init__(field, "is missing; give it as the model's config.json has it")


class Config:
    """A config.json, or the part of it that describes the text model.

    `defaults` are those of the family's own configuration class, because a nested config omits values that equal them.
    """

    def __init__(
        self, fields: Mapping[str, Any], prefix: str = "config", defaults: Mapping[str, Any] | None = None
    ) -> None:
        self.fields = fields
        self.prefix = prefix
        self.defaults = defaults or {}
        self.assumed: list[str] = []

    def size(self, *names: str, default: int | None = None) -> int:
        """The first of `names` that is present, a positive integer. Raises BadInput naming the field."""
        for name in names:
            value = self.fields.get(name)
            if value is not None:
                return self.whole(name, value)
        for name in names:
            value = self.defaults.get(name)
            if value is not None:
                self._assume(name, value)
                return self.whole(name, value)
        if default is None:
            raise MissingField(f"{self.prefix}.{names[0]}")
        return default

    def count(self, name: str, default: int = 0) -> int:
        """A whole number that may be zero."""
        value = self.value(name)
        return default if value is None else self._whole(name, value, 0)

    def first_of(self, names: Sequence[str]) -> str | None:
        """The first of these names that the config has with a value, else the first that the family has a default for.

        Families and versions of transformers have several names for one field: a default never wins over a value.
        """
        found = next((name for name in names if self.fields.get(name)), None)
        return found or next((name for name in names if name not in self.fields and self.defaults.get(name)), None)

    def value(self, name: str) -> Any:
        """The field as it is, else the family's default for it, else None."""
        value = self.fields.get(name)
        if value is not None or name in self.fields:
            return value
        return self.defaults.get(name)

    def whole(self, name: str, value: Any) -> int:
        """A value of the field `name`, a positive integer. Raises BadInput naming it."""
        return self._whole(name, value, 1)

    def inside(self, name: str) -> Config:
        """The fields of an object inside this config, over this config's own; these alone where it is not there."""
        inner = self.fields.get(name)
        if inner is None:
            return self
        if not isinstance(inner, Mapping):
            raise BadInput(f"{self.prefix}.{name}", "must be an object")
        return Config({**self.fields, **inner}, f"{self.prefix}.{name}", self.defaults)

    def either(self, *names: str, default: bool = False) -> bool:
        """The first flag of `names` that is given."""
        name = next((name for name in names if self.value(name) is not None), names[0])
        return self.flag(name, default)

    def layers(self, *names: str) -> int:
        """The number of layers. It is bounded, because lists of that length follow."""
        count = self.size(*(names or ("num_hidden_layers",)))
        if count > MOST_LAYERS:
            raise BadInput(f"{self.prefix}.{(names or ('num_hidden_layers',))[0]}", f"must be at most {MOST_LAYERS}")
        return count

    def longest(self) -> int:
        """The longest context that the engine serves: the config's length, scaled as vLLM scales it for RoPE."""
        own = self.fields.get(OWN_LENGTH)
        present = [name for name in LENGTHS if self.fields.get(name) is not None]
        counts = [name for name in present if name == present[0] or type(self.fields[name]) is int]
        given = [self.whole(name, self.fields[name]) for name in counts]
        default = next((self.defaults[name] for name in LENGTHS if name in self.defaults), ASSUMED_LENGTH)
        positions = self.whole(OWN_LENGTH, own) if own else min(given, default=default)
        rope = self.fields.get("rope_parameters") or self.fields.get("rope_scaling")
        # Gemma 3 gives the scaled length, although other models with its kind of scaling give the original length.
        if not isinstance(rope, Mapping) or "gemma3" in str(self.fields.get("model_type")):
            return positions
        by_kind = [each for each in rope.values() if isinstance(each, Mapping)]  # one for each kind of layer
        return max(_stretched(positions, each) for each in by_kind or [rope])

    def flag(self, name: str, default: bool) -> bool:
        """A boolean with the default of the model's own configuration class."""
        value = self.fields.get(name)
        if value is None:
            value = self.defaults.get(name)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise BadInput(f"{self.prefix}.{name}", f"must be true or false, not {shown(value)}")
        return value

    def list_of(self, name: str, length: int) -> Sequence[Any] | None:
        """A list with one entry per layer; None if it is absent."""
        value = self.fields.get(name)
        if value is None or value == []:
            return None
        if not isinstance(value, list | tuple):
            raise BadInput(f"{self.prefix}.{name}", f"must be a list with an entry for each of {length} layers")
        return self.for_layers(name, value, length)

    def for_layers(self, name: str, value: Sequence[Any], length: int) -> Sequence[Any]:
        """The entries of the model's layers, without those of layers for multi-token prediction that follow."""
        predicting = max((self.count(each) for each in PREDICTING if self.fields.get(each)), default=0)
        if not length <= len(value) <= length + predicting:
            raise BadInput(f"{self.prefix}.{name}", f"has {len(value)} entries, but there are {length} layers")
        return value[:length]

    def indices(self, name: str, length: int) -> frozenset[int] | None:
        """A list of layer numbers; None if it is absent. No longer than there are layers: it is read as a set."""
        value = self.fields.get(name)
        if value is None:
            return None
        if isinstance(value, list | tuple) and len(value) > length:
            raise BadInput(f"{self.prefix}.{name}", f"has {len(value)} entries, but there are {length} layers")
        if not isinstance(value, list | tuple) or not all(type(each) is int and 0 <= each < length for each in value):
            raise BadInput(f"{self.prefix}.{name}", f"must be a list of layer numbers from 0 to {length - 1}")
        return frozenset(value)

    def _assume(self, name: str, value: Any) -> None:
        if f"{name} {value}" not in self.assumed:
            self.assumed.append(f"{name} {value}")

    def _whole(self, name: str, value: Any, least: int) -> int:
        whole = isinstance(value, int) and not isinstance(value, bool)
        if isinstance(value, float) and value.is_integer():
            # JSON that was converted by YAML or a CRD may contain 4096.0.
            value, whole = int(value), True
        if not whole or not least <= value < LARGEST:
            kind = "positive whole number" if least else "whole number, 0 or more"
            raise BadInput(f"{self.prefix}.{name}", f"must be a {kind}, not {shown(value)}")
        return int(value)


def _stretched(positions: int, rope: Mapping[str, Any]) -> int:
    kind, factor = rope.get("rope_type", rope.get("type")), rope.get("factor", 1.0)
    if kind in UNSTRETCHED or isinstance(factor, bool) or not isinstance(factor, int | float):
        return positions
    if not 1 <= factor < LARGEST:  # nor for something that is not a number
        return positions
    return int(positions * factor)
