"""Memory of LoRA slots on each GPU: what vLLM allocates when it wraps a model's layers (vllm/lora/layers).

    layer      slots * rank * width of a number * (whole + divided / tensor + kv * share of the KV heads)
    embedding  slots * rank * width * (vocabulary + hidden size), on the first stage, on every GPU
    LM head    the same, on the last stage

The last two for those classes of the engine that have them. An embedder or a reranker has no LM head.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from uellm.models import Architecture
from uellm.models.classes import adapter_ends
from uellm.planner.adapter_slots import AdapterSlots
from uellm.planner.cost.work import kv_share


@dataclass(frozen=True, slots=True)
class AdapterBytes:
    """Bytes on each GPU."""

    layers: tuple[int, ...]
    """[L]."""
    first: int = 0
    """On the first stage, beside its layers."""
    last: int = 0
    """On the last stage, beside its layers."""

    @property
    def total(self) -> int:
        """On a GPU that holds the whole model."""
        return sum(self.layers) + self.first + self.last


def adapter_bytes(model: Architecture, slots: AdapterSlots | None, tensor: int) -> AdapterBytes:
    """The bytes of slots, zero for none."""
    if slots is None or not model.layer_adapter_widths:
        return AdapterBytes((0,) * model.layers)
    number, share = slots.slots * slots.rank * model.weight_dtype_bytes, kv_share(model, tensor)
    layers = tuple(
        number * (each.whole + math.ceil(each.divided / tensor) + math.ceil(each.kv * share))
        for each in model.layer_adapter_widths
    )
    ends, of_end = adapter_ends(model.name) or (), number * (model.vocab_size + model.hidden_size)
    return AdapterBytes(layers, of_end * ("embed_tokens" in ends), of_end * ("lm_head" in ends and model.writes))
