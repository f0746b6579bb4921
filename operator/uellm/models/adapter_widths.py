"""The widths from which the bytes of LoRA slots follow, as the engine wraps its linear layers.

A matrix of rows x columns takes rank x columns and rows x rank. The engine fuses matrices but keeps a pair for each of
them. Tensor parallelism divides the side that it divides of the matrix itself; the other side is on every GPU. Source:
vllm/lora/layers.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from uellm.models.weights import WeightMatrix

# By the last part of the path: matrices of which tensor parallelism divides the outputs, and those of which it divides
# the inputs. It divides no other.
_BY_ROWS = frozenset(
    (
        *("q_proj", "k_proj", "v_proj", "qkv_proj", "q_b_proj", "kv_b_proj", "gate_proj", "up_proj", "gate_up_proj"),
        *("query_key_value", "c_attn", "Wqkv", "W_pack", "wqkv", "dense_h_to_4h", "fc1", "fc_in", "c_fc", "w1", "w3"),
    )
)
_BY_COLUMNS = frozenset(
    ("o_proj", "down_proj", "out_proj", "dense", "dense_4h_to_h", "fc2", "fc_out", "c_proj", "wo", "w2")
)
_OF_KV_HEADS = frozenset(("k_proj", "v_proj"))


@dataclass(frozen=True, slots=True)
class AdapterWidths:
    """Numbers that a LoRA slot takes for each unit of its rank."""

    whole: int = 0
    """On every GPU."""
    divided: int = 0
    """Divided among the GPUs that share a layer."""
    kv: int = 0
    """Divided with the KV heads, of which every GPU has at least one."""

    def __add__(self, other: AdapterWidths) -> AdapterWidths:
        return AdapterWidths(self.whole + other.whole, self.divided + other.divided, self.kv + other.kv)


def widths_of(linears: Iterable[WeightMatrix]) -> AdapterWidths:
    """Those of a layer with these matrices. A matrix whose division is not known counts whole."""
    return sum(map(_of_matrix, linears), AdapterWidths())


def _of_matrix(matrix: WeightMatrix) -> AdapterWidths:
    name, rows, columns = matrix.name.rpartition(".")[2], matrix.rows * matrix.copies, matrix.columns * matrix.copies
    if name in _OF_KV_HEADS:
        return AdapterWidths(whole=columns, kv=rows)
    if name in _BY_ROWS:
        return AdapterWidths(whole=columns, divided=rows)
    if name in _BY_COLUMNS:
        return AdapterWidths(whole=rows, divided=columns)
    return AdapterWidths(whole=rows + columns)
