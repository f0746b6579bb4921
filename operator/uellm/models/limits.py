"""The widths into which tensor parallelism may cut a quantised matrix: whole blocks or groups.

Rules of the engine: validate_fp8_block_shape and validate_fp8_block_shape_moe (fp8_utils.py),
verify_marlin_supports_shape (marlin_utils.py), AutoAWQConfig's create_weights, MoeWNA16Method for experts.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from uellm.models.precision import Precision
from uellm.models.storage import Storage
from uellm.models.weights import Blueprint, WeightMatrix

# Matrices whose inputs are cut, and those whose outputs are, by the last part of their names. The engine holds all
# others whole, or they have no such rule.
INPUTS_CUT = ("o_proj", "down_proj", "out_proj")
OUTPUTS_CUT = ("q_proj", "gate_proj", "up_proj", "q_b_proj", "kv_b_proj")
KEYS_AND_VALUES = ("k_proj", "v_proj")
# The engine halves the groups of experts until they fit, down to this width.
SMALLEST_EXPERT_GROUP = 32


@dataclass(frozen=True, slots=True)
class SplitLimit:
    """A width whose part on each GPU must be a multiple of a block or group."""

    name: str
    """Of the matrix."""
    width: int
    multiple: int
    heads: int = 0
    """KV heads in the width, which GPUs share where there are more of them; 0: it is cut evenly."""
    always: bool = False
    """Whether it holds on one GPU, too: the engine merges the matrix with others."""

    def part(self, tensor: int) -> int:
        """The width on each of `tensor` GPUs."""
        if self.heads:
            return max(1, self.heads // tensor) * (self.width // self.heads)
        return self.width // tensor

    def admits(self, tensor: int) -> bool:
        """Whether `tensor` GPUs can share the matrix."""
        return (tensor == 1 and not self.always) or self.part(tensor) % self.multiple == 0


def split_limits(plan: Blueprint, precision: Precision) -> tuple[SplitLimit, ...]:
    """The limits of all quantised matrices, each once."""
    found: dict[SplitLimit, None] = {}
    seen: set[tuple[str, int, int]] = set()
    for index, layer in enumerate(plan.layers):
        for linear in layer.linears:
            key = (linear.name, linear.rows, linear.columns)
            layout = None if key in seen else precision.layout(linear, f"{plan.layer_path}.{index}.{linear.name}")
            if layout is None or (precision.differs and layout.rows > 1):
                continue  # blocks that the engine makes itself begin anew on each GPU
            seen.add(key)
            found.update(dict.fromkeys(_limits(linear, layout, plan.kv_heads)))
    return tuple(found)


def _limits(linear: WeightMatrix, layout: Storage, kv_heads: int) -> Iterator[SplitLimit]:
    end = linear.name.rpartition(".")[2]
    if end in INPUTS_CUT and layout.columns and layout.columns < linear.columns:
        blocks = layout.rows > 1
        group = layout.columns if blocks or not linear.routed else min(layout.columns, SMALLEST_EXPERT_GROUP)
        yield SplitLimit(linear.name, linear.columns, group)
    if layout.rows == 1:
        return
    if end in OUTPUTS_CUT:
        yield SplitLimit(linear.name, linear.rows, layout.rows, always=True)
    if end in KEYS_AND_VALUES and linear.rows % kv_heads == 0:
        yield SplitLimit(linear.name, linear.rows, layout.rows, heads=kv_heads, always=True)
