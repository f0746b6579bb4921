"""What a service's state means: conditions, status and what is to be written. Pure; the time is an argument."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from uellm.reconcile.conditions import Condition, transitions, written
from uellm.reconcile.observe import Observed
from uellm.reconcile.planning.choose import Choice, Failure
from uellm.reconcile.pods.attainment import slo_met, together
from uellm.reconcile.pods.engine_state import EngineState, engine_state, living
from uellm.reconcile.pods.placements import placements, verified
from uellm.reconcile.status.fields import status_of, timestamp
from uellm.reconcile.status.slo_feasible import feasible

# What no waiting changes: only another spec, or another object out of the way. GPUs may become free and a profiler
# may start at any moment, so NoFit and NoProfile are not among them.
STALLING = frozenset(
    {
        "InvalidSpec",
        "InvalidModel",
        "ModelConfigMissing",
        "InvalidOverride",
        "NeedsExactDevices",
        "InvalidTemplate",
        "NameTaken",
        "Forbidden",
    }
)
_NODES_NAMED = 8
# They say again what Ready says, for programs.
_UNTOLD = frozenset({"Reconciling", "Stalled"})
# A pod's report comes within seconds of its engine's start.
REPORT_POLL_S = 3.0


@dataclass(frozen=True)
class Decision:
    """The status to be written, what to tell as Events, and when to look again without being asked."""

    status: dict[str, Any]
    notes: tuple[Condition, ...]
    recheck_s: float | None


def decide(
    observed: Observed, choice: Choice, *, change: str = "", refusal: Failure | None, unreported: bool, now: datetime
) -> Decision:
    """Decide on the status.

    `change`: what is about to be done to the Deployment, empty for nothing; `refusal`: why the children cannot be
    written; `unreported`: a running pod has not told its placement yet.
    """
    engine = _engine(observed, choice, change=change, refusal=refusal)
    plan = choice.plan or (observed.incumbent if observed.deployment else None)
    placed = placements(plan, observed.pods, observed.reports, observed.fleet) if plan else []
    slo = feasible(plan, observed.service) if plan is not None and observed.service is not None else None
    service = observed.service
    classes = [each.name for each in service.spec.slo.effective_classes] if service is not None else []
    figures = together(observed.figures.values(), classes)
    met = slo_met(figures, service) if service is not None and observed.figures else None
    about = [*filter(None, (slo, met)), *([verified(placed)] if plan is not None else [])]
    conditions = [*_kstatus(engine), _planned(choice), *about]
    before: Sequence[Mapping[str, Any]] = observed.status.get("conditions") or ()
    status = status_of(observed, plan, placed, figures)
    if slo is not None:
        status["summary"].setdefault("slo", "feasible" if slo.status == "True" else "infeasible")
    status["conditions"] = written(conditions, before, generation=observed.generation, now=timestamp(now))
    notes = [
        note
        for note in transitions(conditions, before)
        # That nothing is known yet is no news.
        if note.type not in _UNTOLD and note.status != "Unknown"
    ]
    if choice.why and choice.plan is not None and choice.plan != observed.incumbent:
        notes.append(Condition("Planned", "True", "Replanned", choice.why))
    return Decision(status, tuple(notes), REPORT_POLL_S if unreported else None)


def _engine(observed: Observed, choice: Choice, *, change: str, refusal: Failure | None) -> EngineState:
    """The state that Ready tells: what stands in the way of the spec comes before how the pods fare."""
    obstacle = refusal or (choice.failure if observed.spec_changed or not living(observed.pods) else None)
    if obstacle is not None:
        return EngineState(False, obstacle.reason, obstacle.message, stalled=obstacle.reason in STALLING)
    if observed.deployment is None:
        return EngineState(False, "EngineStarting", "the Deployment is being created")
    if change:
        return EngineState(False, "RollingOut", change)
    state = engine_state(observed.deployment, observed.pods, observed.replicas)
    if state.ready and observed.replicas == 0:
        reason, field = ("Suspended", "suspend") if observed.suspended else ("ScaledToZero", "replicas")
        return EngineState(True, reason, f"no pods run, as spec.{field} wants it; the plan is kept")
    return state


def _kstatus(engine: EngineState) -> list[Condition]:
    working = not engine.ready and not engine.stalled
    idle = "nothing is left to do" if engine.ready else "nothing is left to do without a person"
    return [
        Condition("Ready", _text(engine.ready), engine.reason, engine.message),
        Condition("Reconciling", _text(working), engine.reason, engine.message if working else idle),
        Condition("Stalled", _text(engine.stalled), engine.reason, engine.message if engine.stalled else "not stalled"),
    ]


def _planned(choice: Choice) -> Condition:
    if choice.plan is None:
        failure = choice.failure or Failure("NotPlanned", "no plan was made")
        return Condition("Planned", "False", failure.reason, failure.message)
    plan, more = choice.plan, len(choice.plan.nodes) - _NODES_NAMED
    gpus = "1 GPU" if plan.gpus_per_replica == 1 else f"{plan.gpus_per_replica} GPUs"
    message = (
        f"{gpus} a replica (tensor {plan.tensor} × pipeline {plan.pipeline}), "
        f"layers {','.join(str(count) for count in plan.layers)}, on {', '.join(plan.nodes[:_NODES_NAMED])}"
    )
    if more > 0:
        message += f" and {more} more nodes"
    return Condition("Planned", "True", "Planned", message)


def _text(holds: bool) -> str:
    return "True" if holds else "False"
