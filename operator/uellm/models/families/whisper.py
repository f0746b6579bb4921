"""Whisper: a decoder whose every layer attends to its own tokens and to the encoder's frames.

Source: vllm/model_executor/models/whisper.py. The encoder is counted as a tower. Its frames have a KV cache in each
layer, constant in size: it is counted as the state of a sequence.
"""

from __future__ import annotations

from collections.abc import Mapping

from uellm.models.families.parts import Heads, attention, even_width, heads
from uellm.models.fields import Config
from uellm.models.weights import Blueprint, Layer, WeightMatrix

FRAMES = 5000  # that Parakeet's encoder takes where it does not say how many


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


def cohere_asr(config: Config) -> Blueprint:
    """Cohere's decoder of speech: as Whisper's, with biases everywhere and a norm behind its embeddings."""
    hidden, ffn = config.size("hidden_size"), config.size("intermediate_size")
    of = heads(config, hidden)
    linears = tuple(
        weight
        for part in ("self_attn", "encoder_attn")
        for weight in attention(hidden, of, qkv_bias=True, output_bias=True, path=part)
    )
    linears += (WeightMatrix("mlp.fc1", ffn, hidden, bias=True), WeightMatrix("mlp.fc2", hidden, ffn, bias=True))
    positions, encoder = config.size("max_position_embeddings"), config.fields.get("encoder_config")
    frames = Config(encoder if isinstance(encoder, Mapping) else {}).size("max_position_embeddings", default=FRAMES)
    layer = Layer(linears, 6 * hidden, of.kv_numbers, of.flops, state_numbers=frames * of.kv_numbers)
    return Blueprint(
        layers=(layer,) * config.layers(),
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
        other_embedding=positions * hidden + 2 * hidden,
        head_bias=True,
        tensor_widths=(("intermediate_size", ffn),),
    )
