"""SLO-ODBS: keep as many requests on time as possible, by deadline; serve the others best effort, shortest first.

The paper's algorithm weighs urgency and predicted length. Here these are the deadline and the engine seconds. Under
overload some requests must give way: within the lowest priority, those with the least chance of success for each
engine second. The price of an engine second is learned, so that a request that would give way later gives way before
it takes a place that others need.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from operator import attrgetter

from uellm.sidecar.scheduling.best_effort import BestEffortQueue
from uellm.sidecar.scheduling.chances import PRIORITY_VALUE, hopeless_s, need_of, prospect, whole_s
from uellm.sidecar.scheduling.engineview import EngineView
from uellm.sidecar.scheduling.entries import Entry, compact
from uellm.sidecar.scheduling.fairness import Fairness
from uellm.sidecar.scheduling.on_time_set import SPAN_S, OnTimeSet
from uellm.sidecar.scheduling.pace import Pace
from uellm.sidecar.scheduling.price import Price
from uellm.sidecar.scheduling.types import Need, Options, State, Ticket

DRIFT = 0.15
"""Relative change of the engine's speed from which the on-time set is rebuilt."""


class SloOdbs:
    """The order of SLO-ODBS: an on-time set and a best-effort queue."""

    def __init__(self, view: EngineView, options: Options, fairness: Fairness) -> None:
        self._view = view
        self._options = options
        self._fairness = fairness
        self._on_time = OnTimeSet(0.0)
        self._best_effort = BestEffortQueue()
        self._spare: list[Entry] = []
        """Best-effort requests that may still be on time, the most valuable first."""
        self._price = Price()
        self._speed = (0.0, 0.0)
        self._decisions = 0
        self.gave_way = 0

    def __len__(self) -> int:
        return self._on_time.members + len(self._best_effort)

    @property
    def _is_empty(self) -> bool:
        """Whether nothing waits, and no entry is left to be looked at."""
        return not (self._on_time.members or self._spare or len(self._best_effort))

    @property
    def demoted(self) -> int:
        """Requests in the best-effort queue."""
        return len(self._best_effort)

    def price(self) -> float:
        """Density, in on-time requests for each engine second, below which requests give way."""
        return self._price.density()

    def add(self, ticket: Ticket, now_s: float) -> None:
        """Add a waiting request. O(log n)."""
        if self._on_time.members == 0:
            self._begin(now_s)
        pace = self._view.pace()
        density, work_s = self._place(ticket, pace, now_s)
        self._price.record_demand(ticket.targets.priority, density, work_s, now_s)
        self._make_way(pace, self._ready_s(now_s))

    def reposition(self, ticket: Ticket, now_s: float) -> None:
        """Reposition after the prediction changed. The demand was counted at arrival. O(log n)."""
        self._take_out(ticket)
        pace = self._view.pace()
        self._place(ticket, pace, now_s)
        self._make_way(pace, self._ready_s(now_s))

    def remove(self, ticket: Ticket, now_s: float) -> None:
        """Remove a request. O(log n)."""
        if ticket.state is State.RUNNING:
            self._best_effort.record_dispatch(ticket, whole_s(ticket, _need(ticket), self._view.pace()), now_s)
        self._take_out(ticket)

    def head(self, now_s: float) -> Ticket | None:
        """The most urgent request of the on-time set, else the next best-effort one. O(log n), amortised."""
        if self._is_empty and now_s - self._on_time.start_s <= SPAN_S / 4:
            return None  # the next one to come begins anew
        self._decisions += 1
        self._rebuild_after_drift(now_s)
        # This method does not change the requests in flight, so pace and backlog stay valid throughout.
        pace, ready_s = self._view.pace(), self._ready_s(now_s)
        self._make_way(pace, ready_s)
        self._readmit(pace, ready_s, now_s)
        ageing = self._options.ageing
        if ageing and (aged := self._best_effort.due(now_s)) is not None:
            return aged
        return self._on_time.first() or self._best_effort.first(now_s, ageing=ageing)

    def shed(self, now_s: float) -> Iterator[Ticket]:
        """Hopeless requests to refuse while too many of them wait. The caller removes each."""
        self._best_effort.mark_hopeless(now_s)
        while (ticket := self._best_effort.shed()) is not None:
            yield ticket

    def _take_out(self, ticket: Ticket) -> None:
        if ticket.stamp > 0:
            self._on_time.remove(ticket)
        else:
            self._best_effort.remove(ticket)

    def _ready_s(self, now_s: float) -> float:
        """When the engine can begin the next prompt."""
        if not self._view.unfilled_tokens:
            return now_s
        backlog = self._view.backlog_tokens(now_s)
        return now_s + backlog / self._view.planned_rate if backlog else now_s

    def _begin(self, now_s: float) -> None:
        if self._on_time.members or now_s - self._on_time.start_s > SPAN_S / 4:
            self._on_time = OnTimeSet(now_s)
        self._speed = (self._view.planned_rate, self._view.step.gap_s)
        self._decisions = 0

    def _place(self, ticket: Ticket, pace: Pace, now_s: float) -> tuple[float, float]:
        """Add to the on-time set or the best-effort queue. Returns the weighted density and the engine seconds."""
        need = ticket.need = need_of(ticket, self._view.step)
        deadline_s, first_s, density, work_s = prospect(ticket, need, pace, self._speed[0], now_s)
        weight = self._weight(ticket)
        density *= weight
        if self._worthwhile(ticket, density, now_s):
            self._on_time.add(ticket, deadline_s, first_s, _value(ticket, density))
        else:
            self._demote(ticket, work_s, pace, density, weight)
        return density, work_s

    def _worthwhile(self, ticket: Ticket, density: float, now_s: float) -> bool:
        return density > 0.0 and self._price.worthwhile(ticket.targets.priority, density, now_s)

    def _demote(self, ticket: Ticket, work_s: float, pace: Pace, density: float, weight: float) -> None:
        self._best_effort.add(ticket, work_s, work_s / weight, hopeless_s(ticket, _need(ticket), pace))
        if density > 0.0:
            heapq.heappush(self._spare, (-_value(ticket, density), ticket.sequence, ticket.stamp, ticket))
            compact(self._spare, len(self._best_effort))

    def _make_way(self, pace: Pace, ready_s: float) -> None:
        """Demote requests until none in the on-time set is late."""
        while (ticket := self._on_time.give_way(ready_s)) is not None:
            self._on_time.remove(ticket)
            self.gave_way += 1
            work_s = whole_s(ticket, _need(ticket), pace)
            self._demote(ticket, work_s, pace, ticket.density, self._weight(ticket))

    def _readmit(self, pace: Pace, ready_s: float, now_s: float) -> None:
        """Move the most valuable spare request back into the on-time set, if there is time for it."""
        if not self._spare:
            return
        _, _, stamp, ticket = self._spare[0]
        if ticket.stamp != stamp:
            heapq.heappop(self._spare)
            return
        if self._on_time.members and self._on_time.slack_s(ready_s) < ticket.uncached_tokens / self._speed[0]:
            return
        deadline_s, first_s, density, _ = prospect(ticket, _need(ticket), pace, self._speed[0], now_s)
        density *= self._weight(ticket)
        if density <= 0.0:
            heapq.heappop(self._spare)
        elif self._price.worthwhile(ticket.targets.priority, density, now_s):
            heapq.heappop(self._spare)
            self._best_effort.remove(ticket)
            self._on_time.add(ticket, deadline_s, first_s, _value(ticket, density))
            self._make_way(pace, ready_s)

    def _rebuild_after_drift(self, now_s: float) -> None:
        """Rebuild the on-time set after the engine's speed changed, if enough decisions share the cost."""
        pace = self._view.pace()
        rate, gap_s = self._view.planned_rate, pace.gap_s
        planned_rate, planned_gap_s = self._speed
        drifted = abs(rate - planned_rate) > DRIFT * planned_rate or abs(gap_s - planned_gap_s) > DRIFT * planned_gap_s
        over = now_s - self._on_time.start_s > SPAN_S / 2
        if over or (drifted and 2 * self._decisions > self._on_time.members):
            self._rebuild(now_s)

    def _rebuild(self, now_s: float) -> None:
        waiting = sorted(self._on_time.tickets(), key=attrgetter("sequence"))
        self._begin(now_s)
        pace = self._view.pace()
        kept = []
        for ticket in waiting:
            deadline_s, first_s, density, work_s = prospect(ticket, _need(ticket), pace, self._speed[0], now_s)
            weight = self._weight(ticket)
            density *= weight
            if self._worthwhile(ticket, density, now_s):
                kept.append((ticket, (deadline_s, first_s, _value(ticket, density))))
            else:
                self._demote(ticket, work_s, pace, density, weight)
        self._on_time.add_all(kept)
        self._make_way(pace, self._ready_s(now_s))

    def _weight(self, ticket: Ticket) -> float:
        return self._fairness.weight(ticket.tenant) if self._options.fairness else 1.0


def _value(ticket: Ticket, density: float) -> float:
    """Value of a request in the on-time set: priority first, then density."""
    ticket.density = density
    return ticket.targets.priority * PRIORITY_VALUE + density


def _need(ticket: Ticket) -> Need:
    """The need of a request that was added."""
    need = ticket.need
    assert need is not None
    return need
