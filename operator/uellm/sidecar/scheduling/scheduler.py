"""The queue, the gate and their figures.

A request is queued by `submit`, handed out by `dispatchable` while the gate is open, and ended by `on_finish` or
`on_abort`. The gate keeps the engine's own queue near empty, for an order that the engine has already taken cannot be
changed any more.
"""

from __future__ import annotations

from itertools import count

from uellm.sidecar.scheduling.alarms import Alarms
from uellm.sidecar.scheduling.estimate import StepEstimate
from uellm.sidecar.scheduling.order import POLICIES
from uellm.sidecar.scheduling.types import (
    FAR_DEADLINE_S,
    EngineState,
    Late,
    Options,
    QueueFull,
    State,
    Ticket,
)

ENGINE_WAIT_S = 60.0
"""How long a request waits for an engine that is away. Clients' own limits are commonly 60 s."""


class Scheduler:
    """Which request goes to the engine next.

    Invariants: a ticket is in `_queued` exactly while QUEUED and in `_running` exactly while RUNNING; every QUEUED
    ticket is in the order and in the alarms that apply to it.
    """

    def __init__(self, options: Options | None = None, step: StepEstimate | None = None) -> None:
        self.options = options or Options()
        self.step = step or StepEstimate()
        self._order = POLICIES[self.options.policy]()
        self._deadlines = Alarms()
        self._engine_waits = Alarms()
        self._queued: dict[Ticket, None] = {}
        self._running: dict[Ticket, None] = {}
        self._queued_bytes = 0
        self._sequence = count()
        self._engine = EngineState(ready=False)
        self._away_since_s: float | None = None

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

    def figures(self) -> dict[str, float]:
        """Figures for the metrics, by name."""
        return {"queued_bytes": self._queued_bytes}

    def reconfigure(self, options: Options, now_s: float = 0.0) -> None:
        """Change order, bounds and guards; what is queued stays queued, whatever the new bounds are."""
        self.options = options
        self._order = POLICIES[options.policy]()
        for ticket in self._queued:
            self._order.add(ticket, now_s)

    def submit(self, ticket: Ticket, now_s: float) -> None:
        """Queue a new ticket, or one that did not reach the engine: that keeps its place and is never refused.

        Raises QueueFull.
        """
        if ticket.state is State.NEW:
            if self._full(ticket):
                raise QueueFull
            ticket.sequence = next(self._sequence)
            ticket.deadline_s = self._deadline_s(ticket)
        elif ticket.state is State.RUNNING:
            del self._running[ticket]
        else:
            raise ValueError(f"a ticket that is {ticket.state.value} cannot be queued")
        ticket.state = State.QUEUED
        self._queued[ticket] = None
        self._queued_bytes += ticket.body_bytes
        self._order.add(ticket, now_s)
        self._engine_waits.add(ticket.arrival_s, ticket)
        if ticket.reject_s is not None:
            self._deadlines.add(ticket.reject_s, ticket)

    def dispatchable(self, now_s: float) -> list[Ticket]:
        """The requests to send now, in this order; from here on they count as in flight."""
        taken = []
        while self._open() and (ticket := self._order.head(now_s)) is not None:
            self._dequeue(ticket, State.RUNNING, now_s)
            self._running[ticket] = None
            ticket.dispatched_s = now_s
            taken.append(ticket)
        return taken

    def on_first_token(self, ticket: Ticket, now_s: float) -> None:
        """The first token of its answer came."""
        if ticket.state is State.RUNNING and ticket.first_token_s is None:
            ticket.first_token_s = ticket.last_token_s = now_s
            ticket.tokens = max(ticket.tokens, 1)

    def on_tokens(self, ticket: Ticket, tokens_so_far: int, now_s: float) -> None:
        """So many tokens of its answer have come by now."""
        if ticket.state is State.RUNNING:
            ticket.tokens = tokens_so_far
            ticket.last_token_s = now_s

    def on_finish(self, ticket: Ticket, now_s: float, tokens: int | None = None) -> None:
        """The request ended, with so many tokens if that is known; a second call does nothing."""
        if tokens is not None:
            ticket.tokens = tokens
        self._end(ticket, now_s)

    def on_abort(self, ticket: Ticket, now_s: float) -> None:
        """Its client left or the engine lost it, wherever it was; a second call does nothing."""
        self._end(ticket, now_s)

    def on_engine_state(self, state: EngineState, now_s: float) -> None:
        """Open or close the gate. The wait for an engine counts from when it went away."""
        if state.ready:
            self._away_since_s = None
        elif self._away_since_s is None:
            self._away_since_s = now_s
        self._engine = state

    def expire(self, now_s: float) -> list[tuple[Ticket, Late]]:
        """Take out, and return, what shall not wait any longer."""
        late = []
        while (ticket := self._deadlines.due(now_s)) is not None:
            self._end(ticket, now_s)
            late.append((ticket, Late.DEADLINE))
        while (at_s := self._engine_due_s()) is not None and at_s <= now_s:
            ticket = self._engine_waits.due(at_s)
            assert ticket is not None
            self._end(ticket, now_s)
            late.append((ticket, Late.ENGINE))
        return late

    def next_event_s(self, now_s: float) -> float | None:
        """When `expire` or `dispatchable` will first have news by time alone; None: not before something changes."""
        times = (self._deadlines.first_s(), self._engine_due_s())
        return min((at_s for at_s in times if at_s is not None), default=None)

    def _engine_due_s(self) -> float | None:
        """When the first waiter will have waited long enough for an engine that is away."""
        if self._engine.ready:
            return None
        first_s = self._engine_waits.first_s()
        return None if first_s is None else max(self._away_since_s or 0.0, first_s) + ENGINE_WAIT_S

    def _open(self) -> bool:
        return self._engine.ready and self.in_flight < self.options.max_in_flight

    def _full(self, ticket: Ticket) -> bool:
        options = self.options
        if self.queued >= options.max_queued:
            return True
        return self.queued > 0 and self._queued_bytes + ticket.body_bytes > options.max_queued_bytes

    def _deadline_s(self, ticket: Ticket) -> float:
        first_s = ticket.targets.ttft_s or ticket.targets.e2e_s or FAR_DEADLINE_S
        return ticket.arrival_s + first_s

    def _end(self, ticket: Ticket, now_s: float) -> None:
        if ticket.state is State.RUNNING:
            del self._running[ticket]
            ticket.state = State.DONE
        elif ticket.state is State.QUEUED:
            self._dequeue(ticket, State.DONE, now_s)
        else:
            ticket.state = State.DONE

    def _dequeue(self, ticket: Ticket, state: State, now_s: float) -> None:
        del self._queued[ticket]
        self._queued_bytes -= ticket.body_bytes
        ticket.state = state
        self._order.remove(ticket, now_s)
        self._deadlines.compact(self.queued)
        self._engine_waits.compact(self.queued)
