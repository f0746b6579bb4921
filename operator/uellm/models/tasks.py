"""What a model is for: text, vectors, scores or transcripts. Pure.

The pinned engine decides by the class of config.json's `architectures`: by its registry, and for a class that is not in
it by the end of its name (vllm/config/model.py). A repository in the format of sentence-transformers is an embedder,
although its class may be one that writes text.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from uellm.models.classes import ENGINE, group_of, speech_of

Task = Literal["Generate", "Embed", "Score", "Transcribe"]

POOLING_TASKS: tuple[Task, ...] = ("Embed", "Score")
"""One pass over the prompt and no tokens out."""

SENTENCE_TRANSFORMERS = "uellm_sentence_transformers"
"""The field that a look-up adds to config.json where the repository has a modules.json."""

BY_GROUP: Mapping[str, tuple[Task, ...]] = {
    "embedding": ("Embed",),
    "late_interaction": ("Score", "Embed"),
    "reward": ("Score",),
    "token_classification": ("Score",),
    "sequence_classification": ("Score",),
    "text_generation": ("Generate", "Embed"),
    "multimodal": ("Generate", "Embed"),
}
"""The engine's groups, with the task that is meant where none is set first."""

BY_ENDING: tuple[tuple[str, tuple[Task, ...]], ...] = (
    *((end, ("Generate", "Embed")) for end in ("ForCausalLM", "ForConditionalGeneration", "ChatModel", "LMHeadModel")),
    *((end, ("Embed",)) for end in ("ForTextEncoding", "EmbeddingModel")),
    *(
        (end, ("Score",))
        for end in (
            *("ForSequenceClassification", "ForTokenClassification", "ForAudioClassification"),
            *("ForImageClassification", "ForVideoClassification", "ClassificationModel", "ForRewardModeling"),
            "RewardModel",
        )
    ),
    ("Model", ("Embed",)),
)
"""`_SUFFIX_TO_DEFAULTS` of the engine, in its order. Reward models are pooled as embedders are, and yet give scores."""

BOTH_WAYS = (
    *("LlamaBidirectionalModel", "LlamaBidirectionalForSequenceClassification", "VoyageQwen3BidirectionalEmbedModel"),
    *("LlamaNemotronVLModel", "LlamaNemotronVLForSequenceClassification", "EmbeddingGemma2Model"),
    "OpenAIPrivacyFilterForTokenClassification",
)
BOTH_WAYS_IF: Mapping[str, tuple[str, bool | str]] = {
    "Gemma3TextModel": ("use_bidirectional_attention", True),
    "JinaEmbeddingsV5Model": ("is_decoder", False),
    "ColQwen3_5": ("retrieval_attention_contract", "bidirectional"),
}
VISION = ("vision_config", "visual", "vision_tower_config")


@dataclass(frozen=True, slots=True)
class ModelTasks:
    """What a model can do."""

    possible: tuple[Task, ...]
    """The one that is meant where none is set first."""
    why: str
    """Why that one, as the rest of a sentence."""
    engine_default: Task
    """What the engine takes it for by itself."""

    @property
    def inferred(self) -> Task:
        """The task where none is set."""
        return self.possible[0]


def tasks_of(config: Mapping[str, Any]) -> ModelTasks:
    """The tasks of the model that `config` (config.json, parsed) describes."""
    named = config.get("architectures")
    name = str(named[0]) if isinstance(named, list | tuple) and named else ""
    tasks, why = _by_class(name, config)
    if SENTENCE_TRANSFORMERS in config and "Embed" in tasks:
        others = tuple(task for task in tasks if task != "Embed")
        return ModelTasks(("Embed", *others), "its repository has a modules.json of sentence-transformers", "Embed")
    return ModelTasks(tasks, why, tasks[0])


def _by_class(name: str, config: Mapping[str, Any]) -> tuple[tuple[Task, ...], str]:
    group, speech = group_of(name), speech_of(name)
    if group == "multimodal" and speech == "only":
        return ("Transcribe",), f"{ENGINE} transcribes speech with {name}"
    if group == "multimodal" and speech:
        inner = config.get("thinker_config")  # of the Qwen Omni models
        hears = not any(field in part for part in (config, inner) if isinstance(part, Mapping) for field in VISION)
        tasks: tuple[Task, ...] = ("Transcribe", "Generate") if hears else ("Generate", "Transcribe")
        return (*tasks, "Embed"), f"{name} is a class of {ENGINE} that transcribes speech and writes text"
    if group in BY_GROUP:
        return BY_GROUP[group], f"{name} is in the group {group.replace('_', ' ')} of {ENGINE}"
    for ending, found in BY_ENDING:
        if name.endswith(ending):
            return found, f"the class {name} ends in {ending}"
    return ("Generate", "Embed"), f"the class {name} tells no other" if name else "config.json names no class"


def is_bidirectional(config: Mapping[str, Any], name: str) -> bool:
    """Whether a decoder attends in both directions, as some embedders do: it then has no KV cache.

    By the rules of vLLM's models/config.py: a flag of the config, or the class, or what a class reads it from.
    """
    if config.get("is_causal") is False or name in BOTH_WAYS:
        return True
    field, value = BOTH_WAYS_IF.get(name, ("", None))
    return bool(field) and config.get(field) == value
