"""The building blocks of model families: attention, MLPs, experts and windows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from uellm.errors import BadInput
from uellm.models.fields import Config
from uellm.models.shown import shown
from uellm.models.weights import WeightMatrix

SLIDING, CHUNKED, FULL = "sliding_attention", "chunked_attention", "full_attention"


@dataclass(frozen=True, slots=True)
class Heads:
    """Query heads, the KV heads that they share, and the width of a head."""

    query: int
    kv: int
    width: int
    narrow: int = 0
    """The width of a value where it is not that of a key; 0: it is."""

    @property
    def value(self) -> int:
        """The width of a value."""
        return self.narrow or self.width

    @property
    def kv_numbers(self) -> int:
        """Numbers that a token adds to a layer's KV cache: a key and a value of each KV head."""
        return self.kv * (self.width + self.value)

    @property
    def flops(self) -> float:
        """FLOPs of a token per token of context: scores and weighted sum, 2 per product each."""
        return 2.0 * self.query * (self.width + self.value)


def heads(config: Config, hidden: int) -> Heads:
    """Grouped-query attention by its usual field names. Raises BadInput if KV heads do not divide query heads."""
    query = config.size("num_attention_heads")
    kv = config.size("num_key_value_heads", default=query)
    if query % kv:
        raise BadInput(f"{config.prefix}.num_key_value_heads", f"{kv} does not divide num_attention_heads {query}")
    if config.fields.get("head_dim") is not None or "head_dim" in config.defaults:
        return Heads(query, kv, config.size("head_dim"))
    return Heads(query, kv, even_width(config, hidden, query))


def even_width(config: Config, hidden: int, query: int, field: str = "num_attention_heads") -> int:
    """The width of a head if the heads divide the hidden size."""
    if hidden % query:
        raise BadInput(f"{config.prefix}.{field}", f"{query} does not divide hidden_size {hidden}")
    return hidden // query


def attention(
    hidden: int, of: Heads, *, qkv_bias: bool = False, output_bias: bool = False, path: str = "self_attn"
) -> tuple[WeightMatrix, ...]:
    """Query, key, value and output as four matrices."""
    query, kv = of.query * of.width, of.kv * of.width
    return (
        WeightMatrix(f"{path}.q_proj", query, hidden, qkv_bias),
        WeightMatrix(f"{path}.k_proj", kv, hidden, qkv_bias),
        WeightMatrix(f"{path}.v_proj", kv, hidden, qkv_bias),
        WeightMatrix(f"{path}.o_proj", hidden, query, output_bias),
    )


def gated_mlp(hidden: int, width: int, *, path: str = "mlp", bias: bool = False) -> tuple[WeightMatrix, ...]:
    """Gate, up and down: the MLP of Llama and of most after it."""
    return (
        WeightMatrix(f"{path}.gate_proj", width, hidden, bias),
        WeightMatrix(f"{path}.up_proj", width, hidden, bias),
        WeightMatrix(f"{path}.down_proj", hidden, width, bias),
    )


@dataclass(frozen=True, slots=True)
class Experts:
    """The experts of a layer, the number that a token uses, and the width of one."""

    total: int
    per_token: int
    width: int
    field: str
    """The name of the width in the config."""
    others: tuple[int, ...] = ()
    """Widths of further sets of as many experts, to which no token of text is routed (ERNIE's for images)."""


# transformers 5 uses one name for all families; older checkpoints use each family's own.
TOTALS = ("num_experts", "num_local_experts", "n_routed_experts")


def experts(config: Config, total: str, width: str) -> Experts:
    """Number and width of the experts (by `total`, or another family's name for it), and how many a token uses."""
    found = Experts(config.size(total, *TOTALS), config.size("num_experts_per_tok"), config.size(width), width)
    if found.per_token > found.total:
        raise BadInput(
            f"{config.prefix}.num_experts_per_tok",
            f"{found.per_token} is more than the {found.total} experts of {total}",
        )
    return found


def expert(name: str, rows: int, columns: int, of: Experts, *, bias: bool = False) -> WeightMatrix:
    """A matrix that every expert has a copy of."""
    return WeightMatrix(name, rows, columns, bias, copies=of.total, used=of.per_token, routed=True)


def routed(
    hidden: int, of: Experts, *, path: str = "mlp", names: Sequence[str] = ("gate_proj", "up_proj", "down_proj")
) -> tuple[WeightMatrix, ...]:
    """A router and gated experts, three matrices each; `names` are gate, up and down."""
    gate, up, down = (f"{path}.experts.0.{name}" for name in names)
    return (
        WeightMatrix(f"{path}.gate", of.total, hidden, quantizable=False),
        expert(gate, of.width, hidden, of),
        expert(up, of.width, hidden, of),
        expert(down, hidden, of.width, of),
    )


def window(config: Config, field: str = "sliding_window") -> int | None:
    """The window in tokens; None if the field is null or 0, as in the engine."""
    other = f"{field}_size"
    if not config.value(field) and config.value(other):
        return config.size(other)
    return config.size(field) if config.value(field) else None


def windows(config: Config, layers: int, kinds: Sequence[str], field: str = "sliding_window") -> list[int | None]:
    """[L]: the window of each layer by `layer_types`, or by `kinds` if the config has no such list."""
    listed = config.list_of("layer_types", layers) or kinds
    reach = {SLIDING: window(config, field), CHUNKED: window(config, "attention_chunk_size"), FULL: None}
    for kind in listed:
        if not isinstance(kind, str) or kind not in reach:
            raise BadInput(
                f"{config.prefix}.layer_types", f"{shown(kind)} is not known here; known are {', '.join(sorted(reach))}"
            )
    return [reach[kind] for kind in listed]
