"""The work of a step on a stage: FLOPs and bytes of its layers, on each of the GPUs that share them.

    matrices     layer_flops_per_token per token; layer_read_bytes of weights per step (of experts, the expected number)
    attention    layer_attention_flops_per_token per token and token of context; the context's KV bytes are read
    head         head_flops_per_token per sequence that gets a token; all its weights are read

A layer with a sliding window attends to its window only, and keeps KV for it only. Tensor parallelism divides all this
among the GPUs of the stage, with two exceptions: every rank keeps a whole MLA cache, and at least one KV head.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import NamedTuple

from uellm.hardware import Device
from uellm.models import Architecture
from uellm.models.kernels import Kernel
from uellm.planner.spans import spans
from uellm.planner.vllm.drafting import Drafting, rows_of


class LayerKind(NamedTuple):
    """The figures of one layer, by which equal layers are grouped, before tensor parallelism divides them."""

    weight_bytes: int
    """With those of an earlier layer that are read once more."""
    expert_bytes: int
    flops_per_token: float
    expert_flops: float
    """The part of them in routed experts."""
    attention_flops: float
    """Per token and per token of context."""
    window_tokens: int | None
    kv_bytes_per_token: int

    def reach(self, context: float) -> float:
        """Tokens of a context that the layer attends to."""
        return context if self.window_tokens is None else min(context, float(self.window_tokens))


@dataclass(frozen=True, slots=True)
class StageLoad:
    """The layers of a stage on the GPUs that share them. Figures are per GPU."""

    devices: tuple[Device, ...]
    kinds: tuple[tuple[LayerKind, int], ...]
    """Kinds of layers, and how many there are of each."""
    linear_kernel: Kernel
    expert_kernel: Kernel
    routed_share: float
    """Share of the experts to which one token is routed, 0 to 1; 0: dense."""
    kv_share: float
    """Share of a layer's KV bytes that each GPU holds, relative to the model's data type."""
    head_bytes: float = 0.0
    """LM head; 0 on all stages but the last."""
    head_flops: float = 0.0
    """Per row of logits; 0 on all stages but the last."""
    rows: int = 1
    """Tokens that each sequence brings to a step: drafted ones are verified with it."""
    draft: StageLoad | None = None
    """What drafts them, on the last stage."""
    draft_passes: int = 0

    @property
    def layers(self) -> int:
        """Number of layers on the stage."""
        return sum(count for _, count in self.kinds)

    @property
    def flops_per_token(self) -> float:
        """FLOPs of the layers' matrices per token."""
        return sum(count * kind.flops_per_token for kind, count in self.kinds) / len(self.devices)

    @property
    def expert_flops_per_token(self) -> float:
        """The part of them in routed experts."""
        return sum(count * kind.expert_flops for kind, count in self.kinds) / len(self.devices)

    @property
    def expert_layers(self) -> int:
        """Number of layers with routed experts."""
        return sum(count for kind, count in self.kinds if kind.expert_bytes)

    @property
    def weight_bytes(self) -> float:
        """Bytes of weights that the layers read, all experts included."""
        return sum(count * kind.weight_bytes for kind, count in self.kinds) / len(self.devices)

    @property
    def expert_bytes(self) -> float:
        """Bytes of the layers' routed experts; 0: dense."""
        return sum(count * kind.expert_bytes for kind, count in self.kinds) / len(self.devices)

    def attention_flops(self, context: float) -> float:
        """FLOPs of the attention of one token to `context` tokens."""
        whole = sum(count * kind.attention_flops * kind.reach(context) for kind, count in self.kinds)
        return whole / len(self.devices)

    def kv_bytes(self, context: float) -> float:
        """KV bytes of a sequence of `context` tokens: it holds them, and each of its steps reads them."""
        return self.kv_share * sum(count * kind.kv_bytes_per_token * kind.reach(context) for kind, count in self.kinds)


def stage_loads(
    model: Architecture,
    groups: Sequence[tuple[Device, ...]],
    layers: Sequence[int],
    *,
    drafting: Drafting | None = None,
) -> tuple[StageLoad, ...]:
    """The loads of a split [stages]: `layers[i]` of the model's layers, in order, on the GPUs `groups[i]`.

    `drafting`: what speculation adds.
    """
    loads = []
    for index, (group, (first, end)) in enumerate(zip(groups, spans(layers), strict=True)):
        tensor, last = len(group), index + 1 == len(groups)
        # A tied head is the embedding; a step reads it whole, too.
        head = model.lm_head_bytes or model.token_embedding_bytes * model.writes
        loads.append(
            StageLoad(
                devices=group,
                kinds=_kinds(model, first, end),
                linear_kernel=model.linear_kernel,
                expert_kernel=model.expert_kernel,
                routed_share=model.experts_per_token / model.experts if model.experts else 0.0,
                kv_share=float(kv_share(model, tensor)),
                head_bytes=head / tensor if last else 0.0,
                head_flops=model.head_flops_per_token / tensor if last else 0.0,
                rows=rows_of(drafting),
                draft=_draft_load(model, drafting, group) if last else None,
                draft_passes=drafting.passes if drafting is not None and last else 0,
            )
        )
    return tuple(loads)


def _draft_load(model: Architecture, drafting: Drafting | None, group: tuple[Device, ...]) -> StageLoad | None:
    """A pass of the draft on the GPUs of the last stage. Without an LM head of its own it uses the model's."""
    if drafting is None or drafting.model is None:
        return None
    draft, tensor = drafting.model, len(group)
    head = draft.lm_head_bytes or draft.token_embedding_bytes * draft.tied
    if draft.writes and not head:
        head = model.lm_head_bytes or model.token_embedding_bytes
    projection = draft.embedding_bytes - draft.token_embedding_bytes
    return StageLoad(
        devices=group,
        kinds=_kinds(draft, 0, draft.layers),
        linear_kernel=draft.linear_kernel,
        expert_kernel=draft.expert_kernel,
        routed_share=draft.experts_per_token / draft.experts if draft.experts else 0.0,
        kv_share=float(drafting.kv_width * kv_share(draft, tensor)),
        head_bytes=head / tensor + projection,
        head_flops=draft.head_flops_per_token / tensor,
    )


def kv_share(model: Architecture, tensor: int) -> Fraction:
    """The share of a layer's KV bytes on each of `tensor` GPUs: whole heads, or all of an MLA cache."""
    if not model.kv_shared_by_tensor:
        return Fraction(1)
    return Fraction(max(1, model.kv_heads // tensor), model.kv_heads)


def _kinds(model: Architecture, first: int, end: int) -> tuple[tuple[LayerKind, int], ...]:
    again = model.layer_read_again_bytes or (0,) * model.layers
    layers = zip(
        map(sum, zip(model.layer_weight_bytes[first:end], again[first:end], strict=True)),
        model.layer_expert_bytes[first:end],
        model.layer_flops_per_token[first:end],
        (model.layer_expert_flops_per_token or (0.0,) * model.layers)[first:end],
        model.layer_attention_flops_per_token[first:end],
        model.layer_window_tokens[first:end],
        model.layer_kv_bytes_per_token[first:end],
        strict=True,
    )
    return tuple(Counter(LayerKind(*figures) for figures in layers).items())
