"""Which prompts' beginnings the engine's prefix cache probably holds: those that it saw last, as many as fit."""

from __future__ import annotations

from collections import OrderedDict

from uellm.sidecar.scheduling.types import PREFIX_BLOCK_TOKENS, Ticket

UNKNOWN_KV_TOKENS = 100_000


class Prefixes:
    """Blocks by their hashes, the least recently used first."""

    def __init__(self) -> None:
        self._blocks: OrderedDict[int, None] = OrderedDict()

    def uncached_tokens(self, ticket: Ticket) -> int:
        """Prompt tokens to be computed. At least one always is."""
        held = 0
        for block in ticket.prefix or ():
            if block not in self._blocks:
                break
            held += PREFIX_BLOCK_TOKENS
        return max(ticket.prompt_tokens - held, min(ticket.prompt_tokens, 1))

    def saw(self, ticket: Ticket, kv_tokens: int | None) -> None:
        """The engine gets this prompt."""
        for block in ticket.prefix or ():
            self._blocks[block] = None
            self._blocks.move_to_end(block)
        most = (kv_tokens or UNKNOWN_KV_TOKENS) // PREFIX_BLOCK_TOKENS
        while len(self._blocks) > most:
            self._blocks.popitem(last=False)

    def clear(self) -> None:
        """A new engine begins empty."""
        self._blocks.clear()
