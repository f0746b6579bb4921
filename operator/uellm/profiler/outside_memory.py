"""How much memory of the GPUs is in use that no pod explains: by a desktop, a program on the node, or a container that
took its GPU past the kubelet. Plans do without it.

It counts only where it is in use in several samples in a row, on a GPU that no pod has and that is not being measured:
a pod that has just ended, or is about to begin, holds memory too. Up to `UNNOTICED_SHARE` it does not count, because
engines leave more than that unused. It is rounded up, and follows a lower use only after a larger step, so that a
desktop that comes and goes makes no new plan. The system itself uses the memory of an integrated GPU, and more or less
of it all the time: the steps are larger there. While a pod has the GPU nothing is known, and what was found last stays.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from uellm.profiler.gpu_memory import is_integrated
from uellm.profiler.sample import Sample

SAMPLES = 3
UNNOTICED_SHARE = 0.05
_GIB = 2**30
_STEP = _GIB
_SHARED_STEP = 4 * _GIB
"""Of an integrated GPU."""


class OutsideMemory:
    """What was found so far, by UUID, in bytes; devices without are left out."""

    def __init__(self) -> None:
        self.bytes: dict[str, int] = {}
        self._used: dict[str, deque[int]] = {}

    def adopt(self, status: Mapping[str, Any]) -> None:
        """Take over what an earlier process found."""
        for device in status.get("devices") or ():
            if (held := device.get("memoryHeldBytes")) is not None:
                self.bytes[device["uuid"]] = held

    def look(self, sample: Sample, taken: Collection[str]) -> None:
        """A new sample. `taken`: UUIDs of the devices that a pod has or that are being measured."""
        for device in sample.devices:
            uuid, used = device["uuid"], sample.used_bytes.get(device["uuid"])
            if uuid in taken or used is None:
                self._used.pop(uuid, None)
                continue
            recent = self._used.setdefault(uuid, deque(maxlen=SAMPLES))
            recent.append(used)
            if len(recent) == SAMPLES:
                step = _SHARED_STEP if _is_shared(device) else _STEP
                self._settle(uuid, min(recent), device["memoryBytes"], step)

    def sentence(self, sample: Sample) -> str:
        """What it is in words; empty where there is none."""
        held = [device for device in sample.devices if device["uuid"] in self.bytes]
        own = self._listed(device for device in held if not _is_shared(device))
        shared = self._listed(device for device in held if _is_shared(device))
        words = [
            f"{own} in use by no pod: plans do without (see nvidia-smi on the node)" if own else "",
            f"{shared}, which has the machine's memory, in use by the system: plans do without" if shared else "",
        ]
        return "; ".join(filter(None, words))

    def _listed(self, devices: Iterable[Mapping[str, Any]]) -> str:
        return ", ".join(f"{self.bytes[device['uuid']] / _GIB:.0f} GiB of GPU {device['index']}" for device in devices)

    def _settle(self, uuid: str, used: int, total: int, step: int) -> None:
        before, unnoticed = self.bytes.get(uuid, 0), UNNOTICED_SHARE * total
        if used <= unnoticed / 2 or (not before and used <= unnoticed):
            self.bytes.pop(uuid, None)
        elif not before - 2 * step < used <= before:
            self.bytes[uuid] = min(total, math.ceil(used / step) * step)


def _is_shared(device: Mapping[str, Any]) -> bool:
    return is_integrated(device.get("product") or "")
