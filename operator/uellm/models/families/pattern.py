"""What each layer does: how it mixes tokens, over which window, and whether an MLP or experts follow.

Families write it as a list of kinds, as a string of letters, as a period and an offset, or as lists of layer numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from uellm.errors import BadInput
from uellm.models.families import names
from uellm.models.families.parts import CHUNKED, FULL, SLIDING
from uellm.models.families.traits import Traits
from uellm.models.fields import MOST_LAYERS, Config
from uellm.models.shown import shown

LINEAR, MAMBA, CONVOLUTION, HYBRID, NOTHING = "linear_attention", "mamba", "conv", "hybrid", "nothing"
DENSE, SPARSE, NO_MLP = "dense", "sparse", "none"
LETTERS = "hybrid_override_pattern"  # a letter for each layer
KINDS = {
    **dict.fromkeys(("full_attention", "attention", "full", "global", "global_attention"), FULL),
    **dict.fromkeys(("compressed_sparse_attention", "heavily_compressed_attention", "*", "sparse_attention"), FULL),
    **dict.fromkeys(("indexed_attention", "qwen_sparse_attention"), FULL),
    **dict.fromkeys(("minimax_m3_sparse", "qwen_attention", "deepseek_sparse_attention", "mla_attention"), FULL),
    **dict.fromkeys(("sliding_attention", "sliding_window", "sliding", "local", "swa", "local_attention"), SLIDING),
    **dict.fromkeys(("chunked_attention", "chunked"), CHUNKED),
    **dict.fromkeys(("linear_attention", "linear", "kda", "gated_deltanet", "lightning_attention"), LINEAR),
    **dict.fromkeys(("mamba", "mamba2", "M", "recurrent"), MAMBA),
    **dict.fromkeys(("conv", "convolution", "short_conv"), CONVOLUTION),
    **dict.fromkeys(("hybrid", "hybrid_sliding"), HYBRID),
    **dict.fromkeys(("mlp", "moe", "-", "E", "nothing"), NOTHING),
}
MLPS = {"mlp": DENSE, "-": DENSE, "moe": SPARSE, "E": SPARSE, "dense": DENSE, "sparse": SPARSE}


@dataclass(frozen=True, slots=True)
class LayerPlan:
    """The mixer of a layer, and what follows it."""

    mixer: str
    mlp: str


def layer_count(config: Config) -> int:
    """The number of layers: a field, or the length of the list of their kinds."""
    if not any(config.value(name) for name in names.LAYERS):
        listed = _kinds_field(config)
        if listed:
            return _bounded(config, *listed)
    given = tuple(name for name in names.LAYERS if config.value(name))
    return config.layers(*(given or names.LAYERS))


def _bounded(config: Config, name: str, listed: Sequence[Any]) -> int:
    if not 0 < len(listed) <= MOST_LAYERS:
        raise BadInput(f"{config.prefix}.{name}", f"must have at most {MOST_LAYERS} entries")
    return len(listed)


def layer_kinds(config: Config, traits: Traits, layers: int, *, experts: bool) -> list[LayerPlan]:
    """[L]: the kinds of all layers. Raises BadInput for a kind that is not known here."""
    mixers, written = _mixers(config, traits, layers)
    if any(each in MLPS and KINDS.get(each) == NOTHING for each in written):
        # Nemotron-H's layers are a mixer or an MLP each, never both.
        return [LayerPlan(mixer, MLPS.get(word, NO_MLP)) for mixer, word in zip(mixers, written, strict=True)]
    mlps = _mlps(config, layers) if experts else [NO_MLP if traits.without_mlp else DENSE] * layers
    return [LayerPlan(mixer, mlp) for mixer, mlp in zip(mixers, mlps, strict=True)]


def _kinds_field(config: Config) -> tuple[str, Sequence[Any]] | None:
    for name in ("layer_types", "layers_block_type", LETTERS, "block_types"):
        value = config.value(name)
        if value is not None and not isinstance(value, str if name == LETTERS else list | tuple):
            raise BadInput(f"{config.prefix}.{name}", "must be a list with an entry for each layer")
        if value:
            return name, value
    return None


def _mixers(config: Config, traits: Traits, layers: int) -> tuple[list[str], list[str]]:
    found = _kinds_field(config)
    if found:
        name, listed = found
        listed = config.for_layers(name, listed, layers)
        for word in listed:
            if not isinstance(word, str) or word not in KINDS:
                raise BadInput(
                    f"{config.prefix}.{name}",
                    f"{shown(word)} is not known here; known are {', '.join(sorted(set(KINDS.values())))}",
                )
        return [_meant(config, word) for word in listed], list(listed)
    return _periodic(config, traits, layers), []


def _meant(config: Config, word: str) -> str:
    """The kind that a word means: transformers has one for all layers with a state, one for attention beside it."""
    kind = KINDS[word]
    if kind not in (LINEAR, HYBRID) or word == "linear":
        return kind
    recurrent = _recurrent(config)
    if kind == LINEAR:
        return MAMBA if recurrent == MAMBA else LINEAR
    beside = SLIDING if word == "hybrid_sliding" else FULL
    return HYBRID if recurrent == MAMBA else beside


def _periodic(config: Config, traits: Traits, layers: int) -> list[str]:
    """Kinds by lists of numbers, periods and offsets."""
    other = _recurrent(config)
    numbers = _attention_numbers(config, layers)
    if numbers is not None and other:
        return [FULL if index in numbers else other for index in range(layers)]
    every = config.count("full_attention_interval") or traits.attention_interval
    if other == LINEAR and not every:
        raise BadInput(f"{config.prefix}.layer_types", "is missing: which layers have softmax attention is not told")
    if other and not every:
        return [HYBRID if traits.side_by_side else other] * layers
    if other:
        return [FULL if (index + 1) % every == 0 else other for index in range(layers)]
    return _sliding(config, traits, layers)


def _recurrent(config: Config) -> str:
    """What the layers without attention do; empty: there are none."""
    if config.value("conv_L_cache"):
        return CONVOLUTION
    if any(config.value(name) for name in ("linear_num_value_heads", "linear_attn_config", "linear_num_heads")):
        return LINEAR
    if config.value("attn_type_list") is not None:
        return LINEAR
    return MAMBA if any(config.value(name) for name in names.STATE) else ""


def _attention_numbers(config: Config, layers: int) -> frozenset[int] | None:
    """The layers with softmax attention where the config lists them, or gives their period."""
    inner = config.fields.get("linear_attn_config")
    if isinstance(inner, dict) and isinstance(inner.get("full_attn_layers"), list):
        return frozenset(each - 1 for each in inner["full_attn_layers"] if type(each) is int)  # counted from 1
    for name in ("attn_layer_indices", "full_attn_idxs", "hybrid_layer_ids"):
        if config.value(name):
            return config.indices(name, layers)
    if config.value("attn_layer_period"):
        period, offset = config.size("attn_layer_period"), config.count("attn_layer_offset")
        return frozenset(index for index in range(layers) if index % period == offset)
    listed = config.list_of("attn_type_list", layers)
    return None if listed is None else frozenset(index for index, each in enumerate(listed) if each)


def _sliding(config: Config, traits: Traits, layers: int) -> list[str]:
    """Which layers slide where the config gives a window without kinds of layers."""
    if not any(config.value(name) for name in ("sliding_window", "local_attention", "hybrid_layer_pattern")):
        return [FULL] * layers
    if config.value("use_sliding_window") is False:
        return [FULL] * layers
    if "max_window_layers" in config.fields and config.value("use_sliding_window") is not None:
        first = config.count("max_window_layers", default=layers)
        return [SLIDING if index >= first else FULL for index in range(layers)]
    listed = config.list_of("hybrid_layer_pattern", layers)
    if listed is not None:
        return [SLIDING if each else FULL for each in listed]
    pattern = config.value("sliding_window_pattern") or config.value("_sliding_window_pattern")
    if isinstance(pattern, str) and pattern:
        return [SLIDING if pattern[index % len(pattern)] == "L" else FULL for index in range(layers)]
    every = pattern if type(pattern) is int and pattern > 0 else _every(config) or traits.window_pattern
    if every and not traits.encoder:
        turn = 0 if traits.full_first else every - 1
        return [FULL if index % every == turn else SLIDING for index in range(layers)]
    return [SLIDING if traits.slides else FULL] * layers


def _every(config: Config) -> int:
    return config.count("global_attn_every_n_layers") or config.count("global_attn_every_n")


def _mlps(config: Config, layers: int) -> list[str]:
    """Which layers have experts."""
    for rule in RULES:
        sparse = rule(config, layers)
        if sparse is not None:
            return [SPARSE if each else DENSE for each in sparse]
    return [SPARSE] * layers


def _listed(config: Config, layers: int) -> list[bool] | None:
    for name in ("mlp_layer_types", "ffn_layer_types"):
        words = config.list_of(name, layers)
        if words is not None:
            return [word in ("sparse", "moe") for word in words]
    numbers = config.value("moe_layer_freq")
    if isinstance(numbers, list | tuple):
        return [bool(each) for each in config.for_layers("moe_layer_freq", numbers, layers)]
    enumerated = config.value("moe_layers_enum")
    if isinstance(enumerated, str) and enumerated:
        chosen = {each.strip() for each in enumerated.split(",")}
        return [str(index) in chosen for index in range(layers)]
    sparse = config.indices("moe_layers", layers)
    return None if sparse is None else [index in sparse for index in range(layers)]


def _interval(config: Config, layers: int) -> list[bool] | None:
    """ERNIE: every n-th layer between two layers."""
    if config.value("moe_layer_interval") is None:
        return None
    every = config.size("moe_layer_interval")
    first, last = (_each(config.value(name)) for name in ("moe_layer_start_index", "moe_layer_end_index"))
    end = max(last) if last and min(last) >= 0 else layers - 1
    start = min(first, default=0)
    return [start <= index <= end and (index + 1) % every == 0 for index in range(layers)]


def _each(value: Any) -> list[int]:
    """A whole number, or a list of them: one for each set of experts."""
    return [each for each in (value if isinstance(value, list | tuple) else [value]) if type(each) is int]


def _period(config: Config, layers: int) -> list[bool] | None:
    """Jamba: a period and an offset."""
    if config.value("expert_layer_period") is None:
        return None
    period, offset = config.size("expert_layer_period"), config.count("expert_layer_offset")
    return [index % period == offset for index in range(layers)]


def _step(config: Config, layers: int) -> list[bool] | None:
    """Qwen and Llama 4: every n-th layer, save those that are listed as dense."""
    name = next(
        (each for each in ("decoder_sparse_step", "interleave_moe_layer_step") if config.value(each) is not None), None
    )
    plain = config.indices("mlp_only_layers", layers) or frozenset()
    if name is None:
        return [index not in plain for index in range(layers)] if plain else None
    return [index not in plain and (index + 1) % config.size(name) == 0 for index in range(layers)]


def _first(config: Config, layers: int) -> list[bool] | None:
    """DeepSeek: dense layers first, then every n-th has experts."""
    name = next((each for each in names.DENSE_FIRST if config.value(each) is not None), None)
    if name is None:
        return None
    frequency = config.value("moe_layer_freq")
    every = frequency if type(frequency) is int and frequency > 0 else 1
    return [index >= config.count(name) and index % every == 0 for index in range(layers)]


RULES: tuple[Callable[[Config, int], list[bool] | None], ...] = (_listed, _interval, _period, _step, _first)
