"""Carries the steps of downloads out: makes the claim, makes, asks and deletes pods, and keeps that a copy is there."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from uellm.api import LLMService
from uellm.api.names import SERVICE_LABEL
from uellm.documents import UnreadableDocument
from uellm.hub import LookUpRefusal
from uellm.hub.copy_document import from_document
from uellm.hub.copy_state import Copied, Progress
from uellm.hub.freeing import Kept
from uellm.kube import Forbidden, Invalid
from uellm.kube.kinds import DEPLOYMENT, POD, PVC
from uellm.planner.result import Plan
from uellm.reconcile.adapters import are_known
from uellm.reconcile.apply import LEFT_BEHIND, Applier, WriteRefused
from uellm.reconcile.download.claim import CLAIM_DELETED, claim_manifest, claim_obstacle
from uellm.reconcile.download.download_state import NOT_BEGUN, NOT_NEEDED, DownloadState, copied, refused, undecided
from uellm.reconcile.download.kept_copy import copy_configmap, read_copy
from uellm.reconcile.download.needed import needed_copies
from uellm.reconcile.download.on_nodes import ToldByPod, copying, is_answering, not_offered, on_nodes, said
from uellm.reconcile.download.order import CopyOrder, order_of
from uellm.reconcile.download.pod import download_pod
from uellm.reconcile.download.steps import SOON_S, ToldProgress, after_progress, after_silence, download_inputs
from uellm.reconcile.draft import draft_is_known
from uellm.reconcile.drift import signed
from uellm.reconcile.helper_pods.steps import (
    WAIT_EVERY_S,
    Attempt,
    HelperInputs,
    HelperStep,
    Pod,
    after_refusal,
    after_refused_creation,
    next_step,
)
from uellm.reconcile.inspection.model_state import GIVEN
from uellm.reconcile.left_behind import LATEST_RECHECK_S
from uellm.reconcile.model_claim import NodeCache, is_on_nodes
from uellm.reconcile.names import Key, deployment_name, weights_name
from uellm.reconcile.observe import Observed
from uellm.reconcile.obstacle import Obstacle

logger = logging.getLogger(__name__)

Fetch = Callable[[str], Awaitable[Mapping[str, Any] | None]]
"""Pod IP -> how far its copy is; None where no answer comes."""
Due = tuple[DownloadState, float | None]
"""How far a copy is, and in how many seconds to look again."""


@dataclass
class _CopyRecord:
    """What is remembered of a service's copy."""

    copy_digest: str
    copy: Copied | None = None
    attempt: Attempt[DownloadState] | None = None
    told: ToldProgress | None = None


class Downloads:
    """The copies of the services' models. `image`: that of the download pods."""

    def __init__(
        self,
        applier: Applier,
        fetch: Fetch,
        image: str,
        *,
        node_cache: NodeCache | None = None,
        fetch_from_node: Fetch | None = None,
    ) -> None:
        """`image`: of download pods; `node_cache`: where nodes keep models, None for nowhere; `fetch_from_node`: as
        `fetch`, of an engine's pod."""
        self.node_cache = node_cache
        self._applier = applier
        self._fetch = fetch
        self._fetch_from_node = fetch_from_node or fetch
        self._image = image
        self._told: dict[Key, ToldByPod] = {}
        self._records: dict[Key, _CopyRecord] = {}

    async def advance(self, observed: Observed, plan: Plan | None, now: datetime) -> Due:
        """Go on as far as possible without waiting. `plan`: nothing is copied for a service that has none."""
        service = observed.service
        if service is None or service.spec.model.cache is None:
            self._records.pop(observed.key, None)
            await self._remove(observed, observed.download_pods)
            return NOT_NEEDED, None
        if observed.model.facts is None and observed.model is not GIVEN:
            return NOT_BEGUN, None  # its commit is not known yet
        if not are_known(service, observed.facts):
            return NOT_BEGUN, None  # those of its adapters are not
        if not draft_is_known(service, observed.facts):
            return NOT_BEGUN, None
        if is_on_nodes(service):
            self._records.pop(observed.key, None)
            await self._remove(observed, observed.download_pods)
            return await self._on_nodes(observed, service)
        if plan is None and not observed.download_pods and observed.deployment is None:
            return NOT_BEGUN, None
        claim, obstacle = await self._claim(observed)
        if obstacle is not None:
            if obstacle.reason == CLAIM_DELETED:
                await self._remove(observed, observed.download_pods)  # which would hold it
            again_s = LATEST_RECHECK_S if obstacle.reason == LEFT_BEHIND else WAIT_EVERY_S
            return refused(obstacle.reason, obstacle.message), again_s
        order = order_of(service, observed.facts, claim["metadata"]["uid"] if claim is not None else "")
        assert order is not None
        return await self._copy(observed, order, plan, now)

    def forget(self, key: Key) -> None:
        """The service is gone."""
        self._records.pop(key, None)
        self._told.pop(key, None)

    async def _on_nodes(self, observed: Observed, service: LLMService) -> Due:
        """The pods copy, each to its node. What one of them says is passed on."""
        if self.node_cache is None:
            return not_offered(), None
        pod = copying(observed.pods)
        if pod is None:
            self._told.pop(observed.key, None)
            return on_nodes(service, observed.facts), None
        answer = await self._fetch_from_node(pod["status"]["podIP"]) if is_answering(pod) else None
        told = self._told[observed.key] = said(pod, answer, self._told.get(observed.key))
        return told.state, SOON_S

    async def _claim(self, observed: Observed) -> tuple[Mapping[str, Any] | None, Obstacle | None]:
        """The claim that the operator makes, made or brought up to date; why that is impossible, if it is."""
        assert observed.service is not None
        wanted = claim_manifest(observed.document, observed.service)
        if wanted is None:
            return None, None
        live = observed.children.get(PVC)
        if live is not None and (obstacle := claim_obstacle(wanted, live)) is not None:
            return live, obstacle
        differing = self._applier.differing(observed, [signed(wanted)])
        obstacle = await self._applier.refusal(observed, differing)
        if obstacle is None:
            try:
                await self._applier.write_children(observed, differing)
            except WriteRefused:
                # Such as a claim that cannot shrink: now it is tried first, which tells why.
                obstacle = await self._applier.refusal(observed, differing)
        return self._applier.stored(PVC, weights_name(observed.key.name), observed.key.namespace), obstacle

    async def _copy(self, observed: Observed, order: CopyOrder, plan: Plan | None, now: datetime) -> Due:
        record = self._record(observed, order)
        seen = download_inputs(
            order.source,
            order.claim,
            observed.generation,
            record.copy,
            observed.download_pods,
            record.attempt,
            observed.kubelet_warnings,
            observed.image_pulls,
        )
        step = next_step(seen, now)
        if step.ask is not None:
            step = await self._asked(order, seen, record, step, step.ask, now)
        if step.create:
            step = await self._created(observed, order, plan, seen, step, now)
        record.attempt = step.attempt
        if record.copy is not None and (taken := await self._keep(observed, order, record.copy)) is not None:
            return undecided(taken.reason, taken.message), WAIT_EVERY_S
        # Not before the copy is noted: an operator that dies in between asks the pod again.
        await self._remove(observed, step.remove)
        return step.state, step.again_s

    def _record(self, observed: Observed, order: CopyOrder) -> _CopyRecord:
        record = self._records.get(observed.key)
        if record is None or record.copy_digest != order.copy_digest:
            record = self._records[observed.key] = _CopyRecord(order.copy_digest)
        live = observed.configmaps.get(weights_name(observed.key.name))
        # Who deletes the ConfigMap wants the volume to be looked at again.
        record.copy = None if live is None else read_copy(live, order.copy_digest)
        return record

    async def _asked(
        self,
        order: CopyOrder,
        seen: HelperInputs[DownloadState],
        record: _CopyRecord,
        step: HelperStep[DownloadState],
        pod: Pod,
        now: datetime,
    ) -> HelperStep[DownloadState]:
        document = await self._fetch(pod["status"]["podIP"])
        if document is None:
            return after_silence(step, order.claim, pod, now, record.told)
        try:
            answer = from_document(document)
        except UnreadableDocument as error:
            answer = LookUpRefusal("InvalidAnswer", f"pod {pod['metadata']['name']}: {error}")
        if isinstance(answer, Copied) and answer.directory != order.directory:
            what = f"pod {pod['metadata']['name']} has copied to {answer.directory}, not to {order.directory}"
            answer = LookUpRefusal("InvalidAnswer", what)
        if isinstance(answer, Progress):
            step = after_progress(step, order.claim, answer)
            record.told = ToldProgress(pod["metadata"]["uid"], step.state, now)
            return step
        if isinstance(answer, LookUpRefusal):
            return after_refusal(seen, answer, now)
        if answer.compiled != order.compiled:
            answer = answer._replace(compiled="")
        record.copy = answer
        return HelperStep(copied(order.claim, answer), remove=tuple(seen.pods))

    async def _created(
        self,
        observed: Observed,
        order: CopyOrder,
        plan: Plan | None,
        seen: HelperInputs[DownloadState],
        step: HelperStep[DownloadState],
        now: datetime,
    ) -> HelperStep[DownloadState]:
        assert observed.service is not None
        nodes = plan.nodes if plan is not None else ()
        kept = await self._kept(observed, now)
        manifest = download_pod(observed.document, observed.service, order, self._image, tuple(nodes), kept)
        try:
            await self._applier.create_pod(observed, manifest)
        except (Forbidden, Invalid) as error:
            return after_refused_creation(seen, step, error, now)
        return step

    async def _kept(self, observed: Observed, now: datetime) -> Kept | None:
        """The copies on a claim of ours that are needed; None where nothing may be deleted from the claim."""
        cache = observed.service.spec.model.cache if observed.service is not None else None
        if cache is None or cache.size is None:
            return None
        known, found = self._applier.known, set[str]()
        replicasets = await self._applier.replicasets_in(observed.key.namespace)
        for key in known.service_keys():
            # Pods may still mount the claim of a service that has turned to another one.
            document = known.service(key) if key.namespace == observed.key.namespace else None
            if document is None:
                continue
            configmaps = {each["metadata"]["name"]: each for each in known.configmaps(key)}
            deployment = known.get(DEPLOYMENT, deployment_name(key.name), key.namespace)
            own = [each for each in replicasets if each["metadata"]["labels"].get(SERVICE_LABEL) == key.name]
            needed = needed_copies(document, configmaps, deployment, known.pods(key), own)
            if needed is None:
                return None
            found |= needed
        return Kept(frozenset(filter(None, found)), now.timestamp())

    async def _keep(self, observed: Observed, order: CopyOrder, copy: Copied) -> Obstacle | None:
        """Write down that the copy is there, if the cluster does not have that; why it is impossible, if it is."""
        manifest = signed(copy_configmap(observed.document, order.copy_digest, copy, order.other_directories))
        differing = self._applier.differing(observed, [manifest])
        refusal = await self._applier.refusal(observed, differing)
        if refusal is None:
            await self._applier.write_children(observed, differing)
        return refusal

    async def _remove(self, observed: Observed, pods: tuple[Pod, ...]) -> None:
        for pod in pods:
            if "deletionTimestamp" not in pod["metadata"]:
                await self._applier.delete(POD, pod)
                logger.info("%s deleted download pod %s", observed.key, pod["metadata"]["name"])
