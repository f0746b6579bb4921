"""`uellm evaluate fleet`: every route at every speed with every seed, over the replicas of one service."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from uellm.errors import BadInput
from uellm.evaluate.fleet_door import FleetDoor, SimulatedFleet, replica_name
from uellm.evaluate.queue import Cell, Noise, Scenario, describe, station_of
from uellm.evaluate.replay import Replay
from uellm.evaluate.station import Station
from uellm.routing import AUTO, ROUTES, Router


@dataclass(frozen=True, slots=True)
class FleetCell(Cell):
    """One replay with a route."""

    route: str = AUTO

    def __str__(self) -> str:
        # `super()` without arguments does not work in a dataclass with slots.
        return f"{self.route}, {Cell.__str__(self)}"


def fleet_cells(routes: Sequence[str], of: Sequence[Cell]) -> list[FleetCell]:
    """Every cell with every route. Raises BadInput for an unknown route."""
    for route in routes:
        if route not in ROUTES:
            raise BadInput("--route", f"{route!r} is none of {', '.join(ROUTES)}")
    return [
        FleetCell(cell.policy, cell.speed, cell.seed, cell.max_num_batched_tokens, route)
        for cell in of
        for route in routes
    ]


def run_fleet_cell(fleet: SimulatedFleet, scenario: Scenario, cell: FleetCell) -> dict[str, Any]:
    """One entry of `results`: that of `uellm evaluate queue`, the route, and how requests were spread."""
    jobs = scenario.jobs(cell.seed)

    def make(index: int) -> Station:
        # The first replica has the noise of `uellm evaluate queue`.
        noise = Noise(scenario.jitter, f"{cell.seed} of {index}" if index else cell.seed)
        return station_of(scenario, cell, noise, replica_name(index), 1.0 / fleet.speed(index))

    door = FleetDoor(fleet, Router(cell.route, cell.seed), make)
    result = describe(cell, jobs, Replay(jobs, door, cell.speed).run())
    return {
        "route": cell.route,
        **result,
        "retried": door.retried,
        "requestsByReplica": [door.by_replica[replica_name(index)] for index in range(fleet.in_all)],
    }
