"""The memory that images and videos take on the first stage, beyond what a step of the text model takes.

The engine encodes them before the step, and frees the activations. It keeps the embeddings in a cache of as many tokens
as a step holds, or the largest item (vllm/v1/core/encoder_cache_manager.py). The plan sets the size of the KV cache, so
vLLM's own measurement of both does not count.
"""

from __future__ import annotations

import math

from uellm.models import Architecture
from uellm.planner import constants as c
from uellm.planner.vllm.flags import UserArgs
from uellm.planner.vllm.media import largest_item_tokens

TENSOR_MODE = "--mm-encoder-tp-mode"


def encoder_bytes(
    model: Architecture, user: UserArgs, tensor: int, batched_tokens: int, longest: int, counted_bytes: int
) -> int:
    """Bytes on each GPU of the first stage.

    `longest`: a prompt's tokens; `counted_bytes`: of the text model's steps, in whose room images are encoded.
    """
    encoder = model.encoder
    item = largest_item_tokens(encoder, user) if encoder is not None else 0
    if encoder is None or not item:
        return 0
    divided = 1 if user.text(TENSOR_MODE) == "data" else tensor
    widest = max(c.ENCODER_HEADS_PER_HIDDEN * encoder.hidden, c.ACTIVATIONS_PER_INTERMEDIATE * encoder.intermediate)
    numbers = c.ENCODER_PER_HIDDEN * encoder.hidden + math.ceil(widest / divided) + encoder.input_numbers
    patches = max(batched_tokens, min(item, longest)) * encoder.patches_per_token
    kept = max(batched_tokens, min(item, longest)) * encoder.numbers_per_token
    width = model.weight_dtype_bytes
    return max(0, patches * numbers * width - counted_bytes) + kept * width
