"""The KV cache of a placement, and the size that the engine's flag sets (`--kv-cache-memory-bytes`).

vLLM gives every rank the number of blocks for which its tightest rank has room. All ranks get the same number of bytes
from the flag. So with different stages, the flag must have the bytes of the stage with the most KV bytes per token:

    tokens     = min over stages of (room of the stage's devices - its weights) / (its KV bytes per token)
    flag_bytes = tokens * max over stages of (its KV bytes per token)

Every other stage then allocates only its share of these bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from uellm.planner import constants as c


@dataclass(frozen=True, slots=True)
class KvCache:
    """The size of a KV cache; 0 for a model that keeps none."""

    tokens: int
    """That the whole pipeline can hold."""
    flag_bytes: int
    """The flag's value, the same for every rank."""


def tokens_of_flag(flag_bytes: int, per_token: Sequence[Fraction | int], block_tokens: int = c.BLOCK_TOKENS) -> int:
    """The tokens that vLLM's cache holds for the flag's bytes: whole blocks, and the fewest of any stage.

    `per_token` [stages]: KV bytes of a token on a GPU of each stage.
    """
    return min((int(flag_bytes / (block_tokens * kv)) for kv in per_token if kv), default=0) * block_tokens


def kv_cache(rooms: Sequence[int], per_token: Sequence[Fraction | int], *, most_tokens: int | None = None) -> KvCache:
    """The largest cache that fits on every stage.

    `rooms` [stages]: bytes left on a GPU once the weights are loaded. `per_token` [stages]: KV bytes of a token on a
    GPU. `most_tokens`: a limit for simulated GPUs, where the engine allocates on a CPU.
    """
    if not any(per_token):  # attention in both directions keeps none
        return KvCache(0, 0)
    tokens = min(int(room / kv) for room, kv in zip(rooms, per_token, strict=True) if kv)
    tokens = tokens // c.BLOCK_TOKENS * c.BLOCK_TOKENS
    if most_tokens is not None:
        tokens = min(tokens, most_tokens)
    return KvCache(tokens, int(tokens * max(per_token)))
