"""How many tokens a prompt has: characters by a ratio, and a constant for the template, from the engine's counts.

A chat template may add a system prompt of its own. Short prompts alone cannot tell such a constant from dense text, so
the two are estimated together, by a Kalman filter: what an observation says nothing about keeps its value, and what was
not observed for long is learned quickly again. Both are bounded, and a surprise moves them by a bounded step only,
because parts of a prompt may be elsewhere.
"""

from __future__ import annotations

from uellm.prompt.found import CHARACTERS_PER_TOKEN, MEDIA_TOKENS, MESSAGE_TOKENS, Prompt

MOST_CHARACTERS, LEAST_CHARACTERS = 8.0, 0.5
"""Bounds of the characters per token: long words and spaces; rare characters that are several tokens each."""

MOST_TEMPLATE_TOKENS = 2048.0

TEMPLATE_SIGMA, DENSITY_SIGMA = 500.0, 0.125
"""How far both may be from their first values, in tokens and in tokens per character: one standard deviation."""

_TEMPLATE_VARIANCE, _DENSITY_VARIANCE = TEMPLATE_SIGMA**2, DENSITY_SIGMA**2

NOISE_SHARE, NOISE_TOKENS = 0.2, 20.0
"""By which prompts of the same characters differ, one standard deviation."""

MOST_SIGMAS = 3.0
"""A larger surprise counts as this one."""

DRIFT, DOUBT = 0.01, 0.2
"""Share of the first uncertainty that comes back with each observation, so that the last five to ten prompts decide.
After such a surprise it is more, so that a wrong one is soon forgotten, and a right one soon believed."""


class Ratio:
    """Characters per token and the template's tokens, corrected by every token count from the engine."""

    def __init__(self) -> None:
        self.template_tokens = 0.0
        """What the engine puts around a prompt, beside `MESSAGE_TOKENS`."""
        self._density = 1.0 / CHARACTERS_PER_TOKEN
        # The covariance of the two.
        self._tt, self._td, self._dd = _TEMPLATE_VARIANCE, 0.0, _DENSITY_VARIANCE

    @property
    def characters_per_token(self) -> float:
        """The ratio now."""
        return 1.0 / self._density

    def tokens(self, prompt: Prompt) -> int:
        """Estimated tokens of the prompt; exact if it consists of token ids."""
        fixed = prompt.token_ids + prompt.media * MEDIA_TOKENS + prompt.messages * MESSAGE_TOKENS
        learned = prompt.characters * self._density + prompt.templates * self.template_tokens
        tokens = fixed + round(learned)
        return tokens if tokens > 1 else 1

    def learn(self, prompt: Prompt, tokens: int) -> None:
        """Correct both by the engine's count. Prompts with media, token ids or parts elsewhere are skipped."""
        if prompt.media or prompt.token_ids or prompt.partial or not prompt.characters or tokens <= 0:
            return
        each = 1.0 / prompt.prompts
        x, h = prompt.characters * each, prompt.templates * each
        expected = h * self.template_tokens + x * self._density
        beside = tokens - prompt.messages * MESSAGE_TOKENS
        counted = beside * each if beside > 1 else each
        surprise = counted - expected
        self._drift(DRIFT)
        by_template, by_density = h * self._tt + x * self._td, h * self._td + x * self._dd
        noise = NOISE_TOKENS + NOISE_SHARE * (counted if counted < expected else expected)
        variance = h * by_template + x * by_density + noise**2
        most = MOST_SIGMAS * variance**0.5
        doubtful = surprise > most or surprise < -most
        if doubtful:
            surprise = most if surprise > most else -most
        template, density = by_template / variance, by_density / variance
        self._tt -= template * by_template
        self._td -= template * by_density
        self._dd -= density * by_density
        changed = self._density + density * surprise
        self._density = _within(changed, 1.0 / MOST_CHARACTERS, 1.0 / LEAST_CHARACTERS)
        # What the bound takes from the one, the other explains.
        bounded = self._td / self._dd * (self._density - changed)
        template_tokens = self.template_tokens + template * surprise + bounded
        self.template_tokens = _within(template_tokens, 0.0, MOST_TEMPLATE_TOKENS)
        if doubtful:
            self._drift(DOUBT)

    def _drift(self, share: float) -> None:
        self._tt += share * (_TEMPLATE_VARIANCE - self._tt)
        self._td -= share * self._td
        self._dd += share * (_DENSITY_VARIANCE - self._dd)


def _within(value: float, least: float, most: float) -> float:
    return least if value < least else most if value > most else value
