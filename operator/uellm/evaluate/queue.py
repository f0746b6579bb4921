"""`uellm evaluate queue`: every policy at every speed with every seed, optionally each in its own process."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import astuple, dataclass, field, replace
from functools import partial
from random import Random
from typing import Any, TypeVar

from uellm.evaluate.engine import VirtualEngine
from uellm.evaluate.front import DirectFront, Front, SidecarFront
from uellm.evaluate.measure import measure
from uellm.evaluate.policies import ComparedPolicy, find_policy
from uellm.evaluate.replay import OneDoor, Replay, ReplayResult
from uellm.evaluate.scenario import Classes, Job, draw_jobs
from uellm.evaluate.station import Station
from uellm.evaluate.traces import Trace
from uellm.evaluate.vllm_scheduler import vllm
from uellm.planner.cost.engine_file import EngineFile
from uellm.sidecar.prediction import OnlineLengths
from uellm.sidecar.scheduling import Options, StepEstimate
from uellm.step_time import StepTime

UNBOUNDED = 1_000_000_000
"""Longer than any trace: the comparison is about policies, not about limits of the queue."""


@dataclass(frozen=True, slots=True)
class Scenario:
    """The parameters that all cells share.

    `limit`: requests to replay, None for all. `max_tokens`: longest request, prompt and output. `engine_error`: the
    sidecar's belief about the engine's times, as a multiple of the truth. `reaction_s`: delay of requests from the
    sidecar to the engine. `request_overhead_s`: delay of any request on its way into the engine: API server, tokenizer,
    network. `jitter`: noise of that delay and of every step, the sigma of a lognormal with mean 1, drawn by the cell's
    seed. `guards`: guards switched on or off by name; others have the sidecar's defaults. `online`: lengths are
    predicted by the sidecar's own predictor, which starts untrained.
    """

    trace: Trace
    classes: Classes
    engine: EngineFile
    limit: int | None = 3000
    max_tokens: int = 12_000
    engine_error: float = 1.0
    reaction_s: float = 0.0
    request_overhead_s: float = 0.0
    jitter: float = 0.0
    max_queued: int = UNBOUNDED
    guards: dict[str, bool] = field(default_factory=dict)
    online: bool = False

    def jobs(self, seed: int) -> list[Job]:
        """The requests, with classes drawn by the seed. Raises CannotBeDone."""
        longest = min(self.max_tokens, self.engine.max_model_len)
        return draw_jobs(self.trace, self.classes, seed=seed, limit=self.limit, max_tokens=longest)


@dataclass(frozen=True, slots=True)
class Cell:
    """One replay."""

    policy: ComparedPolicy
    speed: float
    seed: int
    max_num_batched_tokens: int

    def __str__(self) -> str:
        chunk = self.max_num_batched_tokens
        return f"{self.policy.name} at x{self.speed:g}, seed {self.seed}, {chunk} batched tokens"


CellT = TypeVar("CellT", bound=Cell)


def cells(policies: Sequence[str], speeds: Sequence[float], seeds: Sequence[int], chunk: int) -> list[Cell]:
    """Every combination, speeds first. Raises BadInput for an unknown policy."""
    found = [find_policy(name) for name in policies]
    return [Cell(policy, speed, seed, chunk) for speed in speeds for policy in found for seed in seeds]


def run_cell(scenario: Scenario, cell: Cell) -> dict[str, Any]:
    """One entry of `results`."""
    jobs = scenario.jobs(cell.seed)
    return describe(cell, jobs, replay(scenario, cell, jobs))


def replay(scenario: Scenario, cell: Cell, jobs: Sequence[Job]) -> ReplayResult:
    """Replay the jobs under the cell's policy. Raises CannotBeDone where the policy stops sending."""
    return Replay(jobs, OneDoor(station_of(scenario, cell, Noise(scenario.jitter, cell.seed))), cell.speed).run()


def station_of(scenario: Scenario, cell: Cell, noise: Noise, name: str = "", slowness: float = 1.0) -> Station:
    """A replica with the cell's policy. Its steps take `slowness` times as long as the sidecar expects at first."""
    step = StepTime(*(figure * slowness for figure in astuple(scenario.engine.step)))
    engine = VirtualEngine(
        scenario.engine, cell.policy.engine_policy, cell.max_num_batched_tokens, noise.of_steps(step)
    )
    reaction_s = scenario.reaction_s if cell.policy.in_sidecar else 0.0
    delay_s = noise.of_delays(reaction_s, scenario.request_overhead_s)
    return Station(engine, _front(scenario, cell), delay_s, name)


class Noise:
    """Lognormal factors with mean 1. Steps and delays use separate generators."""

    def __init__(self, sigma: float, seed: int | str) -> None:
        self._sigma = sigma
        self._steps, self._delays = Random(f"steps {seed}"), Random(f"delays {seed}")

    def of_steps(self, step: StepTime) -> Callable[[float, float, float], float]:
        """Seconds of a step: `StepTime.step_s` times the noise."""
        if not self._sigma:
            return step.step_s
        return lambda *loads: step.step_s(*loads) * self._factor(self._steps)

    def of_delays(self, constant_s: float, noisy_s: float) -> Callable[[], float]:
        """Seconds between sending a request and its arrival in the engine."""
        if not self._sigma or not noisy_s:
            return lambda: constant_s + noisy_s
        return lambda: constant_s + noisy_s * self._factor(self._delays)

    def _factor(self, generator: Random) -> float:
        return generator.lognormvariate(-0.5 * self._sigma**2, self._sigma)


def describe(cell: Cell, jobs: Sequence[Job], outcome: ReplayResult) -> dict[str, Any]:
    """A replay's result as an entry of `results`."""
    return {
        "policy": cell.policy.name,
        "speed": cell.speed,
        "seed": cell.seed,
        "maxBatchedTokens": cell.max_num_batched_tokens,
        **measure(jobs, outcome),
    }


def _front(scenario: Scenario, cell: Cell) -> Front:
    policy, engine = cell.policy, scenario.engine
    if policy.priority is not None:
        return DirectFront(policy, policy.priority)
    options = replace(
        Options(policy=policy.name, max_queued=scenario.max_queued, max_in_flight=engine.max_num_seqs),
        **scenario.guards,  # type: ignore[arg-type]
    )
    online = OnlineLengths() if scenario.online else None
    return SidecarFront(options, believed(engine, scenario.engine_error), engine, cell.max_num_batched_tokens, online)


def believed(engine: EngineFile, error: float) -> StepEstimate:
    """The sidecar's initial belief about the engine's times: the truth times `error`."""
    return StepEstimate(StepTime(*(figure * error for figure in astuple(engine.step))))


def run_cells(
    scenario: Scenario,
    todo: Sequence[CellT],
    *,
    run: Callable[[Scenario, CellT], dict[str, Any]],
    processes: int = 1,
    progress: Callable[[str], None] = lambda _line: None,
) -> list[dict[str, Any]]:
    """The results in the order of the cells, each by `run`. `progress` gets a line for each finished cell."""
    results = []
    for number, (cell, result) in enumerate(_each(scenario, todo, run, processes), 1):
        progress(f"{number}/{len(todo)}: {cell}: {result['attainment']['all']:.4f}")
        results.append(result)
    return results


def _each(
    scenario: Scenario, todo: Sequence[CellT], run: Callable[[Scenario, CellT], dict[str, Any]], processes: int
) -> Iterator[tuple[CellT, dict[str, Any]]]:
    if processes <= 1 or len(todo) <= 1:
        for cell in todo:
            yield cell, run(scenario, cell)
        return
    # Imported once and inherited by the workers: importing vLLM takes longer than a short replay.
    vllm()
    context = multiprocessing.get_context("fork")
    kept = (partial(run, scenario),)
    with ProcessPoolExecutor(processes, mp_context=context, initializer=_keep, initargs=kept) as pool:
        yield from zip(todo, pool.map(_run_kept, todo), strict=True)


_kept: list[Callable[[Any], dict[str, Any]]] = []
"""What a worker process runs: sent once, with the scenario, instead of with every cell."""


def _keep(run: Callable[[Any], dict[str, Any]]) -> None:
    _kept[:] = [run]


def _run_kept(cell: Cell) -> dict[str, Any]:
    return _kept[0](cell)
