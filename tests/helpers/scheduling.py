"""Fixtures for the sidecar's scheduler: an engine's step times, a scheduler in front of it, waiting requests."""

from __future__ import annotations

from uellm.sidecar.scheduling import EngineState, Options, Scheduler, StepEstimate, Targets, Ticket
from uellm.step_time import StepTime

CHAT = Targets("chat", ttft_s=1.0, tpot_s=0.06)
TASK = Targets("task", e2e_s=10.0)
BATCH = Targets("batch", e2e_s=120.0)

STEP_MODEL = StepTime(5.5e-3, 45e-6, 44e-9, 15e-6, 0.5e-3)
"""Roughly an 8B model on one GPU."""


def scheduler_before(state: EngineState, options: Options, model: StepTime | None = None) -> Scheduler:
    """A scheduler that knows the engine's state, and its step times if `model` is given."""
    core = Scheduler(options) if model is None else Scheduler(options, StepEstimate(model))
    core.on_engine_state(state, 0.0)
    return core


def submitted(core: Scheduler, *waiting: Ticket) -> list[Ticket]:
    """The tickets, each submitted at its arrival."""
    for ticket in waiting:
        core.submit(ticket, ticket.arrival_s)
    return list(waiting)
