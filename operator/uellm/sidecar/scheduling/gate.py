"""The gate: the engine gets prompts so that its next step is full, and no more, for what it has cannot be put in order.

When that is, the estimate says. It may be far too slow, so the gate learns from whether it opened in time: an engine
that has no prompts left, while some wait here, was faster than it was taken for.
"""

from __future__ import annotations

from uellm.sidecar.scheduling.engineview import EngineView
from uellm.sidecar.scheduling.types import EngineState, Ticket

LEAD_S = 0.003
"""How long what is sent takes to get to the engine, about."""

MOST_HASTE = 64.0
HASTE_UP, HASTE_DOWN, MOST_STEPS = 2.0, 0.95, 3
"""How much sooner the gate opens once the engine was found without prompts; and how that ends, with more steps of
prompts in the engine than a gate that opens in time ever lets be."""


class Gate:
    """Whether the engine has room for one more prompt."""

    def __init__(self, view: EngineView) -> None:
        self._view = view
        self.restarted()

    def restarted(self) -> None:
        """Another engine process: how late the gate was for the last one holds no more."""
        self.haste = 1.0
        """How many times as fast as the estimate the engine is taken to be."""
        self._unseen_tokens = 0
        """Prompt tokens that an engine may have whose figures are old: none, and more with each first token."""
        self.closed = False
        """Whether, when it was last decided, prompts were kept back by the estimate."""

    def told(self, state: EngineState) -> None:
        """What the engine tells of itself is newer."""
        if not state.stale:
            self._unseen_tokens = 0

    def has_room(self, now_s: float) -> bool:
        """Whether the engine has less than a step's worth of prompts, so that its next step would not be full."""
        view = self._view
        # What an engine tells no more is taken for full, but for what its answers show.
        if view.state.stale and view.unfilled_tokens > self._unseen_tokens:
            return False
        self.closed = view.unfilled_tokens >= view.chunk_tokens and self._excess_tokens(now_s) > 0.0
        return not self.closed

    def opens_s(self, now_s: float) -> float | None:
        """When there will be room; None: there is."""
        view = self._view
        if view.unfilled_tokens < view.chunk_tokens:
            return None
        excess = self._excess_tokens(now_s)
        return None if excess <= 0.0 else now_s + excess / (self.haste * view.pace().rate) + 1e-4

    def filled(self, ticket: Ticket, *, waiting: bool) -> None:
        """The engine has done a prompt, as the view knows already; `waiting`: others wait here."""
        view = self._view
        if view.state.stale:
            self._unseen_tokens += ticket.uncached_tokens
        on_the_way = self._on_the_way_tokens
        if self.closed and waiting and view.unfilled_tokens <= on_the_way:
            self.haste = min(self.haste * HASTE_UP, MOST_HASTE)
        elif self.haste > 1.0 and view.unfilled_tokens > MOST_STEPS * view.chunk_tokens + on_the_way:
            self.haste = max(1.0, HASTE_DOWN * self.haste)

    def _excess_tokens(self, now_s: float) -> float:
        """Prompt tokens beyond what fills a step when something sent now gets there."""
        view = self._view
        room = max(view.chunk_tokens - view.decoding, 0)
        return view.backlog_tokens(now_s + LEAD_S, self.haste) - room - self._on_the_way_tokens

    @property
    def _on_the_way_tokens(self) -> float:
        """Prompt tokens that the engine does, a step's at most, while one passes the API server and the tokeniser."""
        view, request_s = self._view, self._view.step.request_s
        return min(view.pace().rate * request_s, view.chunk_tokens) if request_s else 0.0
