"""Mistral's own format: a `params.json` in place of config.json, read as vLLM reads it.

Source: vLLM's transformers_utils/configs/mistral.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from uellm.errors import BadInput
from uellm.models.fields import MOST_LAYERS
from uellm.models.shown import check_bounds, shown

PARAMS = "params.json"
LENGTH = 128_000
"""The context of a file that names none."""
_NAMES = {
    "dim": "hidden_size",
    "n_kv_heads": "num_key_value_heads",
    "n_layers": "num_hidden_layers",
    "n_heads": "num_attention_heads",
    "hidden_dim": "intermediate_size",
    "tied_embeddings": "tie_word_embeddings",
}
_OF_EXPERTS = {
    "route_every_n": "moe_layer_freq",
    "first_k_dense_replace": "first_k_dense_replace",
    "num_experts_per_tok": "num_experts_per_tok",
    "num_experts": "n_routed_experts",
    "expert_hidden_dim": "moe_intermediate_size",
    "num_shared_experts": "n_shared_experts",
    "num_expert_groups": "n_group",
    "num_expert_groups_per_tok": "topk_group",
}
_OF_SOUND = {
    "dim": "d_model",
    "n_layers": "encoder_layers",
    "hidden_dim": "encoder_ffn_dim",
    "n_heads": "encoder_attention_heads",
}
FRAMES = 1500
"""Positions of Whisper's encoder."""
MERGES = "patch_merge"


def config_of_params(params: Any) -> dict[str, Any]:
    """The config.json that says the same. Raises BadInput for what the engine refuses or what is no such file."""
    if not isinstance(params, Mapping):
        raise BadInput(PARAMS, f"must be a JSON object, not {shown(params)}")
    check_bounds(params)
    if params.get("dim") is None or params.get("n_layers") is None:
        raise BadInput(PARAMS, "names no dim and n_layers: it is not of Mistral's format")
    text: dict[str, Any] = {str(_NAMES.get(name, name)): value for name, value in params.items()}
    text["max_position_embeddings"] = _length(text)
    text.setdefault("sliding_window", None)
    text["tie_word_embeddings"] = bool(text.get("tie_word_embeddings"))
    quantization = _quantization(text.pop("quantization", None))
    sounds, images = _encoders(text)
    _slide(text)
    _name(text)
    if images is not None and sounds is not None:
        raise BadInput(PARAMS, "has an encoder of images and one of sound, and the engine takes one of them")
    whole = _with_images(text, images) if images is not None else _with_sound(text, sounds) if sounds else text
    if quantization is not None:
        whole = {**whole, "quantization_config": quantization}
    dtype = text.get("dtype")
    return {**whole, "dtype": dtype} if dtype is not None else whole


def _length(text: Mapping[str, Any]) -> Any:
    """The context. The engine keeps both fields for it, and serves the shorter one."""
    given, trained = text.get("max_position_embeddings"), text.get("max_seq_len")
    length = LENGTH if given is None else given
    return min(length, trained) if type(length) is int and type(trained) is int else length


def _section(value: Any, name: str) -> Mapping[str, Any] | None:
    if not value:
        return None
    if not isinstance(value, Mapping):
        raise BadInput(f"{PARAMS}.{name}", "must be an object")
    return value


def _encoders(text: dict[str, Any]) -> tuple[Mapping[str, Any] | None, Mapping[str, Any] | None]:
    """Arguments of the encoder of sound, and of that of images; they are taken out."""
    both = _section(text.pop("multimodal", None), "multimodal") or {}
    sounds = _section(both.get("whisper_model_args"), "multimodal.whisper_model_args")
    images = _section(both.get("vision_encoder_args"), "multimodal.vision_encoder_args")
    alone = _section(text.pop("vision_encoder", None), "vision_encoder")
    return sounds, images or alone


def _quantization(value: Any) -> dict[str, Any] | None:
    given = _section(value, "quantization")
    if given is None:
        return None
    if given.get("qformat_weight") == "fp8_e4m3":
        dynamic = given.get("qscheme_act") == "NO_SCALES"
        return {"quant_method": "fp8", "activation_scheme": "dynamic" if dynamic else "static"}
    if str(given.get("quant_method", "")).lower().replace("_", "-") == "compressed-tensors":
        return {**given, "quant_method": "compressed-tensors"}
    raise BadInput(f"{PARAMS}.quantization", f"{shown(dict(given))} is not known to the engine")


def _slide(text: dict[str, Any]) -> None:
    """A list of windows is a pattern that is repeated."""
    windows, layers = text.get("sliding_window"), text.get("num_hidden_layers")
    if not isinstance(windows, list) or not windows or type(layers) is not int:
        return
    if layers > MOST_LAYERS:
        raise BadInput(f"{PARAMS}.n_layers", f"must be at most {MOST_LAYERS}, not {shown(layers)}")
    if not all(each is None or type(each) is int for each in windows):
        raise BadInput(f"{PARAMS}.sliding_window", "must list numbers of tokens, and null where there is no window")
    reach = {each for each in windows if each is not None}
    if len(reach) > 1:
        raise BadInput(f"{PARAMS}.sliding_window", "names several windows, and the engine takes one")
    kinds = ["full_attention" if each is None else "sliding_attention" for each in windows]
    text["layer_types"] = (kinds * (layers // len(kinds)))[:layers]
    text["sliding_window"] = next(iter(reach), None)


def _name(text: dict[str, Any]) -> None:
    """The class, and for experts their sizes under its names."""
    experts = _section(text.pop("moe", None), "moe")
    latent = bool(text.get("qk_nope_head_dim"))
    if latent and experts is None:
        experts = {"num_experts": 1, "num_experts_per_tok": 1, "num_shared_experts": 1, "route_every_n": 1}
        experts = {**experts, "first_k_dense_replace": text.get("num_hidden_layers")}
        experts = {**experts, "expert_hidden_dim": text.get("intermediate_size")}
    if text.get("model_type") == "mamba":
        text["architectures"] = ["Mamba2ForCausalLM"]
    elif experts is not None and experts.get("num_shared_experts"):
        text |= {_OF_EXPERTS[name]: value for name, value in experts.items() if name in _OF_EXPERTS}
        text |= {"architectures": ["MistralLarge3ForCausalLM"], "model_type": "deepseek_v3"}
    elif experts is not None:
        text |= {"architectures": ["MixtralForCausalLM"], "model_type": "mixtral"}
        text |= {"num_local_experts": experts.get("num_experts")}
        text |= {"num_experts_per_tok": experts.get("num_experts_per_tok")}
    else:
        text |= {"architectures": ["MistralForCausalLM"], "model_type": "mistral"}


def _with_images(text: Mapping[str, Any], images: Mapping[str, Any]) -> dict[str, Any]:
    """Pixtral, with Mistral 3's projector where it merges patches."""
    merges = images.get("mm_projector_id") == MERGES
    more = {"spatial_merge_size": images.get("spatial_merge_size", 1)} if merges else {}
    return {
        "architectures": ["PixtralForConditionalGeneration"],
        "model_type": "mistral3" if merges else "pixtral",
        "multimodal_projector_bias": bool(images.get("adapter_bias", True)),
        **more,
        "text_config": dict(text),
        "vision_config": {**images, "model_type": "pixtral"},
    }


def _with_sound(text: Mapping[str, Any], sounds: Mapping[str, Any]) -> dict[str, Any]:
    """Voxtral: Whisper's encoder, whose projector reads several frames at once."""
    encoder = _section(sounds.get("encoder_args"), "multimodal.whisper_model_args.encoder_args") or {}
    shapes = _section(encoder.get("audio_encoding_args"), "audio_encoding_args") or {}
    audio = {new: encoder.get(old) for old, new in _OF_SOUND.items()}
    audio |= {"num_mel_bins": shapes.get("num_mel_bins"), "model_type": "voxtral_encoder"}
    audio["max_source_positions"] = encoder.get("max_source_positions") or FRAMES
    causal = encoder.get("causal") is True
    if causal:
        audio["model_type"] = "voxtral_realtime_encoder"
    name = "VoxtralRealtimeGeneration" if causal else "VoxtralForConditionalGeneration"
    return {"architectures": [name], "model_type": "voxtral", "text_config": dict(text), "audio_config": audio}
