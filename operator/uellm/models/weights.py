"""A model as counts of matrices and numbers, before dtype and quantisation give them sizes in bytes."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class WeightMatrix:
    """A matrix of rows (outputs) x columns (inputs)."""

    name: str
    """Path inside the layer, as in the checkpoint. Quantisation configs list modules by it."""
    rows: int
    columns: int
    bias: bool = False
    copies: int = 1
    """One per expert."""
    used: int = 1
    """Copies that one token uses."""
    routed: bool = False
    """Whether the copies are experts among which a router chooses."""
    quantizable: bool = True
    """False for routers."""

    @property
    def weights(self) -> int:
        """Numbers in the matrices."""
        return self.rows * self.columns * self.copies

    @property
    def biases(self) -> int:
        """Numbers in the biases."""
        return self.rows * self.copies * self.bias


@dataclass(frozen=True, slots=True)
class RecentCache:
    """A cache beside a layer's KV cache that keeps the last tokens of a sequence alone."""

    bytes_per_token: int
    """Whatever the data type."""
    tokens: int


@dataclass(frozen=True, slots=True)
class Layer:
    """One decoder layer."""

    linears: tuple[WeightMatrix, ...]
    other: int
    """Numbers outside matrices and their biases, such as norms and attention sinks."""
    kv_numbers: int
    """Numbers that a token adds to the KV cache."""
    attention_flops: float
    """FLOPs per token and per token of its context."""
    window: int | None = None
    """Length of the sliding window in tokens; None: the whole context."""
    float32: int = 0
    """Numbers that are kept in 32 bits for every dtype."""
    state_numbers: int = 0
    """Numbers of the state of a sequence (Mamba, linear attention), in the data type of the model."""
    state_float32: int = 0
    """Numbers of that state in 32 bits."""
    index_bytes: int = 0
    """Bytes that a token adds to the cache of an indexer, whatever the data type."""
    recent: tuple[RecentCache, ...] = ()
    shared: tuple[WeightMatrix, ...] = ()
    """Matrices of an earlier layer, which has their weights, that the layer reads and multiplies once more."""

    @property
    def parameters(self) -> int:
        """All numbers of the layer."""
        return sum(linear.weights + linear.biases for linear in self.linears) + self.other + self.float32

    @property
    def idle_parameters(self) -> int:
        """Numbers of the experts that one token does not use."""
        return sum((each.weights + each.biases) * (each.copies - each.used) // each.copies for each in self.linears)

    @property
    def flops(self) -> float:
        """FLOPs of a token in the matrices: two for each weight used."""
        return 2.0 * sum(each.weights * each.used // each.copies for each in (*self.linears, *self.shared))

    @property
    def expert_flops(self) -> float:
        """The part of them in routed experts."""
        return 2.0 * sum(each.weights * each.used // each.copies for each in self.linears if each.routed)


@dataclass(frozen=True, slots=True)
class Blueprint:
    """A whole decoder, counted in numbers."""

    layers: tuple[Layer, ...]
    layer_path: str
    """Path of the layers in the checkpoint, such as `model.layers` or `transformer.h`."""
    hidden_size: int
    intermediate_size: int
    """Width of the widest MLP that a token passes."""
    vocab_size: int
    attention_heads: int
    kv_heads: int
    head_dim: int
    final_norm: int
    tied: bool
    max_position_embeddings: int
    embedding_width: int = 0
    """0: the same as hidden_size."""
    other_embedding: int = 0
    """Numbers of the position embedding, and of projections before the first layer."""
    head_bias: bool = False
    has_head: bool = True
    """False: an embedder or a classifier, without an LM head."""
    classifier: int = 0
    """Numbers of a classifier's head in its place."""
    experts: int = 0
    experts_per_token: int = 0
    kv_shared_by_tensor: bool = True
    undivided: bool = False
    """Layers use what earlier ones have found, and no stage may begin between them."""
    sparse_latent: bool = False
    """An indexer picks the tokens that latent attention attends to (sparse MLA)."""
    unloaded: int = 0
    """Numbers of the published model that the engine does not load."""
    host_table: int = 0
    """Numbers of tables of n-grams, which the engine keeps in host memory, in 8 bits with a scale for each group."""
    tensor_widths: tuple[tuple[str, int], ...] = ()
    """Fields, with their values, that tensor parallelism divides besides the heads."""
    predicting: int = 0
    """Layers for multi-token prediction, which are not among `layers`."""
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
        """Numbers of the LM head that are not shared with the embedding."""
        if not self.has_head:
            return self.classifier
        return (0 if self.tied else self.vocab_size * self.width) + self.vocab_size * self.head_bias

    @property
    def parameters(self) -> int:
        """All numbers; tied ones count once."""
        layers = sum(layer.parameters for layer in self.layers)
        ends = self.token_embedding + self.other_embedding + self.final_norm + self.head
        return layers + ends + self.host_table + self.unloaded
