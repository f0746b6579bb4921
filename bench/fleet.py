"""Which replica: the gateway's route beside the usual ones, on vLLM's own scheduler under one virtual clock.

    python bench/fleet.py [--data DIR] [--limit 3000] [--seed S] [--only CASE ...] [--routes ROUTE ...]
                          [--jobs N] [--json FILE]

Every replica is the sidecar with SLO-ODBS in front of an engine with a prefix cache (`uellm evaluate fleet`). Replicas
report every 200 ms. Cells show the share of requests that met every target; MISSES is what `auto` misses as a share of
what `random` misses. Loads are of a whole fleet.

    conversations    turns that repeat the conversation so far (`bench/conversations.py`), two kinds of them
    mooncake         prompts with long shared prefixes
    azure, servegen  no shared prefixes
    16               four times as many replicas at four times the load
    half speed       two of four replicas take twice as long for every step, which nobody was told
    lying, silent    one of four replicas reports that it is idle, or sends no reports after 5 s
    dies             one of four replicas dies after 10 s

Exits with 1 where `auto` is more than .002 below fewest-requests.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from conversations import Conversations

from uellm.evaluate.fleet import fleet_cells, run_fleet_cell
from uellm.evaluate.fleet_door import SimulatedFleet
from uellm.evaluate.queue import Scenario, cells, run_cells
from uellm.evaluate.scenario import read_classes
from uellm.evaluate.traces import read_trace
from uellm.planner.cost.engine_file import EngineFile
from uellm.routing import AUTO, ROUTES
from uellm.text import aligned

ROOT = Path(__file__).parents[1]
POLICY = "SLO-ODBS"
MARGIN = 0.002
CONVERSATIONS = {
    "conversations": Conversations(),
    "long openings": Conversations(
        seed=2, per_second=1.2, turns=4.0, pause_s=40.0, system_prompts=1, system_tokens=(1024, 1024), first=(7.0, 0.8)
    ),
}
FILES = {
    "mooncake": "traces/mooncake_fast25_synthetic_trace.jsonl.gz",
    "azure": "traces/azure2023_conv.csv.gz",
    "servegen": "traces/servegen_m-mid_1h_10rps.csv.gz",
}


FOUR = SimulatedFleet(4)


@dataclass(frozen=True)
class Case:
    """A trace at a load on a fleet."""

    trace: str
    speed: float
    fleet: SimulatedFleet = FOUR


CASES = {
    "conversations": Case("conversations", 9.0),
    "conversations x1.5": Case("conversations", 13.0),
    "long openings": Case("long openings", 7.0),
    "long openings x1.5": Case("long openings", 10.0),
    "mooncake": Case("mooncake", 16.0),
    "mooncake x1.5": Case("mooncake", 24.0),
    "azure": Case("azure", 7.0),
    "azure x1.5": Case("azure", 10.0),
    "servegen": Case("servegen", 6.0),
    "servegen x1.5": Case("servegen", 9.0),
    "conversations 16": Case("conversations", 40.0, SimulatedFleet(16)),
    "azure 16": Case("azure", 36.0, SimulatedFleet(16)),
    "half speed": Case("conversations", 7.0, SimulatedFleet(4, speeds=(1.0, 1.0, 0.5, 0.5))),
    "lying": Case("conversations", 9.0, SimulatedFleet(4, lying=frozenset({0}))),
    "silent": Case("conversations", 9.0, SimulatedFleet(4, silences=((0, 5.0),))),
    "dies": Case("conversations", 7.0, SimulatedFleet(4, kills=((0, 10.0),))),
}


def results(args: argparse.Namespace, scratch: Path) -> list[dict[str, Any]]:
    """One row for each case: the attainment of every route."""
    scenarios = args.data / "scenarios"
    classes = read_classes(yaml.safe_load((scenarios / "classes-mixed.yaml").read_text()), "classes-mixed.yaml")
    engine = EngineFile.read(scenarios / "engine-8b-h100.json")
    rows = []
    for name in args.only or CASES:
        case = CASES[name]
        if case.trace in CONVERSATIONS:
            conversations = CONVERSATIONS[case.trace]
            # Two kinds of conversations: no seed of one is a seed of the other.
            conversations = replace(conversations, seed=conversations.seed + 2 * (args.seed - 1))
            path = conversations.write(scratch / "trace.jsonl")
        else:
            path = args.data / FILES[case.trace]
        scenario = Scenario(read_trace(path), classes, engine, limit=args.limit)
        todo = fleet_cells(args.routes, cells([POLICY], [case.speed], [args.seed], engine.max_num_batched_tokens))
        found = run_cells(scenario, todo, run=partial(run_fleet_cell, case.fleet), processes=args.jobs)
        rows.append({"case": name, "trace": case.trace, "speed": case.speed, "results": found})
        print(f"{name}: {[round(result['attainment']['all'], 4) for result in found]}", file=sys.stderr, flush=True)
    return rows


def attained(row: dict[str, Any]) -> dict[str, float]:
    """Attainment by route."""
    return {result["route"]: result["attainment"]["all"] for result in row["results"]}


def table(rows: list[dict[str, Any]], routes: list[str]) -> str:
    """One line for each case."""
    lines = [["CASE", "LOAD", *routes, "MISSES"]]
    for row in rows:
        by_route = attained(row)
        missed = 1.0 - by_route.get("random", 1.0)
        ratio = f"{(1.0 - by_route[AUTO]) / missed:.2f}" if missed and AUTO in by_route else "-"
        lines.append([row["case"], f"x{row['speed']:g}", *(f"{by_route[route]:.4f}" for route in routes), ratio])
    return "\n".join(aligned(lines))


def main() -> int:
    """Replay, print, write. Returns 1 where the route is below fewest-requests."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared", help="holds traces/ and scenarios/")
    parser.add_argument("--limit", type=int, default=3000, help="requests of each trace")
    parser.add_argument("--seed", type=int, default=1, help="of the classes and of the conversations")
    parser.add_argument("--only", nargs="+", choices=CASES, metavar="CASE")
    parser.add_argument("--routes", nargs="+", choices=ROUTES, default=list(ROUTES), metavar="ROUTE")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        rows = results(args, Path(scratch))
    print(table(rows, args.routes))
    if args.json:
        args.json.write_text(json.dumps({"benchmark": "fleet", "rows": rows}, indent=1))
    below = [
        row["case"] for row in rows if attained(row).get(AUTO, 1.0) < attained(row).get("fewest-requests", 0.0) - MARGIN
    ]
    if below:
        print(f"auto is more than {MARGIN} below fewest-requests: {', '.join(below)}")
    return int(bool(below))


if __name__ == "__main__":
    sys.exit(main())
