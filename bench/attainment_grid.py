"""The replays that bench/attainment.py compares: which ones exist, how each is made, and where its result is stored."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from statistics import fmean
from typing import Any

import yaml

import uellm.sidecar.scheduling as core
from uellm.evaluate.chunk import chunk_for
from uellm.evaluate.policies import find_policy
from uellm.evaluate.queue import Cell, Scenario, describe, replay
from uellm.evaluate.scenario import read_classes
from uellm.evaluate.traces import read_trace
from uellm.planner.cost.engine_file import EngineFile

KEPT = Path(__file__).parents[1] / "build/bench/attainment"
TRACES = {
    "azure2023_conv": "csv.gz",
    "servegen_m-mid_1h_10rps": "csv.gz",
    "mooncake_fast25_synthetic_trace": "jsonl.gz",
    "vtc_arena_real_multitenant": "csv.gz",
    "servegen_deepseek-r1_1h_10rps": "csv.gz",
}
SPEEDS, SEEDS, CHUNKS = (3.2, 2.0, 1.0, 4.0, 2.6, 1.5, 0.5), (1, 2, 3, 4, 5), (512, 1024, 2048, 8192)
FCFS, OURS = "engine-FCFS", "SLO-ODBS"
OTHERS = ("engine-EDF", "engine-EDF-targets", "engine-SJF", "llm-d")
MARGIN = 0.005
"""Ours may be so far below the best baseline and still count as no worse."""
REACH = 0.03
"""A baseline further below the best one of the first seed is not replayed with the others: means of five seeds differ
from those of one by less than a third of this (the largest seen: .009)."""
STURDY: dict[str, dict[str, float]] = {
    "sigma 0": {"sigma": 0.0},
    "sigma 1.5": {"sigma": 1.5},
    "engine 50 % fast": {"engine_error": 0.5},
    "engine 50 % slow": {"engine_error": 1.5},
    "10 ms to engine": {"reaction_s": 0.01},
}


@dataclass(frozen=True)
class Run:
    """One replay: its name, and how it is made."""

    trace: str
    limit: int
    policy: str
    chunk: int
    speed: float
    seed: int
    sturdy: str = ""

    @property
    def path(self) -> Path:
        """Where its result is stored. For our policy the path contains a digest of the scheduler's sources."""
        version = f"-{_core_version()}" if self.policy == OURS else ""
        extra = f"-{self.sturdy.replace(' ', '_')}" if self.sturdy else ""
        name = f"{self.trace}-{self.limit}-{self.policy}-{self.chunk}-x{self.speed:g}-s{self.seed}{extra}{version}.json"
        return KEPT / name

    @property
    def result(self) -> dict[str, Any] | None:
        """An entry of `results`, as `uellm evaluate queue` prints it; None where it has not been replayed."""
        return json.loads(self.path.read_text()) if self.path.exists() else None


@cache
def _core_version() -> str:
    sources = sorted(Path(core.__file__).parent.glob("*.py"))
    return hashlib.sha256(b"".join(source.read_bytes() for source in sources)).hexdigest()[:10]


def mean(runs: Iterable[Run], figure: str = "") -> float | None:
    """Mean of a figure, or of the attainment, over the runs that have a result; None where none has."""
    results = [result for run in runs if (result := run.result) is not None]
    return fmean(result[figure] if figure else result["attainment"]["all"] for result in results) if results else None


class Grid:
    """Every trace at every load: ours with several seeds, and the baselines needed to find the best one."""

    def __init__(self, data: Path, limit: int, seeds: tuple[int, ...]) -> None:
        self.data, self.limit, self.seeds = data, limit, seeds
        self._engine = EngineFile.read(data / "scenarios/engine-8b-h100.json")
        classes = yaml.safe_load((data / "scenarios/classes-mixed.yaml").read_text())
        self._classes = read_classes(classes, "classes-mixed.yaml")
        self._scenarios: dict[str, Scenario] = {}

    def scenario(self, trace: str) -> Scenario:
        """The trace with the classes and the engine of the grid."""
        if trace not in self._scenarios:
            path = self.data / f"traces/{trace}.{TRACES[trace]}"
            self._scenarios[trace] = Scenario(read_trace(path), self._classes, self._engine, limit=self.limit)
        return self._scenarios[trace]

    def chunk(self, trace: str) -> int:
        """The planner's chunk size."""
        return chunk_for(self.scenario(trace)).tokens

    def ours(self, trace: str, speed: float, sturdy: str = "") -> list[Run]:
        """The sidecar's policy at the planner's chunk size, every seed."""
        return [Run(trace, self.limit, OURS, self.chunk(trace), speed, seed, sturdy) for seed in self.seeds]

    def baselines(self, trace: str) -> list[tuple[str, int]]:
        """Names and chunk sizes of the baselines. They include the planner's chunk size, because it helps them too."""
        chunks = dict.fromkeys((*CHUNKS, self.chunk(trace)))
        return [(policy, chunk) for policy in (FCFS, *OTHERS) for chunk in chunks]

    def baseline(self, trace: str, speed: float, policy: str, chunk: int) -> list[Run]:
        """One of them, every seed."""
        return [Run(trace, self.limit, policy, chunk, speed, seed) for seed in self.seeds]

    def settled(self, trace: str, speed: float) -> bool:
        """Whether ours is so close to 1 that no baseline can be better by more than the margin."""
        attained = mean(self.ours(trace, speed))
        return attained is not None and attained >= 1.0 - MARGIN

    def contenders(self, trace: str, speed: float) -> dict[tuple[str, int], list[Run]]:
        """The baselines close to the best one at the first seed, by name and chunk size, with all seeds."""
        all_of_them = {name: self.baseline(trace, speed, *name) for name in self.baselines(trace)}
        first = {name: share for name, runs in all_of_them.items() if (share := mean(runs[:1])) is not None}
        found = {}
        for chunks in (CHUNKS, (self.chunk(trace),)):
            among = {name: share for name, share in first.items() if name[1] in chunks}
            best = max(among.values(), default=0.0)
            found |= {name: all_of_them[name] for name, share in among.items() if share >= best - REACH}
        return found

    def wanted(self, trace: str, speed: float, parts: frozenset[str]) -> Iterator[Run]:
        """The replays needed to compare ours with the best baseline; a replay may depend on those before it."""
        if "ours" in parts:
            yield from self.ours(trace, speed)
        if "baselines" not in parts:
            return
        for policy, chunk in self.baselines(trace):
            if policy == FCFS or not self.settled(trace, speed):
                yield self.baseline(trace, speed, policy, chunk)[0]
        if self.settled(trace, speed):
            return
        for runs in self.contenders(trace, speed).values():
            yield from runs

    def make(self, run: Run) -> None:
        """Replay it, and store the result."""
        changes = dict(STURDY.get(run.sturdy, {}))
        scenario = replace(self.scenario(run.trace), limit=run.limit)
        if "sigma" in changes:
            scenario = replace(scenario, classes=replace(scenario.classes, sigma=changes.pop("sigma")))
        scenario = replace(scenario, **changes)  # type: ignore[arg-type]
        cell = Cell(find_policy(run.policy), run.speed, run.seed, run.chunk)
        outcome = replay(scenario, cell, scenario.jobs(run.seed))
        # The engine's own FCFS does not distinguish classes, so one replay is valid for every seed.
        for seed in {run.seed, *self.seeds} if run.policy == FCFS else (run.seed,):
            result = describe(replace(cell, seed=seed), scenario.jobs(seed), outcome)
            path = replace(run, seed=seed).path
            path.with_suffix(".part").write_text(json.dumps(result))
            path.with_suffix(".part").rename(path)
