"""From a config.json to an Architecture."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from uellm.errors import BadInput
from uellm.models.architecture import Architecture
from uellm.models.families import FAMILIES, Family
from uellm.models.fields import Config
from uellm.models.measured import with_tensors
from uellm.models.precision import read_precision
from uellm.models.safetensors import Tensor
from uellm.models.sizing import architecture
from uellm.models.towers import read_tower

FAMILY_FIELD = "uellm_family"
# The fields in which wrappers store the config of their text model.
NESTED = ("text_config", "llm_config", "language_config")
# Wrappers with the text fields beside the vision_config.
FLAT_WRAPPERS = {
    "Qwen2VLForConditionalGeneration": "qwen2",
    "Qwen2_5_VLForConditionalGeneration": "qwen2",
}
# Text models inside wrappers that are a known family under another name.
NESTED_TYPES = {"qwen2_vl_text": "qwen2", "qwen2_5_vl_text": "qwen2", "qwen3_vl_text": "qwen3"}
NESTED_TYPES |= {"qwen3_vl_moe_text": "qwen3_moe"}


def read_architecture(
    config: Mapping[str, Any],
    *,
    dtype: str = "auto",
    quantization: str = "auto",
    tensors: Mapping[str, Tensor] | None = None,
) -> Architecture:
    """Bytes by layer of the model that `config` (config.json, parsed) describes.

    dtype: auto | bfloat16 | float16 | float32; quantization: auto | none | fp8 | awq | gptq | ... (precision.py).
    tensors: those of the checkpoint's headers; their bytes then replace the formula's.
    Raises BadInput with `config.<field>` for what is missing, absurd or of an unknown architecture.
    """
    if not isinstance(config, Mapping):
        raise BadInput("config", "must be an object, the model's config.json")
    family, text = _family(config)
    plan = family.read(text)
    # In a wrapper with a text model inside, dtype and quantisation may be at either level.
    merged = {**text.fields, **{key: value for key, value in config.items() if value is not None}}
    tower, notes = read_tower(config, plan)
    if text.assumed:
        notes += (f"{text.prefix} omits {', '.join(text.assumed)}: transformers' defaults of {family.name} are used",)
    precision = read_precision(merged, dtype, quantization, measured=tensors is not None)
    name = _named(config, family)
    if tensors is None:
        return architecture(name, plan, precision, tower, notes)
    if precision.differs:
        notes += (f"the checkpoint's sizes do not apply to quantization {precision.quantization}: computed by formula",)
        return architecture(name, plan, precision, tower, notes)
    return with_tensors(architecture(name, plan, precision, tower, notes), tensors)


def _family(config: Mapping[str, Any]) -> tuple[Family, Config]:
    for field in NESTED:
        inner = config.get(field)
        if inner is not None and not isinstance(inner, Mapping):
            raise BadInput(f"config.{field}", "must be an object, the text model's part of config.json")
        if inner and (found := _match(inner, config)):
            return found, Config(_with_ties(inner, config), f"config.{field}", found.defaults)
    found = _match(config, config)
    if found:
        return found, Config(config)
    raise _unknown(config)


def _match(inner: Mapping[str, Any], outer: Mapping[str, Any]) -> Family | None:
    """The family of a config, or of the text model `inner` in the wrapper `outer`."""
    chosen = outer.get(FAMILY_FIELD)
    if chosen is not None:
        return _chosen(chosen)
    names = inner.get("architectures")
    listed = [str(name) for name in names] if isinstance(names, list | tuple) else []
    for family in FAMILIES:
        if any(name in family.architectures for name in listed):
            return family
    flat = next((FLAT_WRAPPERS[name] for name in listed if name in FLAT_WRAPPERS), None)
    # A text_config has only a model_type. But if it lists an unknown class, it is not accepted: a reward model or an
    # embedder with the same model_type has other heads.
    if listed and flat is None:
        return None
    kind = flat or str(inner.get("model_type"))
    return _by_type(NESTED_TYPES.get(kind, kind))


def _by_type(kind: str) -> Family | None:
    return next((family for family in FAMILIES if kind in family.model_types), None)


def _chosen(name: Any) -> Family:
    """The family that the user names because the class is unknown."""
    found = _by_type(str(name)) or next((each for each in FAMILIES if name in each.architectures), None)
    if found is None:
        raise BadInput(f"config.{FAMILY_FIELD}", f"{name!r} is not a known family; known are {_known()}")
    return found


def _with_ties(inner: Mapping[str, Any], outer: Mapping[str, Any]) -> Mapping[str, Any]:
    """The text model's fields. The flag for tied embeddings may be only at the wrapper's level."""
    tied = outer.get("tie_word_embeddings")
    return inner if tied is None else {"tie_word_embeddings": tied, **inner}


def _known() -> str:
    return ", ".join(family.name for family in FAMILIES)


def _unknown(config: Mapping[str, Any]) -> BadInput:
    remedy = (
        f"if it is built like one of {_known()}, add `{FAMILY_FIELD}: <that one>` to its config (spec.model.config), "
        "with the sizes under that family's field names"
    )
    named = config.get("architectures") or config.get("model_type")
    if not named:
        return BadInput("config.architectures", f"is missing, so the model is unknown; {remedy}")
    return BadInput("config.architectures", f"{_first(named)!r} is not known here; {remedy}")


def _named(config: Mapping[str, Any], family: Family) -> str:
    named = config.get("architectures")
    return _first(named) if isinstance(named, list | tuple) and named else family.architectures[0]


def _first(named: Any) -> str:
    return str(named[0]) if isinstance(named, list | tuple) and named else str(named)
