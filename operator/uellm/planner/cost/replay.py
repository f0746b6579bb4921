"""A load on an engine, step by step: the prompt tokens and sequences of each step, and the requests that wait for it.

The engine fills a step as vLLM does: one token of each running sequence, then prompts in order of arrival, up to the
chunk. A prompt that arrives while a step runs joins the one after it. A request's first token comes with the step that
ends its prompt. If every client waits for its answer before it sends the next request, the requests in a step do not
depend on how long steps take. With t the time of a step:

    mean TPOT = sum(t * sequences that decode) / tokens they decode
    mean TTFT = sum(t * requests that wait) / requests

Equal steps are counted together.
"""

from __future__ import annotations

import heapq
import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

from uellm.planner import constants as c


@dataclass(frozen=True, slots=True)
class ClosedLoop:
    """Clients that each send a request, wait for its answer and send the next."""

    clients: int
    prompts: int
    """In all."""
    prompt_tokens: int
    output_tokens: int


@dataclass(frozen=True, slots=True)
class Limits:
    """What a step can hold."""

    chunk: int
    """Tokens."""
    sequences: int


class EngineStep(NamedTuple):
    """One step of the engine."""

    prompt_tokens: int
    sequences: int
    """That decode."""
    first_tokens: int
    """Prompts that end with it."""


@dataclass(frozen=True, slots=True)
class Served:
    """What clients see, as means."""

    ttft_s: float
    tpot_s: float
    seconds: float
    """From the first arrival to the last token."""
    requests: int


class Engine:
    """The state of an engine between two steps."""

    def __init__(self, prompt_tokens: int, output_tokens: int, limits: Limits) -> None:
        self.prompt_tokens, self.output_tokens, self.limits = prompt_tokens, output_tokens, limits
        self._step = self._answers = 0
        self._prompts: deque[int] = deque()
        """Tokens left of each prompt, in order of arrival."""
        self._ends: list[int] = []
        """The step after which each decoding sequence ends; a heap."""

    @property
    def decoding(self) -> int:
        """Sequences with a first token."""
        return len(self._ends)

    @property
    def waiting(self) -> int:
        """Requests without one."""
        return len(self._prompts)

    @property
    def busy(self) -> bool:
        """Whether there is anything to do."""
        return bool(self._ends or self._prompts)

    def arrive(self, requests: int) -> None:
        """This number of requests arrives."""
        self._prompts.extend([self.prompt_tokens] * requests)

    def plan(self) -> EngineStep:
        """The next step."""
        decoding = len(self._ends)
        room, places = self.limits.chunk - decoding, self.limits.sequences - decoding
        tokens = firsts = 0
        for left in self._prompts:
            if room <= 0 or places <= 0:
                break
            take = min(room, left)
            room, places, tokens = room - take, places - 1, tokens + take
            firsts += take == left
        return EngineStep(tokens, decoding, firsts)

    def alike(self, step: EngineStep) -> int:
        """How many steps like this one follow, if nobody arrives."""
        return max(1, self._ends[0] - self._step) if not step.prompt_tokens and self._ends else 1

    def apply(self, step: EngineStep, count: int) -> int:
        """The state after `count` such steps; the number of answers that ended."""
        self._step += count
        left = step.prompt_tokens
        for _ in range(step.first_tokens):
            left -= self._prompts.popleft()
        if left:
            self._prompts[0] -= left
        ended = 0
        while self._ends and self._ends[0] <= self._step:
            heapq.heappop(self._ends)
            ended += 1
        for _ in range(step.first_tokens):
            ended += self._first_token()
        return ended

    def _first_token(self) -> int:
        """1 if it is the last one, too."""
        self._answers += 1
        even = self._answers * (math.sqrt(5) - 1) / 2 % 1  # multiples of the golden ratio are spread evenly
        length = round(self.output_tokens * (1 + c.OUTPUT_SPREAD * (2 * even - 1)))
        if length <= 1:
            return 1
        heapq.heappush(self._ends, self._step + length - 1)
        return 0


@dataclass(slots=True)
class Counts:
    """All steps of one size."""

    steps: int = 0
    decoding: int = 0
    """Sequences that decode, summed over the steps."""
    waiting: int = 0
    """Requests without their first token, summed over the steps."""


@dataclass(slots=True)
class LoopSteps:
    """The steps of a closed loop."""

    load: ClosedLoop
    sizes: dict[tuple[int, int], Counts] = field(default_factory=dict)
    """By prompt tokens and sequences."""

    def served(self, step_s: Callable[[int, int], float], before_engine_s: float = 0.0) -> Served:
        """The times, given `step_s(prompt tokens, sequences)` and the time before a request arrives, in seconds."""
        waited = decoded = total = 0.0
        tokens = 0
        for (prompt_tokens, sequences), counts in self.sizes.items():
            each = step_s(prompt_tokens, sequences)
            total += each * counts.steps
            waited += each * counts.waiting
            decoded += each * counts.decoding
            tokens += counts.decoding
        requests = self.load.prompts
        total += before_engine_s * requests / min(self.load.clients, requests)
        return Served(waited / requests + before_engine_s, decoded / max(1, tokens), total, requests)


def replay(load: ClosedLoop, limits: Limits) -> LoopSteps:
    """The steps from the first wave to the last answer."""
    found, engine = LoopSteps(load), Engine(load.prompt_tokens, load.output_tokens, limits)
    arriving = sent = min(load.clients, load.prompts)
    engine.arrive(arriving)
    arriving = 0
    while engine.busy or arriving:
        if not engine.busy:
            engine.arrive(arriving)
            arriving = 0
        step = engine.plan()
        same = 1 if arriving else engine.alike(step)
        counts = found.sizes.setdefault((step.prompt_tokens, step.sequences), Counts())
        counts.steps += same
        counts.decoding += step.sequences * same
        counts.waiting += (engine.waiting + arriving) * same
        ended = engine.apply(step, same)
        engine.arrive(arriving)
        arriving = min(ended, load.prompts - sent)
        sent += arriving
    return found
