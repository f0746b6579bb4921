"""The parallel shape of a replica, and the sizes of its steps: what memory and time follow from."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Shape:
    """How many GPUs share a layer, and how many stages share out the layers."""

    tensor: int
    pipeline: int

    @property
    def gpus(self) -> int:
        """GPUs of a replica."""
        return self.tensor * self.pipeline

    def __str__(self) -> str:
        return f"{self.gpus} = tp{self.tensor} x pp{self.pipeline}"


@dataclass(frozen=True, slots=True)
class Steps:
    """The sizes of the engine's steps, and in words where they come from."""

    batched_tokens: int
    sequences: int
    reason: str = ""
