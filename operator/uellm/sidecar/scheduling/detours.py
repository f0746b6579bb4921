"""Waiting requests that are not in the order: prompts that cannot run, and large requests that others pass.

A prompt that is longer than the model's context costs the engine nothing: it is answered 400 at once. It is sent past
queue, gate and KV admission and counts as nothing until its first token. Its length is an estimate, which may be wrong,
so only one is tried at a time.

A request that needs a large part of the KV cache waits until that much is free. If nothing passed it, the cache would
be that empty in the meantime. Others therefore pass it for a while. It then returns to the order, and the line waits
for it when it is next.
"""

from __future__ import annotations

from uellm.sidecar.scheduling.types import EngineState, Ticket

LARGE_SHARE = 0.25
"""Share of the cache above which a request is large. A smaller one leaves less than that empty while it waits."""

PASSED_S = 10.0
PASSED_SHARE = 0.5
"""How long others pass it: this many seconds, but at most this share of the time left to its deadline."""

MOST_PASSED = 8
"""Each is looked at in every decision."""


class Detours:
    """The waiting requests that are not in the order."""

    def __init__(self) -> None:
        self.impossible: dict[Ticket, None] = {}
        """Prompts that cannot run."""
        self.passed: dict[Ticket, None] = {}
        """Large requests that others pass, the first one first."""
        self.trying = False
        """Whether the engine has one that cannot run."""
        self._tried: tuple[Ticket, int] | None = None
        """That one, and the length that it does not count for."""

    def hold(self, ticket: Ticket) -> None:
        """A prompt that cannot run waits for its try."""
        ticket.detour = True
        self.impossible[ticket] = None

    def discard(self, ticket: Ticket) -> None:
        """A request waits no longer, or goes back to the order."""
        self.impossible.pop(ticket, None)
        self.passed.pop(ticket, None)
        ticket.detour = False

    def try_next(self, state: EngineState) -> Ticket | None:
        """The next prompt that cannot run, if the engine has none. It counts as nothing from now on."""
        if self.trying or not self.impossible:
            return None
        ticket = next(iter(self.impossible))
        self.trying = True
        self._tried = ticket, min(ticket.prompt_tokens, most_prompt_tokens(state) or ticket.prompt_tokens)
        ticket.prompt_tokens = ticket.uncached_tokens = 0
        return ticket

    def runs_after_all(self, ticket: Ticket) -> int | None:
        """Its length, if it was held for a prompt that cannot run; it has begun to answer or has ended."""
        if self._tried is None or self._tried[0] is not ticket:
            return None
        tokens, self.trying, self._tried = self._tried[1], False, None
        return tokens

    def pass_by(self, ticket: Ticket, state: EngineState, now_s: float) -> bool:
        """Whether others may pass the next request of the order, which does not fit. It has left the order then."""
        if ticket.passed_until_s is None:
            left_s = max(ticket.deadline_s - now_s, 0.0)
            ticket.passed_until_s = now_s + min(PASSED_S, PASSED_SHARE * left_s)
        large = state.kv_tokens is not None and needed_tokens(ticket) > LARGE_SHARE * state.kv_tokens
        if not large or now_s >= ticket.passed_until_s or len(self.passed) >= MOST_PASSED:
            return False
        ticket.detour = True
        self.passed[ticket] = None
        return True

    def returning(self, now_s: float) -> list[Ticket]:
        """Those that were passed for long enough. They go back to the order."""
        return [ticket for ticket in self.passed if now_s >= (ticket.passed_until_s or 0.0)]


def cannot_run(ticket: Ticket, state: EngineState) -> bool:
    """Whether a prompt is longer than the engine can take. What is not known is taken to be possible."""
    most = most_prompt_tokens(state)
    return most is not None and ticket.longest_prompt_tokens > most


def most_prompt_tokens(state: EngineState) -> int | None:
    """Tokens of the longest prompt that the engine takes; None: not known.

    Without the model's own limit it is the cache, which vLLM refuses to start with where it is smaller than that.
    """
    return state.kv_tokens if state.max_model_len is None else state.max_model_len


def needed_tokens(ticket: Ticket) -> float:
    """Tokens in the cache at the end of its answer, as predicted."""
    return ticket.prompt_tokens + ticket.remaining_tokens
