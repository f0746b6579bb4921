"""Renders two tables of operator/uellm/models from the pinned engine, vLLM, and its transformers.

    python scripts/model_defaults.py

defaults.json: what transformers' configuration classes assume where a config.json is silent.
classes.json: every class that the engine serves or has served, with its model_type.
Needs the extra `engine-cpu`. Run it when the pinned engine changes.
"""

from __future__ import annotations

import ast
import importlib.util
import inspect
import json
import re
from pathlib import Path
from typing import Any

MODELS = Path(__file__).parents[1] / "operator" / "uellm" / "models"
PIPELINE = "SupportsPP"
SUFFIX = re.compile(r"(For[A-Z]\w+|LMHeadModel|Model|TextModel|MTP\w*|EmbeddingModel)$")
# Classes of the engine alone, whose types no name tells.
TYPES = {
    "BaiChuanForCausalLM": "baichuan",
    "BaichuanForCausalLM": "baichuan",
    "BgeM3EmbeddingModel": "xlm-roberta",
    "ChatGLMForConditionalGeneration": "chatglm",
    "ChatGLMModel": "chatglm",
    "DeciLMForCausalLM": "nemotron-nas",
    "DeepseekForCausalLM": "deepseek",
    "DeepseekV3BidirectionalModel": "deepseek_v3",
    "GteModel": "new",
    "GteNewForSequenceClassification": "new",
    "GteNewModel": "new",
    "InternLM2ForRewardModel": "internlm2",
    "LlamaBidirectionalForSequenceClassification": "llama",
    "LlamaBidirectionalModel": "llama",
    "LLaMAForCausalLM": "llama",
    "MistralLarge3ForCausalLM": "mistral_large_3",
    "NemotronHPuzzleForCausalLM": "nemotron_h",
    "PhiMoEForCausalLM": "phimoe",
    "QWenLMHeadModel": "qwen",
    "RWForCausalLM": "falcon",
    "StableLMEpochForCausalLM": "stablelm",
    "TeleChat2ForCausalLM": "telechat2",
    "TeleChat3ForCausalLM": "telechat3",
    "VoyageQwen3BidirectionalEmbedModel": "qwen3",
}
# Fields that change no size.
IRRELEVANT = re.compile(
    r"token|dropout|_eps|epsilon|loss|init|std|multiplier|coef|output_|return_dict|use_cache|chunk_size|scal|theta|"
    r"time_|norm_topk|group_size|problem|pdrop|clip|seed|_id$|mask|ctc|beam|classifier|pool|decay|augment|spec_|"
    r"bits|temperature|sample|rate|fmax|fmin|layerdrop|residual_in|hop_|win_|pretraining|use_mamba|is_decoder"
)
# Those that are words.
WORDS = ("mamba_ssm_cache_dtype", "mamba_ssm_dtype")
LONGEST_LIST = 64


def defaults(config_class: type) -> dict[str, Any]:
    """The numbers, flags and short lists that a configuration class gives to fields that are left out."""
    found: dict[str, Any] = {}
    for parent in reversed(config_class.__mro__):
        if parent.__module__.startswith("transformers.models."):
            found.update({name: getattr(parent, name, None) for name in inspect.get_annotations(parent)})
    return {name: value for name, value in sorted(found.items()) if _sizes(name, value)}


def _sizes(name: str, value: Any) -> bool:
    if name in WORDS:
        return isinstance(value, str)
    if IRRELEVANT.search(name) or name.startswith("_"):
        return False
    if isinstance(value, list | tuple):
        return 0 < len(value) <= LONGEST_LIST and all(isinstance(each, int) for each in value)
    return isinstance(value, bool | int) or (isinstance(value, float) and name in ("expand", "ffn_mult", "mlp_ratio"))


def types_of_classes() -> dict[str, str]:
    """transformers' classes and their types."""
    from transformers.models.auto import modeling_auto

    found: dict[str, str] = {}
    for name in sorted(vars(modeling_auto)):
        if name.endswith("_MAPPING_NAMES"):
            for kind, classes in vars(modeling_auto)[name].items():
                for each in [classes] if isinstance(classes, str) else classes:
                    # Several types may share a class; the one that is called like it is its own.
                    if each not in found or _plain(kind) == _plain(SUFFIX.sub("", each)):
                        found[each] = kind
    return found


def _plain(name: str) -> str:
    return re.sub(r"[-_]", "", name).lower()


def classes() -> dict[str, dict[str, Any]]:
    """Every class of the engine's registry: its type, whether it can be cut into stages, when it was removed."""
    from vllm.model_executor.models import registry

    types = types_of_classes()
    stems = {SUFFIX.sub("", name): kind for name, kind in reversed(types.items())}
    bases = _bases()
    table: dict[str, dict[str, Any]] = {}
    for name, (_, engine_class, *_) in registry._VLLM_MODELS.items():
        kind = TYPES.get(name) or types.get(name) or stems.get(SUFFIX.sub("", name)) or ""
        table[name] = {"type": kind, "served": True, "pipeline": _supports(engine_class, bases)}
    for name, version in registry._PREVIOUSLY_SUPPORTED_MODELS.items():
        kind = TYPES.get(name) or types.get(name) or stems.get(SUFFIX.sub("", name)) or ""
        table[name] = {"type": kind, "removed": version}
    for name in (*registry._OOT_SUPPORTED_MODELS, *types):
        if name.endswith(("ForCausalLM", "ForConditionalGeneration", "LMHeadModel", "Model")):
            table.setdefault(name, {"type": types.get(name, "")})
    for group in ("_SPECULATIVE_DECODING_MODELS", "_TRANSFORMERS_SUPPORTED_MODELS", "_EMBEDDING_MODELS"):
        for name in getattr(registry, group):
            table[name].setdefault("group", group.strip("_").lower().removesuffix("_models"))
    return {name: table[name] for name in sorted(table)}


def _bases() -> dict[str, list[str]]:
    """The names of the base classes of every class in the engine's models."""
    found: dict[str, list[str]] = {}
    root = Path(str(importlib.util.find_spec("vllm").origin)).parent
    for path in [*(root / "model_executor" / "models").rglob("*.py"), *(root / "models").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef):
                names = [each.id for each in node.bases if isinstance(each, ast.Name)]
                found.setdefault(node.name, []).extend(names)
    return found


def _supports(name: str, bases: dict[str, list[str]], seen: frozenset[str] = frozenset()) -> bool:
    if name in seen:
        return False
    return name == PIPELINE or any(_supports(each, bases, seen | {name}) for each in bases.get(name, []))


def _write(name: str, table: dict[str, Any]) -> None:
    lines = [f"{json.dumps(key)}: {json.dumps(value)}" for key, value in table.items()]
    (MODELS / name).write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


def main() -> None:
    """Write both tables."""
    from transformers import CONFIG_MAPPING

    kinds = {kind: defaults(CONFIG_MAPPING[kind]) for kind in sorted(CONFIG_MAPPING.keys())}
    _write("defaults.json", {kind: found for kind, found in kinds.items() if found})
    _write("classes.json", classes())


if __name__ == "__main__":
    main()
