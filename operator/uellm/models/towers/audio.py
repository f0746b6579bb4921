"""The weights of encoders of sound, with the projector into the text model."""

from __future__ import annotations

from uellm.errors import BadInput
from uellm.models.fields import Config
from uellm.models.towers.blocks import block, linear

KERNEL = 3  # of both convolutions before Whisper's encoder
DEFAULT_CHANNELS = (128, 32)  # of the convolutions before Gemma's conformers
GEMMA4_OUTPUT = 1536  # numbers of a frame behind Gemma 4's conformer
PHI4_HALVINGS = 3  # of time and frequency before Phi-4's conformer
MOST_STAGES = 16  # each doubles the channels of VibeVoice's encoders
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


def glmasr(tower: Config, whole: Config, text: int) -> int:
    """GLM-ASR: Whisper's without an embedding of positions; the projector reads four frames at once."""
    hidden, ffn, mel = tower.size("hidden_size"), tower.size("intermediate_size"), tower.size("num_mel_bins")
    convolutions = KERNEL * mel * hidden + hidden + KERNEL * hidden * hidden + hidden
    projector = linear(2 * text, ffn) + linear(text, 2 * text)
    return convolutions + tower.layers() * block(hidden, ffn) + 2 * hidden + projector


def parakeet(tower: Config, whole: Config, text: int) -> int:
    """NVIDIA's fast conformer: two halves of an MLP, relative positions, a convolution; one projection behind it."""
    hidden, ffn, kernel = tower.size("hidden_size"), tower.size("intermediate_size"), tower.size("conv_kernel_size")
    bias, beside = tower.flag("attention_bias", default=True), tower.flag("convolution_bias", default=True)
    halves = 2 * (linear(ffn, hidden, bias) + linear(hidden, ffn, bias))
    attention = 4 * linear(hidden, hidden, bias) + hidden * hidden + 2 * hidden
    module = linear(2 * hidden, hidden, beside) + hidden * kernel + hidden * beside + linear(hidden, hidden, beside)
    channels, mel = tower.size("subsampling_conv_channels"), tower.size("num_mel_bins")
    square, halvings = (
        tower.size("subsampling_conv_kernel_size") ** 2,
        tower.size("subsampling_factor").bit_length() - 1,
    )
    entry = channels * (square + 1) + (halvings - 1) * (channels * (square + 1) + linear(channels, channels))
    for _ in range(halvings):
        mel = (mel + 1) // 2
    entry += linear(hidden, channels * mel)
    # Five norms of a layer, and that of its convolution.
    return entry + tower.layers() * (halves + attention + module + 12 * hidden) + linear(text, hidden)


def gemma4(tower: Config, whole: Config, text: int) -> int:
    """Gemma 4's conformer."""
    hidden, ffn = tower.size("hidden_size"), CONFORMER_FFN * tower.size("hidden_size")
    kernel, heads = tower.size("conv_kernel_size"), tower.size("num_attention_heads")
    halves = 2 * (2 * hidden * ffn + 2 * hidden)
    attention = 5 * hidden * hidden + hidden // heads
    convolution = 3 * hidden * hidden + kernel * hidden + 2 * hidden
    first, second = _channels(tower, "subsampling_conv_channels")
    entry = 9 * first + 9 * first * second + first + second + second * (first // 4) * hidden
    out = tower.size("output_proj_dims", default=GEMMA4_OUTPUT)
    layers = tower.layers() * (halves + attention + convolution + 3 * hidden)
    return entry + layers + linear(out, hidden) + out * text


def phi4(tower: Config, whole: Config, text: int) -> int:
    """Phi-4-multimodal's conformer, with a projector for sound alone and one for sound beside images."""
    hidden, ffn = tower.size("hidden_size"), tower.size("intermediate_size")
    wide, separable = tower.size("ext_pw_out_channel"), tower.size("depthwise_separable_out_channel")
    mlp = 2 * hidden + linear(2 * ffn, hidden) + linear(hidden, ffn)
    module = 2 * hidden + linear(2 * wide, hidden) + 2 * wide + linear(wide, hidden)
    module += tower.size("kernel_size") * hidden + hidden + linear(separable, hidden)
    one = 2 * mlp + 4 * linear(hidden, hidden) + module + 4 * hidden
    channels = tower.size("nemo_conv_channels")
    stages = PHI4_HALVINGS - 1
    entry = 10 * channels + stages * (10 * channels + linear(channels, channels))
    entry += linear(hidden, channels * -(-tower.size("input_size") // 2**PHI4_HALVINGS))
    bias = 2 * tower.size("bias_max_distance") * tower.size("num_attention_heads")
    projectors = 2 * (linear(text, hidden) + linear(text, text))
    return entry + tower.layers("num_blocks") * one + bias + projectors


def vibevoice(tower: Config, whole: Config, text: int) -> int:
    """One of VibeVoice's encoders of sound, ConvNeXt at ever lower rates, and its projector."""
    filters, kernel, out = tower.size("num_filters"), tower.size("kernel_size"), tower.size("hidden_size")
    depths, ratios = _sizes(tower, "depths"), _sizes(tower, "downsampling_ratios")
    if len(depths) != len(ratios) + 1:
        raise BadInput(
            f"{tower.prefix}.depths", f"has {len(depths)} entries, but there are {len(ratios)} rates after one"
        )
    expansion, channels = tower.size("ffn_expansion"), filters
    numbers = linear(filters, tower.size("channels") * kernel)
    for depth, ratio in zip(depths, (0, *ratios), strict=True):
        if ratio:
            numbers += linear(2 * channels, channels * 2 * ratio)
            channels *= 2
        wide = expansion * channels
        # Four norms and scales, a convolution of each channel alone, an MLP.
        numbers += depth * (5 * channels + kernel * channels + linear(wide, channels) + linear(channels, wide))
    projector = linear(text, out) + text + linear(text, text)
    return numbers + linear(out, channels * kernel) + projector


def _sizes(tower: Config, name: str) -> tuple[int, ...]:
    value = tower.value(name)
    if not isinstance(value, list | tuple) or not 0 < len(value) <= MOST_STAGES:
        raise BadInput(f"{tower.prefix}.{name}", f"must be a list of 1 to {MOST_STAGES} whole numbers")
    return tuple(tower.whole(name, each) for each in value)


def _channels(tower: Config, name: str) -> tuple[int, int]:
    """The channels of two convolutions before a conformer."""
    sizes = tower.value(name)
    if isinstance(sizes, list | tuple) and len(sizes) == 2:
        return tower.whole(name, sizes[0]), tower.whole(name, sizes[1])
    return DEFAULT_CHANNELS


def gemma3n(tower: Config, whole: Config, text: int) -> int:
    """Gemma 3n's conformer."""
    hidden, ffn = tower.size("hidden_size"), CONFORMER_FFN * tower.size("hidden_size")
    layers = tower.layers("conf_num_hidden_layers")
    kernel = tower.size("conf_conv_kernel_size")
    heads = tower.size("conf_num_attention_heads")
    halves = 2 * (2 * hidden * ffn + 2 * hidden)
    attention = 5 * hidden * hidden + 2 * hidden + hidden // heads
    convolution = 3 * hidden * hidden + kernel * hidden + 2 * hidden
    first, second = _channels(tower, "sscp_conv_channel_size")
    bins = -(-tower.size("input_feat_size", default=128) // 4)
    entry = 9 * first + 9 * first * second + first + second + second * bins * hidden
    soft = tower.count("vocab_size") * hidden + 2 * hidden
    return entry + layers * (halves + attention + convolution + hidden) + soft + hidden * text
