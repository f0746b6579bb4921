"""Keeps a measuring pod on every node whose GPUs are not measured: makes it, deletes it in the end, and tells."""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from uellm.kube import AlreadyExists, Forbidden, Invalid, Kube, KubeError, NotFound
from uellm.kube.kinds import NODE, POD
from uellm.reconcile.cache import Cache
from uellm.reconcile.each_service import EachService
from uellm.reconcile.kueue import gates
from uellm.reconcile.measuring.event import not_measured_event
from uellm.reconcile.measuring.images import full_reference, images_on
from uellm.reconcile.measuring.needs import MeasuringNeed, need_of
from uellm.reconcile.measuring.pod import measuring_pod
from uellm.reconcile.measuring.settings import MeasuringSettings
from uellm.reconcile.measuring.steps import (
    LOOK_FOR_IMAGE_S,
    MeasuringAttempt,
    MeasuringInputs,
    MeasuringStep,
    after_measuring_failure,
    is_away,
    next_measuring_step,
)
from uellm.reconcile.reconciler import utc_now
from uellm.reconcile.times import timestamp

logger = logging.getLogger(__name__)

EVERY_S = 2.0
RETRY_S = 15.0
ENGINE_COMES_S = 30.0
"""How long a pod without a node keeps measuring pods from being made. Later, it would have preempted one."""
MOST_AT_ONCE = 32
"""Pods in the whole cluster, so that a new driver does not let every node measure, and pull, at the same time."""


class MeasuringKeeper:
    """Carries the steps of all nodes out. `instance`: the operator's identity."""

    def __init__(self, kube: Kube, cache: Cache, settings: MeasuringSettings, *, instance: str) -> None:
        self._kube = kube
        self._cache = cache
        self._settings = settings
        self._instance = instance
        self._attempts: dict[str, MeasuringAttempt] = {}
        self._needs: dict[str, tuple[str, MeasuringNeed | None]] = {}
        """By node: the version of the profile, and what it says."""
        self._nodes_by_service = EachService(cache, self._nodes_of)

    async def keep(self) -> None:
        """Run until cancelled."""
        while True:
            wait_s = EVERY_S
            try:
                await self.step(utc_now())
            except KubeError as error:
                logger.warning("measuring: %s", error)
                wait_s = RETRY_S
            await asyncio.sleep(wait_s)

    async def step(self, now: datetime) -> None:
        """One step on every profiled node. Raises KubeError; after all nodes, where a pod may not be deleted."""
        pods = self._own_pods()
        engines_come: bool | None = None  # not looked for where there is nothing to measure
        room = MOST_AT_ONCE - sum(not is_away(self._cache.node(name)) for name in pods)
        profiles = {profile["metadata"]["name"]: profile for profile in self._cache.profiles()}
        for known in (self._attempts, self._needs):
            for gone in known.keys() - profiles.keys():
                del known[gone]
        refused: KubeError | None = None
        for name, profile in profiles.items():
            stale = name in self._cache.stale_profiles
            need = None if stale else self._need(name, profile)
            own = pods.get(name, ())
            if need is None and not own:
                continue
            if engines_come is None:
                engines_come = self._engines_come(now)
            seen = MeasuringInputs(need, self._cache.node(name), own, self._attempts.get(name), engines_come)
            step = next_measuring_step(seen, self._settings, now)
            if step.create is not None and room <= 0:
                continue
            try:
                await self._remove(step)
            except (Forbidden, Invalid) as error:
                refused = error  # other nodes do not wait for this one
                continue
            self._remember(name, step.attempt)
            await self._tell(name, step, now)
            if step.create is not None:
                room -= await self._create(profile, step.create, now)
        if refused is not None:
            raise refused

    def _own_pods(self) -> dict[str, list[Mapping[str, Any]]]:
        """The pods that measure, by node. Anybody can put their label on a pod, but not into their namespace."""
        found: dict[str, list[Mapping[str, Any]]] = {}
        for node, pods in self._cache.measuring_pods().items():
            if own := [pod for pod in pods if pod["metadata"]["namespace"] == self._settings.namespace]:
                found[node] = list(own)
        return found

    def _need(self, name: str, profile: Mapping[str, Any]) -> MeasuringNeed | None:
        version = str(profile["metadata"].get("resourceVersion") or "")
        known = self._needs.get(name)
        if known is None or known[0] != version:
            known = self._needs[name] = (version, need_of(profile))
        return known[1]

    def _engines_come(self, now: datetime) -> bool:
        young = timestamp(now - timedelta(seconds=ENGINE_COMES_S))
        pods = (pod for key in self._cache.service_keys() for pod in self._cache.pods(key) if not gates(pod))
        return any(not pod["spec"].get("nodeName") and pod["metadata"]["creationTimestamp"] > young for pod in pods)

    def _remember(self, name: str, attempt: MeasuringAttempt | None) -> None:
        if attempt is None:
            self._attempts.pop(name, None)
        else:
            self._attempts[name] = attempt

    async def _remove(self, step: MeasuringStep) -> None:
        for pod in step.remove:
            metadata = pod["metadata"]
            await self._kube.delete(POD, metadata["name"], metadata["namespace"], uid=metadata["uid"])
            self._cache.remove(POD, pod)
            logger.info("deleted measuring pod %s", metadata["name"])

    async def _create(self, profile: Mapping[str, Any], need: MeasuringNeed, now: datetime) -> bool:
        """Make the pod, if its image is there or is about to be; whether it was made."""
        name = profile["metadata"]["name"]
        before = self._attempts.get(name)
        if not self._is_wanted(name) and not await self._is_there(name):
            self._wait(name, before, now, LOOK_FOR_IMAGE_S)
            return False
        try:
            pod = await self._kube.create(measuring_pod(profile, need, self._settings))
        except AlreadyExists:
            self._wait(name, before, now, RETRY_S)  # one of before is still being deleted
            return False
        except (Forbidden, Invalid, NotFound) as error:
            step = after_measuring_failure(before, f"the API server refuses the pod that measures: {error}", now)
            self._remember(name, step.attempt)
            await self._tell(name, step, now)
            return False
        self._cache.put(POD, pod)
        logger.info(
            "node %s: created measuring pod %s for %d %s", name, pod["metadata"]["name"], need.gpus, need.resource
        )
        return True

    def _wait(self, name: str, before: MeasuringAttempt | None, now: datetime, seconds: float) -> None:
        due = now + timedelta(seconds=seconds)
        self._attempts[name] = MeasuringAttempt(due) if before is None else before._replace(due=due)

    async def _is_there(self, node: str) -> bool:
        """Whether the image is on a node. Asked for now and then instead of watched: the lists of images are large."""
        return full_reference(self._settings.image) in images_on(await self._kube.get(NODE, node) or {})

    def _is_wanted(self, node: str) -> bool:
        """Whether an engine of the administrator's image is planned on a node, so that the image is pulled anyway."""
        return any(node in nodes for nodes in self._nodes_by_service.now().values())

    def _nodes_of(self, service: Mapping[str, Any]) -> Sequence[str]:
        """The nodes on which a service's plan brings that image."""
        own = (service["spec"].get("engine") or {}).get("image")
        plan = (service.get("status") or {}).get("plan") or {}
        return tuple(map(sys.intern, plan.get("nodes") or ())) if own in (None, self._settings.image) else ()

    async def _tell(self, name: str, step: MeasuringStep, now: datetime) -> None:
        """A pass does not fail because an Event cannot be created."""
        node = self._cache.node(name)
        if not step.tell or node is None:
            return
        logger.warning("node %s: %s", name, step.tell)
        try:
            await self._kube.create(not_measured_event(node, step.tell, now, self._instance))
        except KubeError as error:
            logger.warning("no Event on node %s: %s", name, error)
