"""The gateway of a replay: the router, the reports that reach it, and replicas that join and die."""

from __future__ import annotations

import heapq
import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from itertools import count

from uellm.api.replica_load import ReplicaLoad, WaitingLoad
from uellm.evaluate.scenario import Job
from uellm.evaluate.station import Station
from uellm.routing import RoutedRequest, Router
from uellm.routing.request import UNKNOWN_OUTPUT_TOKENS

REPORT_S = 0.2
"""Interval of a replica's reports."""

DISCOVERY_S = 2.0
"""How long a dead replica still counts as one, as the endpoints of a Service lag behind. Connections to it fail."""

MOST_TRIES = 3
"""How often a request is sent at most."""


@dataclass(frozen=True, slots=True)
class SimulatedFleet:
    """The replicas, numbered from 0, and what happens to them.

    `speeds`: of the first ones, as a multiple of the engine file's; the others have 1. `kills`, `silences`: replica and
    time in seconds from which it is dead, or sends no more reports. `joins`: times at which one more replica starts.
    `lying`: replicas that report no load at all.
    """

    replicas: int
    speeds: tuple[float, ...] = ()
    kills: tuple[tuple[int, float], ...] = ()
    joins: tuple[float, ...] = ()
    silences: tuple[tuple[int, float], ...] = ()
    lying: frozenset[int] = frozenset()

    @property
    def in_all(self) -> int:
        """Replicas that are there at any time."""
        return self.replicas + len(self.joins)

    def speed(self, index: int) -> float:
        """The speed of a replica."""
        return self.speeds[index] if index < len(self.speeds) else 1.0


def replica_name(index: int) -> str:
    """The name of a replica. Names are in the order of the numbers."""
    return f"replica-{index:03d}"


@dataclass(slots=True)
class _Sent:
    job: Job
    request: RoutedRequest
    tried: list[str]
    began: bool = False


class FleetDoor:
    """A `ReplayDoor` that asks the router. `make` makes the replica with a number."""

    def __init__(self, fleet: SimulatedFleet, router: Router, make: Callable[[int], Station]) -> None:
        self.stations: list[Station] = []
        self.gone: list[Station] = []
        self.retried = 0
        self.by_replica: Counter[str] = Counter()
        """Requests that each replica got, retries included."""
        self._fleet = fleet
        self._router = router
        self._make = make
        self._sent: dict[int, _Sent] = {}
        self._agenda: list[tuple[float, int, Callable[[float], list[Job]]]] = []
        self._planned = count()
        self._reports: list[tuple[float, str]] = []
        self._report_s: dict[str, float] = {}
        self._silent_s = {replica_name(index): at_s for index, at_s in fleet.silences}
        self._lying = {replica_name(index) for index in fleet.lying}
        self._by_name: dict[str, Station] = {}
        for index in range(fleet.replicas):
            self._start(index, 0.0)
        for number, at_s in enumerate(fleet.joins):
            self._plan(at_s, partial(self._start, fleet.replicas + number))
        for index, at_s in fleet.kills:
            self._plan(at_s, partial(self._kill, replica_name(index)))

    def choose(self, job: Job, now_s: float) -> Station | None:
        """The router's choice. A connection to a dead replica fails at once, and another one is tried."""
        sent = self._sent.get(job.index)
        if sent is None:
            sent = self._sent[job.index] = _Sent(job, routed(job, now_s), [])
        while len(sent.tried) < MOST_TRIES:
            name = self._router.choose(sent.request, now_s, sent.tried)
            if name is None:
                return None
            sent.tried.append(name)
            self._router.sent(name, sent.request, now_s)
            if name in self._by_name:
                self.by_replica[name] += 1
                return self._by_name[name]
            self._router.ended(name, sent.request, now_s, failed=True)
        return None

    def first_token(self, key: int, now_s: float) -> None:
        """Tell the router."""
        sent = self._sent[key]
        sent.began = True
        self._router.first_token(sent.tried[-1], sent.request, now_s)

    def ended(self, key: int, now_s: float) -> None:
        """Tell the router."""
        sent = self._sent.pop(key)
        if sent.tried:
            self._router.ended(sent.tried[-1], sent.request, now_s)

    def next_event_s(self, arrival_s: float, station: Station | None = None) -> float:
        """The next death or start, or the next report: of the station, or of any."""
        agenda_s = self._agenda[0][0] if self._agenda else math.inf
        if station is not None:
            return min(agenda_s, self._report_s.get(station.name, math.inf))
        return min(agenda_s, self._reports[0][0] if self._reports else math.inf)

    def happen(self, at_s: float, arrival_s: float) -> list[Job]:
        """Start or kill a replica, or take a report."""
        if self._agenda and self._agenda[0][0] <= at_s:
            return heapq.heappop(self._agenda)[-1](at_s)
        _, name = heapq.heappop(self._reports)
        station = self._by_name.get(name)
        if station is None or at_s >= self._silent_s.get(name, math.inf):
            self._report_s.pop(name, None)
            return []
        load = station.front.load(at_s, self._router.known_prefixes(name))
        if load is None:
            self._report_s.pop(name, None)
            return []
        self._router.report(name, _idle(load) if name in self._lying else load, at_s)
        next_s = at_s + REPORT_S
        if not station.has_work and arrival_s < math.inf:
            # An idle replica has nothing new to report before the next arrival.
            next_s = max(next_s, arrival_s)
        self._next_report(name, next_s)
        return []

    def _plan(self, at_s: float, what: Callable[[float], list[Job]]) -> None:
        heapq.heappush(self._agenda, (at_s, next(self._planned), what))

    def _next_report(self, name: str, at_s: float) -> None:
        self._report_s[name] = at_s
        heapq.heappush(self._reports, (at_s, name))

    def _start(self, index: int, now_s: float) -> list[Job]:
        station = self._make(index)
        self.stations.append(station)
        self._by_name[station.name] = station
        self._router.add(station.name, now_s)
        # Replicas report at different times, as they start at different times.
        self._next_report(station.name, now_s + REPORT_S * index / self._fleet.in_all)
        return []

    def _kill(self, name: str, now_s: float) -> list[Job]:
        """A replica dies. Its requests without a first token are sent again; the others are lost."""
        station = self._by_name.pop(name, None)
        if station is None:
            return []
        self.stations.remove(station)
        self.gone.append(station)
        again = []
        for key, sent in list(self._sent.items()):
            if sent.tried[-1] != name:
                continue
            self._router.ended(name, sent.request, now_s, failed=True)
            if sent.began:
                del self._sent[key]
            else:
                again.append(sent.job)
        self.retried += len(again)
        self._plan(now_s + DISCOVERY_S, partial(self._forget, name))
        return again

    def _forget(self, name: str, now_s: float) -> list[Job]:
        self._router.remove(name, now_s)
        return []


def routed(job: Job, now_s: float) -> RoutedRequest:
    """What the gateway knows of a request."""
    targets = job.request_class.targets
    return RoutedRequest(
        arrival_s=now_s,
        prompt_tokens=job.prompt_tokens,
        output_tokens=UNKNOWN_OUTPUT_TOKENS if job.lengths is None else job.lengths.p50,
        ttft_s=targets.ttft_s,
        tpot_s=targets.tpot_s,
        e2e_s=targets.e2e_s,
        prefix=job.blocks,
    )


def _idle(load: ReplicaLoad) -> ReplicaLoad:
    """The same report from a replica that has nothing to do, or says so."""
    nothing = WaitingLoad()
    return replace(
        load,
        sequences=0,
        decoding=0,
        remaining_tokens=0.0,
        unfilled_tokens=0.0,
        kv_tokens=0,
        paced_tokens_per_second=None,
        waiting=(nothing,) * len(load.waiting),
        late=nothing,
    )
