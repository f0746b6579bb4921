"""A minimal engine in place of vLLM's scheduler, and request classes for it (tests/e2e uses vLLM's)."""

from __future__ import annotations

from dataclasses import dataclass

from uellm.evaluate.engine import Step, Work
from uellm.evaluate.front import DirectFront, Front, SidecarFront
from uellm.evaluate.policies import find_policy
from uellm.evaluate.scenario import read_classes
from uellm.planner.cost.engine_file import EngineFile
from uellm.sidecar.scheduling import Options
from uellm.step_time import StepTime

ENGINE = EngineFile("toy", StepTime(5e-3, 1e-4, 1e-6, 1e-4, 1e-3), 100, 16, 4, 512, 1024)


@dataclass
class Running:
    work: Work
    tokens: int = 0


class ToyEngine:
    def __init__(self, engine: EngineFile = ENGINE) -> None:
        self.engine, self.preemptions, self.kv_used_share = engine, 0, 0.0
        self._waiting: list[Work] = []
        self._running: list[Running] = []
        self.entered: list[tuple[int, int]] = []
        self.steps = 0

    @property
    def busy(self) -> bool:
        return bool(self._waiting or self._running)

    @property
    def running(self) -> int:
        return len(self._running)

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    def add(self, work: Work) -> None:
        self._waiting.append(work)
        self.entered.append((self.steps, work.key))

    def leap(self, now_s: float, until_s: float) -> tuple[list[float], list[int]]:
        return [], []

    def step(self, now_s: float) -> Step:
        self.steps += 1
        joining = self._waiting[: self.engine.max_num_seqs - len(self._running)]
        del self._waiting[: len(joining)]
        self._running += [Running(work) for work in joining]
        kv = sum(r.work.prompt_tokens + r.tokens for r in self._running)
        end_s = now_s + self.engine.step.step_s(sum(w.prompt_tokens for w in joining), kv, len(self._running))
        for request in self._running:
            request.tokens += 1
        tokens = [r.work.key for r in self._running]
        finished = [r.work.key for r in self._running if r.tokens == r.work.output_tokens]
        self._running = [r for r in self._running if r.tokens < r.work.output_tokens]
        return Step(end_s, tokens, finished)


CLASSES = read_classes(
    {
        "classes": [
            {"name": "chat", "share": 0.4, "ttft": "100ms", "tpot": "9ms"},
            {"name": "task", "share": 0.3, "e2e": "300ms"},
            {"name": "both", "share": 0.2, "ttft": "150ms", "e2e": "400ms"},
            {"name": "any", "share": 0.1},
        ],
        "predictor": {"kind": "noisy-oracle", "sigma": 0.5},
    },
    "classes",
)


def front(name: str) -> Front:
    policy = find_policy(name)
    if policy.priority is not None:
        return DirectFront(policy, policy.priority)
    return SidecarFront(Options(policy=name, max_in_flight=ENGINE.max_num_seqs, max_queued=10_000), None, ENGINE, 512)
