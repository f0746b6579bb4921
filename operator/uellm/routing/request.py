"""A request as the router sees it."""

from __future__ import annotations

from dataclasses import dataclass

UNKNOWN_OUTPUT_TOKENS = 200.0
"""About the median answer of public chat traces."""


@dataclass(frozen=True, slots=True, eq=False)
class RoutedRequest:
    """One request. It is known by its identity: two equal requests are two requests. Times on the router's clock."""

    arrival_s: float
    prompt_tokens: int
    """Estimated."""
    output_tokens: float = UNKNOWN_OUTPUT_TOKENS
    """BestOutlook."""
    ttft_s: float | None = None
    tpot_s: float | None = None
    e2e_s: float | None = None
    """The targets of its class; None: no such target."""
    prefix: tuple[int, ...] = ()
    """Hashes of its prompt's blocks, as in `uellm.prompt.Prompt.prefix`."""
