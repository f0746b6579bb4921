"""The parallel shape of a replica and the sizes of its steps, from which memory and time follow."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Shape:
    """How many GPUs share a layer (tensor), and how many stages the layers are divided into (pipeline)."""

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
    """The sizes of the engine's steps, and the reason as text."""

    batched_tokens: int
    sequences: int
    reason: str = ""
