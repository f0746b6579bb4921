"""The scheduler core: which request goes to the engine next. Pure and synchronous; the caller passes the clock in.

A request is queued by `submit`, handed out by `next` while the gate is open, and ended by `finish`. The gate
keeps the engine's own queue near empty, for an order that the engine has already taken cannot be changed any more:
at most `max_in_flight` requests are out at once, and none while the engine is away.

Order under EDF: earliest deadline first, then the higher priority, then arrival. A deadline is fixed at arrival, so
waiting alone moves a request forward: one with the far deadline of a class without targets is overtaken for at most
`FAR_DEADLINE_S`, and nothing starves.

Cost: O(log n) a decision. A request that leaves the queue is only marked; the heaps are rebuilt when most of
them is marked, so that memory follows the number of requests that really wait.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from itertools import count

FAR_DEADLINE_S = 120.0
"""Deadline, after arrival, of a request whose class has no target: about what a patient client waits."""

ENGINE_WAIT_S = 60.0
"""How long a request waits for an engine that is away. Clients' own limits are commonly 60 s."""


@dataclass(frozen=True)
class Targets:
    """What the scheduler needs of an SLO class. None: no such target."""

    name: str
    priority: int = 0
    ttft_s: float | None = None
    e2e_s: float | None = None
    reject_late: bool = False

    def deadline_s(self, arrival_s: float) -> float:
        """The instant the order goes by: of the first token if there is such a target, else of the end, else far."""
        for target_s in (self.ttft_s, self.e2e_s):
            if target_s is not None:
                return arrival_s + target_s
        return arrival_s + FAR_DEADLINE_S


class State(Enum):
    """Where a ticket is."""

    NEW = "new"
    QUEUED = "queued"
    RUNNING = "running"
    DONE = "done"


class Late(Enum):
    """Why a queued request will not be served."""

    DEADLINE = "deadline"
    ENGINE = "engine"


@dataclass(eq=False)
class Ticket:
    """One request as the scheduler sees it."""

    targets: Targets
    arrival_s: float
    state: State = State.NEW
    sequence: int = -1
    deadline_s: float = field(init=False)

    def __post_init__(self) -> None:
        self.deadline_s = self.targets.deadline_s(self.arrival_s)

    @property
    def rejected_late(self) -> bool:
        """Whether it leaves the queue at its deadline. The far deadline is ours, not the user's: it rejects nothing."""
        targets = self.targets
        return targets.reject_late and (targets.ttft_s is not None or targets.e2e_s is not None)


Key = tuple[float, ...]
Alarms = list[tuple[float, int, Ticket]]


def _earliest_deadline(ticket: Ticket) -> Key:
    return ticket.deadline_s, -ticket.targets.priority, ticket.sequence


def _first_come(ticket: Ticket) -> Key:
    return (ticket.sequence,)


POLICIES: dict[str, Callable[[Ticket], Key]] = {"EDF": _earliest_deadline, "FCFS": _first_come}


@dataclass(frozen=True)
class Limits:
    """What bounds the scheduler, in requests."""

    max_in_flight: int = 256
    max_queued: int = 1024


class QueueFull(Exception):
    """No room: the caller answers 429."""


class Scheduler:
    """The queue, the gate and their figures.

    Invariants: a ticket is in `_queued` exactly while QUEUED and in `_running` exactly while RUNNING; every QUEUED
    ticket has an entry in `_order` and `_arrivals`, and in `_deadlines` if it is rejected late; entries of tickets
    that are not QUEUED are skipped.
    """

    def __init__(self, policy: str = "EDF", limits: Limits | None = None) -> None:
        self.limits = limits or Limits()
        self._key = POLICIES[policy]
        self._order: list[tuple[Key, Ticket]] = []
        self._arrivals: Alarms = []
        self._deadlines: Alarms = []
        self._queued: dict[Ticket, None] = {}
        self._running: set[Ticket] = set()
        self._sequence = count()
        self._engine_away_since_s: float | None = 0.0

    @property
    def queued(self) -> int:
        """Requests that wait here."""
        return len(self._queued)

    @property
    def in_flight(self) -> int:
        """Requests that the engine has."""
        return len(self._running)

    def queued_by_class(self) -> dict[str, int]:
        """Waiting requests of each class that has any."""
        depths: dict[str, int] = {}
        for ticket in self._queued:
            depths[ticket.targets.name] = depths.get(ticket.targets.name, 0) + 1
        return depths

    def reconfigure(self, policy: str, limits: Limits) -> None:
        """Change order and bounds; what is queued stays queued, whatever the new bounds are."""
        self.limits = limits
        self._key = POLICIES[policy]
        self._rebuild()

    def on_engine_state(self, ready: bool, now_s: float) -> None:
        """Open or close the gate. The wait for an engine counts from when it went away."""
        if ready:
            self._engine_away_since_s = None
        elif self._engine_away_since_s is None:
            self._engine_away_since_s = now_s

    def submit(self, ticket: Ticket) -> None:
        """Queue a new ticket, or one that did not reach the engine: that keeps its place and is never refused.

        Raises QueueFull.
        """
        if ticket.state is State.NEW:
            if self.queued >= self.limits.max_queued:
                raise QueueFull
            ticket.sequence = next(self._sequence)
        elif ticket.state is State.RUNNING:
            self._running.remove(ticket)
        else:
            raise ValueError(f"a ticket that is {ticket.state.value} cannot be queued")
        ticket.state = State.QUEUED
        self._queued[ticket] = None
        self._watch(ticket)

    def next(self) -> Ticket | None:
        """The request to send now, which from here on counts as in flight; None while the gate is closed."""
        if self._engine_away_since_s is not None or self.in_flight >= self.limits.max_in_flight:
            return None
        while self._order:
            _, ticket = heapq.heappop(self._order)
            if ticket.state is State.QUEUED:
                del self._queued[ticket]
                ticket.state = State.RUNNING
                self._running.add(ticket)
                return ticket
        return None

    def finish(self, ticket: Ticket) -> None:
        """The request ended or its client left, wherever it was; a second call does nothing."""
        if ticket.state is State.RUNNING:
            self._running.remove(ticket)
        elif ticket.state is State.QUEUED:
            del self._queued[ticket]
        ticket.state = State.DONE
        if len(self._order) + len(self._arrivals) + len(self._deadlines) > 64 + 6 * len(self._queued):
            self._rebuild()

    def expire(self, now_s: float) -> list[tuple[Ticket, Late]]:
        """Take out, and return, what shall not wait any longer."""
        late = self._due(self._deadlines, now_s, Late.DEADLINE)
        if self._engine_away_since_s is not None and self._engine_away_since_s + ENGINE_WAIT_S <= now_s:
            late += self._due(self._arrivals, now_s, Late.ENGINE, after_s=ENGINE_WAIT_S)
        return late

    def next_expiry_s(self) -> float | None:
        """When `expire` will first have something to return; None: not before something changes."""
        deadline_s = _first_s(self._deadlines)
        times = [] if deadline_s is None else [deadline_s]
        arrival_s = _first_s(self._arrivals)
        if self._engine_away_since_s is not None and arrival_s is not None:
            times.append(max(self._engine_away_since_s, arrival_s) + ENGINE_WAIT_S)
        return min(times, default=None)

    def _due(self, alarms: Alarms, now_s: float, reason: Late, *, after_s: float = 0.0) -> list[tuple[Ticket, Late]]:
        due = []
        # The sum is formed as in `next_expiry_s`: rounded another way, the alarm would ring for nobody.
        while (first_s := _first_s(alarms)) is not None and first_s + after_s <= now_s:
            ticket = heapq.heappop(alarms)[-1]
            due.append((ticket, reason))
            self.finish(ticket)
        return due

    def _watch(self, ticket: Ticket) -> None:
        heapq.heappush(self._order, (self._key(ticket), ticket))
        heapq.heappush(self._arrivals, (ticket.arrival_s, ticket.sequence, ticket))
        if ticket.rejected_late:
            heapq.heappush(self._deadlines, (ticket.deadline_s, ticket.sequence, ticket))

    def _rebuild(self) -> None:
        for heap in (self._order, self._arrivals, self._deadlines):
            heap.clear()
        for ticket in self._queued:
            self._watch(ticket)


def _first_s(alarms: Alarms) -> float | None:
    """The first time among tickets that still wait; entries of others are dropped on the way."""
    while alarms and alarms[0][-1].state is not State.QUEUED:
        heapq.heappop(alarms)
    return alarms[0][0] if alarms else None
