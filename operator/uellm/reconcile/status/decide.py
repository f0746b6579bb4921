"""What a service's state means: its conditions, its status, its Events. Pure; the time is an argument."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from uellm.api import LLMService
from uellm.hardware import class_place
from uellm.planner.result import Plan
from uellm.reconcile.adapters import are_told
from uellm.reconcile.conditions import Condition, condition_entries, transitions
from uellm.reconcile.download.claim import CLAIM_DELETED
from uellm.reconcile.download.on_nodes import NO_NODE_CACHE
from uellm.reconcile.dra.shortage import shortage
from uellm.reconcile.observe import Observed
from uellm.reconcile.obstacle import Obstacle
from uellm.reconcile.planning.choose import Choice, described
from uellm.reconcile.pods.attainment import slo_met, together
from uellm.reconcile.pods.engine_readiness import EngineReadiness, engine_readiness, living
from uellm.reconcile.pods.placements import placements, verified
from uellm.reconcile.pods.pod_failures import PodFailure, PodFailures, Removal, failed_pods, lost_gpus, removals, tally
from uellm.reconcile.pods.running import WantedConfig, unconfirmed
from uellm.reconcile.status.better_plan import TYPE as BETTER_PLAN
from uellm.reconcile.status.better_plan import better_plan
from uellm.reconcile.status.fields import status_of
from uellm.reconcile.status.needs_groups import NEEDS_LEADER_WORKER_SET
from uellm.reconcile.status.predictions import TYPE as PREDICTIONS_HOLD
from uellm.reconcile.status.predictions import predictions_hold
from uellm.reconcile.status.slo_feasible import TYPE as SLO_FEASIBLE
from uellm.reconcile.status.slo_feasible import allowed_replicas, feasible, missing_replicas
from uellm.reconcile.status.waiting_for_node import waiting_for_node
from uellm.reconcile.step_times.steps import service_steps
from uellm.reconcile.times import timestamp
from uellm.text import and_more

# Reasons that waiting does not remove: a person has to change the spec or another object. NoFit and NoProfile are not
# among them, because GPUs may become free and a profiler may start at any moment.
STALLING = frozenset(
    {
        "InvalidSpec",
        "InvalidModel",
        "InvalidAdapter",
        "ModelUnknown",
        "NeedsRemoteCode",
        "TaskNotSupported",
        "InvalidTargets",
        "Gated",
        "NoSuchRepository",
        "NoSuchRevision",
        "NoConfiguration",
        "NoWeights",
        "Unreadable",
        "AddressRefused",
        "InvalidAnswer",
        "NotOnVolume",
        "InvalidOverride",
        "NeedsExactDevices",
        "DRANotServed",
        "DRAForbidden",
        NEEDS_LEADER_WORKER_SET,
        "InvalidTemplate",
        "NameTaken",
        "Forbidden",
        "VolumeFull",
        "Unwritable",
        "ChecksumMismatch",
        "ClaimDiffers",
        CLAIM_DELETED,
        NO_NODE_CACHE,
    }
)
_NODES_NAMED = 8
# Conditions without Events: two repeat Ready for programs, and one asks nothing of anybody.
_WITHOUT_EVENTS = frozenset({"Reconciling", "Stalled", PREDICTIONS_HOLD})


@dataclass(frozen=True)
class Decision:
    """The status to write, the Events to create, and when the next pass is due."""

    status: dict[str, Any]
    notes: tuple[Condition, ...]
    recheck_s: float | None
    removals: tuple[Removal, ...] = ()
    """Pods to delete once the status is written."""


def decide(
    observed: Observed,
    choice: Choice,
    *,
    change: str = "",
    refusal: Obstacle | None,
    now: datetime,
    wanted: WantedConfig | None = None,
    routed: Condition | None = None,
    added: str = "",
    predicted_earlier: bool = False,
) -> Decision:
    """Decide on the status.

    `change`: the change about to be made to the Deployment, empty for none; `refusal`: why the children cannot be
    written; `wanted`: what every pod is to run with, None where the pods are of a release whose sidecars do not report
    it, or nothing is wanted; `routed`: the condition Routed, None for none; `added`: what somebody has added to the
    pods by hand, empty for nothing; `predicted_earlier`: what is predicted is of an earlier generation of the spec.
    """
    own_nodes = (node for node in observed.nodes if node.facts.name in observed.node_states)
    found = failed_pods(observed.pods, observed.node_states, now, lost_gpus(own_nodes))
    failures = tally(PodFailures.from_status(observed.status), found, now)
    engine = _readiness(observed, choice, failures, change=change, refusal=refusal)
    if engine.ready and wanted is not None:
        engine = unconfirmed(observed.engines, observed.running, wanted) or engine
    if added:
        engine = engine._replace(message=f"{engine.message}; {added}")
    plan = choice.plan or (observed.incumbent if observed.deployment else None)
    placed = placements(plan, observed.pods, observed.reports, observed.nodes, observed.claimed) if plan else []
    revision = wanted.revision if wanted is not None else str(observed.status.get("revision") or "")
    # Pods that a rollout replaces were planned otherwise.
    current = [each for each in placed if not revision or each.revision in ("", revision)]
    service = observed.service
    slo = feasible(plan, service, no_plan=choice.failure.message if choice.failure else "")
    classes = [each.name for each in service.spec.slo.effective_classes] if service is not None else []
    measured = together(observed.measurements.values(), classes)
    met = slo_met(measured, service) if service is not None and observed.measurements else None
    steps = service_steps(observed) if observed.step_times and plan is not None else None
    holds = predictions_hold(steps) if steps is not None else None
    scaling = observed.scaling.condition if observed.scaling is not None else None
    about = [
        slo,
        *filter(None, (met, holds, scaling, routed)),
        *([verified(current, claims=plan.claims), better_plan(choice)] if plan is not None else []),
    ]
    conditions = [*_kstatus(engine), observed.download.told(observed.model.condition), _planned(choice), *about]
    before: Sequence[Mapping[str, Any]] = observed.status.get("conditions") or ()
    status = status_of(observed, plan, placed, measured, steps, revision=revision)
    if words := _slo_column(slo, plan, service, status["summary"].get("slo", "")):
        status["summary"]["slo"] = words
    if failures is not None:
        status["podFailures"] = failures.to_dict()
    earlier = {SLO_FEASIBLE} if predicted_earlier and plan is not None else set()
    status["conditions"] = condition_entries(
        conditions, before, generation=observed.generation, now=timestamp(now), earlier=earlier
    )
    notes = [note for note in transitions(conditions, before) if _is_worth_an_event(note, known=bool(before))]
    if choice.why and choice.plan is not None and choice.plan != observed.incumbent:
        notes.append(Condition("Planned", "True", "Replanned", choice.why))
    notes += _failure_notes(failures, found, observed.status)
    removed, more_in_s = removals(failures, found, now)
    return Decision(status, tuple(notes), more_in_s, removed)


def _is_worth_an_event(note: Condition, *, known: bool) -> bool:
    """False for "not known yet", for "nothing better", and for a new service whose engine is being started."""
    if not known and note.reason == "EngineStarting":
        return False
    return note.type not in _WITHOUT_EVENTS and note.status != "Unknown" and note[:2] != (BETTER_PLAN, "False")


def _failure_notes(
    failures: PodFailures | None, found: Sequence[PodFailure], status: Mapping[str, Any]
) -> list[Condition]:
    """An Event for failures that were not counted before."""
    before = PodFailures.from_status(status)
    known = before.pods if before is not None else ()
    if failures is None or all(each.pod in known for each in found):
        return []
    return [Condition("Pods", "False", failures.reason, failures.message)]


def _readiness(
    observed: Observed, choice: Choice, failures: PodFailures | None, *, change: str, refusal: Obstacle | None
) -> EngineReadiness:
    """The condition Ready: an obstacle to the spec comes before the state of the pods."""
    waits = waiting_for_node(observed, choice.plan or observed.incumbent)
    unplaced = observed.spec_changed or not living(observed.pods) or waits is not None
    obstacle = refusal or (choice.failure if unplaced else None)
    if obstacle is not None:
        return EngineReadiness(False, obstacle.reason, obstacle.message, stalled=obstacle.reason in STALLING)
    if observed.deployment is None:
        return EngineReadiness(False, "EngineStarting", "the pods are being made")
    if change:
        return EngineReadiness(False, "RollingOut", change)
    if (untold := _untold_adapters(observed, choice)) is not None:
        return EngineReadiness(False, untold.reason, untold.message, stalled=untold.reason in STALLING)
    state = engine_readiness(
        observed.deployment,
        observed.pods,
        observed.replicas,
        failures,
        observed.kubelet_warnings,
        observed.image_pulls,
        observed.queue_words,
    )
    if waits is not None and state.reason in ("Unschedulable", "EngineStarting"):
        return waits
    if state.ready and observed.replicas == 0:
        return _without_pods(observed)
    told = observed.download.condition
    if state.reason == "EngineStarting" and told is not None and observed.download.complete:
        # It is not complete yet on the node of a pod that starts.
        return EngineReadiness(False, told.reason, told.message, stalled=told.reason in STALLING)
    plan = choice.plan or observed.incumbent
    if state.reason == "Unschedulable" and plan is not None and plan.claims:
        return state._replace(message=f"{state.message}; {shortage(plan, observed.nodes)}")
    return state


def _untold_adapters(observed: Observed, choice: Choice) -> Obstacle | None:
    """Why the sidecars have not been told of the service's adapters as they are now; None where they have."""
    service = observed.service
    if service is None or observed.replicas == 0 or are_told(service, observed.told_adapters):
        return None
    default = Obstacle("AdaptersLoading", "the sidecars are being told of the adapters")
    # One that has not begun says nothing of itself.
    copy = observed.download.obstacle if observed.download.condition is not None else None
    return observed.model.obstacle or choice.failure or copy or default


def _without_pods(observed: Observed) -> EngineReadiness:
    if observed.scaling is not None and not observed.suspended:
        message = "no pods run, because no requests came; the next one at the gateway starts a replica"
        return EngineReadiness(True, "ScaledToZero", message)
    reason, field = ("Suspended", "suspend") if observed.suspended else ("ScaledToZero", "replicas")
    return EngineReadiness(True, reason, f"no pods run, because of spec.{field}; the plan is kept")


def _kstatus(engine: EngineReadiness) -> list[Condition]:
    working = not engine.ready and not engine.stalled
    idle = "nothing is left to do" if engine.ready else "waiting for a change by a person"
    return [
        Condition("Ready", _text(engine.ready), engine.reason, engine.message),
        Condition("Reconciling", _text(working), engine.reason, engine.message if working else idle),
        Condition("Stalled", _text(engine.stalled), engine.reason, engine.message if engine.stalled else "not stalled"),
    ]


def _planned(choice: Choice) -> Condition:
    if choice.plan is None:
        failure = choice.failure or Obstacle("NotPlanned", "no plan was made")
        return Condition("Planned", "False", failure.reason, failure.message)
    plan = choice.plan
    where = and_more(plan.nodes, _NODES_NAMED, "node")
    if plan.node_classes:
        where = f"a node of {class_place(plan.node_classes[0])} that has not joined"
    message = f"{described(plan)}, on {where}"
    return Condition("Planned", "True", "Planned", message)


def _slo_column(slo: Condition, plan: Plan | None, service: LLMService | None, measured: str) -> str:
    """The share that was measured, else whether the targets are predicted to be met; and replicas that are missing."""
    words = measured or {"True": "feasible", "False": "infeasible"}.get(slo.status, "")
    needed = missing_replicas(plan, service) if plan is not None and service is not None else 0
    return f"{words} ({allowed_replicas(service)} of {needed} replicas)" if needed and service is not None else words


def _text(holds: bool) -> str:
    return "True" if holds else "False"
