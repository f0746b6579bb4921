"""A measured share of tokens that forgets old measurements."""

from __future__ import annotations

REMEMBERED_TOKENS = 200_000.0
"""Approximate number of tokens that a share covers: some hundred prompts."""

COUNTED_EVENTS, REMEMBERED_EVENTS = 200.0, 10_000.0
MOST_TOKENS_AN_EVENT = 32.0
"""Events have one token each until so many were compared with the engine's counts; how many of them are remembered; and
the most tokens that an event is taken to have."""


class Share:
    """A share of tokens, with older tokens fading."""

    def __init__(self, remembered_tokens: float = REMEMBERED_TOKENS) -> None:
        self._remembered_tokens = remembered_tokens
        self.tokens = 0.0
        self.of_tokens = 0.0

    def add(self, tokens: float, of_tokens: float) -> None:
        """Add `tokens` out of `of_tokens`."""
        kept = 1.0 - of_tokens / self._remembered_tokens
        if kept < 0.0:
            kept = 0.0
        self.tokens = kept * self.tokens + tokens
        self.of_tokens = kept * self.of_tokens + of_tokens

    @property
    def value(self) -> float:
        """The share; 0 before anything was added."""
        return self.tokens / self.of_tokens if self.of_tokens else 0.0


class EventTokens(Share):
    """Tokens of streams that ended, as a share of their events."""

    def __init__(self) -> None:
        super().__init__(REMEMBERED_EVENTS)
        self.each = 1.0
        """Tokens in an event of a stream: above 1 with speculation or `--stream-interval`."""

    def add(self, tokens: float, of_tokens: float) -> None:
        """Add the tokens that the engine counted in so many events."""
        Share.add(self, tokens, of_tokens)
        each = self.tokens / self.of_tokens if self.of_tokens >= COUNTED_EVENTS else 1.0
        self.each = 1.0 if each < 1.0 else MOST_TOKENS_AN_EVENT if each > MOST_TOKENS_AN_EVENT else each
