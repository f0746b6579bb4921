"""One pass over one service: observe, plan, apply."""

from __future__ import annotations

import asyncio
import dataclasses
import math
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime

from uellm.errors import BadInput
from uellm.kube import LLMSERVICE, Kind, KubeError, NotFound
from uellm.kube.kinds import CONFIGMAP, DEPLOYMENT, LEADERWORKERSET, RESOURCECLAIMTEMPLATE, kind_of
from uellm.planner.result import Plan
from uellm.reconcile.additions import told_additions
from uellm.reconcile.apply import LEFT_BEHIND, WORKLOAD_KINDS, Applier, Manifest, WriteRefused, has_other_pods
from uellm.reconcile.cache import Cache
from uellm.reconcile.children import DesiredState, Images, children, config_digest
from uellm.reconcile.children.disruption import marks_to_lift
from uellm.reconcile.children.leader_worker_set import HOW_TO_MAKE_ANEW, as_deployment
from uellm.reconcile.children.rollout import Surge, is_change, rollout_reason
from uellm.reconcile.children.stand_in import has_stand_in
from uellm.reconcile.desired import desired_state, left_alone, reloaded
from uellm.reconcile.download.downloads import Downloads
from uellm.reconcile.inspection.inspections import Inspections
from uellm.reconcile.left_behind import Rechecks
from uellm.reconcile.names import Key, revision_label
from uellm.reconcile.node_pools import FRESH_S, NodePools
from uellm.reconcile.observe import Observed, observe
from uellm.reconcile.obstacle import Obstacle
from uellm.reconcile.planning.improve import improvable_in_s
from uellm.reconcile.planning.planning import Planning
from uellm.reconcile.planning.records import Planned
from uellm.reconcile.planning.stranded import stranded_in_s
from uellm.reconcile.pods.collectors import Collectors
from uellm.reconcile.pods.engine_readiness import living
from uellm.reconcile.pods.kubelet_events import KubeletEvents
from uellm.reconcile.pods.queue_words import QueueWords
from uellm.reconcile.pods.running import WantedConfig
from uellm.reconcile.revisions import KnownRevisions, kept_revision, needed_by, superseded
from uellm.reconcile.routes import next_route_step, take_route_step
from uellm.reconcile.scaling.lowering import mark_least_busy
from uellm.reconcile.scaling.scaling import bounds_of
from uellm.reconcile.scaling.scalings import EVERY_S, Scalings
from uellm.reconcile.settled import SettledPass, SettledPasses, holds_until
from uellm.reconcile.status.decide import decide
from uellm.reconcile.status.needs_groups import needs_groups
from uellm.reconcile.status.waiting_for_node import waits_for_node
from uellm.reconcile.surges import Surges

# A raised quota or a changed admission policy causes no event on our watches.
REFUSED_RECHECK_S = 60.0
ASK_SOON_S = 1.0
"""After a pass that has not asked about the pods, because a person waits for more of them."""


def utc_now() -> datetime:
    """The time, with its zone."""
    return datetime.now(UTC)


@dataclasses.dataclass(frozen=True)
class _Writable:
    """What a pass may write."""

    manifests: Sequence[Manifest] = ()
    """Children that differ from the cluster."""
    surplus: Sequence[Kind] = ()
    """Which of Deployment and LeaderWorkerSet is to go, once the other is there."""
    refusal: Obstacle | None = None
    """Why the spec's own children cannot be written."""
    wanted: WantedConfig | None = None
    """The configuration that every pod should run; None where the pods are left alone."""
    added: str = ""
    """What somebody has added to the pods by hand, as a sentence."""
    anew: bool = False
    """What goes is made anew in the next pass."""


class Reconciler:
    """Brings services to what their specs ask for, in passes. Passes of different services may overlap."""

    def __init__(
        self,
        cache: Cache,
        planning: Planning,
        collectors: Collectors,
        applier: Applier,
        images: Images,
        inspections: Inspections,
        downloads: Downloads,
        *,
        clock: Callable[[], datetime] = utc_now,
        node_pools: NodePools | None = None,
        gateway_namespaces: frozenset[str] | None = None,
    ) -> None:
        """`node_pools`: Karpenter's, to explain why no node joins; None: they are not observed.

        `gateway_namespaces`: those whose services the gateway serves, and wakes; None for all.
        """
        self._cache = cache
        self._planning = planning
        self._collectors = collectors
        self._revisions = KnownRevisions()
        self._settled = SettledPasses()
        self._scalings = Scalings(gateway_namespaces)
        self._surges = Surges()
        self._left_behind = Rechecks()
        self._applier = applier
        self._kubelet_events = KubeletEvents(applier.pod_events)
        self._queue_words = QueueWords(applier.workloads)
        self._asked: set[Key] = set()
        """Services about whose pods sidecars and API server were asked since the start."""
        self._images = images
        self._inspections = inspections
        self._downloads = downloads
        self._clock = clock
        self._node_pools = node_pools

    async def reconcile(self, key: Key) -> float | None:
        """One pass. Returns after how many seconds the next is due; None: not before something changes."""
        observed = observe(self._cache, key)
        if observed is None:
            self._planning.forget(key)
            self._applier.forget(key)
            self._revisions.forget(key)
            self._kubelet_events.forget(key)
            self._queue_words.forget(key)
            self._asked.discard(key)
            self._inspections.forget(key)
            self._downloads.forget(key)
            self._settled.forget(key)
            self._scalings.forget(key)
            self._surges.forget(key)
            self._left_behind.forget(key)
            return None
        # What a new operator does not know yet would vanish from the status.
        grows_at_once = key in self._asked and _is_told_to_grow(observed)
        ask_in_s = ASK_SOON_S if grows_at_once else await self._ask(observed)
        now = self._clock()
        observed = dataclasses.replace(
            observed,
            reports=self._collectors.placements.of(observed.pods),
            measurements=self._collectors.measurements.of(observed.pods),
            step_times=self._collectors.measurements.step_times_of(observed.pods),
            revisions=self._revisions.of(observed),
            kubelet_warnings=self._kubelet_events.of(key),
            image_pulls=self._kubelet_events.pulls_of(key),
            queue_words=self._queue_words.of(key),
        )
        scaling = self._scalings.advance(observed, self._collectors.measurements.loads_of(observed.engines), now)
        observed = dataclasses.replace(observed, scaling=scaling)
        scale_in_s = EVERY_S if scaling is not None and scaling.replicas else None
        model, inspect_in_s = await self._inspections.advance(observed, now)
        observed = dataclasses.replace(observed, model=model)
        waits = waits_for_node(observed.incumbent, observed)
        if self._node_pools is not None and waits:
            observed = dataclasses.replace(observed, pool_labels=await self._node_pools.labels())
        self._planning.measured(observed, now)
        planned = await self._planning.plan(observed, now)
        if planned is None:
            return inspect_in_s  # it is being planned, and is marked when that is done
        download, download_in_s = await self._downloads.advance(observed, planned.choice.plan, now)
        observed = dataclasses.replace(observed, download=download)
        recheck_s = await self._still_settled(observed, planned, now)
        if recheck_s is None:
            recheck_s = await self._carry_out(observed, planned, now)
        if recheck_s == 0.0:
            return recheck_s
        look_in_s = FRESH_S if observed.pool_labels else None
        due_s = (recheck_s, scale_in_s, ask_in_s, inspect_in_s, download_in_s, look_in_s)
        return min(filter(None, due_s), default=None)

    async def _ask(self, observed: Observed) -> float | None:
        """Ask sidecars and API server about the pods. Returns after how many seconds to ask again."""
        report_in_s = await self._collectors.placements.refresh(observed.engines)
        scales = bounds_of(observed.document["spec"]) is not None
        measure_in_s = await self._collectors.measurements.refresh(observed.engines, EVERY_S if scales else math.inf)
        helpers = (*observed.inspection_pods, *observed.download_pods)
        queue_in_s, events_in_s = await asyncio.gather(
            self._queue_words.refresh(observed.key, observed.pods, self._clock),
            self._kubelet_events.refresh(observed.key, (*observed.pods, *helpers), self._clock),
        )
        self._asked.add(observed.key)
        return min(filter(None, (report_in_s, measure_in_s, queue_in_s, events_in_s)), default=None)

    async def _still_settled(self, observed: Observed, planned: Planned, now: datetime) -> float | None:
        """Seconds until the next pass, if this one has nothing to do but to ask the pods what they run with."""
        last = self._settled.of(observed, planned, now)
        if last is None:
            return None
        confirm_in_s = None
        if last.wanted is not None:
            confirm_in_s = await self._collectors.running.refresh(observed.engines, last.wanted)
            if self._collectors.running.of(observed.engines) != last.observed.running:
                return None
        return min(filter(None, (confirm_in_s, (last.until - now).total_seconds())))

    async def _carry_out(self, observed: Observed, planned: Planned, now: datetime) -> float | None:
        deferred_s = self._planning.pods_deferred_s(observed, now)
        writable = await self._writable(observed, planned) if deferred_s is None else _Writable()
        grown, left = _growth(observed, planned.choice.plan, writable), writable.manifests
        failed: Exception | None = None
        if grown is not None:
            # A person waits for them: ahead of all that tells about them.
            try:
                await self._applier.write_children(observed, [grown])
            except (KubeError, WriteRefused) as error:
                failed = error
            left = [each for each in left if each is not grown]
        confirm_in_s = None
        if writable.wanted is not None:
            confirm_in_s = await self._collectors.running.refresh(observed.engines, writable.wanted)
            observed = dataclasses.replace(observed, running=self._collectors.running.of(observed.engines))
        routes = await next_route_step(self._applier, observed)
        decision = decide(
            observed,
            planned.choice,
            change=_change(observed, writable.manifests),
            refusal=writable.refusal,
            now=now,
            wanted=writable.wanted,
            routed=routes.condition,
            added=writable.added,
            predicted_earlier=self._planning.is_of_earlier_spec(observed.key),
        )
        try:
            await self._applier.write_status(observed, decision.status)
        except NotFound:
            # It was deleted meanwhile, and the watch has not reported that yet.
            self._cache.remove(LLMSERVICE, observed.document)
            return 0.0
        self._planning.written(observed.key)
        await self._applier.remove_pods(observed, decision.removals)
        if observed.service is not None:
            marked = marks_to_lift(observed.service, living(observed.pods))
            await self._applier.lift_marks(observed, marked)
        await mark_least_busy(observed, writable.manifests, self._collectors.measurements, self._applier)
        await self._applier.write_children(observed, left)
        if failed is not None:
            raise failed
        for kind in writable.surplus:
            await self._applier.delete(kind, observed.children[kind])
        await self._clear_up(observed, writable)
        await self._applier.record_events(observed, decision.notes, now)
        routes_in_s = await take_route_step(self._applier, observed, routes)
        if writable.anew:
            return 0.0
        rechecks = (
            decision.recheck_s,
            confirm_in_s,
            stranded_in_s(observed, now),
            improvable_in_s(observed, now) if planned.choice.better else None,
            self._refused_recheck_s(observed.key, writable.refusal, now),
            deferred_s,
            routes_in_s,
            self._surges.due_in_s(observed, now),
            self._planning.promises.refused_in_s(observed.key, now),
        )
        recheck_s = min(filter(None, rechecks), default=None)
        if deferred_s is None:
            self._settled.put(SettledPass(observed, planned, writable.wanted, holds_until(now, recheck_s)))
        return recheck_s

    async def _writable(self, observed: Observed, planned: Planned) -> _Writable:
        """The children to write; where they are refused, those that may be written all the same, and the reason."""
        if planned.choice.plan is None or observed.service is None:
            return await self._left_alone(observed, None)
        if observed.download.obstacle is not None and kept_revision(observed, planned.choice.plan) is None:
            return await self._left_alone(observed, observed.download.obstacle, keep_plan=True)
        if (lacking := needs_groups(observed, planned.choice.plan)) is not None:
            return await self._left_alone(observed, lacking)
        try:
            surge = self._surge(observed, planned.choice.plan)
            desired = desired_state(
                observed, planned.choice.plan, planned.rendered, self._images, surge, self._downloads.node_cache
            )
        except BadInput as error:
            return await self._left_alone(observed, Obstacle("InvalidTemplate", str(error)))
        if desired.claim_spec is not None and (unwritable := observed.dra.unwritable()) is not None:
            # Without their template no pod can be started, so the Deployment is not written either.
            return await self._left_alone(observed, unwritable, keep_plan=True)
        manifests = children(desired)
        differing = self._applier.differing(observed, manifests)
        refusal = await self._applier.refusal(observed, differing)
        anew = refusal is not None and await self._applier.only_as_new(observed, differing)
        if refusal is not None and (_serves(observed) or not anew):
            told = f"{refusal.message}; {HOW_TO_MAKE_ANEW}" if anew else refusal.message
            keep_plan = refusal.reason == LEFT_BEHIND
            return await self._left_alone(observed, refusal._replace(message=told), keep_plan=keep_plan)
        if desired.revision is not None:
            self._revisions.put(observed.key, desired.revision)
        wanted = None if desired.revision is None else _wanted(desired.revision.name, desired)
        if anew:
            others = [each for each in differing if kind_of(each) != LEADERWORKERSET]
            return _Writable(others, (LEADERWORKERSET,), wanted=wanted, anew=True)
        return _Writable(differing, _surplus(observed, desired), wanted=wanted, added=_added(observed, manifests))

    def _surge(self, observed: Observed, plan: Plan) -> Surge:
        surge = self._surges.of(observed, self._clock())
        rollout = observed.service.spec.rollout if observed.service is not None else None
        # A group is replaced on the GPUs that it has.
        if (rollout is not None and not rollout.max_surge) or plan.nodes_per_replica > 1:
            return surge
        return surge._replace(gpus=plan.gpus_per_replica, room=self._planning.promises.room_for_another(observed))

    async def _left_alone(self, observed: Observed, refusal: Obstacle | None, *, keep_plan: bool = False) -> _Writable:
        """`keep_plan`: the GPUs stay promised while the children wait."""
        # Without a refusal there is no plan, so nothing is promised, and the service is known to wait for room.
        if refusal is not None and observed.deployment is None and not keep_plan:
            self._planning.withdraw(observed.key)
        wanted = None
        if observed.revision is not None and observed.service is not None:
            wanted = _wanted(observed.revision.name, reloaded(observed))
        manifests = left_alone(observed, self._surges.of(observed, self._clock()))
        differing = await self._applier.writable(observed, self._applier.differing(observed, manifests))
        return _Writable(differing, (), refusal, wanted)

    def _refused_recheck_s(self, key: Key, refusal: Obstacle | None, now: datetime) -> float | None:
        """When to try again what was refused; None where nothing was."""
        if refusal is not None and refusal.reason == LEFT_BEHIND:
            return self._left_behind.due_in_s(key, now)
        self._left_behind.forget(key)
        return None if refusal is None else REFUSED_RECHECK_S

    async def _clear_up(self, observed: Observed, writable: _Writable) -> None:
        """Delete revisions that nothing needs any more, once everything else is as it should be."""
        if writable.manifests or writable.refusal is not None or not (old := superseded(observed)):
            return
        needed = needed_by(await self._applier.replicasets(observed.key))
        for configmap in old:
            if revision_label(configmap) not in needed:
                # First, so that none is left behind without its revision.
                if (template := observed.claim_templates.get(configmap["metadata"]["name"])) is not None:
                    await self._applier.delete(RESOURCECLAIMTEMPLATE, template)
                await self._applier.delete(CONFIGMAP, configmap)


def _is_told_to_grow(observed: Observed) -> bool:
    """Whether a person has just asked for more replicas."""
    if observed.status.get("observedGeneration") == observed.generation or observed.deployment is None:
        return False
    scales_itself = bounds_of(observed.document["spec"]) is not None
    return not scales_itself and observed.replicas > observed.deployment["spec"].get("replicas", 1)


def _growth(observed: Observed, plan: Plan | None, writable: _Writable) -> Manifest | None:
    """What makes the pods, where their number grows, and all that it follows from is on record in the status.

    None where their template changes, or something that they mount is still to be written.
    """
    if writable.refusal is not None or writable.wanted is None or not _is_told_to_grow(observed):
        return None
    if plan != observed.incumbent or writable.wanted.revision != observed.status.get("revision"):
        return None
    pods = next((each for each in writable.manifests if kind_of(each) in WORKLOAD_KINDS), None)
    if pods is None or has_other_pods(observed, pods):
        return None
    return pods if all(_has_its_content(observed, each) for each in writable.manifests) else None


def _has_its_content(observed: Observed, manifest: Manifest) -> bool:
    """Whether what pods take from it is there already. What they take nothing from counts as being there."""
    part = {CONFIGMAP: "data", RESOURCECLAIMTEMPLATE: "spec"}.get(kind_of(manifest))
    live = observed.child(kind_of(manifest), manifest["metadata"]["name"])
    return part is None or (live is not None and live.get(part) == manifest.get(part))


def _wanted(revision: str, desired: DesiredState) -> WantedConfig:
    return WantedConfig(revision, config_digest(desired), tuple(each.name for each in desired.adapters.of(revision)))


def _serves(observed: Observed) -> bool:
    """Whether any replica does."""
    return observed.deployment is not None and bool(observed.deployment.get("status", {}).get("readyReplicas"))


def _surplus(observed: Observed, desired: DesiredState) -> tuple[Kind, ...]:
    wanted = LEADERWORKERSET if desired.nodes > 1 else DEPLOYMENT
    return tuple(kind for kind in WORKLOAD_KINDS if kind != wanted and kind in observed.children)


def _added(observed: Observed, manifests: Iterable[Manifest]) -> str:
    workload = next((each for each in manifests if kind_of(each) in WORKLOAD_KINDS), None)
    if workload is None or observed.workload is None or observed.workload[0] != kind_of(workload):
        return ""
    return told_additions(workload, observed.workload[1])


def _change(observed: Observed, manifests: Sequence[Manifest]) -> str:
    """The change about to be made to the pods, as a sentence; empty for none."""
    written = next((each for each in manifests if kind_of(each) in WORKLOAD_KINDS), None)
    if written is None or observed.workload is None or observed.deployment is None:
        return ""
    kind = kind_of(written)
    if kind != observed.workload[0]:
        other = observed.workload[0].kind
        return f"the {other} is being replaced by a {kind.kind}: a replica spans another number of nodes"
    deployment = as_deployment(written) if kind == LEADERWORKERSET else written
    wanted, live = deployment["spec"], observed.deployment["spec"]
    if is_change(wanted["template"], live["template"]):
        how = rollout_reason(deployment)
        return f"the {kind.kind} is being brought up to date{f', {how}' if how else ''}"
    before, after = live.get("replicas", 1) - has_stand_in(observed.deployment), observed.replicas
    if before != after:
        return f"replicas go from {before} to {after}"
    return ""
