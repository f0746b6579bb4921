"""The gate decides when the engine gets its next prompt.

The engine runs requests in its own order, so a request that it already has cannot be reordered. The gate therefore
sends just enough prompts to fill the engine's next step, and keeps the others in the sidecar's queue.

The gate predicts the engine's progress from the step estimate, which may be far too slow. It then opens too late, and
the engine runs out of prompts while some wait here. When the gate observes that, it doubles `speedup`, the factor by
which it assumes the engine to be faster than the estimate. The factor falls again once the engine has more prompts
than a gate that opens in time ever leaves there.
"""

from __future__ import annotations

from uellm.sidecar.scheduling.engineview import EngineView
from uellm.sidecar.scheduling.types import EngineState, Ticket

LEAD_S = 0.003
"""Approximate time that a request takes to reach the engine."""

MAX_SPEEDUP = 64.0
SPEEDUP_GROWTH, SPEEDUP_DECAY, MOST_STEPS = 2.0, 0.95, 3
"""The speedup's factor after the engine ran out of prompts; its factor while the engine has too many of them; and how
many steps of prompts count as too many."""


class Gate:
    """Whether the engine has room for one more prompt."""

    def __init__(self, view: EngineView) -> None:
        self._view = view
        self.on_restart()

    def on_restart(self) -> None:
        """Forget how late the gate was for the previous engine process."""
        self.speedup = 1.0
        """How many times faster than the estimate the engine is assumed to be."""
        self._unseen_tokens = 0
        """Prompt tokens that the engine may have while its metrics are stale. Each prompt that it finishes raises the
        limit."""
        self.closed = False
        """Whether the estimate held prompts back at the last decision."""

    def on_engine_state(self, state: EngineState) -> None:
        """Take over a newer reading of the engine's metrics."""
        if not state.stale:
            self._unseen_tokens = 0

    def has_room(self, now_s: float) -> bool:
        """Whether the engine has too few prompts to fill its next step."""
        view = self._view
        # Stale metrics count as full. Only the progress of the answers admits another prompt.
        if view.state.stale and view.unfilled_tokens > self._unseen_tokens:
            return False
        self.closed = view.unfilled_tokens >= view.chunk_tokens and self._excess_tokens(now_s) > 0.0
        return not self.closed

    def opens_s(self, now_s: float) -> float | None:
        """When there will be room. None: there is room now."""
        view = self._view
        if view.unfilled_tokens < view.chunk_tokens:
            return None
        excess = self._excess_tokens(now_s)
        return None if excess <= 0.0 else now_s + excess / (self.speedup * view.pace().rate) + 1e-4

    def on_first_token(self, ticket: Ticket, *, waiting: bool) -> None:
        """The engine has finished a prompt, and the view is up to date. `waiting`: other requests are queued here."""
        view = self._view
        if view.state.stale:
            self._unseen_tokens += ticket.uncached_tokens
        on_the_way = self._on_the_way_tokens
        if self.closed and waiting and view.unfilled_tokens <= on_the_way:
            self.speedup = min(self.speedup * SPEEDUP_GROWTH, MAX_SPEEDUP)
        elif self.speedup > 1.0 and view.unfilled_tokens > MOST_STEPS * view.chunk_tokens + on_the_way:
            self.speedup = max(1.0, SPEEDUP_DECAY * self.speedup)

    def on_answer_without_tokens(self, ticket: Ticket) -> None:
        """The engine has finished a prompt whose answer has no token, such as an embedding."""
        if self._view.state.stale:
            self._unseen_tokens += ticket.uncached_tokens

    def _excess_tokens(self, now_s: float) -> float:
        """Prompt tokens beyond a full step at the time when a request sent now would arrive."""
        view = self._view
        room = max(view.chunk_tokens - view.decoding, 0)
        return view.backlog_tokens(now_s + LEAD_S, self.speedup) - room - self._on_the_way_tokens

    @property
    def _on_the_way_tokens(self) -> float:
        """Prompt tokens that the engine computes, at most one step, while a request passes API server and tokeniser."""
        view, request_s = self._view, self._view.step.request_s
        return min(view.pace().rate * request_s, view.chunk_tokens) if request_s else 0.0
