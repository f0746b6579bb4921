"""A measured share of tokens that forgets old measurements."""

from __future__ import annotations

REMEMBERED_TOKENS = 200_000.0
"""Approximate number of tokens that a share covers: some hundred prompts."""


class Share:
    """A share of tokens, with older tokens fading."""

    def __init__(self, remembered_tokens: float = REMEMBERED_TOKENS) -> None:
        self._remembered_tokens = remembered_tokens
        self.tokens = 0.0
        self.of_tokens = 0.0

    def add(self, tokens: float, of_tokens: float) -> None:
        """Add `tokens` out of `of_tokens`."""
        kept = max(0.0, 1.0 - of_tokens / self._remembered_tokens)
        self.tokens = kept * self.tokens + tokens
        self.of_tokens = kept * self.of_tokens + of_tokens

    @property
    def value(self) -> float:
        """The share; 0 before anything was added."""
        return self.tokens / self.of_tokens if self.of_tokens else 0.0
