"""The classes that config.json's `architectures` names, as the pinned engine knows them.

classes.json is rendered from vLLM's registry by scripts/model_defaults.py.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cache
from importlib.resources import files
from typing import Any

ENGINE = "vLLM 0.32"
NO_FLOAT16 = ("Gemma2For", "Gemma2Model", "Gemma3For", "Gemma3Model", "Gemma3Text", "Glm4For", "Glm4Model")
"""Beginnings of the classes of _FLOAT16_NOT_SUPPORTED_MODELS in vllm/config/model.py."""


@cache
def _table() -> dict[str, dict[str, Any]]:
    table: dict[str, dict[str, Any]] = json.loads(
        files("uellm.models").joinpath("classes.json").read_text(encoding="utf-8")
    )
    return table


def type_of_class(name: str) -> str:
    """The model_type of a class; empty where it is not known."""
    return str(_table().get(name, {}).get("type", ""))


def engine_notes(name: str) -> tuple[str, ...]:
    """What the pinned engine says of a class that it does not serve by itself; nothing for any other."""
    entry = _table().get(name, {})
    if not name or entry.get("served"):
        return ()
    if "removed" in entry:
        return (f"{name} is no longer served by {ENGINE}: the last version with it is before {entry['removed']}",)
    return (f"{name} is not in the registry of {ENGINE}, which can serve it through its Transformers backend at most",)


def is_served(name: str) -> bool:
    """Whether the engine has a class of this name itself."""
    return "served" in _table().get(name, {})


def group_of(name: str) -> str:
    """The group of a class in the engine's registry, such as `text_generation`; empty where it is not in it."""
    return str(_table().get(name, {}).get("served", ""))


def speech_of(name: str) -> str:
    """Whether a class transcribes speech: `only`, `also`, or empty for no."""
    return str(_table().get(name, {}).get("speech", ""))


def breaks_in_float16(name: str) -> bool:
    """Whether the engine refuses to compute a class in float16."""
    return name.startswith(NO_FLOAT16)


def supports_pipeline(name: str) -> bool:
    """Whether the engine can cut a model of this class into stages. True for a class that it does not know."""
    return bool(_table().get(name, {}).get("pipeline", True))


def adapter_ends(name: str) -> tuple[str, ...] | None:
    """Which of `embed_tokens` and `lm_head` take LoRA weights, too; None where the class takes no adapter at all.

    A class that the engine does not know is served by its Transformers backend, which has adapters of layers alone.
    """
    entry = _table().get(name, {})
    if "served" not in entry:
        return ()
    return tuple(entry["lora"]) if "lora" in entry else None


def is_tapped(name: str) -> bool:
    """Whether the engine can give the states of a class's inner layers to a head that drafts (EAGLE3, DFlash)."""
    entry = _table().get(name, {})
    return "tapped" in entry or "served" not in entry


def is_tapped_across_stages(name: str) -> bool:
    """Whether it can do so where the model is split into stages."""
    return _table().get(name, {}).get("tapped") == "stages"


def parts_of(name: str) -> tuple[str, ...]:
    """The model_types inside the default config of a class that wraps a text model; empty where they are not known."""
    return tuple(_table().get(name, {}).get("parts", ()))


def served_classes() -> Iterator[tuple[str, str, str]]:
    """Every class that the engine serves, with its model_type (empty: unknown) and its group in the registry."""
    for name, entry in _table().items():
        if "served" in entry:
            yield name, str(entry["type"]), str(entry["served"])
