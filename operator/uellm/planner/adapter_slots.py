"""The room for LoRA adapters that an engine is started with: slots on the GPUs, each of the largest rank.

The engine allocates all slots at its start. As many different adapters can take part in one step; further ones wait for
a slot, and are copied into it from host memory.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""What vLLM takes for --max-lora-rank (vllm/config/lora.py)."""
FEWEST_SLOTS, MOST_SLOTS = 4, 8
"""Slots are memory of the GPUs whether they are used or not, and few adapters are in use at a time."""
HOST_FACTOR = 4
"""Adapters that are kept in host memory, for each slot."""


@dataclass(frozen=True, slots=True)
class AdapterSlots:
    """`--max-loras` and `--max-lora-rank`."""

    slots: int
    rank: int

    def to_dict(self) -> dict[str, int]:
        """`status.plan.adapters`."""
        return {"slots": self.slots, "rank": self.rank}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any] | None) -> AdapterSlots | None:
        """The inverse of `to_dict`; None for None."""
        return None if not data else cls(int(data["slots"]), int(data["rank"]))


def slots_for(adapters: int, largest_rank: int) -> AdapterSlots:
    """The slots for so many adapters, with some to spare. `largest_rank`: at most the last of RANKS."""
    slots = FEWEST_SLOTS if adapters <= FEWEST_SLOTS else MOST_SLOTS
    return AdapterSlots(slots, next(rank for rank in RANKS if rank >= largest_rank))


def covers(there: AdapterSlots | None, wanted: AdapterSlots) -> bool:
    """Whether an engine with the slots `there` can serve what `wanted` is for."""
    return there is not None and there.slots >= wanted.slots and there.rank >= wanted.rank
