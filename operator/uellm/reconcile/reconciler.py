"""One pass over one service: observe, plan, apply."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from datetime import UTC, datetime

from uellm.errors import BadInput
from uellm.kube import LLMSERVICE, NotFound
from uellm.kube.kinds import DEPLOYMENT, kind_of
from uellm.reconcile.apply import Applier, Manifest
from uellm.reconcile.cache import Cache
from uellm.reconcile.children import DesiredState, Images, PinnedTemplate, children, frozen
from uellm.reconcile.children.disruption import marks_to_lift
from uellm.reconcile.children.rollout import NO_SURGE, Surge, pending_pod, rollout_reason
from uellm.reconcile.children.stand_in import has_stand_in, stand_in
from uellm.reconcile.drift import holds
from uellm.reconcile.names import Key
from uellm.reconcile.observe import Observed, observe
from uellm.reconcile.obstacle import Obstacle
from uellm.reconcile.planning.planning import Planned, Planning
from uellm.reconcile.pods.engine_readiness import living
from uellm.reconcile.pods.kubelet_events import KubeletEvents
from uellm.reconcile.pods.reports import Measurements, Reports
from uellm.reconcile.status.decide import decide

# A raised quota or a changed admission policy causes no event on our watches.
REFUSED_RECHECK_S = 60.0
DEFERRED_RECHECK_S = 0.5


def utc_now() -> datetime:
    """The time, with its zone."""
    return datetime.now(UTC)


class Reconciler:
    """Brings services to what their specs ask for, in passes. Passes of different services may overlap."""

    def __init__(
        self,
        cache: Cache,
        planning: Planning,
        reports: Reports,
        measurements: Measurements,
        applier: Applier,
        images: Images,
        *,
        clock: Callable[[], datetime] = utc_now,
    ) -> None:
        self._cache = cache
        self._planning = planning
        self._reports = reports
        self._measurements = measurements
        self._applier = applier
        self._kubelet_events = KubeletEvents(applier.pod_events)
        self._images = images
        self._clock = clock

    async def reconcile(self, key: Key) -> float | None:
        """One pass. Returns after how many seconds the next is due; None: not before something changes."""
        observed = observe(self._cache, key)
        if observed is None:
            self._planning.forget(key)
            self._applier.forget(key)
            self._kubelet_events.forget(key)
            return None
        unreported = await self._reports.refresh(observed.pods)
        measure_in_s = await self._measurements.refresh(observed.pods)
        now = self._clock()
        ask_in_s = await self._kubelet_events.refresh(key, observed.pods, now)
        observed = dataclasses.replace(
            observed,
            reports=self._reports.of(observed.pods),
            measurements=self._measurements.of(observed.pods),
            kubelets_words=self._kubelet_events.of(key),
        )
        planned = await self._planning.plan(observed, now)
        recheck_s = await self._carry_out(observed, planned, unreported=unreported, now=now)
        if recheck_s == 0.0:
            return recheck_s
        return min(filter(None, (recheck_s, measure_in_s, ask_in_s)), default=None)

    async def _carry_out(
        self, observed: Observed, planned: Planned, *, unreported: bool, now: datetime
    ) -> float | None:
        deferred = self._planning.should_defer_pods(observed, now)
        manifests, refusal = ([], None) if deferred else await self._writable(observed, planned)
        decision = decide(
            observed,
            planned.choice,
            change=_change(observed, manifests),
            refusal=refusal,
            unreported=unreported,
            now=now,
        )
        try:
            await self._applier.write_status(observed, decision.status)
        except NotFound:
            # It was deleted meanwhile, and the watch has not reported that yet.
            self._cache.remove(LLMSERVICE, observed.document)
            return 0.0
        await self._applier.remove_pods(observed, decision.removals)
        if observed.service is not None:
            marked = marks_to_lift(observed.service, living(observed.pods))
            await self._applier.lift_marks(observed, marked)
        await self._applier.write_children(observed, manifests)
        await self._applier.record_events(observed, decision.notes, now)
        stranded_in_s = self._planning.stranded_in_s(observed, now)
        rechecks = (
            decision.recheck_s,
            stranded_in_s,
            REFUSED_RECHECK_S if refusal else None,
            DEFERRED_RECHECK_S if deferred else None,
        )
        return min(filter(None, rechecks), default=None)

    async def _writable(self, observed: Observed, planned: Planned) -> tuple[list[Manifest], Obstacle | None]:
        """The manifests to write; where they are refused, the frozen Deployment's and the reason."""
        try:
            manifests = _manifests(observed, planned, self._images, self._surge(observed, planned))
        except BadInput as error:
            return self._frozen_children(observed), Obstacle("InvalidTemplate", str(error))
        differing = self._applier.differing(observed, manifests)
        refusal = await self._applier.refusal(observed, differing) if planned.choice.plan else None
        return (self._frozen_children(observed), refusal) if refusal else (differing, None)

    def _surge(self, observed: Observed, planned: Planned) -> Surge:
        if planned.rendered is None or observed.service is None or observed.deployment is None:
            return NO_SURGE
        rollout = observed.service.spec.rollout
        if rollout is not None and not rollout.max_surge:
            return NO_SURGE
        room = self._planning.room_for_another(observed)
        return Surge(planned.rendered.gpus_per_replica, room, pending_pod(observed.pods, self._clock()))

    def _frozen_children(self, observed: Observed) -> list[Manifest]:
        if observed.deployment is None:
            self._planning.withdraw(observed.key)
        return self._applier.differing(observed, _frozen(observed))


def _manifests(observed: Observed, planned: Planned, images: Images, surge: Surge) -> Sequence[Manifest]:
    if planned.rendered is None or observed.service is None:
        return _frozen(observed)
    return children(
        DesiredState(
            observed.document,
            observed.service,
            planned.rendered,
            _pinned(observed, images),
            observed.replicas,
            observed.spec_mark,
            observed.deployment,
            surge,
            stand_in(observed.deployment, observed.replicas, living(observed.pods), observed.leaving_nodes, surge),
            None if observed.spec_changed else PinnedTemplate.from_json(observed.pinned_template or ""),
        )
    )


def _frozen(observed: Observed) -> Sequence[Manifest]:
    if observed.deployment is None:
        return ()
    return (frozen(observed.document, observed.deployment, observed.replicas),)


def _pinned(observed: Observed, current: Images) -> Images:
    """The Deployment's images until the spec changes: an upgrade of the operator restarts no engine."""
    pinned = None if observed.spec_changed else Images.from_json(observed.pinned_images or "")
    images = pinned or current
    chosen = observed.service.spec.engine.image if observed.service else None
    return images._replace(engine=chosen) if chosen else images


def _change(observed: Observed, manifests: Sequence[Manifest]) -> str:
    """The change about to be made to the Deployment's pods, as a sentence; empty for none."""
    deployment = next((each for each in manifests if kind_of(each) == DEPLOYMENT), None)
    if deployment is None or observed.deployment is None:
        return ""
    wanted, live = deployment["spec"], observed.deployment["spec"]
    if observed.spec_changed or not holds(wanted["template"], live["template"]):
        how = rollout_reason(deployment)
        return f"the Deployment is being brought up to date{f', {how}' if how else ''}"
    before, after = live.get("replicas", 1) - has_stand_in(observed.deployment), observed.replicas
    if before != after:
        return f"replicas go from {before} to {after}"
    return ""
