"""A model as matrices and numbers, before dtype and quantisation make bytes of them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class WeightMatrix:
    """A matrix of rows (outputs) x columns (inputs), `copies` of it where each expert has one."""

    name: str
    """Inside the layer, as the checkpoint calls it: quantisation names what it leaves out."""
    rows: int
    columns: int
    bias: bool = False
    copies: int = 1
    used: int = 1
    """Of the copies, those that a token computes with."""
    routed: bool = False
    """The copies are experts, and a router chooses among them."""
    quantizable: bool = True
    """Routers are not."""

    @property
    def weights(self) -> int:
        """Numbers in the matrices."""
        return self.rows * self.columns * self.copies

    @property
    def biases(self) -> int:
        """Numbers in the biases."""
        return self.rows * self.copies * self.bias


@dataclass(frozen=True, slots=True)
class Layer:
    """One decoder layer."""

    linears: tuple[WeightMatrix, ...]
    other: int
    """Numbers outside matrices and their biases: norms, sinks."""
    kv_numbers: int
    """That a token adds to the KV cache."""
    attention_flops: float
    """Of a token, for each token of context that it attends to."""
    window: int | None = None
    """Tokens that attention reaches back; None: all."""
    float32: int = 0
    """Numbers that stay in 32 bits whatever the dtype."""

    @property
    def parameters(self) -> int:
        """All numbers of the layer."""
        return sum(linear.weights + linear.biases for linear in self.linears) + self.other + self.float32

    @property
    def idle_parameters(self) -> int:
        """Numbers of those experts that a token does not compute with."""
        return sum((each.weights + each.biases) * (each.copies - each.used) // each.copies for each in self.linears)

    @property
    def flops(self) -> float:
        """FLOPs of a token in the matrices: a product and a sum for each weight used."""
        return 2.0 * sum(each.weights * each.used // each.copies for each in self.linears)


@dataclass(frozen=True, slots=True)
class Blueprint:
    """A whole decoder. Embeddings, norm and head are counted in numbers."""

    layers: tuple[Layer, ...]
    layer_path: str
    """In the checkpoint: `model.layers`, `transformer.h`"""
    hidden_size: int
    intermediate_size: int
    """Of the widest MLP that a token passes."""
    vocab_size: int
    attention_heads: int
    kv_heads: int
    head_dim: int
    final_norm: int
    tied: bool
    max_position_embeddings: int
    embedding_width: int = 0
    """0: hidden_size."""
    other_embedding: int = 0
    """Positions, and projections between the embedding and the first layer."""
    head_bias: bool = False
    experts: int = 0
    experts_per_token: int = 0
    kv_shared_by_tensor: bool = True
    tensor_widths: tuple[tuple[str, int], ...] = ()
    """Fields that tensor parallelism divides, besides heads."""
    notes: tuple[str, ...] = ()

    @property
    def width(self) -> int:
        """Numbers of a token's embedding."""
        return self.embedding_width or self.hidden_size

    @property
    def token_embedding(self) -> int:
        """Numbers of the embedding table."""
        return self.vocab_size * self.width

    @property
    def head(self) -> int:
        """Numbers of the LM head that no embedding shares."""
        return (0 if self.tied else self.vocab_size * self.width) + self.vocab_size * self.head_bias

    @property
    def parameters(self) -> int:
        """All numbers, tied ones once."""
        layers = sum(layer.parameters for layer in self.layers)
        return layers + self.token_embedding + self.other_embedding + self.final_norm + self.head
