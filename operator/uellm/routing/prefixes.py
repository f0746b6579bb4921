"""Which prefix blocks a replica's engine probably has: those that it got last, as many as fit into its KV cache."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable

from uellm.api.replica_load import PrefixNews
from uellm.prompt import BLOCK_TOKENS

UNKNOWN_KV_TOKENS = 100_000
"""Where no report has told the size of the KV cache."""

MOST_BLOCKS = 65_536
"""Of one replica, whatever size it reports: 34 million tokens, and 8 MiB here."""


class HeldPrefixes:
    """Hashes of blocks, the least recently used first: from the replica's reports, and what was sent since."""

    def __init__(self) -> None:
        self._blocks: OrderedDict[int, None] = OrderedDict()
        self._count = 0

    def tokens(self, prefix: Iterable[int]) -> int:
        """Tokens of the prompt that are probably in the cache."""
        held = 0
        for block in prefix:
            if block not in self._blocks:
                break
            held += BLOCK_TOKENS
        return held

    def add(self, prefix: Iterable[int], kv_tokens: int) -> None:
        """Add the blocks of a prompt that is sent there; `kv_tokens`: size of the KV cache, 0 for unknown."""
        for block in prefix:
            self._blocks[block] = None
            self._blocks.move_to_end(block)
        most = min((kv_tokens or UNKNOWN_KV_TOKENS) // BLOCK_TOKENS, MOST_BLOCKS)
        while len(self._blocks) > most:
            self._blocks.popitem(last=False)

    def report(self, news: PrefixNews, kv_tokens: int) -> None:
        """Add what the replica reports, except what is known already."""
        self.add(news.since(self._count).hashes, kv_tokens)
        self._count = news.count

    @property
    def count(self) -> int:
        """How many of the replica's blocks are known: what to ask the replica's news since."""
        return self._count

    def clear(self) -> None:
        """Forget everything: the engine's process is a new one."""
        self._blocks.clear()
        self._count = 0
