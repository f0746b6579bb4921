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
PIPELINE, SPEECH, SPEECH_ONLY = "SupportsPP", "SupportsTranscription", "supports_transcription_only"
TAPPED, RELAYS = "SupportsEagle3", "supports_aux_hidden_states_over_pp"
ADAPTERS = "SupportsLoRA"
VOICES = ("talker_config", "token2wav_config", "code2wav_config")
"""Parts of omni models that the engine does not build."""
ENDS = ("embed_tokens", "lm_head")
GROUPS = (
    *("_TEXT_GENERATION_MODELS", "_MULTIMODAL_MODELS", "_EMBEDDING_MODELS", "_LATE_INTERACTION_MODELS"),
    *("_REWARD_MODELS", "_TOKEN_CLASSIFICATION_MODELS", "_SEQUENCE_CLASSIFICATION_MODELS"),
    *("_SPECULATIVE_DECODING_MODELS", "_TRANSFORMERS_SUPPORTED_MODELS", "_TRANSFORMERS_BACKEND_MODELS"),
)
SUFFIX = re.compile(r"(For[A-Z]\w+|LMHeadModel|Model|TextModel|MTP\w*|EmbeddingModel)$")
# Classes of the engine alone, whose types no name tells.
TYPES = {
    "BaiChuanForCausalLM": "baichuan",
    "BaichuanForCausalLM": "baichuan",
    "BailingMoeForCausalLM": "bailing_moe",
    "BailingMoeV2ForCausalLM": "bailing_moe_v2",
    "BertSpladeSparseEmbeddingModel": "bert",
    "BgeM3EmbeddingModel": "xlm-roberta",
    "ChatGLMForConditionalGeneration": "chatglm",
    "ChatGLMModel": "chatglm",
    "DeciLMForCausalLM": "nemotron-nas",
    "DeepseekForCausalLM": "deepseek",
    "DeepseekV3BidirectionalModel": "deepseek_v3",
    "DeepseekV41ForCausalLM": "deepseek_v41",
    "ExaoneForCausalLM": "exaone",
    "ExaoneMoEForCausalLM": "exaone_moe",
    "GteModel": "new",
    "GteNewForSequenceClassification": "new",
    "GteNewModel": "new",
    "IQuestCoderForCausalLM": "llama",
    "InternLM2ForCausalLM": "internlm2",
    "InternLM2ForRewardModel": "internlm2",
    "InternLM3ForCausalLM": "internlm3",
    "LLaMAForCausalLM": "llama",
    "LlamaBidirectionalForSequenceClassification": "llama",
    "LlamaBidirectionalModel": "llama",
    "LongcatFlashNgramForCausalLM": "longcat_flash_ngram",
    "MiMoForCausalLM": "mimo",
    "MiMoV2ForCausalLM": "mimo_v2",
    "MiniCPMForCausalLM": "minicpm",
    "MistralLarge3ForCausalLM": "mistral_large_3",
    "NemotronHPuzzleForCausalLM": "nemotron_h",
    "OrionForCausalLM": "orion",
    "PanguUltraMoEForCausalLM": "pangu_ultra_moe",
    "Phi4MMForCausalLM": "phi4mm",
    "PhiMoEForCausalLM": "phimoe",
    "QWenLMHeadModel": "qwen",
    "RWForCausalLM": "falcon",
    "SarvamMLAForCausalLM": "sarvam_mla",
    "SolarForCausalLM": "solar",
    "StableLMEpochForCausalLM": "stablelm",
    "Step1ForCausalLM": "step1",
    "Step3p5ForCausalLM": "step3p5",
    "TeleChat2ForCausalLM": "telechat2",
    "TeleChat3ForCausalLM": "telechat3",
    "TeleFLMForCausalLM": "teleflm",
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
    """Every class of the registry: its type and kind, whether it can be cut into stages, when it was removed.

    `speech`: it transcribes speech, `also` or `only`. `tapped`: it gives the states of inner layers to a head that
    drafts (EAGLE3, DFlash), `whole` or also across `stages`. `parts`: the types inside the default config of a wrapper.
    """
    types = types_of_classes()
    stems = {SUFFIX.sub("", name): kind for name, kind in reversed(types.items())}
    (bases, transcribers), registry, wrapped = _bases(), _registry(), _embedding_modules()
    relays, made = _relays()
    table: dict[str, dict[str, Any]] = {}

    def kind_of(name: str) -> str:
        return TYPES.get(name) or types.get(name) or stems.get(SUFFIX.sub("", name)) or ""

    for group in GROUPS:
        for name, entry in registry[group].items():
            kind = group.strip("_").lower().removesuffix("_models")
            found = {"type": kind_of(name), "served": kind, "pipeline": _supports(PIPELINE, entry[1], bases)}
            if _supports(SPEECH, entry[1], bases):
                found["speech"] = "only" if entry[1] in transcribers else "also"
            if _supports(TAPPED, entry[1], bases):
                found["tapped"] = "stages" if _decoder_relays(entry[1], relays, made, bases) else "whole"
            if _supports(ADAPTERS, entry[1], bases):
                # A model of images wraps a decoder of any class, whose embedding may take adapters.
                found["lora"] = list(ENDS) if kind == "multimodal" else _wrapped_ends(entry[1], wrapped, bases)
            table.setdefault(name, found | _parts(str(found["type"])))
    for name, version in registry["_PREVIOUSLY_SUPPORTED_MODELS"].items():
        table[name] = {"type": kind_of(name), "removed": version}
    for name, kind in types.items():
        if name.endswith(("ForCausalLM", "ForConditionalGeneration", "LMHeadModel", "Model")):
            table.setdefault(name, {"type": kind})
    return {name: table[name] for name in sorted(table)}


def _parts(model_type: str) -> dict[str, list[str]]:
    """`parts`: the types of the text model and of the encoders in a wrapper's default config; nothing for others."""
    from transformers import CONFIG_MAPPING

    if model_type not in CONFIG_MAPPING:
        return {}
    pending, found = [CONFIG_MAPPING[model_type]()], set[str]()
    while pending:
        config = pending.pop()
        for name in type(config).sub_configs:
            inner = getattr(config, name, None)
            if inner is not None and name not in VOICES:
                found.add(inner.model_type)
                pending.append(inner)
    return {"parts": sorted(found)} if found else {}


def _registry() -> dict[str, dict[str, Any]]:
    """The tables of the engine's registry that are written out there."""
    path = _engine() / "model_executor" / "models" / "registry.py"
    found: dict[str, dict[str, Any]] = {}
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict) and isinstance(node.targets[0], ast.Name):
            pairs = zip(node.value.keys, node.value.values, strict=True)
            found[node.targets[0].id] = {
                ast.literal_eval(key): ast.literal_eval(value)
                for key, value in pairs
                if key is not None and isinstance(value, ast.Tuple | ast.Constant)
            }
    return found


def _engine() -> Path:
    """The engine's package, which is not imported."""
    spec = importlib.util.find_spec("vllm")
    if spec is None or spec.origin is None:
        raise SystemExit("vllm is not installed: install the extra engine-cpu")
    return Path(spec.origin).parent


def _bases() -> tuple[dict[str, list[str]], set[str]]:
    """The names of the base classes of every class in the engine's models; and the classes that only transcribe."""
    found: dict[str, list[str]] = {}
    transcribers: set[str] = set()
    root = _engine()
    for path in [*(root / "model_executor" / "models").rglob("*.py"), *(root / "models").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef):
                names = [each.id for each in node.bases if isinstance(each, ast.Name)]
                found.setdefault(node.name, []).extend(names)
                if any(isinstance(each, ast.Assign) and _says(each, SPEECH_ONLY) for each in node.body):
                    transcribers.add(node.name)
    return found, transcribers


def _says(statement: ast.Assign, name: str) -> bool:
    """Whether a class sets `name` to True."""
    target, value = statement.targets[0], statement.value
    return (
        isinstance(target, ast.Name) and target.id == name and isinstance(value, ast.Constant) and value.value is True
    )


def _supports(interface: str, name: str, bases: dict[str, list[str]], seen: frozenset[str] = frozenset()) -> bool:
    if name in seen:
        return False
    return name == interface or any(_supports(interface, each, bases, seen | {name}) for each in bases.get(name, []))


def _relays() -> tuple[dict[str, bool], dict[str, list[str]]]:
    """Whether classes hand states of inner layers on to the next stage, where a class says so itself; and the
    decoders that each class names."""
    says: dict[str, bool] = {}
    made: dict[str, list[str]] = {}
    root = _engine()
    for path in [*(root / "model_executor" / "models").rglob("*.py"), *(root / "models").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.ClassDef):
                continue
            names = {each.id for part in node.body for each in ast.walk(part) if isinstance(each, ast.Name)}
            made.setdefault(node.name, []).extend(sorted(name for name in names if name.endswith("Model")))
            for each in node.body:
                is_named = isinstance(each, ast.Assign) and isinstance(each.targets[0], ast.Name)
                if is_named and each.targets[0].id == RELAYS:
                    says[node.name] = _says(each, RELAYS)
    return says, made


def _decoder_relays(
    name: str, relays: dict[str, bool], made: dict[str, list[str]], bases: dict[str, list[str]]
) -> bool:
    """Whether the decoder that a class names does; a class that names none has that of its base."""
    if made.get(name):
        return any(_inherited(each, relays, bases) for each in made[name])
    return any(_decoder_relays(each, relays, made, bases) for each in bases.get(name, []) if each != name)


def _inherited(name: str, relays: dict[str, bool], bases: dict[str, list[str]]) -> bool:
    if name in relays:
        return relays[name]
    return any(_inherited(each, relays, bases) for each in bases.get(name, []) if each != name)


def _embedding_modules() -> dict[str, list[str]]:
    """The embeddings and heads to which the engine's classes add LoRA weights, where a class says so itself."""
    found: dict[str, list[str]] = {}
    for path in (_engine() / "model_executor" / "models").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            for each in node.body if isinstance(node, ast.ClassDef) else ():
                is_named = isinstance(each, ast.Assign) and isinstance(each.targets[0], ast.Name)
                if is_named and each.targets[0].id == "embedding_modules" and isinstance(each.value, ast.Dict):
                    found[node.name] = [name for name in ENDS if name in ast.literal_eval(each.value)]
    return found


def _wrapped_ends(name: str, wrapped: dict[str, list[str]], bases: dict[str, list[str]]) -> list[str]:
    if name in wrapped:
        return wrapped[name]
    return next((ends for each in bases.get(name, []) if (ends := _wrapped_ends(each, wrapped, bases))), [])


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
