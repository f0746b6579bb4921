"""A share of tokens that is measured and forgets."""

from __future__ import annotations

REMEMBERED_TOKENS = 200_000.0
"""Tokens, about, that a share is of: some hundred prompts."""


class Share:
    """What part of prompt tokens something had, fading."""

    def __init__(self) -> None:
        self.tokens = 0.0
        self.of_tokens = 0.0

    def add(self, tokens: float, of_tokens: float) -> None:
        """So many of so many."""
        kept = max(0.0, 1.0 - of_tokens / REMEMBERED_TOKENS)
        self.tokens = kept * self.tokens + tokens
        self.of_tokens = kept * self.of_tokens + of_tokens

    @property
    def value(self) -> float:
        """0 to 1."""
        return self.tokens / self.of_tokens if self.of_tokens else 0.0
