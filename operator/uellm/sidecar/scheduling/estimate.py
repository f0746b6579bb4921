"""What the engine's steps cost, learnt from when tokens came."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class StepEstimate:
    """Seconds a prefill token costs, and seconds of a step that only decodes."""

    prefill_token_s: float = 50e-6
    decode_step_s: float = 0.02
