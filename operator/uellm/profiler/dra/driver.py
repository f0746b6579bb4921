"""Prepares claims for the kubelet: NodePrepareResources and NodeUnprepareResources, each any number of times."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from typing import Any

from uellm.errors import CannotBeDone
from uellm.hardware import DRA_DRIVER
from uellm.kube import RESOURCECLAIM, Kube, KubeError
from uellm.planner.handover.device_facts import facts_among
from uellm.profiler.device_names import Names
from uellm.profiler.deviceplugin import sample_facts
from uellm.profiler.dra.claims import ClaimedDevice, ClaimFiles, PreparedClaim
from uellm.profiler.dra.devices import PublishedDevice, published
from uellm.profiler.kubelet import dra_pb2 as api
from uellm.profiler.kubelet import dra_pb2_grpc as stubs
from uellm.profiler.podresources import Kubelet, KubeletSilent, Listed, PodKey
from uellm.profiler.sample import Sample

logger = logging.getLogger(__name__)


class ClaimRefused(CannotBeDone):
    """A claim that cannot be prepared, and why."""


class DraServicer(stubs.DRAPluginServicer):
    """Answers the kubelet from the description in `sample`."""

    def __init__(self, kube: Kube, node: str, claims: ClaimFiles, kubelet: Kubelet) -> None:
        self._kube = kube
        self._kubelet = kubelet
        self._node = node
        self._claims = claims
        self._one_at_a_time = asyncio.Lock()
        self.sample = Sample("Simulated", ())
        self._held: Mapping[str, PodKey] = {}
        """Pods that have a device through a device plugin, by the device's UUID."""
        self._in_use: frozenset[str] = frozenset()
        """Names of the devices that pods have through claims, by the kubelet."""

    async def look(self) -> None:
        """Ask the kubelet what pods have. Raises KubeletSilent."""
        listed = await self._kubelet.held()
        plugged = {each: pod for each, pod in listed.devices.items() if not each.claimed}
        self._in_use = frozenset(each.name for each in listed.devices if each.resource == DRA_DRIVER)
        held = Names(self.sample).held(Listed(plugged, listed.pods))
        # A pod may have a GPU by a name that nobody knows; then it may be any of them.
        self._held = {**held.devices, **dict.fromkeys(held.unclear, min(held.unmatched, default=PodKey("", "")))}

    def devices(self) -> tuple[PublishedDevice, ...]:
        """The devices that may be allocated.

        The description may give another name to a GPU that a claim has, or its name to another GPU. Neither may then
        be allocated: names are all that the scheduler knows. Nor what a pod has through a device plugin.
        """
        had = [device for claim in self._claims.all() for device in claim.devices]
        names, uuids = {each.name: each.uuid for each in had}, {each.uuid: each.name for each in had}
        return tuple(
            device
            for device in published(self.sample)
            if names.get(device.name, device.uuid) == device.uuid
            and uuids.get(device.uuid, device.name) == device.name
            and device.uuid not in self._held
        )

    async def NodePrepareResources(self, request: Any, context: Any) -> Any:  # noqa: D102, N802
        answers = {claim.uid: await self._prepare(claim) for claim in request.claims}
        return api.NodePrepareResourcesResponse(claims=answers)

    async def NodeUnprepareResources(self, request: Any, context: Any) -> Any:  # noqa: D102, N802
        answers = {claim.uid: await self._unprepare(claim) for claim in request.claims}
        return api.NodeUnprepareResourcesResponse(claims=answers)

    async def _prepare(self, claim: Any) -> Any:
        async with self._one_at_a_time:
            try:
                prepared = self._claims.get(claim.uid) or await self._newly_prepared(claim)
            except (ClaimRefused, KubeError, KubeletSilent, OSError) as error:
                logger.warning("claim %s/%s is not prepared: %s", claim.namespace, claim.name, error)
                return api.NodePrepareResourceResponse(error=str(error))
        devices = [
            api.Device(
                request_names=[device.request],
                pool_name=device.pool,
                device_name=device.name,
                cdi_device_ids=[prepared.cdi_id],
            )
            for device in prepared.devices
        ]
        return api.NodePrepareResourceResponse(devices=devices)

    async def _unprepare(self, claim: Any) -> Any:
        async with self._one_at_a_time:
            try:
                if self._claims.remove(claim.uid):
                    logger.info("claim %s/%s gave its simulated GPUs back", claim.namespace, claim.name)
            except OSError as error:
                return api.NodeUnprepareResourceResponse(error=str(error))
        return api.NodeUnprepareResourceResponse()

    async def _newly_prepared(self, claim: Any) -> PreparedClaim:
        found = await self._kube.get(RESOURCECLAIM, claim.name, claim.namespace)
        if found is None or found["metadata"]["uid"] != claim.uid:
            raise ClaimRefused(f"there is no claim {claim.namespace}/{claim.name} of the UID {claim.uid}")
        devices = tuple(self._claimed(result) for result in self._results(found))
        await self.look()
        for device in devices:
            await self._check_free(device)
        prepared = PreparedClaim(claim.uid, claim.namespace, claim.name, devices)
        uuids = [device.uuid for device in devices]
        facts = sample_facts(self.sample)
        self._claims.add(prepared, facts_among(uuids, facts.devices, facts.links))
        logger.info("claim %s has the simulated GPUs %s", prepared, ",".join(uuids))
        return prepared

    def _results(self, claim: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
        allocation = (claim.get("status") or {}).get("allocation")
        if allocation is None:
            raise ClaimRefused("the claim is not allocated")
        devices = allocation.get("devices") or {}
        for config in devices.get("config") or ():
            opaque = config.get("opaque") or {}
            if opaque.get("driver") == DRA_DRIVER and (opaque.get("parameters") or {}).get("sharing"):
                raise ClaimRefused("the claim asks for time-slicing or MPS, and simulated GPUs are handed out whole")
        results = [each for each in devices.get("results") or () if each["driver"] == DRA_DRIVER]
        if not results or any(each["pool"] != self._node for each in results):
            raise ClaimRefused(f"the claim's devices are not on {self._node}")
        return results

    def _claimed(self, result: Mapping[str, Any]) -> ClaimedDevice:
        name = result["device"]
        if result.get("adminAccess"):
            raise ClaimRefused(f"the claim asks for admin access to {name}, and simulated GPUs have none")
        device = next((each for each in published(self.sample) if each.name == name), None)
        if device is None:
            raise ClaimRefused(f"the description of {self._node} has no healthy GPU {name}")
        # The kubelet knows an alternative of a request (`firstAvailable`) by the request.
        return ClaimedDevice(result["request"].split("/")[0], result["pool"], name, device.uuid)

    async def _check_free(self, device: ClaimedDevice) -> None:
        if (pod := self._held.get(device.uuid)) is not None:
            raise ClaimRefused(f"pod {pod} has {device.uuid} through the device plugin: wait until it has ended")
        for other in self._claims.all():
            for own in other.devices:
                if own.uuid != device.uuid:
                    continue
                # A pod that was deleted by force leaves the API server before its containers end.
                if own.name in self._in_use or await self._exists(other):
                    raise ClaimRefused(f"claim {other} has {device.uuid}: wait until it is unprepared")
                logger.info("claim %s is gone; its simulated GPUs are free", other)
                self._claims.remove(other.uid)

    async def _exists(self, claim: PreparedClaim) -> bool:
        found = await self._kube.get(RESOURCECLAIM, claim.name, claim.namespace)
        return found is not None and found["metadata"]["uid"] == claim.uid
