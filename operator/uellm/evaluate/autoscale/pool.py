"""A pool of replicas that start, serve and drain on a simulated clock, and the figures that a policy may see of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from uellm.evaluate.autoscale import replica_model as model
from uellm.evaluate.scenario import ALL, RequestClass
from uellm.planner.cost.engine_file import EngineFile


@dataclass(frozen=True, slots=True)
class DayLoad:
    """Requests in order of arrival, as columns."""

    arrival_s: Any
    prompt: Any
    uncached: Any
    output: Any
    expected: Any
    class_index: Any
    classes: tuple[RequestClass, ...]

    def __len__(self) -> int:
        return len(self.arrival_s)


class PoolFigures(NamedTuple):
    """What the sidecars reported since the last look."""

    now_s: float
    ready: int
    starting: int
    running: int
    """In the engines, draining ones included."""
    queued: int
    kv_share: float
    """The mean of the ready replicas."""
    utilisation: float
    """The share of the time in which engines were in a step: the mean of the ready replicas."""
    arrived: int
    prompt_tokens: float
    """Sum over what ended; those to compute."""
    output_tokens: float
    """Sum over what was answered."""
    answered: int
    ended: int
    """Those that were answered, and those that were refused."""
    met: int
    """Of those that ended, as far as they met all their targets."""


class ReplicaPool:
    """Replicas. `advance` in time, `scale` as wished; `gpu_s` counts every replica from its order to its end."""

    def __init__(self, load: DayLoad, engine: EngineFile, chunk: int, most: int, startup_s: float) -> None:
        step = engine.step
        self._engine = model.ModelledEngine(
            step.floor_s,
            step.per_prefill_token_s,
            step.per_kv_token_s,
            step.per_sequence_s,
            step.overhead_s,
            chunk,
            engine.max_num_seqs,
            float(engine.kv_tokens),
        )
        self._load = load
        self._startup_s = startup_s
        # Twice as many rows: replicas that drain are there beside their successors.
        self._state = model.new_state(2 * most, engine.max_num_seqs)
        self._requests = model.Requests(
            load.arrival_s, load.prompt, load.uncached, load.output, load.expected, first_tokens_due_s(load, engine)
        )
        self.outcomes = model.Outcomes(np.full(len(load), np.nan), np.full(len(load), np.nan))
        self._starting: list[float] = []
        self._first = 0
        self._seen = 0
        self._open = np.zeros(0, np.int64)
        self.now_s = 0.0
        self.gpu_s = 0.0

    @property
    def wanted(self) -> int:
        """Replicas that are ready or starting."""
        return self._ready() + len(self._starting)

    def begin(self, replicas: int) -> None:
        """Replicas that are ready at once: the state in which the simulation begins."""
        for _ in range(replicas):
            self._join()

    def scale(self, replicas: int) -> None:
        """Order or give up replicas. What starts is given up first, and then what has the least to do."""
        while self.wanted < replicas:
            self._starting.append(self.now_s + self._startup_s)
        while self.wanted > replicas:
            if self._starting:
                self._starting.pop()
                continue
            ready = np.flatnonzero(self._state.phase == model.READY)
            held = self._state.running[ready] + self._state.waiting[ready] + self._state.late[ready]
            self._state.phase[ready[np.argmin(held)]] = model.DRAINING

    def advance(self, until_s: float) -> None:
        """Serve until then."""
        while self._starting and self._starting[0] <= until_s:
            at_s = self._starting.pop(0)
            self._serve(at_s, len(self._starting) + 1)
            self._join()
        self._serve(until_s, len(self._starting))

    def _serve(self, until_s: float, starting: int) -> None:
        state = self._state
        there = int(np.count_nonzero(state.phase != model.GONE))
        self.gpu_s += (there + starting) * max(0.0, until_s - self.now_s)
        self._first = model.serve(self._requests, self.outcomes, self._engine, state, self._first, until_s)
        empty = (state.running + state.waiting + state.late) == 0
        state.phase[(state.phase == model.DRAINING) & empty] = model.GONE
        self.now_s = until_s

    def _join(self) -> None:
        free = int(np.flatnonzero(self._state.phase == model.GONE)[0])
        self._state.phase[free] = model.READY
        self._state.clock_s[free] = self.now_s
        self._state.busy_s[free] = 0.0

    def _ready(self) -> int:
        return int(np.count_nonzero(self._state.phase == model.READY))

    def _held(self) -> Any:
        """The requests that replicas have, in their queues or engines."""
        state, parts = self._state, [np.zeros(0, np.int64)]
        rows = ((state.running, state.request), (state.waiting, state.queue), (state.late, state.tail))
        for counts, requests in (*rows, (state.coming, state.inbox)):
            parts += [requests[replica, : counts[replica]] for replica in np.flatnonzero(counts)]
        return np.concatenate(parts)

    def figures(self, interval_s: float) -> PoolFigures:
        """What happened since the last call, which was `interval_s` ago."""
        state, load = self._state, self._load
        new = slice(self._seen, self._first)
        self._seen = self._first
        candidates = np.concatenate([self._open, np.arange(new.start, new.stop)])
        ends = self.outcomes.end_s[candidates]
        done = ends <= self.now_s
        # What was refused never ends, and no replica has it.
        refused = np.isnan(ends) & ~np.isin(candidates, self._held())
        answered, ended = candidates[done], candidates[done | refused]
        self._open = candidates[~done & ~refused]
        ready = state.phase == model.READY
        count = max(1, int(np.count_nonzero(ready)))
        utilisation = float(np.minimum(1.0, state.busy_s[ready] / interval_s).sum()) / count
        state.busy_s[:] = 0.0
        return PoolFigures(
            self.now_s,
            int(np.count_nonzero(ready)),
            len(self._starting),
            int(state.running.sum()),
            int((state.waiting + state.late).sum()),
            float(state.kv[ready].sum()) / count / self._engine.kv_tokens,
            utilisation,
            new.stop - new.start,
            float(load.uncached[ended].sum()),
            float(load.output[answered].sum()),
            len(answered),
            len(ended),
            int(met(load, self.outcomes, ended).sum()),
        )


def first_tokens_due_s(load: DayLoad, engine: EngineFile) -> Any:
    """When the first token of each request is due: its TTFT target, or what its answer leaves of the end-to-end one."""
    pace_s = engine.step.step_s(engine.step.floor_tokens, 32 * 1024, 32)
    targets = [entry.targets for entry in load.classes]
    ttft_s = np.array([math.inf if each.ttft_s is None else each.ttft_s for each in targets])
    e2e_s = np.array([math.inf if each.e2e_s is None else each.e2e_s for each in targets])
    after_s = np.minimum(ttft_s[load.class_index], e2e_s[load.class_index] - load.expected * pace_s)
    # Without targets: after all that have some.
    return load.arrival_s + np.minimum(after_s, 120.0)


def met(load: DayLoad, outcomes: model.Outcomes, which: Any) -> Any:
    """Whether each of these requests met every target of its class. What did not end did not."""
    result = np.zeros(len(which), bool)
    first_s, end_s = outcomes.first_s[which], outcomes.end_s[which]
    arrival_s, output = load.arrival_s[which], load.output[which]
    for index, entry in enumerate(load.classes):
        mine, targets = load.class_index[which] == index, entry.targets
        good = ~np.isnan(end_s[mine])
        if targets.ttft_s is not None:
            good &= first_s[mine] - arrival_s[mine] <= targets.ttft_s
        if targets.e2e_s is not None:
            good &= end_s[mine] - arrival_s[mine] <= targets.e2e_s
        if targets.tpot_s is not None:
            # An answer of one token meets any.
            pace = (end_s[mine] - first_s[mine]) / np.maximum(output[mine] - 1, 1)
            good &= (output[mine] <= 1) | (pace <= targets.tpot_s)
        result[mine] = good
    return result


def attainment(load: DayLoad, outcomes: model.Outcomes, which: Any) -> dict[str, float]:
    """Share of these requests that met their targets: of all, and by class."""
    good = met(load, outcomes, which)
    shares = {ALL: _share(good)}
    names: Sequence[tuple[int, RequestClass]] = tuple(enumerate(load.classes))
    for index, entry in names:
        of_class = good[load.class_index[which] == index]
        if len(of_class):
            shares[entry.name] = _share(of_class)
    return shares


def _share(good: Any) -> float:
    return float(good.mean()) if len(good) else 1.0
