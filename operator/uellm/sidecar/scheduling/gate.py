"""The gate decides when the engine gets its next prompt.

The engine runs requests in its own order, so a request that it already has cannot be reordered. The gate therefore
sends just enough prompts to fill the engine's next step, and keeps the others in the sidecar's queue.

The gate predicts the engine's progress from the step estimate, which may be far too slow. It then opens too late, and
the engine runs out of prompts while some wait here. When the gate observes that, it doubles `speedup`, the factor by
which it assumes the engine to be faster than the estimate. The factor falls again once the engine has more prompts
than a gate that opens in time ever leaves there.

Answers that come whole show the engine's progress only at their end. Then the gate learns from the engine's reports. It
raises the factor where the steps had room for more prompts, and lowers it to the measured rate where prompts wait in
the engine. An engine that reports nothing gets its prompts a little earlier with each answer, until it has all of them.
"""

from __future__ import annotations

from uellm.sidecar.scheduling.away import Away
from uellm.sidecar.scheduling.engineview import EngineView
from uellm.sidecar.scheduling.types import EngineState, Ticket

LEAD_S = 0.003
"""Approximate time that a request takes to reach the engine."""

MAX_SPEEDUP = 64.0
SPEEDUP_GROWTH, SPEEDUP_DECAY, MOST_STEPS = 2.0, 0.95, 3
"""The speedup's factor after the engine ran out of prompts; its factor while the engine has too many of them; and how
many steps of prompts count as too many."""

MOST_LACK, MOST_GROWTH = 1.25, 4.0
LEAST_SPEEDUP = 0.25
UNREPORTED_GROWTH = 1.1
"""While only ends of answers are seen: how many times more prompts may fit into the reported steps before the factor
grows, and the most that it grows with a report; its least value; its growth with each end if there are no reports."""

SHORTEST_REPORT_S = 0.05
"""Reports that are closer count as so far from each other: a rate divides by the time between them."""


class Gate:
    """Whether the engine has room for one more prompt."""

    def __init__(self, view: EngineView) -> None:
        self._view = view
        self.on_restart()

    @property
    def speedup(self) -> float:
        """How many times faster than the estimate the engine is assumed to be."""
        return self._view.speedup

    def on_restart(self) -> None:
        """Forget how late the gate was for the previous engine process."""
        self._view.speedup = 1.0
        self._reported_s, self._reported_tokens = 0.0, 0
        """When the engine last reported what it runs; the prompt tokens that were computed by then."""
        self._unseen_tokens = 0
        """Prompt tokens that the engine may have while its metrics are stale. Each prompt that it finishes raises the
        limit."""
        self._away = Away()
        self.closed = False
        """Whether the estimate held prompts back at the last decision."""
        self.wants_report = False
        """Whether the gate was found to be late, so that the next report of the engine should come soon."""

    def on_engine_state(self, state: EngineState, now_s: float, *, waiting: bool) -> None:
        """Take over a newer reading of the engine's metrics. `waiting`: requests are queued here."""
        if not state.stale:
            self._unseen_tokens = 0
        self.wants_report = False
        view = self._view
        if state.stale or state.running is None:
            return
        alone = view.unseen.alone
        view.on_running(state.running, now_s)
        passed_s = max(now_s - self._reported_s, SHORTEST_REPORT_S)
        rate = (view.filled_tokens - self._reported_tokens) / passed_s
        if view.computes_prompts_alone:
            self._away.on_report(view.away_tokens, rate, view.chunk_tokens, waiting=waiting)
        elif view.running:
            self._away = Away()
        if alone or (state.waiting and view.unseen.in_flight):
            self._adapt(rate, waiting=waiting)
        self._reported_s, self._reported_tokens = now_s, view.filled_tokens

    def _adapt(self, rate: float, *, waiting: bool) -> None:
        """Learn from a report how early the gate must open. `rate`: prompt tokens a second since the last one."""
        view = self._view
        if not view.state.waiting:
            if self.closed and waiting and (lack := self._lack()) > MOST_LACK:
                view.speedup = min(min(lack, MOST_GROWTH) * view.speedup, MAX_SPEEDUP)
                self.wants_report = True
        elif view.unfilled_tokens > MOST_STEPS * view.chunk_tokens + view.newest_tokens:
            view.speedup = max(min(view.speedup, rate / view.pace().rate), LEAST_SPEEDUP)

    def _lack(self) -> float:
        """How many times more prompt tokens fit into the engine's steps than it got of late."""
        view, mean = self._view, self._view.reported_step
        if mean is None:
            return SPEEDUP_GROWTH if view.unfilled_tokens <= view.chunk_tokens else 1.0
        return max(view.chunk_tokens - mean.sequences, 0.0) / max(mean.prompt_tokens, 1.0)

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
        return None if excess <= 0.0 else now_s + excess / (view.speedup * view.pace().rate) + 1e-4

    def on_first_token(self, ticket: Ticket, *, waiting: bool) -> None:
        """The engine has finished a prompt, and the view is up to date. `waiting`: other requests are queued here."""
        view = self._view
        if view.state.stale:
            self._unseen_tokens += ticket.uncached_tokens
        if self.closed and waiting and view.unfilled_tokens <= self._on_the_way_tokens:
            view.speedup = min(view.speedup * SPEEDUP_GROWTH, MAX_SPEEDUP)
        elif view.speedup < 1.0:
            if not view.unseen.in_flight:
                view.speedup = 1.0
        elif view.speedup > 1.0 and view.unfilled_tokens > MOST_STEPS * view.chunk_tokens + self._on_the_way_tokens:
            view.speedup = max(1.0, SPEEDUP_DECAY * view.speedup)

    def on_unseen_end(self, ticket: Ticket, *, waiting: bool) -> None:
        """An answer ended of which nothing was seen before, and the view is up to date. `waiting`: as above."""
        view = self._view
        if view.state.stale:
            self._unseen_tokens += ticket.uncached_tokens
        if self.closed and waiting:
            if view.unfilled_tokens <= self._on_the_way_tokens:
                view.speedup = min(view.speedup * SPEEDUP_GROWTH, MAX_SPEEDUP)
            elif view.state.running is None:
                view.speedup = min(view.speedup * UNREPORTED_GROWTH, MAX_SPEEDUP)

    def _excess_tokens(self, now_s: float) -> float:
        """Prompt tokens beyond a full step at the time when a request sent now would arrive."""
        view = self._view
        room = max(view.chunk_tokens - view.decoding, 0)
        return view.backlog_tokens(now_s + LEAD_S) - room - self._on_the_way_tokens

    @property
    def _on_the_way_tokens(self) -> float:
        """Prompt tokens that the engine computes, at most one step, while a request passes API server and tokeniser.

        More, if the engine reports that it has got fewer embeddings than were sent.
        """
        view, request_s = self._view, self._view.step.request_s
        known = min(view.pace().rate * request_s, view.chunk_tokens) if request_s else 0.0
        return max(known, self._away.tokens)
