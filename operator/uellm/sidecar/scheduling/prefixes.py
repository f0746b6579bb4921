"""A model of the engine's prefix cache: it probably holds the prefixes sent last, as many as fit.

The engine may have no such cache, or may hold less than would fit. Predicted hits are therefore multiplied by a trust:
the share of prompt tokens that the engine found in its cache, over the share that was predicted.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from itertools import islice

from uellm.api.replica_load import MOST_PREFIXES, PrefixNews
from uellm.sidecar.scheduling.share import Share
from uellm.sidecar.scheduling.types import PREFIX_BLOCK_TOKENS, EngineState, Ticket

UNKNOWN_KV_TOKENS = 100_000

MIN_TOKENS = 20_000.0
"""Prompt tokens, and predicted cached tokens, that are needed before the trust is updated."""


class CachedPrefixes:
    """Block hashes that the engine probably has cached, the least recently used first."""

    def __init__(self) -> None:
        self.trust = 1.0
        """Share of the predicted hits that are real."""
        self._blocks: OrderedDict[int, None] = OrderedDict()
        self._predicted = Share()
        self._found = Share()
        self._last_counters: tuple[float, float] | None = None
        self._sent = 0
        self._sent_last: deque[int] = deque(maxlen=MOST_PREFIXES)
        self.cleared = 0
        """How often all blocks were forgotten."""

    @property
    def found_share(self) -> float:
        """Of the prompt tokens that the engine counted of late, the share that it had cached, 0 to 1."""
        return min(self._found.value, 1.0)

    def uncached_tokens(self, ticket: Ticket) -> int:
        """Prompt tokens that the engine must compute; at least one."""
        if not ticket.prefix:
            return ticket.prompt_tokens
        held = int(self.trust * self._held(ticket))
        return max(ticket.prompt_tokens - held, min(ticket.prompt_tokens, 1))

    def record_dispatch(self, ticket: Ticket, kv_tokens: int | None) -> None:
        """Record a prompt that is sent to the engine."""
        held = self._held(ticket) if ticket.prefix else 0
        self._predicted.add(min(held, ticket.prompt_tokens), ticket.prompt_tokens)
        if ticket.prefix:
            for block in ticket.prefix:
                self._blocks[block] = None
                self._blocks.move_to_end(block)
            self._sent += len(ticket.prefix)
            self._sent_last.extend(ticket.prefix)
        most = (kv_tokens or UNKNOWN_KV_TOKENS) // PREFIX_BLOCK_TOKENS
        while len(self._blocks) > most:
            self._blocks.popitem(last=False)

    def on_engine_state(self, state: EngineState) -> None:
        """Update the trust from the engine's counters. Counters that fell belong to a new process."""
        if state.prompt_tokens is None or state.cached_tokens is None:
            return
        counted, before = (state.cached_tokens, state.prompt_tokens), self._last_counters
        self._last_counters = counted
        if before is None or counted == before:
            return
        if counted[1] < before[1]:
            before = (0.0, 0.0)
        self._found.add(max(counted[0] - before[0], 0.0), counted[1] - before[1])
        if self._found.of_tokens >= MIN_TOKENS and self._predicted.tokens >= MIN_TOKENS:
            self.trust = min(self._found.value / self._predicted.value, 1.0)

    def clear(self) -> None:
        """Forget all blocks: a new engine starts with an empty cache."""
        self._blocks.clear()
        self._sent_last.clear()
        self._sent = 0
        self.cleared += 1

    def news(self, since: int) -> PrefixNews:
        """The blocks that were sent after the first `since`, as far as they are remembered."""
        new = min(max(self._sent - since, 0), len(self._sent_last))
        return PrefixNews(self._sent, tuple(islice(self._sent_last, len(self._sent_last) - new, None)))

    def _held(self, ticket: Ticket) -> int:
        held = 0
        for block in ticket.prefix or ():
            if block not in self._blocks:
                break
            held += PREFIX_BLOCK_TOKENS
        return held
