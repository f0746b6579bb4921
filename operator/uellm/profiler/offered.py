"""What the kubelet can give to pods: under which resource, to how many pods at once, and which GPUs it cannot."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from uellm.profiler.device_names import Names
from uellm.profiler.health import GpuFault
from uellm.profiler.podresources import DeviceId

PATIENCE_S = 60.0
"""A device plugin that is replaced, or a kubelet that was restarted, offers nothing for some seconds."""
ANSWERS = 2
"""One plugin offers whole GPUs and several kinds of slices one after the other when it starts."""
NOT_OFFERED = "NotOffered"


class KubeletOffer:
    """What the kubelet said so far.

    Names and shares are only added: a restarted kubelet knows none for a moment.
    """

    def __init__(self) -> None:
        self.resource_names: dict[str, str] = {}
        """The resource by which each device is asked for, by UUID."""
        self.shares: dict[str, int] = {}
        """To how many pods a device is lent at once, by UUID: more than one by time-slicing or MPS."""
        self.faults: dict[str, GpuFault] = {}
        """Devices that the kubelet does not offer, by UUID."""
        self._offered_s: dict[str, float] = {}
        self._left_out: Counter[str] = Counter()

    def adopt(self, status: Mapping[str, Any]) -> None:
        """Take over from an earlier process what it found: the kubelet may offer nothing since then."""
        for device in status.get("devices") or ():
            if (device.get("health") or {}).get("reason") == NOT_OFFERED:
                self._offered_s[device["uuid"]] = float("-inf")
                self._left_out[device["uuid"]] = ANSWERS

    def update(self, allocatable: Collection[DeviceId], names: Names, present: Collection[str], now_s: float) -> None:
        """The kubelet's answer, where no DRA driver hands GPUs out. `present`: UUIDs that the driver sees."""
        self.judge(self.missing(allocatable, names, present, now_s))

    def missing(
        self, allocatable: Collection[DeviceId], names: Names, present: Collection[str], now_s: float
    ) -> Collection[str]:
        """The kubelet's answer. Return the devices that it does not offer although a device plugin did, or does."""
        offered = names.offered(allocatable)
        for uuid, ids in offered.items():
            self.resource_names[uuid] = ids[-1].resource
            # The same GPU may be offered by two plugins, each with its own count.
            self.shares[uuid] = max(Counter(each.resource for each in ids).values())
            self._offered_s[uuid] = now_s
        # With other GPUs on offer the plugin is there, and leaves these out on purpose.
        left_out = [uuid for uuid in present if uuid not in offered] if offered else list(self._left_out)
        self._left_out = Counter({uuid: min(self._left_out[uuid] + bool(offered), ANSWERS) for uuid in left_out})
        unknown = names.unknown(allocatable)
        self._count_unknown(unknown, [uuid for uuid in present if uuid not in offered])
        # A GPU whose plugin has other names for it would look as if it were not offered.
        told = not unknown
        return [uuid for uuid in present if told and self._is_missing(uuid, offered, now_s)]

    def _count_unknown(self, ids: Sequence[DeviceId], uuids: Sequence[str]) -> None:
        """`ids` mean devices among `uuids`, and nobody knows which. More ids than devices: they are shares."""
        for resource, count in Counter(each.resource for each in ids).items():
            for uuid in uuids:
                self.resource_names[uuid] = resource
                self.shares[uuid] = math.ceil(count / len(uuids))

    def judge(self, missing: Collection[str], claimable: Collection[str] = ()) -> None:
        """The missing devices are faulty, but for those that a DRA driver hands out: `claimable`.

        That a device plugin had these before is forgotten.
        """
        self.faults = {uuid: _fault(uuid) for uuid in missing if uuid not in claimable}
        for uuid in claimable:
            for known in (self.resource_names, self.shares, self._offered_s, self._left_out):
                known.pop(uuid, None)

    def _is_missing(self, uuid: str, offered: Mapping[str, Any], now_s: float) -> bool:
        if uuid in offered:
            return False
        return self._left_out[uuid] >= ANSWERS or now_s - self._offered_s.get(uuid, now_s) > PATIENCE_S


def _fault(uuid: str) -> GpuFault:
    return GpuFault(
        NOT_OFFERED,
        f"the kubelet offers {uuid} to no pod: its device plugin calls it unhealthy (for Xid errors, say) or does not "
        "run: see the log of the device plugin on the node",
    )
