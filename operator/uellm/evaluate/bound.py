"""An upper bound on the attainment of any policy: a linear programme over seconds of the engine.

The bound treats the engine as one machine that can be shared between requests in any proportion at any time, by a
scheduler that knows all arrivals and lengths beforehand (fluid, preemptive, clairvoyant). A request that meets its
targets needs at least its minimum work, which is the time that it adds to the steps it takes part in:

    before the first token   perPrefillToken * prompt + perKvToken * prompt + perSequence
    after it                 perKvToken * sum of (prompt + j) for j = 1 .. output - 1  +  perSequence * (output - 1)

The first part lies between arrival and the first token's deadline. The second lies between arrival and the deadline of
the end, which for a TTFT with a TPOT is arrival + TTFT + TPOT * (output - 1). The floor and the overhead of steps
belong to no single request and are not counted; nor is prefill that the prefix of another request may have saved. A
request that could not meet its targets even alone in the engine is excluded. The programme chooses, in fractions, which
requests to serve.

Time is divided into cells, and windows are widened to whole cells. That only adds room, so the value remains a bound.
Parts whose windows have the same number of cells form a chain. Within a chain, deadlines have the order of releases, so
it suffices that the work done by each time lies between the work due and the work released. That is exact, and it needs
only a few variables for each cell and chain instead of one for each cell and request.
"""

from __future__ import annotations

import importlib
import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from uellm.errors import CannotBeDone
from uellm.evaluate.scenario import Job
from uellm.evaluate.traces import PREFIX_BLOCK_TOKENS
from uellm.planner.cost.engine_file import EngineFile
from uellm.step_time import StepTime

MAX_CELLS = 800
"""The largest number of cells: HiGHS takes half a minute for 12,000 requests."""

MIN_CELL_S = 0.5
"""The smallest width of a cell; a chat's TTFT target is typically 1 s."""

_TOLERANCE = 1e-7
"""HiGHS's tolerance for a constraint, and so for the value of each request."""


@dataclass(frozen=True, slots=True)
class WorkPart:
    """Work of request `job` in seconds of the engine, to be done in the cells `first` to `last` inclusive."""

    job: int
    work_s: float
    first: int
    last: int


@dataclass(slots=True)
class _Rows:
    """Constraints `entries * x <= limits`, or `=`, written one row after the other."""

    limits: list[float] = field(default_factory=list)
    rows: list[int] = field(default_factory=list)
    columns: list[int] = field(default_factory=list)
    values: list[float] = field(default_factory=list)

    def add(self, entries: Sequence[tuple[int, float]], limit: float = 0.0) -> None:
        for column, value in entries:
            self.rows.append(len(self.limits))
            self.columns.append(column)
            self.values.append(value)
        self.limits.append(limit)


def bound(jobs: Sequence[Job], engine: EngineFile, speed: float) -> float:
    """An upper bound, 0 to 1, on the share of requests that can meet their targets under any policy.

    Raises CannotBeDone where scipy is missing or the solver fails.
    """
    arrivals = [job.arrival_s / speed for job in jobs]
    possible = [index for index, job in enumerate(jobs) if _alone_in_time(job, engine)]
    shared = _shared(jobs)
    windows = {index: _parts_s(jobs[index], arrivals[index], engine.step, shared) for index in possible}
    free = sum(not parts for parts in windows.values())
    end_s = max((until_s for parts in windows.values() for _, _, until_s in parts), default=0.0)
    cell_s = max(MIN_CELL_S, end_s / MAX_CELLS)
    parts = [
        WorkPart(index, work_s, int(from_s / cell_s), int(until_s / cell_s))
        for index, of_job in windows.items()
        for work_s, from_s, until_s in of_job
    ]
    served = _most_served(parts, cell_s) if parts else 0.0
    return min(1.0, (free + served) / len(jobs) + _TOLERANCE)


def _shared(jobs: Sequence[Job]) -> set[int]:
    """Prefix blocks that more than one request has. Any of these requests may find them in the cache."""
    counts = Counter(block for job in jobs for block in set(job.blocks))
    return {block for block, count in counts.items() if count > 1}


def _parts_s(job: Job, arrival_s: float, step: StepTime, shared: set[int]) -> list[tuple[float, float, float]]:
    """Its minimum work with its windows: (work, from, until) in seconds. Parts without a deadline are omitted."""
    first_s, end_s = deadlines_s(job)
    prompt, after = job.prompt_tokens, job.output_tokens - 1
    saved = min(prompt - 1, PREFIX_BLOCK_TOKENS * sum(block in shared for block in job.blocks))
    before_s = step.per_prefill_token_s * (prompt - saved) + step.per_kv_token_s * prompt + step.per_sequence_s
    after_s = step.per_kv_token_s * (prompt * after + after * (after + 1) / 2) + step.per_sequence_s * after
    if first_s == end_s:
        before_s, after_s = before_s + after_s, 0.0
    parts = [(before_s, arrival_s, arrival_s + first_s), (after_s, arrival_s, arrival_s + end_s)]
    return [part for part in parts if part[0] > 0 and part[2] < math.inf]


def deadlines_s(job: Job) -> tuple[float, float]:
    """Seconds from a request's arrival to the deadlines of its first token and its end; infinite without a target."""
    targets = job.request_class.targets
    ttft_s = math.inf if targets.ttft_s is None else targets.ttft_s
    end_s = math.inf if targets.e2e_s is None else targets.e2e_s
    if job.output_tokens <= 1:
        end_s = min(end_s, ttft_s)
    elif targets.tpot_s is not None:
        end_s = min(end_s, ttft_s + targets.tpot_s * (job.output_tokens - 1))
    return min(ttft_s, end_s), end_s


def _alone_in_time(job: Job, engine: EngineFile) -> bool:
    """Whether it could meet its targets alone in the engine, with a cached prompt and one floor for each token."""
    step, targets, tokens = engine.step, job.request_class.targets, job.output_tokens
    first_s, end_s = deadlines_s(job)
    token_s = step.step_s(0, job.prompt_tokens, 1)
    in_pace = targets.tpot_s is None or tokens == 1 or token_s <= targets.tpot_s
    return in_pace and token_s <= first_s and token_s * tokens <= end_s


Releases = dict[int, list[tuple[int, float]]]
"""By cell: the requests' columns, and the work that each releases there, in seconds."""


def _most_served(parts: Sequence[WorkPart], cell_s: float) -> float:
    """The value of the programme: requests served, in fractions."""
    column_of = {job: column for column, job in enumerate(sorted({part.job for part in parts}))}
    chains: dict[int, Releases] = defaultdict(lambda: defaultdict(list))
    for part in parts:
        chains[part.last - part.first][part.first].append((column_of[part.job], part.work_s))
    programme = _Programme(len(column_of))
    for length, releases in chains.items():
        for first, last in _stretches(length, releases):
            programme.add_stretch(first, last, length, releases)
    return programme.solve(cell_s)


def _stretches(length: int, releases: Releases) -> list[tuple[int, int]]:
    """Runs of cells, as first and last, in which some window of the chain is open throughout."""
    stretches: list[tuple[int, int]] = []
    for start in sorted(releases):
        if stretches and start <= stretches[-1][1] + 1:
            stretches[-1] = stretches[-1][0], start + length
        else:
            stretches.append((start, start + length))
    return stretches


class _Programme:
    """The linear programme. Its first `choices` variables, 0 to 1, are the fraction of each request that is served."""

    def __init__(self, choices: int) -> None:
        self._choices = choices
        self._columns = choices
        self._most, self._equal = _Rows(), _Rows()
        self._work: dict[int, list[tuple[int, float]]] = defaultdict(list)

    def add_stretch(self, first: int, last: int, length: int, releases: Releases) -> None:
        """Add two variables for each cell: work done and work released from the stretch's start to the cell's end."""
        for cell in range(first, last + 1):
            done, released = self._columns, self._columns + 1
            done_before = [] if cell == first else [(done - 2, -1.0)]
            released_before = [] if cell == first else [(released - 2, -1.0)]
            new = [(job, -work_s) for job, work_s in releases.get(cell, [])]
            self._equal.add([(released, 1.0), *released_before, *new])
            self._most.add([(done, 1.0), (released, -1.0)])
            self._most.add([(done, -1.0), *((column, 1.0) for column, _ in done_before)])
            if cell - length >= first:
                self._most.add([(released - 2 * length, 1.0), (done, -1.0)])
            self._work[cell] += [(done, 1.0), *done_before]
            self._columns += 2

    def solve(self, cell_s: float) -> float:
        """The largest sum of the choices, where each cell holds the given seconds of work. Raises CannotBeDone."""
        for work in self._work.values():
            self._most.add(work, cell_s)
        try:
            optimize = importlib.import_module("scipy.optimize")
        except ImportError as error:
            raise CannotBeDone("scipy is not installed: pip install 'uellm-operator[evaluate]'") from error
        answer = optimize.linprog(
            [-1.0] * self._choices + [0.0] * (self._columns - self._choices),
            A_ub=self._matrix(self._most),
            b_ub=self._most.limits,
            A_eq=self._matrix(self._equal),
            b_eq=self._equal.limits,
            bounds=[(0.0, 1.0)] * self._choices + [(0.0, None)] * (self._columns - self._choices),
            method="highs",
        )
        if answer.status != 0:
            raise CannotBeDone(f"the bound's linear programme was not solved: {answer.message}")
        return float(-answer.fun)

    def _matrix(self, of: _Rows) -> Any:
        sparse = importlib.import_module("scipy.sparse")
        return sparse.csr_matrix((of.values, (of.rows, of.columns)), shape=(len(of.limits), self._columns))
