"""The policy in front of the virtual engine: none, or the sidecar's scheduler."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from functools import cache
from itertools import pairwise
from typing import Protocol

from uellm.api.replica_load import ReplicaLoad
from uellm.evaluate.engine import Step
from uellm.evaluate.policies import ComparedPolicy, Priority
from uellm.evaluate.scenario import Job
from uellm.planner.cost.engine_file import EngineFile
from uellm.sidecar.prediction import LengthQuestion, OnlineLengths, Prediction
from uellm.sidecar.scheduling import EngineState, Lengths, Options, QueueFull, Scheduler, StepEstimate, Ticket


@dataclass(frozen=True, slots=True)
class EngineGauges:
    """The engine's metrics that the scheduler reads."""

    running: int = 0
    waiting: int = 0
    kv_used_share: float = 0.0
    preemptions: int = 0


@dataclass(frozen=True, slots=True)
class Reaction:
    """Requests to send now, each with its priority in the engine; refused requests; the time of the next `react`."""

    sent: list[tuple[Job, int]] = field(default_factory=list)
    refused: list[Job] = field(default_factory=list)
    again_s: float | None = None


class Front(Protocol):
    """Decides when a request enters the engine."""

    name: str
    polls: bool

    @property
    def queued(self) -> int:
        """Number of requests that are held back."""

    def submit(self, job: Job, now_s: float) -> bool:
        """A request arrives. False if it is refused."""

    def react(self, now_s: float) -> Reaction:
        """Decide what to do now."""

    def progress(self, step: Step) -> None:
        """A step ended."""

    def poll(self, gauges: EngineGauges, now_s: float) -> None:
        """The engine's gauges were read."""

    def load(self, now_s: float, known_prefixes: int) -> ReplicaLoad | None:
        """The report for the gateway. None: there is no sidecar to report."""

    def cost(self) -> tuple[float, int]:
        """CPU seconds spent so far, and number of decisions made."""


class DirectFront:
    """Sends every request to the engine at once."""

    polls = False
    queued = 0

    def __init__(self, policy: ComparedPolicy, priority: Priority) -> None:
        self.name = policy.name
        self._priority = priority
        self._arrived: list[tuple[Job, int]] = []

    def submit(self, job: Job, now_s: float) -> bool:
        """A request arrives and is sent at once."""
        self._arrived.append((job, self._priority(job, now_s)))
        return True

    def react(self, now_s: float) -> Reaction:
        """Send what arrived."""
        arrived, self._arrived = self._arrived, []
        return Reaction(arrived)

    def progress(self, step: Step) -> None:
        """Does nothing."""

    def poll(self, gauges: EngineGauges, now_s: float) -> None:
        """Does nothing."""

    def load(self, now_s: float, known_prefixes: int) -> ReplicaLoad | None:
        """The engine alone reports nothing."""
        return None

    def cost(self) -> tuple[float, int]:
        """It costs nothing."""
        return 0.0, 0


class Stopwatch:
    """CPU time of a piece of code, sampled every `EVERY` runs: reading the clock can cost more than the code."""

    EVERY = 8

    def __init__(self) -> None:
        self.calls = 0
        self._timed = 0
        self._timed_ns = 0
        self._start_ns = 0
        self._clock_ns = _clock_ns()

    def __enter__(self) -> None:
        if self.calls % self.EVERY == 0:
            self._start_ns = time.thread_time_ns()

    def __exit__(self, *_error: object) -> None:
        if self.calls % self.EVERY == 0:
            self._timed_ns += max(0, time.thread_time_ns() - self._start_ns - self._clock_ns)
            self._timed += 1
        self.calls += 1

    @property
    def spent_s(self) -> float:
        """CPU seconds of all runs."""
        return self._timed_ns / 1e9 * self.calls / self._timed if self._timed else 0.0


@cache
def _clock_ns() -> int:
    """The time that reading the clock adds to a measurement."""
    readings = [time.thread_time_ns() for _ in range(101)]
    return sorted(after - before for before, after in pairwise(readings))[50]


class SidecarFront:
    """The sidecar's scheduler with the inputs that the live sidecar would observe."""

    polls = True

    def __init__(
        self,
        options: Options,
        estimate: StepEstimate | None,
        engine: EngineFile,
        max_num_batched_tokens: int,
        online: OnlineLengths | None = None,
    ) -> None:
        self.name = options.policy
        self._core = Scheduler(options, estimate)
        self._engine = engine
        self._max_num_batched_tokens = max_num_batched_tokens
        self._tickets: dict[int, Ticket] = {}
        self._jobs: dict[Ticket, Job] = {}
        self._online = online
        self._predictions: dict[int, Prediction] = {}
        self._submitting, self._hearing, self._deciding = Stopwatch(), Stopwatch(), Stopwatch()

    @property
    def queued(self) -> int:
        """Requests that wait in the scheduler."""
        return self._core.queued

    def submit(self, job: Job, now_s: float) -> bool:
        """A request arrives. False if the queue is full."""
        ticket = Ticket(
            job.request_class.targets,
            now_s,
            prompt_tokens=job.prompt_tokens,
            lengths=self._lengths(job, now_s),
            tenant=job.client,
            prefix=job.blocks or None,
        )
        try:
            with self._submitting:
                self._core.submit(ticket, now_s)
        except QueueFull:
            return False
        self._tickets[job.index] = ticket
        self._jobs[ticket] = job
        return True

    def react(self, now_s: float) -> Reaction:
        """What the scheduler sends and refuses now."""
        core = self._core
        with self._deciding:
            late = core.expire(now_s)
            sent = core.dispatchable(now_s)
            again_s = core.next_event_s(now_s)
        refused = [self._forget(ticket) for ticket, _ in late]
        return Reaction([(self._jobs[ticket], 0) for ticket in sent], refused, again_s)

    def progress(self, step: Step) -> None:
        """Count the tokens of a step, as the live sidecar counts them by events."""
        core, tickets, end_s = self._core, self._tickets, step.end_s
        with self._hearing:
            for key in step.tokens:
                ticket = tickets[key]
                if ticket.first_token_s is None:
                    core.on_first_token(ticket, end_s)
                else:
                    core.on_tokens(ticket, ticket.tokens + 1, end_s)
            for key in step.finished:
                core.on_finish(tickets[key], end_s)
        for key in step.finished:
            job = self._forget(tickets[key])
            if self._online is not None:
                self._online.observe(self._predictions.pop(key), job.output_tokens)

    def poll(self, gauges: EngineGauges, now_s: float) -> None:
        """Notify the scheduler of the engine's state."""
        state = EngineState(
            ready=True,
            running=gauges.running,
            waiting=gauges.waiting,
            kv_used_share=gauges.kv_used_share,
            kv_tokens=self._engine.kv_tokens,
            block_tokens=self._engine.block_tokens,
            max_num_seqs=self._engine.max_num_seqs,
            max_num_batched_tokens=self._max_num_batched_tokens,
            preemptions=gauges.preemptions,
        )
        with self._hearing:
            self._core.on_engine_state(state, now_s)

    def load(self, now_s: float, known_prefixes: int) -> ReplicaLoad | None:
        """The scheduler's report."""
        return self._core.load(now_s, known_prefixes)

    def cost(self) -> tuple[float, int]:
        """CPU seconds in the scheduler's calls, and the number of times it was asked what to send."""
        watches = (self._submitting, self._hearing, self._deciding)
        return sum(watch.spent_s for watch in watches), self._deciding.calls

    def _lengths(self, job: Job, now_s: float) -> Lengths | None:
        """The length prediction: the live sidecar's predictor run on the trace, or the drawn one."""
        if self._online is None:
            return job.lengths
        question = LengthQuestion("/v1/chat/completions", job.client, 0, job.prompt_tokens, "")
        self._predictions[job.index] = self._online.predict(question, now_s)
        return self._predictions[job.index].lengths(None)

    def _forget(self, ticket: Ticket) -> Job:
        job = self._jobs.pop(ticket)
        del self._tickets[job.index]
        return job
