"""KV admission: whether the engine's cache holds all running requests at its predicted peak.

The method is Past-Future (Gong et al., ASPLOS 2025). Sort the requests by remaining tokens, the longest first. When the
i-th ends, i requests still run, and each has grown by what the i-th had left. The cache's peak is therefore
`max_i(remaining_i * i + sum_{j <= i} current_j)`. Reserving the final size of every request would keep out long
answers.
"""

from __future__ import annotations

from collections.abc import Iterable

from uellm.sidecar.scheduling.engineview import EngineView
from uellm.sidecar.scheduling.types import Ticket

KV_SHARE = 0.95
"""Share of the cache that is used. The rest is for low predictions and for partly filled blocks."""


def fits(ticket: Ticket, view: EngineView) -> bool:
    """Whether the cache will hold this request and those in flight. True if the cache's size is unknown."""
    total = view.state.kv_tokens
    if total is None or not view.running:
        return True
    room = KV_SHARE * total
    if view.most_kv_tokens + ticket.prompt_tokens + ticket.remaining_tokens <= room:
        return True
    return peak_tokens((*view.running, ticket), view.length_share) <= room


def peak_tokens(tickets: Iterable[Ticket], length_share: float = 1.0) -> float:
    """Peak tokens in the cache, if answers reach `length_share` of their predicted remaining tokens."""
    loads = sorted(
        ((length_share * ticket.remaining_tokens, ticket.prompt_tokens + ticket.tokens) for ticket in tickets),
        reverse=True,
    )
    peak = current = 0.0
    for number, (remaining, tokens) in enumerate(loads, 1):
        current += tokens
        peak = max(peak, remaining * number + current)
    return peak
