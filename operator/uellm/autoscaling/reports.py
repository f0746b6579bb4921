"""What is known of a service's load and replicas in one interval."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Interval:
    """The figures of one interval, added up over the replicas."""

    end_s: float
    """Its end, on a clock whose days are 86,400 seconds long."""
    seconds: float
    """Its length."""
    arrived: int
    """Requests."""
    ended: int
    """Requests that ended, refused ones included."""
    met: int
    """Those of them that met their targets."""
    prompts: int
    """Those of them whose prompts are known."""
    prompt_tokens: float
    """Prompt tokens of these to compute, without those from the prefix cache."""
    answers: int
    """Those of them whose answers are known to the end: not of refused ones."""
    output_tokens: float
    """Tokens of these."""
    running: int
    """Requests in the engines at the end."""
    queued: int
    """Requests that waited at the end."""
    ready: int
    """Replicas that were ready at the end."""
