"""The room for LoRA adapters that an engine is started with: slots on the GPUs, each of the largest rank.

The engine allocates all slots at its start. As many different adapters can take part in one step; further ones wait for
a slot, and are copied into it from host memory.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from uellm.planner import constants as c


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
    """The slots for so many adapters, with some to spare. `largest_rank`: at most the largest that vLLM takes."""
    slots = c.FEWEST_ADAPTER_SLOTS if adapters <= c.FEWEST_ADAPTER_SLOTS else c.MOST_ADAPTER_SLOTS
    return AdapterSlots(slots, next(rank for rank in c.ADAPTER_RANKS if rank >= largest_rank))


def covers(there: AdapterSlots | None, wanted: AdapterSlots) -> bool:
    """Whether an engine with the slots `there` can serve what `wanted` is for."""
    return there is not None and there.slots >= wanted.slots and there.rank >= wanted.rank
