"""Carries the steps of inspections out: makes, asks and deletes pods, and keeps the facts."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from uellm.documents import UnreadableDocument
from uellm.hub import LookUpRefusal, ModelFacts
from uellm.hub.document import from_document
from uellm.kube import Forbidden, Invalid
from uellm.kube.kinds import POD
from uellm.reconcile.apply import Applier
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
from uellm.reconcile.image_volumes import ASK_AGAIN_S, ImageVolumes, no_image_volumes
from uellm.reconcile.inspection.kept_facts import facts_configmap, names_model, read_commits, read_facts
from uellm.reconcile.inspection.model_state import GIVEN, INVALID, ModelState, found, refused, undecided, warned
from uellm.reconcile.inspection.pod import inspection_pod
from uellm.reconcile.inspection.question import KnownCommits, Question, question_of
from uellm.reconcile.inspection.steps import after_silence, inspection_inputs
from uellm.reconcile.model_claim import image_of
from uellm.reconcile.names import Key, model_name
from uellm.reconcile.observe import Observed
from uellm.reconcile.obstacle import Obstacle
from uellm.reconcile.planning.adapters import base_warnings

logger = logging.getLogger(__name__)

Fetch = Callable[[str], Awaitable[Mapping[str, Any] | None]]
"""Pod IP -> its answer, empty while it reads; None where none comes."""


@dataclass
class _Record:
    """What is remembered of a service's model."""

    source: str
    model: str
    """Digest of which model it is."""
    facts: ModelFacts | None = None
    version: str = ""
    """Of the ConfigMap that was read last, or that was found to hold the facts."""
    attempt: Attempt[ModelState] | None = None


class Inspections:
    """What is known of the services' models. `image`: that of the inspection pods."""

    def __init__(self, applier: Applier, fetch: Fetch, image: str) -> None:
        self._applier = applier
        self._fetch = fetch
        self._image = image
        self._records: dict[Key, _Record] = {}
        self._image_volumes = ImageVolumes(applier.try_pod)

    async def advance(self, observed: Observed, now: datetime) -> tuple[ModelState, float | None]:
        """Go on as far as possible without waiting. Returns what is known, and when to look again."""
        if observed.service is None:
            return INVALID, None
        if image_of(observed.service) and await self._image_volumes.are_missing(observed.key.namespace, now):
            missing = no_image_volumes(observed.service.spec.model.uri)
            return refused(missing.reason, missing.message), ASK_AGAIN_S
        question = question_of(observed.service)
        if isinstance(question, Question):
            return await self._look_up(observed, question, now)
        self._records.pop(observed.key, None)
        await self._remove(observed, observed.inspection_pods)
        return (GIVEN if question is None else refused(question.reason, question.message)), None

    def forget(self, key: Key) -> None:
        """The service is gone."""
        self._records.pop(key, None)

    async def _look_up(self, observed: Observed, question: Question, now: datetime) -> tuple[ModelState, float | None]:
        record = await self._record(observed, question)
        seen = inspection_inputs(
            question.source,
            observed.generation,
            record.facts,
            observed.inspection_pods,
            record.attempt,
            observed.kubelet_warnings,
            observed.image_pulls,
        )
        step = next_step(seen, now)
        if step.ask is not None:
            step = await self._asked(question, seen, record, step, step.ask, now)
        if step.create:
            step = await self._created(observed, question, seen, step, now)
        record.attempt = step.attempt
        if record.facts is not None and (taken := await self._keep(observed, record)) is not None:
            return undecided(taken.reason, taken.message), WAIT_EVERY_S
        # Not before the facts are kept: an operator that dies in between asks the pod again.
        await self._remove(observed, step.remove)
        assert observed.service is not None
        return warned(step.state, base_warnings(observed.service, step.state.facts)), step.again_s

    async def _record(self, observed: Observed, question: Question) -> _Record:
        record = self._records.get(observed.key)
        if record is None or record.source != question.source:
            record = self._records[observed.key] = _Record(question.source, question.model)
        live = observed.configmaps.get(model_name(observed.key.name))
        if record.facts is None and live is not None and _version(live) != record.version:
            record.version = _version(live)
            # The headers of a large model take most of a second.
            record.facts = await asyncio.to_thread(read_facts, live, question.source)
            if record.facts is not None and not names_model(live):
                record.version = ""  # written anew, with what it is of
        return record

    async def _asked(
        self,
        question: Question,
        seen: HelperInputs[ModelState],
        record: _Record,
        step: HelperStep[ModelState],
        pod: Pod,
        now: datetime,
    ) -> HelperStep[ModelState]:
        document = await self._fetch(pod["status"]["podIP"])
        if not document:
            return after_silence(step, pod, now, reads=document is not None)
        try:
            answer = await asyncio.to_thread(from_document, document)
        except UnreadableDocument as error:
            answer = LookUpRefusal("InvalidAnswer", f"pod {pod['metadata']['name']}: {error}")
        if isinstance(answer, LookUpRefusal):
            return after_refusal(seen, answer, now)
        record.facts, record.version = question.answered(answer), ""
        return HelperStep(found(record.facts), remove=tuple(seen.pods))

    async def _created(
        self,
        observed: Observed,
        question: Question,
        seen: HelperInputs[ModelState],
        step: HelperStep[ModelState],
        now: datetime,
    ) -> HelperStep[ModelState]:
        assert observed.service is not None
        nodes = [node.facts.name for node in observed.nodes]
        live = observed.configmaps.get(model_name(observed.key.name))
        # A commit that the hub does not have any more, after a branch was rewritten, is not asked for again.
        gone = seen.attempt is not None and seen.attempt.state.condition.reason == "NoSuchRevision"
        known = KnownCommits()
        if live is not None and not gone:
            known = await asyncio.to_thread(read_commits, live, question.model)
        manifest = inspection_pod(observed.document, observed.service, question, self._image, nodes, known)
        try:
            await self._applier.create_pod(observed, manifest)
        except (Forbidden, Invalid) as error:
            return after_refused_creation(seen, step, error, now)
        return step

    async def _keep(self, observed: Observed, record: _Record) -> Obstacle | None:
        """Write the facts if the cluster does not have them; why that is impossible, if it is."""
        live = observed.configmaps.get(model_name(observed.key.name))
        if record.facts is None or (live is not None and _version(live) == record.version):
            return None
        manifest = signed(facts_configmap(observed.document, record.facts, record.source, record.model))
        differing = self._applier.differing(observed, [manifest])
        if live is not None and not differing:
            record.version = _version(live)
            return None
        refusal = await self._applier.refusal(observed, differing)
        if refusal is None:
            await self._applier.write_children(observed, differing)
        return refusal

    async def _remove(self, observed: Observed, pods: tuple[Pod, ...]) -> None:
        for pod in pods:
            if "deletionTimestamp" not in pod["metadata"]:
                await self._applier.delete(POD, pod)
                logger.info("%s deleted inspection pod %s", observed.key, pod["metadata"]["name"])


def _version(configmap: Mapping[str, Any]) -> str:
    return str(configmap["metadata"].get("resourceVersion") or "")
