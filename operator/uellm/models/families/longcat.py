"""LongCat-Flash: two attentions and two dense MLPs a layer, with experts beside them, some of which do nothing.

Source: transformers' and vLLM's longcat_flash.py. The engine gives each half of a layer its own KV cache.
"""

from __future__ import annotations

from uellm.errors import BadInput
from uellm.models.families import attention, feed_forward, names
from uellm.models.families.part import LayerPart
from uellm.models.families.traits import Traits
from uellm.models.fields import Config
from uellm.models.weights import Blueprint, Layer, WeightMatrix

TRAITS = Traits(mlp_bias=False)


def longcat(config: Config) -> Blueprint:
    """LongCat-Flash and LongCat-Flash-Ngram."""
    hidden, layers = config.size("hidden_size"), config.layers("num_layers", "num_hidden_layers")
    mixture = feed_forward.experts_of(config)
    if mixture is None:
        raise BadInput(f"{config.prefix}.n_routed_experts", "is missing; give it as the model's config.json has it")
    width, idle = config.size("ffn_hidden_size", "intermediate_size"), config.count("zero_expert_num")
    half = attention.latent(config, TRAITS, hidden) + feed_forward.dense(config, TRAITS, hidden, width)
    sparse = feed_forward.mixture(config, TRAITS, hidden, mixture)
    router = WeightMatrix("mlp.gate_zero", idle, hidden, quantizable=False) if idle else None
    part = half + half + sparse + LayerPart((router,) if router else (), float32=mixture.total + idle)
    layer = Layer(part.linears, part.other + 4 * hidden, part.kv_numbers, part.attention_flops, None, part.float32)
    return Blueprint(
        layers=(layer,) * layers,
        layer_path="model.layers",
        hidden_size=hidden,
        intermediate_size=2 * width + mixture.width * mixture.per_token,
        vocab_size=config.size(*names.VOCABULARY),
        attention_heads=config.size(*names.HEADS),
        kv_heads=1,
        head_dim=config.size("kv_lora_rank") + config.size("qk_rope_head_dim"),
        final_norm=hidden,
        tied=config.flag("tie_word_embeddings", default=False),
        max_position_embeddings=config.longest(),
        experts=mixture.total,
        experts_per_token=mixture.per_token,
        kv_shared_by_tensor=False,
        tensor_widths=(("ffn_hidden_size", width), (mixture.field, mixture.width)),
    )
