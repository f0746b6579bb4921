"""Building blocks that encoders share."""

from __future__ import annotations

CHANNELS = 3


def linear(rows: int, columns: int, bias: bool = True) -> int:
    """Numbers of a matrix with its bias."""
    return rows * columns + rows * bias


def block(hidden: int, ffn: int, *, bias: bool = True) -> int:
    """A ViT block: four square matrices, a plain MLP, two LayerNorms."""
    return 4 * hidden * hidden + 2 * hidden * ffn + (5 * hidden + ffn) * bias + 4 * hidden
