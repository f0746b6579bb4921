"""Which prompts' beginnings the engine's prefix cache probably holds: those that it saw last, as many as fit.

The engine may be without such a cache, or hold less in it than would fit. So what is foreseen counts only as far as the
engine's own counters confirm it: by the share of prompt tokens that it found there, over the share that was foreseen.
"""

from __future__ import annotations

from collections import OrderedDict

from uellm.sidecar.scheduling.share import Share
from uellm.sidecar.scheduling.types import PREFIX_BLOCK_TOKENS, EngineState, Ticket

UNKNOWN_KV_TOKENS = 100_000

TELLING_TOKENS = 20_000.0
"""Prompt tokens, and tokens that were foreseen, before the shares are believed."""


class CachedPrefixes:
    """Blocks by their hashes, the least recently used first."""

    def __init__(self) -> None:
        self.trust = 1.0
        """Of what is foreseen to be in the cache, the part that is."""
        self._blocks: OrderedDict[int, None] = OrderedDict()
        self._foreseen = Share()
        self._found = Share()
        self._told: tuple[float, float] | None = None

    def uncached_tokens(self, ticket: Ticket) -> int:
        """Prompt tokens to be computed. At least one always is."""
        held = int(self.trust * self._held(ticket))
        return max(ticket.prompt_tokens - held, min(ticket.prompt_tokens, 1))

    def record_dispatch(self, ticket: Ticket, kv_tokens: int | None) -> None:
        """The engine gets this prompt."""
        self._foreseen.add(min(self._held(ticket), ticket.prompt_tokens), ticket.prompt_tokens)
        for block in ticket.prefix or ():
            self._blocks[block] = None
            self._blocks.move_to_end(block)
        most = (kv_tokens or UNKNOWN_KV_TOKENS) // PREFIX_BLOCK_TOKENS
        while len(self._blocks) > most:
            self._blocks.popitem(last=False)

    def on_engine_state(self, state: EngineState) -> None:
        """What the engine counts. Counters that fell are those of a new process."""
        if state.prompt_tokens is None or state.cached_tokens is None:
            return
        counted, before = (state.cached_tokens, state.prompt_tokens), self._told
        self._told = counted
        if before is None or counted == before:
            return
        if counted[1] < before[1]:
            before = (0.0, 0.0)
        self._found.add(max(counted[0] - before[0], 0.0), counted[1] - before[1])
        if self._found.of_tokens >= TELLING_TOKENS and self._foreseen.tokens >= TELLING_TOKENS:
            self.trust = min(self._found.value / self._foreseen.value, 1.0)

    def clear(self) -> None:
        """A new engine begins empty."""
        self._blocks.clear()

    def _held(self, ticket: Ticket) -> int:
        held = 0
        for block in ticket.prefix or ():
            if block not in self._blocks:
                break
            held += PREFIX_BLOCK_TOKENS
        return held
