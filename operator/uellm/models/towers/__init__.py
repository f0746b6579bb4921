"""The weights of the encoders of images and sound in a multimodal model, with their projectors into the text model.

Exact for the encoders named here; any other is reckoned as a plain transformer of its sizes, and a note says so. The
engine builds encoders on every stage, and quantisations leave them alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from uellm.errors import BadInput
from uellm.models.classes import group_of, parts_of, type_of_class
from uellm.models.defaults import class_defaults
from uellm.models.fields import Config, MissingField
from uellm.models.towers import audio, mergers, plain, queries, qwen, vision
from uellm.models.towers.named import NAMED

SENSES = (
    *("vision_config", "audio_config", "speech_config", "sound_config", "encoder_config", "vit_config"),
    *("acoustic_tokenizer_encoder_config", "semantic_tokenizer_encoder_config"),
)
QWEN3 = tuple(
    f"{name}{part}"
    for name in ("qwen3_vl", "qwen3_vl_moe", "qwen3_5", "qwen3_5_moe", "qwen3_omni_moe")
    for part in ("", "_vision", "_vision_encoder")
)
INKLING = (
    *("inkling_mm_model", "inkling_vision", "inkling_vision_model"),
    *("inkling_audio", "inkling_audio_model"),
)
Tower = Callable[[Config, Config, int], int]

# By the tower's model_type.
TOWERS: dict[str, Tower] = {
    **dict.fromkeys(("clip_vision_model", "clip_vision"), vision.clip),
    **dict.fromkeys(("siglip_vision_model", "siglip_vision", "siglip2_vision_model"), vision.siglip),
    "pixtral": vision.pixtral,
    "llama4_vision_model": vision.llama4,
    "mllama_vision_model": vision.mllama,
    **dict.fromkeys(("intern_vit_6b", "internvl_vision", "intern_vit"), vision.intern),
    **dict.fromkeys(("moonvit", "moonvit3d", "kimi_k25", "kimi_k25_vision"), vision.moonvit),
    **dict.fromkeys(("qwen2_vl", "qwen2_vl_vision"), qwen.qwen2_vl),
    **dict.fromkeys(("qwen2_5_vl", "qwen2_5_vl_vision", "qwen2_5_omni_vision_encoder"), qwen.qwen2_5_vl),
    **dict.fromkeys(QWEN3, qwen.qwen3_vl),
    **dict.fromkeys(("idefics3", "idefics3_vision", "smolvlm", "smolvlm_vision"), vision.idefics3),
    "gemma4_vision": vision.gemma4,
    "gemma4_audio": audio.gemma4,
    **dict.fromkeys(("glm4v", "glm4v_vision", "glm4v_moe", "glm4v_moe_vision"), vision.glm4v),
    **dict.fromkeys(("glm5_next_vision", "glm_ocr_vision"), vision.glm5_next),
    "paddleocr_vl_vision": vision.siglip,
    "exaone4_5_vision": qwen.exaone,
    "phi4_multimodal_vision": vision.phi4,
    "phi4_multimodal_audio": audio.phi4,
    "gemma3n_vision": vision.mobilenet,
    "whisper": audio.whisper,
    "qwen2_audio_encoder": audio.qwen2_audio,
    "voxtral_encoder": audio.voxtral,
    "qwen2_5_omni_audio_encoder": audio.omni,
    **dict.fromkeys(("qwen3_omni_moe_audio_encoder", "qwen3_asr_audio_encoder", "qwen3_asr_encoder"), audio.omni3),
    "gemma3n_audio": audio.gemma3n,
    "glmasr_encoder": audio.glmasr,
    "parakeet_encoder": audio.parakeet,
    "vibevoice_acoustic_tokenizer_encoder": audio.vibevoice,
    "blip_2_vision_model": queries.blip2,
    **dict.fromkeys(("granite_speech_encoder", "granite_speech_plus_encoder"), queries.granite_speech),
    **dict.fromkeys(("minicpmv4_6_vision", "minicpmv4_7_vision"), mergers.minicpmv),
    "cosmos3_edge_vision": mergers.cosmos3_edge,
    "muse_glimmer_vision": mergers.muse_glimmer,
    **dict.fromkeys(INKLING, mergers.inkling),
    **dict.fromkeys(("deepseek_v41", "deepseek_v41_vision"), mergers.deepseek),
}


def read_tower(config: Mapping[str, Any], text: int) -> tuple[int, tuple[str, ...]]:
    """Numbers of the encoders of a model whose text model is `text` wide, and notes on what is not exact."""
    notes: list[str] = []
    numbers = 0
    whole = _config(config, "config", str(config.get("model_type")))
    if config.get("model_type") == "whisper":
        return TOWERS["whisper"](whole, whole, text), ()
    named = NAMED.get(str(config.get("model_type")))
    if named is not None:
        numbers += named(whole, text)
    if whole.count("vision_n_layers"):
        numbers += mergers.deepseek_beside(whole, text)
    for field in SENSES:
        section = config.get(field)
        if not section:
            continue
        if not isinstance(section, Mapping):
            raise BadInput(f"config.{field}", "must be an object")
        kind = str(section.get("model_type") or config.get("model_type"))
        numbers += _read(section, field, kind, whole, text, notes)
    return numbers, tuple(notes)


def unread_tower(name: str) -> tuple[str, ...]:
    """A note for a class with encoders of which the config says nothing; none for any other class."""
    if group_of(name) != "multimodal":
        return ()
    parts = parts_of(name)
    if type_of_class(name) and not any(part in TOWERS or "vision" in part or "audio" in part for part in parts):
        return ()
    return (f"the encoders of {name} are not counted, config.json says no sizes: leave memory for them on every GPU",)


def _read(section: Mapping[str, Any], field: str, kind: str, whole: Config, text: int, notes: list[str]) -> int:
    """Numbers of one encoder."""
    tower = _config(section, f"config.{field}", kind)
    exact = TOWERS.get(kind)
    if exact is not None:
        try:
            return exact(tower, whole, text)
        except MissingField:
            kind = f"{kind}, which leaves out sizes"
    reckoned = plain.numbers(tower, text)
    if reckoned is None:
        notes.append(f"the weights behind {field} are not counted ({kind}): leave memory for them on every GPU")
        return 0
    notes.append(f"the weights behind {field} ({kind}) are reckoned as those of a plain transformer of its sizes")
    return reckoned


def _config(section: Mapping[str, Any], prefix: str, kind: str) -> Config:
    return Config(section, prefix, class_defaults(kind, nested=True))
