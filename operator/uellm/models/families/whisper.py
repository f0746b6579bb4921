"""Whisper: a decoder whose every layer attends to its own tokens and to the encoder's frames.

Source: vllm/model_executor/models/whisper.py. The encoder is counted as a tower. Its frames have a KV cache in each
layer, constant in size: it is counted as the state of a sequence.
"""

from __future__ import annotations

from uellm.models.families.parts import Heads, even_width
from uellm.models.fields import Config
from uellm.models.weights import Blueprint, Layer, WeightMatrix


def whisper(config: Config) -> Blueprint:
    """The decoder of Whisper."""
    hidden, ffn = config.size("d_model"), config.size("decoder_ffn_dim")
    query = config.size("decoder_attention_heads")
    of = Heads(query, query, even_width(config, hidden, query, "decoder_attention_heads"))
    linears = tuple(
        WeightMatrix(f"{part}.{name}_proj", hidden, hidden, bias=name != "k")
        for part in ("self_attn", "encoder_attn")
        for name in ("q", "k", "v", "out")
    )
    linears += (WeightMatrix("fc1", ffn, hidden, bias=True), WeightMatrix("fc2", hidden, ffn, bias=True))
    frames, positions = config.size("max_source_positions"), config.size("max_target_positions")
    layer = Layer(linears, 6 * hidden, of.kv_numbers, of.flops, state_numbers=frames * of.kv_numbers)
    return Blueprint(
        layers=(layer,) * config.layers("decoder_layers", "num_hidden_layers"),
        layer_path="model.decoder.layers",
        hidden_size=hidden,
        intermediate_size=ffn,
        vocab_size=config.size("vocab_size"),
        attention_heads=of.query,
        kv_heads=of.kv,
        head_dim=of.width,
        final_norm=2 * hidden,
        tied=config.flag("tie_word_embeddings", default=True),
        max_position_embeddings=positions,
        other_embedding=positions * hidden,
        tensor_widths=(("decoder_ffn_dim", ffn),),
    )
