"""KV admission: whether the engine's cache holds all that runs, at its fullest moment.

Past-Future (Gong et al., ASPLOS 2025): with the requests by remaining tokens, the longest first, the i-th ends when i
of them still run, and each of these has grown by as much as it had left. So the cache's peak is
`max_i(remaining_i * i + sum_{j <= i} current_j)`. Reserving everybody's end at once would leave long answers outside.
"""

from __future__ import annotations

from collections.abc import Iterable

from uellm.sidecar.scheduling.engineview import EngineView
from uellm.sidecar.scheduling.types import Ticket

KV_SHARE = 0.95
"""The rest is for predictions that are too low, and for blocks that are not full."""


def fits(ticket: Ticket, view: EngineView) -> bool:
    """Whether the cache will hold this request beside those in flight. True where the cache's size is unknown."""
    total = view.state.kv_tokens
    if total is None or not view.running:
        return True
    room = KV_SHARE * total
    if view.most_kv_tokens + ticket.prompt_tokens + ticket.remaining_tokens <= room:
        return True
    return peak_tokens((*view.running, ticket), view.length_share) <= room


def peak_tokens(tickets: Iterable[Ticket], length_share: float = 1.0) -> float:
    """Tokens in the cache at its fullest moment, if answers go on for such a share of what is predicted of them."""
    loads = sorted(
        ((length_share * ticket.remaining_tokens, ticket.prompt_tokens + ticket.tokens) for ticket in tickets),
        reverse=True,
    )
    peak = current = 0.0
    for number, (remaining, tokens) in enumerate(loads, 1):
        current += tokens
        peak = max(peak, remaining * number + current)
    return peak
