"""Encoders whose output a querying transformer (Q-Former) reads: BLIP-2's of images, Granite's of speech.

Sources: vllm/model_executor/models/blip2.py, granite_speech.py.
"""

from __future__ import annotations

from collections.abc import Mapping

from uellm.errors import BadInput
from uellm.models.defaults import class_defaults
from uellm.models.fields import Config
from uellm.models.towers.blocks import CHANNELS, block, linear

QFORMER = "blip_2_qformer"
DEFAULT_QUERIES = 32
DEFAULT_WIDTH, DEFAULT_CHARACTERS = 128, 42  # of a head and of the alphabet, in Granite Speech


def blip2(tower: Config, whole: Config, text: int) -> int:
    """BLIP-2: a ViT, a Q-Former and one projection."""
    hidden, ffn = tower.size("hidden_size"), tower.size("intermediate_size")
    patch, image = tower.size("patch_size"), tower.size("image_size")
    embed = hidden + CHANNELS * patch * patch * hidden + hidden + ((image // patch) ** 2 + 1) * hidden
    one = block(hidden, ffn) - 3 * hidden * (not tower.flag("qkv_bias", default=True))
    queries = whole.size("num_query_tokens", default=DEFAULT_QUERIES)
    return embed + tower.layers() * one + 2 * hidden + _qformer(whole, "qformer_config", queries, text)


def granite_speech(tower: Config, whole: Config, text: int) -> int:
    """Granite Speech: a conformer with a guess of the characters in its middle, a Q-Former and one projection."""
    hidden, characters = tower.size("hidden_dim"), tower.size("output_dim", default=DEFAULT_CHARACTERS)
    ffn, wide = tower.size("feedforward_mult") * hidden, tower.size("conv_expansion_factor") * hidden
    heads, width = tower.size("num_heads"), tower.size("dim_head", default=DEFAULT_WIDTH)
    halves = 2 * (linear(ffn, hidden) + linear(hidden, ffn) + 2 * hidden)
    attention = 3 * heads * width * hidden + linear(hidden, heads * width) + 2 * hidden
    attention += (2 * tower.size("max_pos_emb") + 1) * width
    convolution = linear(2 * wide, hidden) + tower.size("conv_kernel_size") * wide + 2 * wide + linear(hidden, wide)
    one = halves + attention + convolution + 2 * hidden + 2 * hidden
    ends = linear(hidden, tower.size("input_dim")) + linear(characters, hidden) + linear(hidden, characters)
    window, rate = whole.size("window_size", default=15), whole.size("downsample_rate", default=5)
    return ends + tower.layers("num_layers") * one + _qformer(whole, "projector_config", window // rate, text)


def _qformer(whole: Config, field: str, queries: int, text: int) -> int:
    """BLIP-2's Q-Former, with its queries and the projection into the text model."""
    fields = whole.fields.get(field) or {}
    if not isinstance(fields, Mapping):
        raise BadInput(f"{whole.prefix}.{field}", "must be an object")
    former = Config(fields, f"{whole.prefix}.{field}", class_defaults(QFORMER, nested=True))
    hidden, ffn, source = (
        former.size("hidden_size"),
        former.size("intermediate_size"),
        former.size("encoder_hidden_size"),
    )
    layers, every = former.layers(), former.size("cross_attention_frequency")
    output = linear(hidden, hidden) + 2 * hidden
    crossing = -(-layers // every) * (linear(hidden, hidden) + 2 * linear(hidden, source) + output)
    mlp = linear(ffn, hidden) + linear(hidden, ffn) + 2 * hidden
    inside = layers * (3 * linear(hidden, hidden) + output + mlp) + crossing
    return queries * hidden + 2 * hidden + inside + linear(text, hidden)


QUERIED = (blip2, granite_speech)
"""Encoders that are counted with the Q-Former behind them."""
