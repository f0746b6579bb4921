"""ResourceSlices and ResourceClaims together: what each node's driver publishes, and which pods hold what."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

from uellm.hardware import PublishedGpu
from uellm.reconcile.dra.claims import HeldDevice, held_by, pod_of
from uellm.reconcile.dra.slices import DeviceRef, SliceDevice, gpus_of, is_of_gpus

Object = Mapping[str, Any]
_Place = tuple[str, str]


class ClaimIndex:
    """Kept up to date slice by slice and claim by claim. Every change returns the nodes that it concerns."""

    def __init__(self) -> None:
        self._slices: defaultdict[str, dict[str, Object]] = defaultdict(dict)
        """By pool and name."""
        self._pools: dict[str, list[SliceDevice]] = {}
        self._places: dict[DeviceRef, SliceDevice] = {}
        self._pools_of_nodes: defaultdict[str, set[str]] = defaultdict(set)
        self._held: dict[_Place, tuple[str, tuple[HeldDevice, ...]]] = {}
        """Of each claim: its pod, and what it holds."""
        self._holders: dict[DeviceRef, str] = {}
        self._claims_of_pods: defaultdict[str, set[_Place]] = defaultdict(set)

    @property
    def gpus(self) -> int:
        """The number of whole GPUs that are published."""
        return len(self._places)

    def set_slice(self, name: str, before: Object | None, after: Object | None) -> set[str]:
        """A slice as it was and as it is; None: it is not there."""
        pools = set()
        for each, there in ((before, False), (after, True)):
            if each is not None and is_of_gpus(each):
                pool = each["spec"]["pool"]["name"]
                pools.add(pool)
                self._slices[pool].pop(name, None)
                if there:
                    self._slices[pool][name] = each
        return {node for pool in pools for node in self._count_pool(pool)}

    def _count_pool(self, pool: str) -> set[str]:
        old, new = self._pools.get(pool, []), gpus_of(self._slices[pool].values())
        if old == new:
            return set()
        for device in old:
            self._places.pop(device.ref, None)
        self._places.update({device.ref: device for device in new})
        self._pools[pool] = new
        for device in old:
            self._pools_of_nodes[device.node].discard(pool)
        for device in new:
            self._pools_of_nodes[device.node].add(pool)
        return {device.node for device in (*old, *new)}

    def set_claim(self, place: _Place, claim: Object | None) -> set[str]:
        """A claim as it is now; None: it is not there. Empty where it holds the same as before."""
        before = self._held.pop(place, None)
        after = None if claim is None else (pod_of(claim), held_by(claim))
        if before is not None:
            self._claims_of_pods[before[0]].discard(place)
            if not self._claims_of_pods[before[0]]:
                del self._claims_of_pods[before[0]]
        if after is not None:
            self._held[place] = after
            self._claims_of_pods[after[0]].add(place)
        if before == after:
            return set()
        devices = [device for each in (before, after) if each for device in each[1]]
        for device in before[1] if before else ():
            if self._holders.get(device.ref) == device.holder:
                del self._holders[device.ref]
        self._holders.update({device.ref: device.holder for device in (after[1] if after else ())})
        return {self._places[device.ref].node for device in devices if device.ref in self._places}

    def published(self, node: str) -> dict[str, PublishedGpu]:
        """The GPUs that new claims may get on a node, by uuid."""
        return {each.facts.uuid: each.facts for each in self._on(node) if not each.blocked}

    def holders(self, node: str) -> dict[str, str]:
        """Of the node's GPUs that claims hold: the holder by uuid."""
        held = ((each.facts.uuid, self._holders.get(each.ref)) for each in self._on(node))
        return {uuid: holder for uuid, holder in held if holder is not None}

    def devices_of(self, pod: str) -> tuple[str, ...]:
        """Uuids of the GPUs that the claims of a pod hold, in the order of the requests."""
        held = (device for place in sorted(self._claims_of_pods.get(pod, ())) for device in self._held[place][1])
        return tuple(self._places[device.ref].facts.uuid for device in held if device.ref in self._places)

    def _on(self, node: str) -> list[SliceDevice]:
        pools = self._pools_of_nodes.get(node, ())
        return [each for pool in sorted(pools) for each in self._pools[pool] if each.node == node]
