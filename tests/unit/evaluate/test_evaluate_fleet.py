"""The simulated fleet, with a minimal engine in each replica (tests/e2e uses vLLM's scheduler)."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from helpers.toy_engine import CLASSES, ENGINE, ToyEngine, front
from uellm.errors import BadInput
from uellm.evaluate.fleet import fleet_cells
from uellm.evaluate.fleet_door import MOST_TRIES, FleetDoor, SimulatedFleet, replica_name
from uellm.evaluate.queue import cells
from uellm.evaluate.replay import OneDoor, Replay, ReplayResult
from uellm.evaluate.scenario import Job, draw_jobs
from uellm.evaluate.station import Station
from uellm.evaluate.traces import Trace, TraceRequest
from uellm.routing import AUTO, ROUTES, Router


def some_jobs(count: int = 80, per_second: float = 30.0, seed: int = 1) -> list[Job]:
    generator, at_s, some = random.Random(seed), 0.0, []
    for _ in range(count):
        at_s += generator.expovariate(per_second)
        blocks = tuple(range(generator.choice((0, 100, 200)), 202))[:2]
        some.append(TraceRequest(at_s, generator.randint(20, 400), generator.randint(2, 40), "a", blocks))
    return draw_jobs(Trace("t", tuple(some)), CLASSES, seed=1, limit=None, max_tokens=1000)


def station(index: int, policy: str = "SLO-ODBS", slowness: float = 1.0) -> Station:
    step = ENGINE.step
    slow = replace(step, floor_s=step.floor_s * slowness, per_prefill_token_s=step.per_prefill_token_s * slowness)
    engine = ToyEngine(replace(ENGINE, step=slow))
    return Station(engine, front(policy), name=replica_name(index))  # type: ignore[arg-type]


def run(
    fleet: SimulatedFleet, jobs: list[Job], route: str = AUTO, policy: str = "SLO-ODBS"
) -> tuple[FleetDoor, ReplayResult]:
    door = FleetDoor(fleet, Router(route), lambda index: station(index, policy))
    return door, Replay(jobs, door).run()


@pytest.mark.parametrize("policy", ["SLO-ODBS", "engine-FCFS", "EDF"])
@pytest.mark.parametrize("route", ROUTES)
def test_one_replica_is_a_queue(policy: str, route: str) -> None:
    jobs = some_jobs()

    _, outcome = run(SimulatedFleet(1), jobs, route, policy)

    assert outcome.fates == Replay(jobs, OneDoor(station(0, policy))).run().fates


@pytest.mark.parametrize("route", ROUTES)
def test_four_replicas_answer_every_request_whole_and_the_router_forgets_them(route: str) -> None:
    jobs = some_jobs()
    router = Router(route)
    door = FleetDoor(SimulatedFleet(4), router, station)

    outcome = Replay(jobs, door).run()

    assert [fate.tokens for fate in outcome.fates] == [job.output_tokens for job in jobs]
    assert sum(door.by_replica.values()) == len(jobs)
    assert len(door.by_replica) == 4
    books = [router.replica(name) for name in router.replicas]
    assert all(replica is not None and not replica.outstanding for replica in books)


def test_a_dead_replica_loses_only_answers_that_had_begun() -> None:
    jobs = some_jobs(count=200, per_second=200.0)

    door, outcome = run(SimulatedFleet(3, kills=((1, 0.3),)), jobs, "round-robin")

    lost = [fate for fate in outcome.fates if fate.end_s is None]
    assert lost
    assert all(fate.first_token_s is not None and fate.first_token_s <= 0.3 for fate in lost)
    assert door.retried > 0
    assert not any(fate.refused for fate in outcome.fates)


def test_a_request_is_refused_when_every_replica_is_dead() -> None:
    jobs = some_jobs(count=40, per_second=40.0)

    door, outcome = run(SimulatedFleet(2, kills=((0, 0.4), (1, 0.4))), jobs)

    arrived_later = [fate for fate in outcome.fates if fate.arrival_s > 0.4]
    assert arrived_later
    assert all(fate.refused for fate in arrived_later)
    assert not door.stations
    assert MOST_TRIES > 1


def test_a_replica_that_joins_gets_requests_from_then_on() -> None:
    jobs = some_jobs(count=200, per_second=100.0)

    door, outcome = run(SimulatedFleet(1, joins=(0.5,)), jobs)

    assert door.by_replica[replica_name(1)] > 20
    assert all(fate.end_s is not None for fate in outcome.fates)


@pytest.mark.parametrize("odd", [{"lying": frozenset({0})}, {"silences": ((0, 0.2),)}], ids=["lying", "silent"])
def test_a_lying_or_silent_replica_does_not_get_everything(odd: dict) -> None:  # type: ignore[type-arg]
    jobs = some_jobs(count=300, per_second=80.0)

    door, _ = run(SimulatedFleet(4, **odd), jobs)

    assert door.by_replica[replica_name(0)] < len(jobs) / 2


def test_a_slower_replica_gets_fewer_requests() -> None:
    jobs = some_jobs(count=300, per_second=40.0)
    door = FleetDoor(SimulatedFleet(2), Router(AUTO), lambda index: station(index, slowness=4.0 if index == 0 else 1.0))

    Replay(jobs, door).run()

    assert door.by_replica[replica_name(0)] < 0.7 * door.by_replica[replica_name(1)]


def test_the_same_fleet_has_the_same_outcome() -> None:
    jobs = some_jobs()

    assert run(SimulatedFleet(3), jobs)[1].fates == run(SimulatedFleet(3), jobs)[1].fates


def test_every_cell_is_run_with_every_route() -> None:
    found = fleet_cells(["random", AUTO], cells(["SLO-ODBS"], [1.0, 2.0], [1], 512))

    assert [(cell.speed, cell.route) for cell in found] == [(1.0, "random"), (1.0, AUTO), (2.0, "random"), (2.0, AUTO)]
    assert str(found[0]) == "random, SLO-ODBS at x1, seed 1, 512 batched tokens"


def test_an_unknown_route_is_refused() -> None:
    with pytest.raises(BadInput, match="--route: 'nearest' is none of random, round-robin, fewest-requests"):
        fleet_cells(["nearest"], [])
