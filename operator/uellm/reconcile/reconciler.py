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
from uellm.reconcile.children import Images, PinnedTemplate, Wanted, children, frozen
from uellm.reconcile.names import Key
from uellm.reconcile.observe import Observed, observe
from uellm.reconcile.planning.choose import Failure
from uellm.reconcile.planning.planning import Planned, Planning
from uellm.reconcile.pods.reports import Measurements, Reports
from uellm.reconcile.same import holds
from uellm.reconcile.status.decide import decide

# A quota may be raised and a policy changed, and no watch of ours tells.
REFUSED_RECHECK_S = 60.0
MADE_WAY_RECHECK_S = 0.5


def utc_now() -> datetime:
    """The time, with its zone."""
    return datetime.now(UTC)


class Reconciler:
    """Brings services to what they want to be, one pass at a time; passes of different services may overlap."""

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
        self._images = images
        self._clock = clock

    async def reconcile(self, key: Key) -> float | None:
        """One pass. Returns after how many seconds to look again without a cause; None: not before there is one."""
        observed = observe(self._cache, key)
        if observed is None:
            self._planning.forget(key)
            self._applier.forget(key)
            return None
        unreported = await self._reports.refresh(observed.pods)
        measure_in_s = await self._measurements.refresh(observed.pods)
        now = self._clock()
        observed = dataclasses.replace(
            observed, reports=self._reports.of(observed.pods), figures=self._measurements.of(observed.pods)
        )
        planned = await self._planning.plan(observed, now)
        recheck_s = await self._carry_out(observed, planned, unreported=unreported, now=now)
        return min(filter(None, (recheck_s, measure_in_s)), default=None) if recheck_s != 0.0 else recheck_s

    async def _carry_out(
        self, observed: Observed, planned: Planned, *, unreported: bool, now: datetime
    ) -> float | None:
        makes_way = self._planning.has_to_make_way(observed, now)
        manifests, refusal = ([], None) if makes_way else await self._writable(observed, planned)
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
            # It was deleted meanwhile; what the watch will tell is known now.
            self._cache.remove(LLMSERVICE, observed.document)
            return 0.0
        await self._applier.write_children(observed, manifests)
        await self._applier.tell(observed, decision.notes, now)
        stranded_in_s = self._planning.stranded_in_s(observed, now)
        rechecks = (
            decision.recheck_s,
            stranded_in_s,
            REFUSED_RECHECK_S if refusal else None,
            MADE_WAY_RECHECK_S if makes_way else None,
        )
        return min(filter(None, rechecks), default=None)

    async def _writable(self, observed: Observed, planned: Planned) -> tuple[list[Manifest], Failure | None]:
        """The manifests that are to be written, or those of a standstill and why."""
        try:
            manifests = _manifests(observed, planned, self._images)
        except BadInput as error:
            return self._standstill(observed), Failure("InvalidTemplate", str(error))
        differing = self._applier.differing(observed, manifests)
        refusal = await self._applier.refusal(observed, differing) if planned.choice.plan else None
        return (self._standstill(observed), refusal) if refusal else (differing, None)

    def _standstill(self, observed: Observed) -> list[Manifest]:
        if observed.deployment is None:
            self._planning.withdraw(observed.key)
        return self._applier.differing(observed, _frozen(observed))


def _manifests(observed: Observed, planned: Planned, images: Images) -> Sequence[Manifest]:
    plan, request = planned.choice.plan, planned.request
    if plan is None or request is None or observed.service is None:
        return _frozen(observed)
    return children(
        Wanted(
            observed.document,
            observed.service,
            plan,
            request,
            _pinned(observed, images),
            observed.replicas,
            observed.spec_mark,
            None if observed.spec_changed else PinnedTemplate.from_json(observed.pinned_template or ""),
        )
    )


def _frozen(observed: Observed) -> Sequence[Manifest]:
    if observed.deployment is None:
        return ()
    return (frozen(observed.document, observed.deployment, observed.replicas),)


def _pinned(observed: Observed, current: Images) -> Images:
    """The images of the Deployment until the spec changes: a newer operator alone rolls no engine."""
    pinned = None if observed.spec_changed else Images.from_json(observed.pinned_images or "")
    images = pinned or current
    chosen = observed.service.spec.engine.image if observed.service else None
    return images._replace(engine=chosen) if chosen else images


def _change(observed: Observed, manifests: Sequence[Manifest]) -> str:
    """What is about to be done to the Deployment's pods, in words; empty for nothing."""
    deployment = next((each for each in manifests if kind_of(each) == DEPLOYMENT), None)
    if deployment is None or observed.deployment is None:
        return ""
    wanted, live = deployment["spec"], observed.deployment["spec"]
    if observed.spec_changed or not holds(wanted["template"], live["template"]):
        return "the Deployment is being brought up to date"
    if wanted["replicas"] != live.get("replicas", 1):
        return f"replicas go from {live.get('replicas', 1)} to {wanted['replicas']}"
    return ""
