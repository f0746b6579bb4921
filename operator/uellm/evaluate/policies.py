"""The policies that can be compared, by name.

engine-FCFS, engine-EDF, engine-SJF    all requests go straight to the engine, which orders them: vLLM's FCFS, or
                                       its `priority` policy with the deadline or the predicted length as priority
engine-EDF-targets                     as engine-EDF, but the deadline is the plain target: that of the first token,
                                       else that of the whole answer, whatever its length
engine-only                            the same as engine-FCFS
all others                             the sidecar's scheduler with that policy, in front of an engine that runs FCFS
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from uellm.errors import BadInput
from uellm.evaluate.scenario import Job
from uellm.evaluate.vllm_scheduler import FCFS, PRIORITY
from uellm.sidecar.scheduling import FAR_DEADLINE_S, POLICIES

EDF_TPOT_S = 0.03
"""Assumed seconds per output token when an end-to-end target is turned into a deadline of the first token."""

Priority = Callable[[Job, float], int]


@dataclass(frozen=True, slots=True)
class ComparedPolicy:
    """How a policy is run. `priority` is a function of (request, arrival in seconds); None: a policy of the sidecar."""

    name: str
    engine_policy: str = FCFS
    priority: Priority | None = None

    @property
    def in_sidecar(self) -> bool:
        """Whether the sidecar's scheduler runs in front of the engine."""
        return self.priority is None


def first_token_deadline_s(job: Job, arrival_s: float) -> float:
    """Deadline of the first token, assuming that the answer has the P80 of the predicted length."""
    targets = job.request_class.targets
    length = job.lengths.p80 if job.lengths is not None else 0.0
    deadlines = [] if targets.ttft_s is None else [targets.ttft_s]
    if targets.e2e_s is not None:
        deadlines.append(targets.e2e_s - length * EDF_TPOT_S)
    return arrival_s + min(deadlines, default=FAR_DEADLINE_S)


def _no_priority(job: Job, arrival_s: float) -> int:
    return 0


def _deadline_ms(job: Job, arrival_s: float) -> int:
    return int(first_token_deadline_s(job, arrival_s) * 1e3)


def _target_ms(job: Job, arrival_s: float) -> int:
    after_s = job.request_class.targets.first_s
    return int((arrival_s + (FAR_DEADLINE_S if after_s is None else after_s)) * 1e3)


def _predicted_tokens(job: Job, arrival_s: float) -> int:
    return int(job.lengths.p50) if job.lengths is not None else 0


_ENGINE = {
    "engine-FCFS": ComparedPolicy("engine-FCFS", FCFS, _no_priority),
    "engine-EDF": ComparedPolicy("engine-EDF", PRIORITY, _deadline_ms),
    "engine-EDF-targets": ComparedPolicy("engine-EDF-targets", PRIORITY, _target_ms),
    "engine-SJF": ComparedPolicy("engine-SJF", PRIORITY, _predicted_tokens),
}
_ALIASES = {"engine-only": "engine-FCFS"}


def policy_names() -> list[str]:
    """Every name that `find_policy` knows."""
    return list(dict.fromkeys([*_ENGINE, *_ALIASES, *POLICIES]))


def find_policy(name: str) -> ComparedPolicy:
    """The policy with this name. Raises BadInput for an unknown one."""
    known = _ENGINE.get(_ALIASES.get(name, name))
    if known is None and name not in POLICIES:
        raise BadInput("--policy", f"{name!r} is none of {', '.join(policy_names())}")
    return known or ComparedPolicy(name)
