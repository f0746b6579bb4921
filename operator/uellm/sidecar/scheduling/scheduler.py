"""The scheduler: a queue in front of one engine, an order of the queue, and guards that decide when to send.

`submit` queues a request. `dispatchable` returns the requests to send now. `on_finish` or `on_abort` ends a request.

A request is sent when all of these allow it:

- the bound on requests in flight;
- the TPOT guard (`pacing`), which limits the rate of prompts so that running answers keep their pace;
- the gate (`gate`), which sends only enough prompts to fill the engine's next step;
- KV admission (`kv_admission`), which keeps the engine's cache from overflowing.

Requests that cannot run, and large ones that wait for room in the cache, take detours (`detours`).

The engine's own queue stays nearly empty, because the scheduler cannot reorder requests that the engine has already
taken. The policy (`policies`) decides which waiting request is next.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from itertools import count
from operator import attrgetter

from uellm.api.replica_load import ReplicaLoad
from uellm.sidecar.scheduling import kv_admission
from uellm.sidecar.scheduling.chances import first_token_deadline_s
from uellm.sidecar.scheduling.detours import Detours, cannot_run
from uellm.sidecar.scheduling.engineview import EngineView
from uellm.sidecar.scheduling.estimate import StepEstimate
from uellm.sidecar.scheduling.fairness import Fairness
from uellm.sidecar.scheduling.gate import Gate
from uellm.sidecar.scheduling.load import load_of
from uellm.sidecar.scheduling.order import Order
from uellm.sidecar.scheduling.pacing import Pacing
from uellm.sidecar.scheduling.policies import POLICIES
from uellm.sidecar.scheduling.prefixes import CachedPrefixes
from uellm.sidecar.scheduling.sloodbs import SloOdbs
from uellm.sidecar.scheduling.types import EngineState, Late, Lengths, Options, QueueFull, Shows, State, Ticket
from uellm.sidecar.scheduling.waiting import Waiting
from uellm.step_time import UNCORRECTED, StepFactors, StepTime

# By names of their own: to read an enum's member costs as much as a call.
_NEW, _QUEUED, _RUNNING, _DONE, _PROMPT = State.NEW, State.QUEUED, State.RUNNING, State.DONE, Shows.PROMPT

ENGINE_WAIT_S = 60.0
"""How long a request waits for an engine that is not ready. Clients commonly give up after 60 s."""


class Scheduler:
    """Which request goes to the engine next, and when.

    Invariants: `_queued` holds exactly the QUEUED tickets, and each is either in the order or takes a detour. The
    view's `running` holds exactly the RUNNING ones. A policy that raises is replaced by FCFS without guards, so that no
    request is lost.
    """

    def __init__(self, options: Options | None = None, step: StepEstimate | None = None) -> None:
        self.options = options or Options()
        self.step = step or StepEstimate()
        self.failure: Exception | None = None
        """The exception that the policy raised. From then on requests are sent in order of arrival."""
        self._view = EngineView(self.step)
        self._fairness = Fairness()
        self._gate = Gate(self._view)
        self._pacing = Pacing()
        self._prefixes = CachedPrefixes()
        self._queued = Waiting()
        self._detours = Detours()
        self._kv_use = 1.0
        """What part of the estimated tokens the engine's cache really holds."""
        self._sequence = count()
        self._away_since_s: float | None = None
        self._shed = 0
        self._make_order()

    @property
    def queued(self) -> int:
        """Requests in the queue."""
        return len(self._queued.tickets)

    @property
    def in_flight(self) -> int:
        """Requests that the engine has."""
        return len(self._view.running)

    @property
    def prefill_s(self) -> float:
        """Seconds that the prompts of the requests in flight take by the step estimate."""
        return self._view.unfilled_tokens / self._view.pace().rate

    @property
    def cached_share(self) -> float:
        """Of the prompt tokens of late, the share that the engine had in its prefix cache, 0 to 1."""
        return self._prefixes.found_share

    @property
    def wants_report(self) -> bool:
        """Whether the engine's next state should come soon, since nothing else shows its progress."""
        paced = self._view.unseen.alone and not self._pacing.open
        return bool(self._queued.tickets) and (paced or self._gate.wants_report)

    def queued_by_class(self) -> dict[str, int]:
        """Queued requests of each class that has any."""
        return dict(self._queued.by_class)

    def figures(self) -> dict[str, float]:
        """Values for the metrics by name, in seconds, tokens or requests, or as 1 and 0."""
        view, order = self._view, self._order
        demoted = order.demoted if isinstance(order, SloOdbs) else 0
        return {
            "queued_bytes": self._queued.bytes,
            "demoted": demoted,
            "gave_way": order.gave_way if isinstance(order, SloOdbs) else 0,
            "shed": self._shed,
            "failed_open": float(self.failure is not None),
            "unfilled_tokens": view.unfilled_tokens,
            "prefill_token_seconds": view.step.prefill_token_s,
            "decode_step_seconds": view.step.decode_s(view.kv_tokens, view.decoding),
            "token_gap_seconds": view.step.gap_s,
            "step_error_share": view.step.error_share,
            "prefill_factor": view.step.prefill_factor,
            "decode_factor": view.step.decode_factor,
            "request_seconds": view.step.request_s,
            "gate_speedup": self._gate.speedup,
            "length_share": view.length_share,
            "tokens_an_event": view.events.each,
            "pacing_multiplier": self._pacing.multiplier,
            "prefix_trust": self._prefixes.trust,
            "kv_use": self._kv_use,
        }

    def load(self, now_s: float, known_prefixes: int = 0) -> ReplicaLoad:
        """The load, for the gateway; `known_prefixes`: what its reader has of the prefixes already.

        The caller adds what it alone knows: whether it drains, and its own name before `incarnation`.
        """
        load = load_of(self._view, self._queued, self._prefixes.news(known_prefixes), now_s)
        return replace(load, incarnation=str(self._prefixes.cleared))

    def reset_step_model(self, model: StepTime, factors: StepFactors = UNCORRECTED) -> None:
        """Start to measure the engine's steps again from another model. The same model keeps what was learned.

        Call it before `reconfigure`, which rebuilds the order.
        """
        if (model, factors) != (self.step.model, self.step.initial_factors):
            self._view.reset_step_model(model, factors)

    def reconfigure(self, options: Options, now_s: float) -> None:
        """Change order, bounds and guards. Queued requests stay queued, even beyond the new bounds."""
        self.options = options
        self.failure = None
        self._make_order(now_s)

    def restart(self, options: Options, queued: Iterable[Ticket], running: Iterable[Ticket], now_s: float) -> None:
        """Rebuild the state from the queued and running tickets after a call raised.

        The measured step times are kept. The fairness counters and the known prefixes are lost.
        """
        self.options = options
        state, self._view = self._view.state, EngineView(self.step)
        self._view.on_engine_state(state, now_s)
        self._gate = Gate(self._view)
        self._detours, self._kv_use = Detours(), 1.0
        self._fairness, self._pacing, self._prefixes, self._queued = Fairness(), Pacing(), CachedPrefixes(), Waiting()
        for ticket in running:
            ticket.state = State.RUNNING
            self._fairness.arrived(ticket.tenant, now_s)
            self._view.adopt(ticket)
            self._charge(ticket, 1.0, now_s)
        for ticket in sorted(queued, key=attrgetter("sequence")):
            ticket.state = State.QUEUED
            self._fairness.arrived(ticket.tenant, now_s)
            self._queued.add(ticket)
        self._make_order(now_s)
        if self.failure is not None:
            self._fail_open(self.failure, now_s)

    def submit(self, ticket: Ticket, now_s: float) -> None:
        """Queue a new ticket, or again one that did not reach the engine.

        The latter keeps its place and is never refused. Raises QueueFull.
        """
        if ticket.state is _NEW:
            if not self._queued.has_room(ticket, self.options):
                raise QueueFull
            ticket.sequence = next(self._sequence)
            ticket.uncached_tokens = self._prefixes.uncached_tokens(ticket)
            ticket.deadline_s = first_token_deadline_s(ticket, self._view)
            self._fairness.arrived(ticket.tenant, now_s)
        elif ticket.state is _RUNNING:
            self._view.remove(ticket)
            self._charge(ticket, -1.0, now_s)
            ticket.dispatched_s, ticket.filled = None, False
            if (tokens := self._detours.runs_after_all(ticket)) is not None:
                ticket.prompt_tokens = ticket.uncached_tokens = tokens
        else:
            raise ValueError(f"a ticket that is {ticket.state.value} cannot be queued")
        ticket.state = _QUEUED
        self._queued.add(ticket)
        self._order_add(ticket, now_s)

    def dispatchable(self, now_s: float) -> list[Ticket]:
        """Return the requests to send now, in this order. They count as in flight from now on."""
        taken: list[Ticket] = []
        queued, view, prefixes = self._queued.tickets, self._view, self._prefixes
        if not queued or not view.state.ready:
            return taken
        if self.options.tpot_guard and self._guarded:
            self._pacing.refill(view, now_s)
        if self._detours.impossible and (ticket := self._detours.try_next(view.state)) is not None:
            self._send(ticket, now_s)
            taken.append(ticket)
        while self._open(now_s) and (ticket := self._next(now_s)) is not None:
            self._send(ticket, now_s)
            prefixes.record_dispatch(ticket, view.state.kv_tokens)
            taken.append(ticket)
        return taken

    def on_lengths(self, ticket: Ticket, lengths: Lengths, now_s: float) -> bool:
        """Take a better prediction. Returns whether it was in time: it counts only while the request is queued."""
        if ticket.state is not _QUEUED:
            return False
        ticket.lengths = lengths
        if ticket.detour:
            return True
        try:
            self._order.reposition(ticket, now_s)
        except Exception as error:
            self._fail_open(error, now_s)
        return True

    def on_prompt_tokens(self, ticket: Ticket, tokens: int) -> None:
        """Take the engine's count of a prompt for the estimate."""
        if ticket.state is _RUNNING:
            self._view.correct_prompt(ticket, tokens)

    def on_first_token(self, ticket: Ticket, now_s: float) -> None:
        """Record the first token of an answer."""
        if ticket.state is _RUNNING and ticket.first_token_s is None:
            if self._detours.trying and (tokens := self._detours.runs_after_all(ticket)) is not None:
                self._view.correct_prompt(ticket, tokens)
            ticket.first_token_s = now_s
            self._view.on_first_token(ticket, now_s)
            self._gate.on_first_token(ticket, waiting=bool(self._queued.tickets))
            self._view.on_tokens(ticket, max(ticket.tokens, 1), now_s)

    def on_events(self, ticket: Ticket, events: int, now_s: float) -> None:
        """Record how many events with tokens of a stream have come so far. Called for every piece of every stream."""
        tokens = events  # of an answer in batches the engine counts tokens
        if events > ticket.events and ticket.each_step and not ticket.batched:
            new, each = events - ticket.events, self._view.events.each
            ticket.counted += new * each if ticket.events else 1 + (new - 1) * each
            ticket.events = events
            tokens = round(ticket.counted)
        if tokens > ticket.tokens:
            if ticket.state is _RUNNING and ticket.first_token_s is not None:
                self._view.on_tokens(ticket, tokens, now_s)
            else:
                self.on_tokens(ticket, tokens, now_s)

    def on_tokens(self, ticket: Ticket, tokens_so_far: int, now_s: float) -> None:
        """Record how many tokens of an answer have come so far."""
        if ticket.state is _RUNNING and tokens_so_far > ticket.tokens:
            if ticket.first_token_s is None:
                self.on_first_token(ticket, now_s)
            if tokens_so_far > ticket.tokens:
                self._view.on_tokens(ticket, tokens_so_far, now_s)

    def on_finish(self, ticket: Ticket, now_s: float, tokens: int | None = None, events: int = 0) -> None:
        """End a completed request. A second call does nothing.

        `tokens` of its answer, if known, and in how many `events` they came, if it was a stream.
        """
        if ticket.state is _RUNNING:
            if ticket.first_token_s is None:
                self._end_unseen(ticket, now_s)
            if tokens is not None:
                self._count_at_the_end(ticket, tokens, events)
            predicted = ticket.promised_tokens
            if ticket.tokens and ticket.shows is not _PROMPT:
                self._view.answers.add(ticket.tokens, predicted)
            excess = ticket.tokens - predicted
            self._fairness.charge(ticket.tenant, 0.0, excess, now_s)
        self._end(ticket, now_s)

    def _end_unseen(self, ticket: Ticket, now_s: float) -> None:
        if ticket.shows is Shows.PROMPT:
            self.on_first_token(ticket, now_s)
        else:
            self._view.on_unseen_end(ticket, now_s)
            self._gate.on_unseen_end(ticket, waiting=bool(self._queued.tickets))

    def _count_at_the_end(self, ticket: Ticket, tokens: int, events: int) -> None:
        # What events did not show took no time. Where there were events, the engine has counted.
        self._view.count(ticket, tokens if events else max(tokens, ticket.tokens))
        if events and ticket.each_step and not ticket.batched:
            self._view.events.add(tokens, events)

    def on_abort(self, ticket: Ticket, now_s: float) -> None:
        """End a request whose client left or that the engine lost. A second call does nothing."""
        self._end(ticket, now_s)

    def on_engine_state(self, state: EngineState, now_s: float) -> None:
        """Take over the engine's state. The wait for an engine counts from when it stopped being ready."""
        if state.ready:
            if self._away_since_s is not None:
                self._view.on_restart()
                self._gate.on_restart()
                self._pacing.on_restart()
            self._away_since_s = None
        elif self._away_since_s is None:
            self._away_since_s = now_s
            self._prefixes.clear()
        if state.kv_used_share != self._view.state.kv_used_share:  # a new reading
            self._kv_use = kv_admission.use_of(state, self._view.kv_tokens)
        self._view.on_engine_state(state, now_s)
        self._gate.on_engine_state(state, now_s, waiting=bool(self._queued.tickets))
        self._prefixes.on_engine_state(state)

    def expire(self, now_s: float) -> list[tuple[Ticket, Late]]:
        """Remove and return the requests that must not wait any longer."""
        late: list[tuple[Ticket, Late]] = []
        deadlines = self._queued.deadlines
        while deadlines.entries and (ticket := deadlines.due(now_s)) is not None:
            late.append((ticket, Late.DEADLINE))
            self._end(ticket, now_s)
        if not self._view.state.ready:
            while (at_s := self._engine_due_s()) is not None and at_s <= now_s:
                ticket = self._queued.arrivals.due(at_s)
                assert ticket is not None
                late.append((ticket, Late.ENGINE))
                self._end(ticket, now_s)
        if self.options.shedding and isinstance(self._order, SloOdbs):
            late += [(ticket, Late.SHED) for ticket in self._shed_from(self._order, now_s)]
        return late

    def next_event_s(self, now_s: float) -> float | None:
        """When time alone may change the result of `expire` or `dispatchable`. None: only an event can."""
        if not self._queued.tickets:
            return None
        times = [self._queued.deadlines.first_s(), self._engine_due_s()]
        if self._guarded and self._view.state.ready:
            if self.options.tpot_guard:
                times.append(self._pacing.opens_s(self._view))
            if self.options.gate:
                times.append(self._gate.opens_s(now_s))
        return min((at_s for at_s in times if at_s is not None), default=None)

    def _make_order(self, now_s: float = 0.0) -> None:
        self._policy = POLICIES[self.options.policy]
        self._guarded = self._policy.guarded
        self._order: Order = self._policy.make(self._view, self.options, self._fairness)
        for ticket in self._queued:
            ticket.stamp = 0
            self._detours.discard(ticket)
            self._place(ticket, now_s)

    def _fail_open(self, error: Exception, now_s: float) -> None:
        self.failure = error
        self._policy = POLICIES["FCFS"]
        self._guarded = False
        self._order = self._policy.make(self._view, self.options, self._fairness)
        for ticket in self._queued:
            self._detours.discard(ticket)
            self._order.add(ticket, now_s)

    def _place(self, ticket: Ticket, now_s: float) -> None:
        """Give a waiting ticket its place: in the order, or with those that cannot run."""
        if self._guarded and cannot_run(ticket, self._view.state):
            self._detours.hold(ticket)
        else:
            self._order.add(ticket, now_s)

    def _next(self, now_s: float) -> Ticket | None:
        """The next ticket, if it fits into the cache. Others may pass a large one that does not."""
        detours = self._detours
        if detours.passed:
            for ticket in detours.returning(now_s):
                detours.discard(ticket)
                self._order_add(ticket, now_s)
            for ticket in detours.passed:
                if self._fits(ticket):
                    return ticket
        while (first := self._head(now_s)) is not None:
            if self._fits(first):
                return first
            if not detours.pass_by(first, self._view.state, now_s):
                return None
            self._order_remove(first, now_s)
        return None

    def _send(self, ticket: Ticket, now_s: float) -> None:
        self._dequeue(ticket, _RUNNING, now_s)
        self._view.on_dispatch(ticket, now_s)
        self._pacing.spend(ticket.uncached_tokens)
        self._fairness.charge(ticket.tenant, ticket.prompt_tokens, ticket.promised_tokens, now_s)
        ticket.dispatched_s = now_s

    def _head(self, now_s: float) -> Ticket | None:
        try:
            return self._order.head(now_s)
        except Exception as error:
            self._fail_open(error, now_s)
            return self._order.head(now_s)

    def _shed_from(self, order: SloOdbs, now_s: float) -> list[Ticket]:
        shed: list[Ticket] = []
        try:
            for ticket in order.shed(now_s):
                self._end(ticket, now_s)
                shed.append(ticket)
        except Exception as error:
            self._fail_open(error, now_s)
        self._shed += len(shed)
        return shed

    def _engine_due_s(self) -> float | None:
        """When the first queued request will have waited long enough for an engine that is not ready."""
        if self._view.state.ready:
            return None
        first_s = self._queued.arrivals.first_s()
        return None if first_s is None else max(self._away_since_s or 0.0, first_s) + ENGINE_WAIT_S

    def _open(self, now_s: float) -> bool:
        options = self.options
        self._gate.closed = False
        if self._policy.bounded and len(self._view.running) - self._detours.trying >= options.max_in_flight:
            return False
        if not self._guarded:
            return True
        if options.tpot_guard and not self._pacing.open:
            return False
        return not options.gate or self._gate.has_room(now_s)

    def _fits(self, ticket: Ticket) -> bool:
        return not (self._guarded and self.options.past_future) or kv_admission.fits(ticket, self._view, self._kv_use)

    def _charge(self, ticket: Ticket, times: float, now_s: float) -> None:
        """Charge for a ticket that is dispatched; with -1 `times`, give that back."""
        self._fairness.charge(ticket.tenant, times * ticket.prompt_tokens, times * ticket.promised_tokens, now_s)

    def _order_add(self, ticket: Ticket, now_s: float) -> None:
        try:
            self._place(ticket, now_s)
        except Exception as error:
            self._fail_open(error, now_s)

    def _dequeue(self, ticket: Ticket, state: State, now_s: float) -> None:
        ticket.state = state
        self._queued.remove(ticket)
        if ticket.detour:
            self._detours.discard(ticket)
        else:
            self._order_remove(ticket, now_s)

    def _order_remove(self, ticket: Ticket, now_s: float) -> None:
        try:
            self._order.remove(ticket, now_s)
        except Exception as error:
            self._fail_open(error, now_s)

    def _end(self, ticket: Ticket, now_s: float) -> None:
        if ticket.state is _RUNNING:
            self._fairness.left(ticket.tenant, now_s)
            self._view.remove(ticket)
            if self._detours.trying:
                self._detours.runs_after_all(ticket)
        elif ticket.state is _QUEUED:
            self._fairness.left(ticket.tenant, now_s)
            self._dequeue(ticket, State.DONE, now_s)
        ticket.state = _DONE
