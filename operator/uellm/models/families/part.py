"""One part of a decoder layer: a way of mixing tokens, or a feed-forward network."""

from __future__ import annotations

from dataclasses import dataclass

from uellm.models.weights import WeightMatrix


@dataclass(frozen=True, slots=True)
class LayerPart:
    """The weights of a part, and what it keeps of the tokens that it saw."""

    linears: tuple[WeightMatrix, ...] = ()
    other: int = 0
    """Numbers outside matrices and their biases."""
    float32: int = 0
    """Numbers that are kept in 32 bits for every dtype."""
    kv_numbers: int = 0
    """Numbers that a token adds to the KV cache."""
    index_bytes: int = 0
    """Bytes that a token adds to the cache of an indexer, whatever the data type."""
    attention_flops: float = 0.0
    """FLOPs per token and per token of its context."""
    state_numbers: int = 0
    """Numbers of the state of a sequence, in the data type of the model."""
    state_float32: int = 0
    """Numbers of that state in 32 bits."""
    width: int = 0
    """Width of the MLP that a token passes."""

    def __add__(self, more: LayerPart) -> LayerPart:
        return LayerPart(
            linears=self.linears + more.linears,
            other=self.other + more.other,
            float32=self.float32 + more.float32,
            kv_numbers=self.kv_numbers + more.kv_numbers,
            index_bytes=self.index_bytes + more.index_bytes,
            attention_flops=self.attention_flops + more.attention_flops,
            state_numbers=self.state_numbers + more.state_numbers,
            state_float32=self.state_float32 + more.state_float32,
            width=max(self.width, more.width),
        )
