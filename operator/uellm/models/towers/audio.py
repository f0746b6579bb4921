"""The weights of encoders of sound, with the projector into the text model."""

from __future__ import annotations

from uellm.models.fields import Config
from uellm.models.towers.blocks import block, linear

KERNEL = 3  # of both convolutions before Whisper's encoder
CONFORMER_FFN = 4  # widths of the hidden state, in Gemma's encoder


def encoder(tower: Config) -> tuple[int, int]:
    """Numbers of Whisper's encoder, and its width. Keys have no bias."""
    hidden = tower.size("d_model", "hidden_size")
    ffn = tower.size("encoder_ffn_dim", "intermediate_size")
    layers = tower.layers(*("encoder_layers",) if tower.value("encoder_layers") else ("num_hidden_layers",))
    mel, rows = tower.size("num_mel_bins"), tower.size("max_source_positions")
    convolutions = KERNEL * mel * hidden + hidden + KERNEL * hidden * hidden + hidden
    return convolutions + rows * hidden + layers * (block(hidden, ffn) - hidden) + 2 * hidden, hidden


def whisper(tower: Config, whole: Config, text: int) -> int:
    """Whisper's own encoder, which its decoder reads without a projector."""
    return encoder(tower)[0]


def qwen2_audio(tower: Config, whole: Config, text: int) -> int:
    """Whisper's encoder and one projection."""
    numbers, hidden = encoder(tower)
    return numbers + linear(text, hidden)


def voxtral(tower: Config, whole: Config, text: int) -> int:
    """Whisper's encoder; the projector reads as many frames at once as make up the width of an MLP."""
    numbers, _ = encoder(tower)
    return numbers + text * tower.size("intermediate_size", "encoder_ffn_dim") + text * text


def omni(tower: Config, whole: Config, text: int) -> int:
    """Qwen2.5-Omni's encoder: Whisper's without an embedding of positions, and one projection."""
    hidden, out = tower.size("d_model"), tower.size("output_dim", default=text)
    mel, layers = tower.size("num_mel_bins"), tower.layers("encoder_layers")
    convolutions = KERNEL * mel * hidden + hidden + KERNEL * hidden * hidden + hidden
    blocks = layers * (block(hidden, tower.size("encoder_ffn_dim")) - hidden)
    return convolutions + blocks + 2 * hidden + linear(out, hidden) + 2 * hidden


def omni3(tower: Config, whole: Config, text: int) -> int:
    """Qwen3-Omni's and Qwen3-ASR's encoder: three convolutions over the spectrogram, and two projections."""
    hidden, out = tower.size("d_model"), tower.size("output_dim", default=text)
    channels, mel = tower.size("downsample_hidden_size"), tower.size("num_mel_bins")
    convolutions = 9 * channels + channels + 2 * (9 * channels * channels + channels)
    # Each convolution halves the bins.
    rows = (((mel + 1) // 2 + 1) // 2 + 1) // 2
    blocks = tower.layers("encoder_layers") * block(hidden, tower.size("encoder_ffn_dim"))
    entry = channels * rows * hidden
    return convolutions + entry + blocks + 2 * hidden + linear(hidden, hidden) + linear(out, hidden)


def gemma3n(tower: Config, whole: Config, text: int) -> int:
    """Gemma 3n's conformer."""
    hidden, ffn = tower.size("hidden_size"), CONFORMER_FFN * tower.size("hidden_size")
    layers = tower.layers("conf_num_hidden_layers")
    kernel = tower.size("conf_conv_kernel_size")
    heads = tower.size("conf_num_attention_heads")
    halves = 2 * (2 * hidden * ffn + 2 * hidden)
    attention = 5 * hidden * hidden + 2 * hidden + hidden // heads
    convolution = 3 * hidden * hidden + kernel * hidden + 2 * hidden
    sizes = tower.value("sscp_conv_channel_size")
    first, second = sizes if isinstance(sizes, list | tuple) and len(sizes) == 2 else (128, 32)
    bins = -(-tower.size("input_feat_size", default=128) // 4)
    entry = 9 * first + 9 * first * second + first + second + second * bins * hidden
    soft = tower.count("vocab_size") * hidden + 2 * hidden
    return entry + layers * (halves + attention + convolution + hidden) + soft + hidden * text
