"""Runs the scheduler on the event loop's clock, and lets coroutines wait for their turn."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from time import perf_counter

from uellm.api.replica_load import ReplicaLoad
from uellm.proxying.faults import Faults
from uellm.proxying.metrics import DECISION_SECONDS_BUCKETS, Histogram
from uellm.proxying.outcome import Refusal
from uellm.sidecar.request.refusals import Refusals, engine_away, queue_full, too_late
from uellm.sidecar.scheduling import (
    EngineState,
    Lengths,
    MeasuredSteps,
    Options,
    QueueFull,
    Scheduler,
    State,
    StepEstimate,
    Targets,
    Ticket,
)
from uellm.step_time import UNCORRECTED, StepFactors, StepTime

MAX_TOKEN_UPDATES = 1000
"""Most token updates that wait for the scheduler: 100 ms of a busy engine, and 0.5 ms of work."""

NEXT_ROUND_S = 0.01
"""Delay before the next round of decisions after one failed."""

PAUSE_S = 5.0
"""After a second scheduler fault within this time, the scheduler is paused for as long."""

LEAST_MEASURED = 200
"""Steps before the measured time of one is told: the first ones of an engine are slow."""


class Dispatcher:
    """One queue in front of one engine. Every wait ends: the turn is granted or refused, or the waiter is cancelled.

    An exception of the scheduler never reaches a request. The dispatcher keeps its own list of requests and rebuilds
    the scheduler's state from it. If the scheduler fails again, it is paused: requests then go to the engine as they
    come, and the scheduler does not know of them.
    """

    def __init__(
        self,
        options: Options,
        model: StepTime | None = None,
        faults: Faults | None = None,
        factors: StepFactors = UNCORRECTED,
    ) -> None:
        """Create it on the event loop that it runs on. `model`, `factors`: step times until they are measured."""
        self.loop = asyncio.get_running_loop()
        self._time = self.loop.time
        """Now, on the loop's clock."""
        self.faults = faults or Faults()
        self._options, self._model, self._factors = options, model, factors
        self._scheduler = Scheduler(options, StepEstimate(model, factors))
        self._state: EngineState | None = None
        self.token_updates: list[tuple[Ticket, int, float]] = []
        """Progress of answers: ticket, events so far (tokens where they come in batches), and when. Each event of each
        stream adds an entry. The scheduler takes all of them, in order, before it does anything else. Its decisions are
        the same as without delay."""
        self._tickets: dict[Ticket, None] = {}
        """Requests that the scheduler knows, waiting or in flight."""
        self._unscheduled: dict[Ticket, None] = {}
        """Requests in flight that the scheduler does not know."""
        self._waiting: dict[Ticket, asyncio.Future[None] | None] = {}
        """Requests without a decision; None until it is known that one must be waited for, which is seldom so."""
        self._refused: dict[Ticket, Refusal] = {}
        """Refusals that came before that."""
        self._waited = False
        """Whether requests were waiting at the last round of decisions."""
        self._refusals = Refusals(self.faults)
        self._alarm: asyncio.TimerHandle | None = None
        self._recovered_s = -PAUSE_S
        self._pause: asyncio.TimerHandle | None = None
        self.seconds = Histogram(
            "uellm_scheduler_decision_seconds", "Time of one round of decisions.", buckets=DECISION_SECONDS_BUCKETS
        )

    def catch_up(self) -> None:
        """Pass the token updates to the scheduler. It wakes no waiter."""
        if not self.token_updates:
            return
        updates = self.token_updates.copy()
        self.token_updates.clear()
        scheduler = self._scheduler  # another one follows only with a pause
        for ticket, events, now_s in updates:
            if self._pause is not None:
                break
            try:
                scheduler.on_events(ticket, events, now_s)
            except Exception as error:
                self._recover(error)

    @property
    def _core(self) -> Scheduler:
        """The scheduler, after it has taken all token updates."""
        if self.token_updates:
            self.catch_up()
        return self._scheduler

    @property
    def queued(self) -> int:
        """Requests in the queue."""
        return self._core.queued

    @property
    def in_flight(self) -> int:
        """Requests that the engine has."""
        return self._core.in_flight + len(self._unscheduled)

    @property
    def prefill_s(self) -> float:
        """Seconds that the prompts at the engine take by the step estimate; 0 if the scheduler fails."""
        found: list[float] = []
        self._call_core(lambda core: found.append(core.prefill_s))
        return found[0] if found else 0.0

    @property
    def wants_report(self) -> bool:
        """Whether the engine's next state should come soon."""
        return self._scheduler.wants_report

    def queued_by_class(self) -> dict[str, int]:
        """Queued requests of each class that has any."""
        return self._core.queued_by_class()

    def reconfigure(self, options: Options, model: StepTime | None = None, factors: StepFactors = UNCORRECTED) -> None:
        """Take over a changed configuration. Measured step times are kept unless the model changed."""
        self._options = options
        if model is not None:
            self._model, self._factors = model, factors

        def change(core: Scheduler) -> None:
            if model is not None:
                core.reset_step_model(model, factors)
            core.reconfigure(options, self._time())

        self._call_core(change)
        self._pump()

    def figures(self) -> dict[str, float]:
        """The scheduler's values for the metrics."""
        found: dict[str, float] = {}
        self._call_core(lambda core: found.update(core.figures()))
        return found or {"failed_open": 1.0}

    def load(self, known_prefixes: int) -> ReplicaLoad:
        """The load, with the prefixes after the first `known_prefixes`; nothing but that if the scheduler fails."""
        found: list[ReplicaLoad] = []
        self._call_core(lambda core: found.append(core.load(self._time(), known_prefixes)))
        return found[0] if found else ReplicaLoad()

    def measured_steps(self) -> MeasuredSteps:
        """The engine's steps beside what was expected of them."""
        return self._scheduler.step.measured

    def measured_step(self) -> StepTime | None:
        """The time of a step as the scheduler takes it now; None before enough were measured."""
        step = self._scheduler.step
        return step.current.rounded() if step.measured.observed >= LEAST_MEASURED else None

    def cached_share(self) -> float:
        """Of the prompt tokens of late, the share that the engine had in its prefix cache."""
        return self._core.cached_share

    def on_engine_state(self, state: EngineState) -> None:
        """Take over the engine's state and metrics."""
        self._state = state
        self._call_core(lambda core: core.on_engine_state(state, self._time()))
        self._pump()

    async def turn(self, ticket: Ticket) -> None:
        """Wait until the request may be sent. Raises Refusal. The caller always calls `finish` or `abort` afterwards.

        A ticket that had a turn, but of which nothing reached the engine, waits for another turn.
        """
        if ticket in self._unscheduled:
            del self._unscheduled[ticket]
            ticket.state = State.NEW
            if self._pause is not None:
                raise engine_away()
        if self._pause is not None or not self._submitted(ticket):
            self._bypass(ticket)
            return
        self._waiting[ticket] = None
        self._pump()
        if ticket in self._waiting:
            await self._decided(ticket)
        elif self._refused and (refusal := self._refused.pop(ticket, None)) is not None:
            raise refusal

    async def _decided(self, ticket: Ticket) -> None:
        """Wait for the turn of a request that did not get it at once. Raises Refusal."""
        waiter = self._waiting[ticket] = self.loop.create_future()
        try:
            await waiter
        finally:
            self._waiting.pop(ticket, None)

    def update_lengths(self, ticket: Ticket, lengths: Lengths) -> bool:
        """Take a better prediction. Returns whether it was in time. It frees no place, so it wakes no waiter."""
        try:
            return self._core.on_lengths(ticket, lengths, self._time())
        except Exception as error:
            self._recover(error)
            return False

    def first_token(self, ticket: Ticket) -> None:
        """Record the first token of an answer."""
        if self.token_updates:
            self.catch_up()
        if self._pause is None:
            try:
                self._scheduler.on_first_token(ticket, self._time())
            except Exception as error:
                self._recover(error)
        self._pump()

    def count_prompt(self, ticket: Ticket, tokens: int) -> None:
        """Take the engine's count of a prompt."""
        core = self._core
        if self._pause is None:
            try:
                core.on_prompt_tokens(ticket, tokens)
            except Exception as error:
                self._recover(error)

    def finish(self, ticket: Ticket, tokens: int | None = None, events: int = 0) -> None:
        """Free the place of a completed request. A second call does nothing.

        `tokens` of its answer, if known, and in how many `events` they came, if it was a stream.
        """
        core = self._ended(ticket)
        if self._pause is None:
            try:
                core.on_finish(ticket, self._time(), tokens, events)
            except Exception as error:
                self._recover(error)
        self._pump()

    def abort(self, ticket: Ticket) -> None:
        """Free the place of a request that ended in any other way. A second call does nothing."""
        self._ended(ticket)
        self._call_core(lambda core: core.on_abort(ticket, self._time()))
        self._pump()

    def retry_s(self, targets: Targets) -> float:
        """Seconds after which a request of these targets that is refused now should come back."""
        by_class = self._options.policy == "SLO-ODBS"
        return self._refusals.retry_s(targets, self.queued_by_class(), self._time(), by_class=by_class)

    def close(self) -> None:
        """Cancel the timers."""
        self._stop_alarm()
        if self._pause is not None:
            self._pause.cancel()

    def _submitted(self, ticket: Ticket) -> bool:
        """Submit a ticket. Returns whether the scheduler took it. Raises Refusal."""
        self._refusals.record_priority(ticket.targets)
        try:
            if self.token_updates:
                self.catch_up()
            self._scheduler.submit(ticket, self._time())
        except QueueFull:
            raise queue_full(self.queued, self.retry_s(ticket.targets)) from None
        except Exception as error:
            self._tickets.pop(ticket, None)
            self._recover(error)
            return False
        self._tickets[ticket] = None
        return True

    def _ended(self, ticket: Ticket) -> Scheduler:
        """Forget a request that has ended. Returns the scheduler, which is still to be told.

        The end of a request measures the engine's capacity only while others wait.
        """
        if self.token_updates:
            self.catch_up()
        core = self._scheduler
        self._tickets.pop(ticket, None)
        if self._unscheduled:
            self._unscheduled.pop(ticket, None)
        if self._waited and ticket.state is State.RUNNING:
            self._refusals.record_completion(ticket, core.in_flight, self._time())
        return core

    def _pump(self) -> None:
        """A round of decisions. Nearly always nothing waits, nor did before: then there is none to make."""
        if self.token_updates:
            self.catch_up()
        core = self._scheduler
        queued = core.queued
        if not queued and not self._waited:
            return
        now_s = self._time()
        if not (queued and self._waited):
            self._waited = queued > 0
            self._refusals.set_waiting(queued, now_s)
        if not queued:
            self._stop_alarm()
            return
        started_s = perf_counter()
        try:
            late, granted = core.expire(now_s), core.dispatchable(now_s)
        except Exception as error:
            self._recover(error)
            self._set_alarm(now_s + NEXT_ROUND_S)
            return
        try:
            self.seconds.observe(perf_counter() - started_s)
        except Exception as error:
            self.faults.count("metrics", error)
        for ticket, reason in late:
            self._tickets.pop(ticket, None)
            self._settle(ticket, too_late(reason, partial(self.retry_s, ticket.targets)))
        for ticket in granted:
            self._settle(ticket, None)
        if core.queued:
            self._look_later(core, now_s)
        else:
            self._stop_alarm()

    def _settle(self, ticket: Ticket, refusal: Refusal | None) -> None:
        if ticket not in self._waiting:
            return  # its client has just left, and its handler will call `abort`
        waiter = self._waiting.pop(ticket)
        if waiter is None:
            if refusal is not None:
                self._refused[ticket] = refusal
        elif waiter.done():
            return  # as above
        elif refusal is None:
            waiter.set_result(None)
        else:
            waiter.set_exception(refusal)

    def _look_later(self, core: Scheduler, now_s: float) -> None:
        try:
            at_s = core.next_event_s(now_s)
        except Exception as error:
            self._recover(error)
            at_s = now_s + NEXT_ROUND_S
        self._set_alarm(at_s)

    def _set_alarm(self, at_s: float | None) -> None:
        self._stop_alarm()
        if at_s is not None:
            self._alarm = self.loop.call_at(at_s, self._pump)

    def _stop_alarm(self) -> None:
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None

    # Faults of the scheduler.

    def _call_core(self, call: Callable[[Scheduler], None]) -> None:
        """Call the scheduler, after it has taken all token updates, unless it is paused.

        What every request calls has these lines itself, because a closure and two more calls cost as much as the work.
        """
        core = self._core
        if self._pause is not None:
            return
        try:
            call(core)
        except Exception as error:
            self._recover(error)

    def _recover(self, error: Exception) -> None:
        """Rebuild the scheduler's state. Pause it if it failed recently, or if rebuilding fails."""
        self.faults.count("scheduler", error)
        now_s = self._time()
        if self._pause is not None:
            return
        pauses, self._recovered_s = now_s - self._recovered_s < PAUSE_S, now_s
        try:
            if not pauses:
                self._restart(now_s)
        except Exception as second:
            self.faults.count("scheduler", second)
            pauses = True
        if pauses:
            self._begin_pause()

    def _restart(self, now_s: float) -> None:
        core, running = self._scheduler, [ticket for ticket in self._tickets if ticket not in self._waiting]
        core.restart(self._options, self._waiting, running, now_s)
        if self._state is not None:
            core.on_engine_state(self._state, now_s)

    def _begin_pause(self) -> None:
        self._stop_alarm()
        self._pause = self.loop.call_later(PAUSE_S, self._end_pause)
        self._scheduler = Scheduler(self._options, StepEstimate(self._model, self._factors))
        for ticket in self._tickets:
            self._bypass(ticket)
            self._settle(ticket, None)
        self._tickets.clear()

    def _end_pause(self) -> None:
        self._pause = None
        if (state := self._state) is not None:
            self._call_core(lambda core: core.on_engine_state(state, self._time()))

    def _bypass(self, ticket: Ticket) -> None:
        """Send a request past the scheduler, which ignores tickets that are DONE."""
        ticket.state, ticket.detour = State.DONE, False
        self._unscheduled[ticket] = None
