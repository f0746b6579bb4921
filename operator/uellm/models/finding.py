"""Finds the text model in a config.json, and the reader for it.

The user's word comes first (`uellm_family`), then the class, then the model_type. A model whose type is not known is
read by its fields as a decoder like Llama, and a note says so.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from uellm.errors import BadInput
from uellm.models.classes import engine_notes, type_of_class
from uellm.models.defaults import class_defaults
from uellm.models.families.decoder import read_decoder
from uellm.models.families.readers import READERS
from uellm.models.families.table import TABLE, traits_of
from uellm.models.families.traits import Traits
from uellm.models.fields import Config, MissingField
from uellm.models.heads import ModelHead, head_of
from uellm.models.shown import shown
from uellm.models.weights import Blueprint

FAMILY_FIELD = "uellm_family"
# Where wrappers keep the config of their text model, outermost first.
NESTED = (
    "vlm_config",
    "thinker_config",
    "text_config",
    "llm_config",
    "language_config",
    "language_model_config",
    "lm_config",
)
# Objects inside a text model's config that hold a part of its sizes.
SECTIONS = ("attn_config", "ffn_config", "ssm_cfg")
# Wrappers whose text fields lie beside the vision_config, and the text model's type.
FLAT_WRAPPERS = {"qwen2_vl": "qwen2", "qwen2_5_vl": "qwen2"}
COMMON = (
    *("llama", "mistral", "mixtral", "qwen2", "qwen2_moe", "qwen3", "qwen3_moe", "gemma2", "gemma3_text", "phi3"),
    *("deepseek_v3", "gpt_neox", "granite", "falcon", "opt", "gpt2", "chatglm"),
)


@dataclass(frozen=True, slots=True)
class TextModel:
    """The text model of a config.json."""

    plan: Blueprint
    fields: Mapping[str, Any]
    """Its own part of the config."""
    wrapper: Mapping[str, Any]
    """The object that holds it, and the encoders beside it."""
    name: str
    """The class that the engine serves."""
    notes: tuple[str, ...]
    exact: bool
    """Whether the family is known, and nothing of it is left out."""


def find_text_model(config: Mapping[str, Any], *, pooled: bool = False) -> TextModel:
    """The text model of a config.json. Raises BadInput naming the field for what is missing or absurd.

    `pooled`: it is served as an embedder or a reranker; the engine then builds it without its LM head.
    """
    inner, wrapper, prefix = _innermost(config)
    nested = inner is not config
    told = config.get(FAMILY_FIELD)
    family = _told(told) if told is not None else _family(inner, config)
    traits, name = traits_of(family), _class(config) or _class(inner) or family
    defaults = {**class_defaults(_defaulted(inner, family), nested=nested), **((traits and traits.defaults) or {})}
    text = Config(_flat(_with_ties(inner, config) if nested else inner, prefix), prefix, defaults)
    head = head_of(name, config)
    if pooled:
        head = ModelHead(False, head.classes)
    own = READERS.get(family)
    read = own or partial(read_decoder, traits=traits or Traits(), head=head.writes, classes=head.classes)
    known = own is not None or traits is not None
    try:
        plan = read(text)
    except MissingField as error:
        if known:
            raise
        raise _unknown(config, str(error)) from error
    if own and not head.writes:
        plan = replace(plan, has_head=False, tied=False, classifier=head.classes * plan.hidden_size)
    notes: tuple[str, ...] = (
        () if known else (f"{name} ({family}) is not known here: reckoned as a decoder like Llama with its sizes",)
    )
    exact = known and not (traits and traits.note)
    notes += engine_notes(_class(config)) + _assumed(text, family)
    return TextModel(plan, text.fields, wrapper, name, notes, exact)


def _innermost(config: Mapping[str, Any]) -> tuple[Mapping[str, Any], Mapping[str, Any], str]:
    """The text model's own fields, the object around them, and their path."""
    inner, wrapper, prefix = config, config, "config"
    for field in NESTED:
        found = inner.get(field)
        if found is None:
            continue
        if not isinstance(found, Mapping):
            raise BadInput(f"{prefix}.{field}", "must be an object, the text model's part of config.json")
        if found:
            inner, wrapper, prefix = found, inner, f"{prefix}.{field}"
    return inner, wrapper, prefix


def _family(inner: Mapping[str, Any], outer: Mapping[str, Any]) -> str:
    """The family's model_type, by the class or by the model_type."""
    named = _class(inner)
    kind = str(inner.get("model_type") or "")
    by_class = type_of_class(named) if named else ""
    if by_class and (_is_known(by_class) or not _is_known(kind)):
        kind = by_class
    kind = FLAT_WRAPPERS.get(kind, kind)
    if not kind:
        raise _unknown(outer, "")
    return kind


def _is_known(kind: str) -> bool:
    return kind in READERS or traits_of(kind) is not None


def _defaulted(inner: Mapping[str, Any], family: str) -> str:
    """The type whose configuration class gives the defaults: the config's own, else the family's."""
    own = str(inner.get("model_type") or "")
    same = traits_of(own) == traits_of(family) and READERS.get(own) == READERS.get(family)
    return own if same and class_defaults(own, nested=True) else family


def _told(name: Any) -> str:
    """The family that the user names because the class is not known here."""
    kind = str(name)
    kind = kind if _is_known(kind) else type_of_class(kind)
    if not _is_known(kind):
        raise BadInput(f"config.{FAMILY_FIELD}", f"{shown(name)} is no family known here; known are {_known()}")
    return kind


def _class(config: Mapping[str, Any]) -> str:
    """The first of `architectures`; empty where there is none."""
    named = config.get("architectures")
    return str(named[0]) if isinstance(named, list | tuple) and named else ""


def _with_ties(inner: Mapping[str, Any], outer: Mapping[str, Any]) -> Mapping[str, Any]:
    """The text model's fields; whether embeddings are tied may stand at the wrapper's level alone.

    The engine follows the wrapper. Where that says tied and the text model says not, it looks at the checkpoint: such
    a model has an LM head of its own.
    """
    tied = outer.get("tie_word_embeddings")
    if tied is False:
        return {**inner, "tie_word_embeddings": False}
    return inner if tied is None else {"tie_word_embeddings": tied, **inner}


def _flat(fields: Mapping[str, Any], prefix: str) -> Mapping[str, Any]:
    """The fields with those of their sections beside them."""
    found: dict[str, Any] = {}
    for name in SECTIONS:
        section = fields.get(name)
        if section is not None and not isinstance(section, Mapping):
            raise BadInput(f"{prefix}.{name}", "must be an object")
        found.update(section or {})
    return {**found, **fields} if found else fields


def _assumed(text: Config, family: str) -> tuple[str, ...]:
    if not text.assumed:
        return ()
    return (f"{text.prefix} leaves out {', '.join(text.assumed)}: the defaults of {family}",)


def _known() -> str:
    return ", ".join(COMMON) + f" and {len(TABLE) + len(READERS) - len(COMMON)} more (docs/reference/models.md)"


def _unknown(config: Mapping[str, Any], why: str) -> BadInput:
    remedy = (
        f"if it is built like one of {_known()}, add `{FAMILY_FIELD}: <that one>` to its config (spec.model.config), "
        "with the sizes under that family's field names"
    )
    named = _class(config) or config.get("model_type")
    if not named:
        return BadInput("config.architectures", f"is missing, so the model is unknown; {remedy}")
    detail = f" ({why})" if why else ""
    return BadInput("config.architectures", f"{shown(named)} is not known here{detail}; {remedy}")
