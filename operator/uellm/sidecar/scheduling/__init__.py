"""The scheduler: which request goes to the engine next, and when. Pure and synchronous; the caller passes the clock in.

The same code runs in the live sidecar and, under a virtual clock, in `uellm evaluate`.
"""

from uellm.sidecar.scheduling.estimate import DEFAULT_STEP_TIME, MeasuredSteps, StepEstimate
from uellm.sidecar.scheduling.policies import POLICIES
from uellm.sidecar.scheduling.scheduler import ENGINE_WAIT_S, Scheduler
from uellm.sidecar.scheduling.types import (
    FAR_DEADLINE_S,
    EngineState,
    EngineSteps,
    Late,
    Lengths,
    Options,
    QueueFull,
    Shows,
    State,
    Targets,
    Ticket,
)

__all__ = [
    "DEFAULT_STEP_TIME",
    "ENGINE_WAIT_S",
    "FAR_DEADLINE_S",
    "POLICIES",
    "EngineState",
    "EngineSteps",
    "Late",
    "Lengths",
    "MeasuredSteps",
    "Options",
    "QueueFull",
    "Scheduler",
    "Shows",
    "State",
    "StepEstimate",
    "Targets",
    "Ticket",
]
