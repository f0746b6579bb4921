"""SLO-ODBS: as many requests on time as can be, by deadline; the rest best effort, shortest predicted first.

What the paper's algorithm weighs, urgency and predicted length, appears here as deadline and engine seconds. In
overload some requests must give way. Those are the ones with the least chance of success per engine second, within
the lowest priority; what such a second is worth is learnt as a price, so that a request that would give way later
gives way before it has taken a place that others need.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator

from uellm.sidecar.scheduling.engineview import EngineView
from uellm.sidecar.scheduling.fairness import Fairness
from uellm.sidecar.scheduling.plan import SPAN_S, Plan
from uellm.sidecar.scheduling.price import Price
from uellm.sidecar.scheduling.prospects import PRIORITY_VALUE, hopeless_s, prospect
from uellm.sidecar.scheduling.tail import Tail
from uellm.sidecar.scheduling.types import Options, State, Ticket

DRIFT = 0.15
"""A change of the engine's speed, as a share, from which on the plan is made anew."""

Spare = tuple[float, int, int, Ticket]


class SloOdbs:
    """The order of requests that wait for an engine whose speed is known."""

    def __init__(self, view: EngineView, options: Options, fairness: Fairness) -> None:
        self._view = view
        self._options = options
        self._fairness = fairness
        self._plan = Plan(0.0)
        self._tail = Tail()
        self._spare: list[Spare] = []
        """Of the tail, those that may still be on time, the most valuable first."""
        self._price = Price()
        self._speed = (0.0, 0.0)
        self._decisions = 0
        self.gave_way = 0

    def __len__(self) -> int:
        return self._plan.members + len(self._tail)

    @property
    def demoted(self) -> int:
        """Requests that wait for best effort."""
        return len(self._tail)

    def price(self) -> float:
        """On-time requests per engine second below which requests give way."""
        return self._price.density()

    def add(self, ticket: Ticket, now_s: float) -> None:
        """One more waits. O(log n)."""
        if self._plan.members == 0:
            self._begin(now_s)
        density, whole_s = self._place(ticket, now_s)
        self._price.asked(ticket.targets.priority, density, whole_s, now_s)
        self._make_way(now_s)

    def again(self, ticket: Ticket, now_s: float) -> None:
        """Its predicted length is another; as demand it was counted when it came. O(log n)."""
        self._take_out(ticket)
        self._place(ticket, now_s)
        self._make_way(now_s)

    def remove(self, ticket: Ticket, now_s: float) -> None:
        """It waits no more. O(log n)."""
        if ticket.state is State.RUNNING:
            self._tail.handed_out(ticket, self._whole_s(ticket), now_s)
        self._take_out(ticket)

    def head(self, now_s: float) -> Ticket | None:
        """The next to be taken: of those that can be on time the most urgent, else of the tail. O(log n), amortised."""
        self._decisions += 1
        self._follow(now_s)
        self._make_way(now_s)
        self._readmit(now_s)
        ageing = self._options.ageing
        if ageing and (aged := self._tail.due(now_s)) is not None:
            return aged
        return self._plan.first() or self._tail.first(now_s, ageing=ageing)

    def shed(self, now_s: float) -> Iterator[Ticket]:
        """Requests to refuse, for they are late whatever happens and too many of them wait. The caller removes each."""
        self._tail.lose(now_s)
        while (ticket := self._tail.shed()) is not None:
            yield ticket

    def _take_out(self, ticket: Ticket) -> None:
        if ticket.stamp > 0:
            self._plan.remove(ticket)
        else:
            self._tail.remove(ticket)

    def _ready_s(self, now_s: float) -> float:
        """When the engine can begin with the next prompt."""
        return now_s + self._view.backlog_tokens(now_s) / self._view.planned_rate

    def _begin(self, now_s: float) -> None:
        if self._plan.members or now_s - self._plan.start_s > SPAN_S / 4:
            self._plan = Plan(now_s)
        self._speed = (self._view.planned_rate, self._view.step.gap_s)
        self._decisions = 0

    def _place(self, ticket: Ticket, now_s: float) -> tuple[float, float]:
        """Into the plan or the tail; its weighted density and its engine seconds."""
        found = prospect(ticket, self._view, self._speed[0], now_s)
        priority = ticket.targets.priority
        density = found.density * self._weight(ticket)
        if density <= 0.0 or not self._price.worthwhile(priority, density, now_s):
            self._demote(ticket, density, found.whole_s)
        else:
            self._plan.add(ticket, found.deadline_s, found.first_s, priority * PRIORITY_VALUE + density)
            ticket.density = density
        return density, found.whole_s

    def _demote(self, ticket: Ticket, density: float, whole_s: float) -> None:
        self._tail.add(ticket, whole_s, whole_s / self._weight(ticket), hopeless_s(ticket, self._view))
        if density > 0.0:
            value = ticket.targets.priority * PRIORITY_VALUE + density
            heapq.heappush(self._spare, (-value, ticket.sequence, ticket.stamp, ticket))

    def _make_way(self, now_s: float) -> None:
        """Demote until nobody in the plan is late."""
        ready_s = self._ready_s(now_s)
        while (ticket := self._plan.give_way(ready_s)) is not None:
            self._plan.remove(ticket)
            self.gave_way += 1
            self._demote(ticket, ticket.density, self._whole_s(ticket))

    def _readmit(self, now_s: float) -> None:
        """Give the most valuable of those that gave way another chance, if there is time for it."""
        if not self._spare:
            return
        ticket = self._spare[0][-1]
        if ticket.stamp != self._spare[0][2]:
            heapq.heappop(self._spare)
            return
        if self._plan.members and self._plan.slack_s(self._ready_s(now_s)) < ticket.uncached_tokens / self._speed[0]:
            return
        found = prospect(ticket, self._view, self._speed[0], now_s)
        if found.density <= 0.0:
            heapq.heappop(self._spare)
        elif self._price.worthwhile(ticket.targets.priority, found.density * self._weight(ticket), now_s):
            heapq.heappop(self._spare)
            self._tail.remove(ticket)
            self._place(ticket, now_s)
            self._make_way(now_s)

    def _follow(self, now_s: float) -> None:
        """Make the plan anew when the engine's speed is another, as often as the decisions since then have paid for."""
        speed = (self._view.planned_rate, self._view.step.gap_s)
        drifted = any(abs(new - old) > DRIFT * old for new, old in zip(speed, self._speed, strict=True))
        over = now_s - self._plan.start_s > SPAN_S / 2
        if over or (drifted and 2 * self._decisions > self._plan.members):
            waiting = sorted(self._plan.tickets(), key=lambda ticket: ticket.sequence)
            self._begin(now_s)
            for ticket in waiting:
                self._place(ticket, now_s)
            self._make_way(now_s)

    def _weight(self, ticket: Ticket) -> float:
        return self._fairness.weight(ticket.tenant) if self._options.fairness else 1.0

    def _whole_s(self, ticket: Ticket) -> float:
        output = ticket.length.p50 * ticket.sequences
        return self._view.step.work_s(ticket.prompt_tokens, ticket.uncached_tokens, output)
