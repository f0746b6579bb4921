"""How much KV cache a placement has, and what the engine is told.

vLLM takes the number of blocks that its tightest rank has room for, the same on every rank. One figure is told to all
ranks, so with unlike stages it must be that of the stage with the most KV bytes per token:

    tokens = min over stages of (room of the stage's devices - its weights) / (its KV bytes per token)
    told   = tokens * max over stages of (its KV bytes per token)

Every other stage then allocates its share of `told` and no more.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from uellm.planner import constants as c


@dataclass(frozen=True, slots=True)
class KvCache:
    """Tokens that the whole pipeline holds at a time, and bytes that each GPU is told."""

    tokens: int
    bytes_told: int


def tokens_told(told_bytes: int, per_token: Sequence[Fraction | int], block_tokens: int = c.BLOCK_TOKENS) -> int:
    """What vLLM makes of the bytes that every rank is told: whole blocks, and the fewest of any stage's ranks.

    `per_token`: KV bytes of a token on a GPU of each stage. The other stages then allocate no more blocks than that.
    """
    return min(int(told_bytes / (block_tokens * kv)) for kv in per_token) * block_tokens


def kv_cache(rooms: Sequence[int], per_token: Sequence[Fraction | int], *, most_tokens: int | None = None) -> KvCache:
    """`rooms`: bytes left on a GPU of each stage once its weights are there; `per_token`: KV bytes of a token there.

    `most_tokens` bounds it, where the engine allocates on a machine that only plays the GPUs.
    """
    tokens = min(int(room / kv) for room, kv in zip(rooms, per_token, strict=True))
    tokens = tokens // c.BLOCK_TOKENS * c.BLOCK_TOKENS
    if most_tokens is not None:
        tokens = min(tokens, most_tokens)
    return KvCache(tokens, int(tokens * max(per_token)))
