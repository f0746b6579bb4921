"""KV admission: whether the engine's cache holds all running requests at its predicted peak.

The method is Past-Future (Gong et al., ASPLOS 2025). Sort the requests by remaining tokens, the longest first. When the
i-th ends, i requests still run, and each has grown by what the i-th had left. The cache's peak is therefore
`max_i(remaining_i * i + sum_{j <= i} current_j)`. Reserving the final size of every request would keep out long
answers.

Prompts' lengths are estimated. An engine whose cache is far emptier than these estimates say shows that they are too
high, or that prompts share their prefixes; it is then believed.
"""

from __future__ import annotations

from collections.abc import Iterable

from uellm.sidecar.scheduling.engineview import EngineView
from uellm.sidecar.scheduling.types import EngineState, Ticket

KV_SHARE = 0.95
"""Share of the cache that is used. The rest is for low predictions and for partly filled blocks."""

USE_MARGIN = 1.25
"""The cache counts as emptier than estimated once less than 1 / this of the estimate is used."""

LEAST_USE = 1.0 / 16.0
MEASURED_SHARE = 0.05
"""Bound of that correction; share of the cache below which an estimate is too small for one."""


def use_of(state: EngineState, estimated_tokens: float) -> float:
    """What part of the estimated tokens in the cache to count: 1, or less if the engine uses far less than that.

    `estimated_tokens`: of the requests whose prompts were complete when the engine reported its state.
    """
    total, used = state.kv_tokens, state.kv_used_share
    if total is None or state.stale or not used or estimated_tokens < MEASURED_SHARE * total:
        return 1.0
    return min(1.0, max(USE_MARGIN * used * total / estimated_tokens, LEAST_USE))


def fits(ticket: Ticket, view: EngineView, use: float = 1.0) -> bool:
    """Whether the cache will hold this request and those in flight. True if the cache's size is unknown.

    `use`: as `use_of` says.
    """
    total = view.state.kv_tokens
    if total is None or not view.running:
        return True
    room = KV_SHARE * total
    if view.most_kv_tokens + ticket.prompt_tokens + ticket.remaining_tokens <= room:
        return True
    return peak_tokens((*view.running, ticket), view.length_share, use) <= room


def peak_tokens(tickets: Iterable[Ticket], length_share: float = 1.0, use: float = 1.0) -> float:
    """Peak tokens in the cache.

    Answers reach `length_share` of their predicted remaining tokens, and prompts take `use` of theirs.
    """
    loads = sorted(
        ((length_share * ticket.remaining_tokens, use * ticket.prompt_tokens + ticket.tokens) for ticket in tickets),
        reverse=True,
    )
    peak = current = 0.0
    for number, (remaining, tokens) in enumerate(loads, 1):
        current += tokens
        peak = max(peak, remaining * number + current)
    return peak
