"""An encoder that is not known here, reckoned as a plain transformer of the sizes that its config gives."""

from __future__ import annotations

from uellm.models.fields import Config
from uellm.models.towers.blocks import CHANNELS, block, linear

HIDDEN = ("hidden_size", "embed_dim", "d_model", "width", "hidden_dim", "encoder_hidden_size")
LAYERS = ("num_hidden_layers", "depth", "encoder_layers", "layers", "num_layers", "n_layers", "num_blocks")
FFN = ("intermediate_size", "encoder_ffn_dim", "mlp_dim", "ffn_dim", "linear_units")
DEFAULT_RATIO = 4


def numbers(tower: Config, text: int) -> int | None:
    """Numbers of the encoder with a projector of two matrices; None where width or depth are not given."""
    widths = [name for name in HIDDEN if type(tower.value(name)) is int]
    depths = [name for name in LAYERS if type(tower.value(name)) is int]
    if not widths or not depths:
        return None
    hidden = tower.size(*widths)
    ratio = tower.value("mlp_ratio")
    ffns = [name for name in FFN if type(tower.value(name)) is int]
    if ffns:
        ffn = tower.size(*ffns)
    else:
        number = isinstance(ratio, int | float) and not isinstance(ratio, bool) and 0 < ratio < 64
        ffn = int(hidden * (ratio if number else DEFAULT_RATIO))
    patch = tower.size("patch_size", default=14) if type(tower.value("patch_size")) is int else 14
    embed = CHANNELS * patch * patch * hidden
    return embed + tower.layers(*depths) * block(hidden, ffn) + linear(text, hidden) + linear(text, text)
