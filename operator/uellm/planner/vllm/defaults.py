"""vLLM's defaults for the sizes of a step (vllm/engine/arg_utils.py)."""

from __future__ import annotations

GIB = 1 << 30
# Device memory, --max-num-batched-tokens, --max-num-seqs. The large ones are for Hopper and later.
BY_MEMORY = ((160 * GIB, 16384, 1024), (70 * GIB, 8192, 1024), (0, 2048, 256))
SMALL = BY_MEMORY[-1][1:]
MOST_SEQUENCES = BY_MEMORY[0][2]


def default_steps(product: str, memory_bytes: int) -> tuple[int, int]:
    """Batched tokens and sequences for a GPU. vLLM looks for `a100` in the driver's name of the GPU."""
    if "a100" in product.lower():
        return SMALL
    return next((tokens, sequences) for least, tokens, sequences in BY_MEMORY if memory_bytes >= least)
