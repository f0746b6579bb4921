"""Replays requests through one or more replicas: one loop over their steps and the events between them.

All replicas share one virtual clock. The loop takes the next thing that happens anywhere: the end of a step, or an
event. The end of a step comes before an event of the same time, and a step begins after all events of its time.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from uellm.evaluate.engine import Step
from uellm.evaluate.scenario import Job
from uellm.evaluate.station import Station


@dataclass(slots=True)
class Fate:
    """What happened to a request; times in seconds on the replay's clock, None: it did not happen."""

    arrival_s: float
    first_token_s: float | None = None
    end_s: float | None = None
    tokens: int = 0
    refused: bool = False


@dataclass(slots=True)
class ReplayResult:
    """A replay's result: the fates in the jobs' order, the engine's preemptions, and the sidecar's CPU time."""

    fates: list[Fate]
    preempted: int = 0
    scheduler_s: float = 0.0
    decisions: int = 0


class ReplayDoor(Protocol):
    """Decides which replica gets a request, and is told what becomes of it."""

    @property
    def stations(self) -> Sequence[Station]:
        """The replicas that are alive."""

    @property
    def gone(self) -> Sequence[Station]:
        """The replicas that have died."""

    def choose(self, job: Job, now_s: float) -> Station | None:
        """The replica for a request. None: no replica takes it."""

    def first_token(self, key: int, now_s: float) -> None:
        """The answer of request `key` has begun."""

    def ended(self, key: int, now_s: float) -> None:
        """The answer of request `key` is complete, or it was refused."""

    def next_event_s(self, arrival_s: float, station: Station | None = None) -> float:
        """Its next event, or the next one that concerns a station. `arrival_s`: the next arrival."""

    def happen(self, at_s: float, arrival_s: float) -> list[Job]:
        """Let the event of this time happen. Returns requests to send again."""


class OneDoor:
    """The door of a single replica."""

    gone: Sequence[Station] = ()

    def __init__(self, station: Station) -> None:
        self.stations: Sequence[Station] = (station,)

    def choose(self, job: Job, now_s: float) -> Station | None:
        """The only one."""
        return self.stations[0]

    def first_token(self, key: int, now_s: float) -> None:
        """Does nothing."""

    def ended(self, key: int, now_s: float) -> None:
        """Does nothing."""

    def next_event_s(self, arrival_s: float, station: Station | None = None) -> float:
        """It has no events."""
        return math.inf

    def happen(self, at_s: float, arrival_s: float) -> list[Job]:
        """Nothing happens."""
        return []


class Replay:
    """One replay; call `run` once."""

    def __init__(self, jobs: Sequence[Job], door: ReplayDoor, speed: float = 1.0) -> None:
        self.jobs = jobs
        self.door = door
        self.fates = [Fate(job.arrival_s / speed) for job in jobs]
        self._next_job = 0

    def run(self) -> ReplayResult:
        """Replay until every request has ended or was refused. Raises CannotBeDone where a policy stops sending."""
        now_s = 0.0
        for station in self.door.stations:
            self._react(station, now_s)
        while True:
            arrival_s = self._arrival_s
            event_s = self._next_event_s(arrival_s)
            ends_s = min((station.ends_s for station in self.door.stations), default=math.inf)
            if min(event_s, ends_s) > now_s:
                if self._start_steps(now_s, arrival_s):
                    continue
                if arrival_s == math.inf and not any(station.has_work for station in self.door.stations):
                    break
            now_s = max(now_s, min(event_s, ends_s))
            if ends_s <= event_s:
                self._end_step(next(station for station in self.door.stations if station.ends_s == ends_s))
            else:
                self._happen(now_s, arrival_s)
        everyone = [*self.door.gone, *self.door.stations]
        costs = [station.front.cost() for station in everyone]
        preempted = sum(station.engine.preemptions for station in everyone)
        return ReplayResult(self.fates, preempted, sum(cost for cost, _ in costs), sum(count for _, count in costs))

    @property
    def _arrival_s(self) -> float:
        return self.fates[self._next_job].arrival_s if self._next_job < len(self.jobs) else math.inf

    def _next_event_s(self, arrival_s: float) -> float:
        event_s = min(arrival_s, self.door.next_event_s(arrival_s))
        for station in self.door.stations:
            event_s = min(event_s, station.next_event_s(arrival_s))
        return event_s

    def _start_steps(self, now_s: float, arrival_s: float) -> bool:
        """Let every engine that has work and runs no step begin one. Returns whether any did."""
        started = False
        for station in self.door.stations:
            if station.ends_s < math.inf or not station.engine.busy:
                continue
            until_s = min(arrival_s, self.door.next_event_s(arrival_s, station), station.next_event_s(arrival_s))
            leapt = station.start(now_s, until_s)
            for step in leapt:
                self._deliver(station, step)
            if leapt:
                station.gauge()
            started = True
        return started

    def _end_step(self, station: Station) -> None:
        step = station.end()
        if step is not None:
            self._deliver(station, step)
            station.gauge()
            self._react(station, step.end_s)

    def _happen(self, at_s: float, arrival_s: float) -> None:
        """Let one event of this time happen: a request enters an engine, a poll, the door's, an arrival, or a timer."""
        stations = self.door.stations
        if any(station.enter_due(at_s) for station in stations):
            return
        polled = next((station for station in stations if station.poll_due(at_s, arrival_s)), None)
        if polled is not None:
            self._react(polled, at_s)
        elif self.door.next_event_s(arrival_s) <= at_s:
            for job in self.door.happen(at_s, arrival_s):
                self._submit(job, at_s)
        elif arrival_s <= at_s:
            job = self.jobs[self._next_job]
            self._next_job += 1
            self._submit(job, at_s)
        else:
            for station in stations:
                if station.timer_due(at_s):
                    self._react(station, at_s)

    def _submit(self, job: Job, now_s: float) -> None:
        station = self.door.choose(job, now_s)
        if station is None or not station.submit(job, now_s):
            self._refuse(job, now_s)
        if station is not None:
            self._react(station, now_s)

    def _refuse(self, job: Job, now_s: float) -> None:
        self.fates[job.index].refused = True
        self.door.ended(job.index, now_s)

    def _react(self, station: Station, now_s: float) -> None:
        for job in station.react(now_s):
            self._refuse(job, now_s)

    def _deliver(self, station: Station, step: Step) -> None:
        fates, end_s = self.fates, step.end_s
        for key in step.tokens:
            fate = fates[key]
            fate.tokens += 1
            if fate.first_token_s is None:
                fate.first_token_s = end_s
                self.door.first_token(key, end_s)
        for key in step.finished:
            fates[key].end_s = end_s
            self.door.ended(key, end_s)
        station.front.progress(step)
