"""Finds the device that the kubelet means: each device plugin and DRA driver has names of its own. Pure.

    GPU-<uuid>, MIG-<uuid>         NVIDIA's plugin, and ours
    GPU-<uuid>::3                  a share of a GPU by time-slicing or MPS
    GPU-<uuid>-17, GPU-<uuid>-_-3  a share, as HAMi and others count them
    3                              the driver's index
    nvidia0                        the device file, as on GKE
    nvidia0/gi1, nvidia0/vgpu2     a MIG slice there, a share there
    0000:3b:00.0                   the address on the PCI bus
    gpu-0, gpu-0-mig-1g10gb-19-0   the device file, and a slice of it, as NVIDIA's DRA driver calls them

A pod may have a GPU by a name that is none of these. Then nobody knows which, so no GPU of the node counts as free. But
a pod keeps a GPU that has fallen off the bus: its name is that of a lost one, and a UUID of none is no other GPU's.
Device files of several lost GPUs are dealt to them in the order of their numbers.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from uellm.hardware import DRA_DRIVER
from uellm.profiler.links import bus_id
from uellm.profiler.podresources import DeviceId, Held, Listed, PodKey
from uellm.profiler.sample import NVML, Sample
from uellm.text import and_more

_PCI = re.compile(r"^[0-9a-fA-F]{4,8}:[0-9a-fA-F]{2}:[0-9a-fA-F]{2}\.[0-7]$")
_UUID = re.compile(r"^(GPU|MIG|MIG-GPU)-[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}(?![0-9a-z])", re.IGNORECASE)
_FILE = re.compile(r"^nvidia(\d+)(/.+)?$")
_DRA = re.compile(r"^gpu-(\d+)(-mig-.+)?$")
_OTHER_VENDORS = ("amd.com", "intel.com", "habana.ai", "huawei.com")
_NETWORK = re.compile(r"rdma|roce|hostdev|hca|mlnx|sriov|nic|ib\b", re.IGNORECASE)
_GPU = re.compile(r"gpu|mig-|cuda", re.IGNORECASE)


class Names:
    """The names of the devices of one sample. `lost`: entries of GPUs that are in the node and cannot be used."""

    def __init__(self, sample: Sample, lost: Sequence[Mapping[str, Any]] = ()) -> None:
        self._uuids = tuple(device["uuid"] for device in sample.devices)
        self._lost = tuple(device["uuid"] for device in lost)
        self._lost_gpus = _by_gpu(lost)
        # A real device file is numbered by itself, and the sample says how.
        files = [] if sample.source == NVML else [(f"nvidia{each['index']}", each["uuid"]) for each in sample.devices]
        self._known: dict[str, tuple[str, ...]] = {
            **_joined(_names(lost)),
            **_joined([*_names(sample.devices), *files]),
            **sample.aliases,
            **{uuid: (uuid,) for uuid in self._uuids},
        }
        self._all_placed = all(device.get("pciBusId") for device in sample.devices)
        numbered = {uuid for name, uuids in self._known.items() if _FILE.match(name) for uuid in uuids}
        self._all_numbered = numbered.issuperset(self._uuids)

    def devices(self, device_id: str) -> tuple[str, ...]:
        """UUIDs of the devices that an id means: one, the slices of one GPU, or none for an unknown id.

        >>> Names(Sample(NVML, ({"uuid": "GPU-a", "index": 0},))).devices("GPU-a::3")
        ('GPU-a',)
        """
        name = bus_id(device_id) if _PCI.match(device_id) else device_id
        if (exact := self._known.get(name)) is not None:
            return exact
        longest = max((known for known in self._known if _is_part(name, known)), key=len, default=None)
        if longest is not None:
            return self._known[longest]
        # The number of a lost GPU's device file is no longer known.
        return self._lost if self._all_numbered and _FILE.match(name) else ()

    def _dealt(self, ids: Iterable[DeviceId]) -> dict[DeviceId, tuple[str, ...]]:
        """The lost GPUs that device files mean: one each, as long as there are enough."""
        files = {each: file for each in ids if (file := _FILE.match(_plain(each)))}
        numbers = {each: int(file[1]) for each, file in files.items() if self._lost and self._means_lost(file[0])}
        places = {number: place for place, number in enumerate(sorted(set(numbers.values())))}
        gpus = self._lost_gpus
        return {each: gpus[places[number] % len(gpus)] for each, number in numbers.items()}

    def _means_lost(self, file: str) -> bool:
        return self.devices(file) == self._lost

    def _meant(self, device_id: DeviceId) -> tuple[str, ...]:
        """The devices of an id. Resources that count other things than GPUs have ids such as `0` too."""
        meant = self.devices(_plain(device_id))
        by_itself = device_id.name.startswith(meant) or _PCI.match(device_id.name) or _FILE.match(device_id.name)
        return meant if by_itself or is_gpu_resource(device_id.resource) else ()

    def _is_of_another(self, name: str) -> bool:
        """Whether an id that means none of these devices is certainly the name of another one."""
        return bool(_UUID.match(name) or (_PCI.match(name) and self._all_placed))

    def held(self, listed: Listed) -> Held:
        """Which pod has which device. Ids of other vendors' devices, and of network cards, are left out."""
        devices: dict[str, PodKey] = {}
        dealt = self._dealt(listed.devices)
        for device_id, pod in listed.devices.items():
            for uuid in dealt.get(device_id) or self._meant(device_id):
                # Several pods may share a device; the first by name is reported, so the answer is stable.
                devices[uuid] = min(pod, devices.get(uuid, pod))
        unknown = self.unknown(listed.devices)
        return Held(
            devices,
            listed.pods,
            unmatched=tuple(sorted({listed.devices[each] for each in unknown})),
            unclear=tuple(uuid for uuid in self._uuids if uuid not in devices) if unknown else (),
        )

    def unknown(self, ids: Iterable[DeviceId]) -> tuple[DeviceId, ...]:
        """The ids of GPUs that are none of these devices, in order."""
        strange = (each for each in ids if is_gpu_resource(each.resource) and not self._meant(each))
        return tuple(sorted(each for each in strange if not self._is_of_another(each.name)))

    def offered(self, ids: Iterable[DeviceId]) -> Mapping[str, list[DeviceId]]:
        """By UUID: the ids that the kubelet can give away, in order."""
        found: dict[str, list[DeviceId]] = {}
        for each in sorted(ids):
            for uuid in self._meant(each):
                found.setdefault(uuid, []).append(each)
        return found


def _names(devices: Iterable[Mapping[str, Any]]) -> Iterator[tuple[str, str]]:
    """Each name of each device that is in its entry, with its UUID."""
    for device in devices:
        for name in (device["uuid"], str(device.get("index", 0)), device.get("pciBusId")):
            if name:
                yield name, device["uuid"]


def _by_gpu(devices: Iterable[Mapping[str, Any]]) -> tuple[tuple[str, ...], ...]:
    """The UUIDs of each GPU, or of its slices, in order."""
    found: dict[tuple[int, str], tuple[str, ...]] = {}
    for device in devices:
        gpu = device.get("index", 0), device.get("pciBusId") or ""
        found[gpu] = (*found.get(gpu, ()), device["uuid"])
    return tuple(found[gpu] for gpu in sorted(found))


def _joined(named: Iterable[tuple[str, str]]) -> dict[str, tuple[str, ...]]:
    """The UUIDs by name: the slices of a GPU have some in common."""
    found: dict[str, tuple[str, ...]] = {}
    for name, uuid in named:
        found[name] = (*found.get(name, ()), uuid)
    return found


def unknown_names(ids: Sequence[DeviceId]) -> str:
    """What it means that pods have these devices, in a sentence; empty for none."""
    if not ids:
        return ""
    shown = and_more([f"{each.resource} {each.name}" for each in ids], 2, "device")
    return (
        f"pods have GPUs by names that are none of these devices' ({shown}): every device that no other pod has counts "
        "as taken"
    )


def is_gpu_resource(resource: str) -> bool:
    """Whether an extended resource counts NVIDIA's GPUs by its name, or a DRA driver hands them out.

    Others may, too, but network cards also go by names such as `nvidia.com/switchdev`. There only an id that tells by
    itself means a GPU: NVIDIA's plugin, which lets its resources be renamed, calls GPUs by their UUIDs.

    >>> is_gpu_resource("nvidia.com/gpu.shared"), is_gpu_resource("nvidia.com/switchdev"), is_gpu_resource("rdma/hca")
    (True, False, False)
    """
    domain, _, name = resource.rpartition("/")
    if _NETWORK.search(name) or (domain or name).endswith(_OTHER_VENDORS):
        return False
    return bool(_GPU.search(name))


def _plain(device_id: DeviceId) -> str:
    """The name without what only DRA adds. Which slice of a GPU a name means is not known, so it means all of them."""
    match = _DRA.match(device_id.name) if device_id.resource == DRA_DRIVER else None
    return device_id.name if match is None else f"nvidia{match[1]}"


def _is_part(name: str, known: str) -> bool:
    """Whether a name is a known one with a suffix. An index has none."""
    return name.startswith(known) and not name[len(known)].isalnum() and not known.isdecimal()
