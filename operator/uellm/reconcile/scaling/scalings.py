"""Decides on the number of replicas in each pass, and remembers what is needed for that between passes.

The number in force is in the status. What is learned of the load is kept in memory: after a restart of the operator the
number stays, or grows, until the load has been seen for a while.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, NamedTuple

from uellm.api import LLMService
from uellm.api.attainment_report import LoadMeasurement
from uellm.api.llmservice import Autoscaling
from uellm.api.scalars import share
from uellm.autoscaling import LEARN_S, Autoscaler, Bounds, ReplicaDecision, ReplicaEngine, ShareOfClass
from uellm.planner.request import SloClass
from uellm.planner.result import Plan
from uellm.reconcile.children.stand_in import has_stand_in
from uellm.reconcile.download.on_nodes import copying
from uellm.reconcile.names import Key, uid_of
from uellm.reconcile.observe import Observed
from uellm.reconcile.pods.engine_readiness import living
from uellm.reconcile.pods.measurements import TimedLoad
from uellm.reconcile.pods.pod_state import is_ready
from uellm.reconcile.scaling.answers import MOST_STARTUPS, as_needed, held, unread, waiting_for_room, without_ready
from uellm.reconcile.scaling.load import any_passed, interval, measured_step, startup_s
from uellm.reconcile.scaling.scaling import Scaling, bounds_of, chosen_before, within, without_gateway
from uellm.reconcile.scaling.starts import Starts
from uellm.reconcile.scaling.wishes import Wishes
from uellm.step_time import StepTime
from uellm.text import counted

EVERY_S = 15.0
"""Between two looks at the load."""
LONGEST_GAP_S = 120.0
"""Between two passes over a service that runs. After a longer one, or a clock that was put back, the load is learned
anew: the service was suspended, the operator stood still, or the clock jumped."""
STARTUP_S = 300.0
"""Assumed until a replica was seen to start."""
ASSUMED_STEP = StepTime(5.5e-3, 45e-6, 44e-9, 15e-6, 0.5e-3)
"""Where step times are not known: about those of a model of 8 billion parameters on one GPU, as in the sidecar."""
ASSUMED_CHUNK, ASSUMED_KV_TOKENS = 2048, 100_000


class _Basis(NamedTuple):
    """What an autoscaler is made for; another one is made where this changes."""

    replica: ReplicaEngine
    classes: tuple[ShareOfClass, ...]
    attainment: float


@dataclass
class _Memory:
    """What is known of one service."""

    basis: _Basis
    autoscaler: Autoscaler
    since: datetime
    passed_at: datetime
    """The last pass."""
    seen_at: datetime
    """The last reading that the autoscaler was given."""
    busy_at: datetime
    """When there was last something to do, or a replica was starting."""
    asked_at: datetime
    """When there was last something to do, or somebody waited."""
    served_at: datetime
    """When a replica was ready last, none was wanted, or weights were being copied to a node."""
    served: bool = False
    """Whether a replica was ever ready."""
    loads: dict[str, LoadMeasurement] = field(default_factory=dict)
    """By pod uid, as last taken."""
    read_at_s: dict[str, float] = field(default_factory=dict)

    def pass_at(self, now: datetime) -> None:
        """Begin a pass. After a gap nothing is given up for a while, and no time is counted that was not seen."""
        gap_s = (now - self.passed_at).total_seconds()
        self.passed_at = now
        if not -EVERY_S <= gap_s <= LONGEST_GAP_S:
            self.since = self.seen_at = self.busy_at = self.asked_at = self.served_at = now
            self.loads, self.read_at_s = {}, {}


class Scalings:
    """The decisions on all services."""

    def __init__(self, gateway_namespaces: frozenset[str] | None = None) -> None:
        """`gateway_namespaces`: those whose services the gateway wakes; None for all."""
        self._gateway_namespaces = gateway_namespaces
        self._memories: dict[Key, _Memory] = {}
        self._wishes = Wishes()
        self._starts = Starts()

    def forget(self, key: Key) -> None:
        """The service is gone."""
        self._memories.pop(key, None)
        self._wishes.forget(key)
        self._starts.forget(key)

    def advance(self, observed: Observed, loads: Mapping[str, TimedLoad], now: datetime) -> Scaling | None:
        """The number of replicas; None where the operator does not choose it."""
        if observed.service is None and (bounds := bounds_of(observed.document["spec"])) is not None:
            return unread(_before(observed, bounds), _known_startup_s(observed))
        autoscaling = None if observed.service is None else observed.service.spec.autoscaling
        if observed.service is None or autoscaling is None:
            self.forget(observed.key)
            return None
        if autoscaling.min_replicas > 0 or self._is_woken(observed.key.namespace):
            return self._advanced(observed, observed.service, autoscaling, autoscaling.min_replicas, loads, now)
        return without_gateway(self._advanced(observed, observed.service, autoscaling, 1, loads, now), observed.key)

    def _is_woken(self, namespace: str) -> bool:
        return self._gateway_namespaces is None or namespace in self._gateway_namespaces

    def _advanced(
        self,
        observed: Observed,
        service: LLMService,
        autoscaling: Autoscaling,
        least: int,
        loads: Mapping[str, TimedLoad],
        now: datetime,
    ) -> Scaling:
        bounds = least, autoscaling.max_replicas
        before, wanted = _before(observed, bounds), self._wishes.waits(observed, now)
        started = self._starts.seen(observed.key, living(observed.engines))
        took_s = _startup_s(observed, started, service, now)
        plan = observed.incumbent
        if plan is None or observed.suspended:
            return Scaling(before, "NotRunning", "the number is chosen once pods run", took_s)
        memory = self._memory(observed, service, plan, took_s or STARTUP_S, now)
        memory.pass_at(now)
        pods = [pod for pod in living(observed.engines) if is_ready(pod)]
        unseen, copies = before > 0 and not pods, copying(observed.pods) is not None
        memory.served = memory.served or bool(pods) or took_s is not None
        if not unseen or copies:
            memory.served_at = now
        told = {uid_of(pod): loads[uid_of(pod)] for pod in pods if uid_of(pod) in loads}
        if pods and not told:
            return held(before, took_s, "no sidecar reports its load")
        asked_s = (now - memory.asked_at).total_seconds()
        # A replica that does not start is not waited for without end: it holds GPUs that nobody uses.
        patience_s = service.spec.engine.startup_timeout_s
        starting = unseen and (asked_s < patience_s or copies)
        self._take(memory, told, len(pods), now, unseen=unseen, starting=starting)
        if len(told) < len(pods):
            memory.since = now
            return _decided_by_some(observed, memory, bounds, before, took_s, now, silent=len(pods) - len(told))
        if bounds[0] == 0 and not _awake(memory, autoscaling.idle_timeout_s, before, now, wanted=wanted):
            return Scaling(0, "ScaledToZero", "no pods run, because no requests came", took_s)
        if unseen:
            memory.since = now
            given_up = (now - memory.served_at).total_seconds() >= MOST_STARTUPS * patience_s
            return without_ready(observed, max(1, least), before, took_s, given_up=given_up, served=memory.served)
        return _decided(observed, memory, bounds, before, took_s, now)

    def _memory(self, observed: Observed, service: LLMService, plan: Plan, startup: float, now: datetime) -> _Memory:
        slo = service.spec.slo
        classes = tuple(
            ShareOfClass(SloClass(each.name, each.ttft_s, each.tpot_s, each.e2e_s), 1.0 / len(slo.effective_classes))
            for each in slo.effective_classes
        )
        basis = _Basis(_replica(observed, plan), classes, share(slo.attainment))
        known = self._memories.get(observed.key)
        if known is not None and known.basis == basis:
            known.autoscaler.expect_startup(startup)
            return known
        autoscaler = Autoscaler(basis.replica, classes, attainment=basis.attainment, startup_s=startup)
        memory = _Memory(
            basis, autoscaler, since=now, passed_at=now, seen_at=now, busy_at=now, asked_at=now, served_at=now
        )
        if known is not None:
            memory.busy_at, memory.asked_at, memory.passed_at = known.busy_at, known.asked_at, known.passed_at
            memory.served_at, memory.served = known.served_at, known.served
            memory.loads, memory.read_at_s = known.loads, known.read_at_s
        self._memories[observed.key] = memory
        return memory

    @staticmethod
    def _take(
        memory: _Memory,
        loads: Mapping[str, TimedLoad],
        ready: int,
        now: datetime,
        *,
        unseen: bool,
        starting: bool,
    ) -> None:
        """Give the autoscaler what is new since the last pass. `unseen`: no replica is there to see the load."""
        new = any(memory.read_at_s.get(uid) != each.at_s for uid, each in loads.items())
        seconds = (now - memory.seen_at).total_seconds()
        if seconds <= 0 or (loads and not new) or (not loads and seconds < EVERY_S):
            return
        current = {uid: each.load for uid, each in loads.items()}
        if (step := measured_step(current.values())) is not None:
            memory.autoscaler.expect_step(step)
        # Without an earlier reading nothing is known of the time of what a pod counted.
        known = {uid: memory.loads.get(uid, load) for uid, load in current.items()}
        taken = interval(known, current, end_s=now.timestamp(), seconds=seconds, ready=ready)
        if not unseen:
            memory.autoscaler.observe(taken)
        memory.loads, memory.seen_at = current, now
        memory.read_at_s = {uid: each.at_s for uid, each in loads.items()}
        if taken.arrived or taken.running or taken.queued or any_passed(known, current):
            memory.asked_at = now
        if starting or memory.asked_at == now:
            memory.busy_at = now


def _before(observed: Observed, bounds: tuple[int, int]) -> int:
    """The number in force: the status has it, or the Deployment from before the operator chose it."""
    chosen = chosen_before(observed.document)
    if chosen is None and observed.deployment is not None:
        chosen = int(observed.deployment["spec"].get("replicas", 1)) - has_stand_in(observed.deployment)
    return within(bounds, max(1, bounds[0]) if chosen is None else chosen)


def _startup_s(
    observed: Observed, started: Sequence[Mapping[str, Any]], service: LLMService, now: datetime
) -> float | None:
    measured = startup_s(started, now, service.spec.engine.startup_timeout_s)
    return measured if measured is not None else _known_startup_s(observed)


def _known_startup_s(observed: Observed) -> float | None:
    known = (observed.status.get("autoscaling") or {}).get("startupSeconds")
    return float(known) if known is not None else None


def _replica(observed: Observed, plan: Plan) -> ReplicaEngine:
    """The engine of the revision in force."""
    engine = None if observed.revision is None else observed.revision.engine
    step = ASSUMED_STEP
    if engine is not None and engine.step_seconds is not None:
        step = StepTime.from_dict(engine.step_seconds.to_dict())
        if engine.step_factors is not None:
            step = _times(step, engine.step_factors.prefill, engine.step_factors.decode)
    return ReplicaEngine(
        step,
        plan.max_num_batched_tokens or ASSUMED_CHUNK,
        plan.max_num_seqs or 256,
        plan.predicted.kv_cache_tokens or ASSUMED_KV_TOKENS,
    )


def _times(step: StepTime, prefill: float, decode: float) -> StepTime:
    return StepTime(
        step.floor_s * decode,
        step.per_prefill_token_s * prefill,
        step.per_kv_token_s * decode,
        step.per_sequence_s * decode,
        step.overhead_s * decode,
    )


def _awake(memory: _Memory, idle_s: float, before: int, now: datetime, *, wanted: bool) -> bool:
    """Whether a service that may run no pods is to run some. `wanted`: somebody waits at the gateway."""
    if wanted:
        memory.busy_at = memory.asked_at = now
    # A load that is not read anew says nothing of the time since.
    return (memory.seen_at - memory.busy_at).total_seconds() < idle_s and (before > 0 or wanted)


def _decided(
    observed: Observed, memory: _Memory, bounds: tuple[int, int], before: int, took_s: float | None, now: datetime
) -> Scaling:
    least, most = bounds
    decision = memory.autoscaler.decide(now.timestamp(), before, Bounds(max(1, least), most))
    replicas = decision.replicas
    if (now - memory.since).total_seconds() < LEARN_S:
        replicas = within(bounds, max(replicas, before))
    return _explained(observed, decision, replicas, most, took_s)


def _decided_by_some(
    observed: Observed,
    memory: _Memory,
    bounds: tuple[int, int],
    before: int,
    took_s: float | None,
    now: datetime,
    *,
    silent: int,
) -> Scaling:
    """More replicas where those that report their load need them, but not fewer: the others may be the busy ones."""
    decided = _decided(observed, memory, bounds, before, took_s, now)
    if decided.reason != "AsNeeded":
        return decided
    number = counted(decided.replicas, "replica")
    message = f"{number}, and not fewer, because {counted(silent, 'sidecar')} that should report the load did not"
    return decided._replace(reason="NotReported", message=message)


def _explained(
    observed: Observed, decision: ReplicaDecision, replicas: int, most: int, took_s: float | None
) -> Scaling:
    if decision.limited:
        message = f"the load needs more than {counted(most, 'replica')}: raise spec.autoscaling.maxReplicas"
        return Scaling(replicas, "ScalingLimited", message, took_s)
    return waiting_for_room(observed, replicas, took_s) or as_needed(replicas, took_s)
