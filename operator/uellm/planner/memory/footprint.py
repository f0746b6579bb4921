"""The memory that a model needs on each GPU of a shape, by kind, and the memory that a GPU has for it.

    usable = memory * utilisation - (context + activations + CUDA graphs)
    usable >= weights of its layers + their KV cache (+ embedding on the first stage, + norm, head, logits on the last)

Tensor parallelism divides linear layers, embedding and head among its GPUs. It divides KV heads down to one per GPU.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from functools import lru_cache

from uellm.models import Architecture
from uellm.models.families.names import EXPERT_WIDTH
from uellm.planner import constants as c
from uellm.planner.adapter_slots import AdapterSlots
from uellm.planner.cost.work import kv_share
from uellm.planner.memory.adapters import AdapterBytes, adapter_bytes
from uellm.planner.memory.encoder import encoder_bytes
from uellm.planner.shape import Shape, Steps
from uellm.planner.vllm.cache_dtype import with_cache
from uellm.planner.vllm.drafting import Drafting, drafting_of, rows_of
from uellm.planner.vllm.flags import UTILIZATION, UserArgs
from uellm.planner.vllm.version import CURRENT, EngineVersion


@dataclass(frozen=True, slots=True)
class Footprint:
    """Bytes on each GPU of a shape, by layer; which layers it holds is decided later. L layers."""

    layer_bytes: tuple[int, ...]
    """[L]: weights, and LoRA slots."""
    layer_kv_bytes: tuple[int, ...]
    """[L]: KV cache for the demanded tokens."""
    layer_kv_bytes_per_token: tuple[int, ...]
    """[L]."""
    tower_bytes: int
    """Weights of the image encoder, which the engine builds on every stage."""
    embedding_bytes: int
    """On the first stage, with its LoRA slots."""
    encoder_bytes: int
    """What images and videos take on the first stage, beyond activations."""
    head_bytes: int
    """Final norm, head, and what drafts for speculation, on the last stage, with its LoRA slots."""
    sampler_bytes: int
    """What sampling takes beyond activations, on the last stage: the layers' are free again when it begins."""
    activation_bytes: int
    graph_bytes: int
    context_bytes: int
    margin: str
    """Share of a device's memory that the engine does not use, 0 to 1, as a decimal."""
    adapters: AdapterBytes
    """LoRA slots: the part of the above that they take."""

    @property
    def fixed_bytes(self) -> int:
        """Bytes that every GPU needs besides layers."""
        return self.tower_bytes + self.activation_bytes + self.graph_bytes + self.context_bytes

    @property
    def first_bytes(self) -> int:
        """Further bytes that the first stage needs."""
        return self.embedding_bytes + self.encoder_bytes

    @property
    def last_bytes(self) -> int:
        """Further bytes that the last stage needs."""
        return self.head_bytes + self.sampler_bytes

    def reserved_bytes(self, memory_bytes: int) -> int:
        """The part of a device's memory that is not available to layers."""
        return reserved_bytes(self.fixed_bytes, self.margin, memory_bytes)


@lru_cache(maxsize=4096)
def reserved_bytes(fixed: int, margin: str, memory_bytes: int) -> int:
    """Fixed bytes and a share of the memory, rounded up."""
    return fixed + math.ceil(memory_bytes * Fraction(margin))


def footprint(
    model: Architecture,
    shape: Shape,
    steps: Steps,
    kv_tokens: int,
    user: UserArgs,
    *,
    request_tokens: int | None = None,
    longest: int = 0,
    engine: EngineVersion = CURRENT,
    nvlink: bool = True,
    adapters: AdapterSlots | None = None,
) -> Footprint:
    """The footprint of a model in a shape.

    `kv_tokens`: tokens that the KV cache must hold at least. `request_tokens`: prompt and output of a mean request;
    they decide how much of it a layer with a sliding window keeps. None: all of it. The constant state of a sequence
    is in the same cache, so it is spread over the tokens of its request. `longest`: tokens of the longest request, so
    of the largest image or video; 0: requests have none. `engine`: its version. `nvlink`: whether the GPUs that share a
    layer have it, and with it buffers for vLLM's own all-reduce. `adapters`: its LoRA slots.
    """
    tensor = shape.tensor
    share = kv_share(model, tensor)
    held = request_tokens or model.max_position_embeddings
    recent = _recent_bytes_per_token(model, tensor, steps.batched_tokens, request_tokens)
    per_token = tuple(
        math.ceil(
            kv * share * _within(window, steps.batched_tokens, request_tokens) + last + Fraction(state, tensor * held)
        )
        for kv, window, state, last in zip(
            with_cache(model, user).layer_kv_bytes_per_token,
            model.layer_window_tokens,
            model.layer_state_bytes,
            recent,
            strict=True,
        )
    )
    other_embedding = model.embedding_bytes - model.token_embedding_bytes
    head = model.lm_head_bytes_on_last_stage(shape.pipeline)
    body = _activations(model, tensor, steps.batched_tokens)
    lora = adapter_bytes(model, adapters, tensor)
    drafting = drafting_of(model, user)
    per_token = _with_drafts(per_token, _draft_kv_bytes(drafting, tensor))
    logits = steps.sequences * rows_of(drafting) * model.vocab_size if model.writes else 0
    sampler = math.ceil(logits * engine.sampler_bytes_per_logit)
    return Footprint(
        layer_bytes=tuple(map(sum, zip(_layer_bytes(model, tensor), lora.layers, strict=True))),
        layer_kv_bytes=tuple(kv * kv_tokens for kv in per_token),
        layer_kv_bytes_per_token=per_token,
        tower_bytes=math.ceil(model.tower_bytes / tensor),
        embedding_bytes=math.ceil(model.token_embedding_bytes / tensor) + other_embedding + lora.first,
        encoder_bytes=_encoder(model, shape, steps, user, longest, body, sampler),
        head_bytes=(
            math.ceil(head / tensor)
            + model.final_norm_bytes
            + lora.last
            + _draft_bytes(model, drafting, shape, steps.sequences)
        ),
        sampler_bytes=max(0, sampler - body),
        activation_bytes=body,
        graph_bytes=_graphs(model, shape, user, adapters, drafting) if engine.counts_graphs else 0,
        context_bytes=c.CONTEXT_BYTES + (c.TENSOR_PARALLEL_CONTEXT_BYTES if tensor > 1 and nvlink else 0),
        margin=str(1 - Decimal(user.share(UTILIZATION) or c.GPU_MEMORY_UTILIZATION)),
        adapters=lora,
    )


def _encoder(
    model: Architecture, shape: Shape, steps: Steps, user: UserArgs, longest: int, body: int, sampler: int
) -> int:
    """Encoding, the layers and sampling follow one another, so only what exceeds the others counts."""
    if not longest:
        return 0
    counted = max(body, sampler) if shape.pipeline == 1 else body
    return encoder_bytes(model, user, shape.tensor, steps.batched_tokens, longest, counted)


def _draft_bytes(model: Architecture, drafting: Drafting | None, shape: Shape, sequences: int) -> int:
    """Bytes of the draft on each GPU of the last stage, and of the probabilities of its tokens where they are kept."""
    if drafting is None or drafting.model is None:
        return 0
    draft = drafting.model
    whole = draft.embedding_bytes - draft.token_embedding_bytes + draft.final_norm_bytes
    # Where the first stage is another one, layers of the model's own load its embedding again.
    again = model.token_embedding_bytes if not drafting.is_own and shape.pipeline > 1 else 0
    divided = sum(draft.layer_weight_bytes) + draft.token_embedding_bytes + draft.lm_head_bytes + draft.tower_bytes
    kept = sequences * drafting.tokens * draft.vocab_size * c.DRAFT_LOGIT_BYTES if drafting.keeps_logits else 0
    return math.ceil((divided + again) / shape.tensor) + whole + kept


def _draft_kv_bytes(drafting: Drafting | None, tensor: int) -> int:
    """KV bytes of a token in the draft's layers on each GPU of the last stage."""
    if drafting is None or drafting.model is None:
        return 0
    return math.ceil(kv_share(drafting.model, tensor) * drafting.kv_width * drafting.model.kv_bytes_per_token)


def _with_drafts(per_token: tuple[int, ...], drafts: int) -> tuple[int, ...]:
    """[L]: KV bytes of a token, with those of the layers that draft, which are on the stage of the last layer."""
    return (*per_token[:-1], per_token[-1] + drafts) if drafts else per_token


def _within(window: int | None, batched_tokens: int, request_tokens: int | None) -> Fraction:
    """The share of a request's tokens whose KV a layer keeps: its window and the chunk in progress.

    vLLM frees the blocks outside the window one step later (vllm/v1/core/single_type_kv_cache_manager.py).
    """
    if window is None or request_tokens is None:
        return Fraction(1)
    return min(Fraction(1), Fraction(window + batched_tokens, request_tokens))


def _recent_bytes_per_token(
    model: Architecture, tensor: int, batched_tokens: int, request_tokens: int | None
) -> tuple[Fraction, ...]:
    """[L]: bytes of a token in the caches that keep the last tokens alone."""
    share = kv_share(model, tensor)
    return tuple(
        sum(
            (share * each.bytes_per_token * _within(each.tokens, batched_tokens, request_tokens) for each in caches),
            Fraction(),
        )
        for caches in model.layer_recent or ((),) * model.layers
    )


def _layer_bytes(model: Architecture, tensor: int) -> tuple[int, ...]:
    """[L]: weights on each GPU. Some kernels pad the two sides of an expert's matrices, so that they fill tiles."""
    padded = 1.0
    if (tiles := _expert_tiles(model)) is not None:
        width = max(1, _expert_width(model) // tensor)
        padded = _padded(model.hidden_size, tiles[0]) * _padded(width, tiles[1])
    return tuple(
        math.ceil((whole + experts * (padded - 1)) / tensor)
        for whole, experts in zip(model.layer_weight_bytes, model.layer_expert_bytes, strict=True)
    )


def _expert_tiles(model: Architecture) -> tuple[int, int] | None:
    """What hidden size and width of experts are rounded up to; None: they are not."""
    if model.expert_kernel == "mxfp4":
        return c.MXFP4_HIDDEN_TILE, c.MXFP4_WIDTH_TILE
    return (c.FP8_ONLINE_TILE, c.FP8_ONLINE_TILE) if model.quantization == "fp8_per_block" else None


def _expert_width(model: Architecture) -> int:
    widths = (width for field, width in model.tensor_widths if field in EXPERT_WIDTH)
    return min(widths, default=model.intermediate_size)


def _padded(size: int, tile: int) -> float:
    return math.ceil(size / tile) * tile / size


def _activations(model: Architecture, tensor: int, tokens: int) -> int:
    widest = c.ACTIVATIONS_PER_HIDDEN * model.hidden_size
    widest += math.ceil(c.ACTIVATIONS_PER_INTERMEDIATE * model.intermediate_size / tensor)
    return tokens * widest * model.weight_dtype_bytes


def _graphs(
    model: Architecture, shape: Shape, user: UserArgs, adapters: AdapterSlots | None, drafting: Drafting | None
) -> int:
    if "--enforce-eager" in user.flags:
        return 0
    # Steps with and without adapters are captured apart (cudagraph_specialize_lora).
    kinds = 1 if adapters is None else 2
    drafting_layers = drafting.model.layers if drafting is not None and drafting.model is not None else 0
    return kinds * c.CUDA_GRAPH_BYTES_PER_LAYER * (math.ceil(model.layers / shape.pipeline) + drafting_layers)
