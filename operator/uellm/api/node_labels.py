"""Node labels that describe GPUs: GPU Feature Discovery's, and the profiler's own.

The profiler writes its own labels after the node's profile, because only an event of the node makes the scheduler retry
pending pods. They cover what GPU Feature Discovery cannot express (unlike GPUs, simulated GPUs) and nodes where it does
not run. Health and measurements are not among them, because they change.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields

from uellm.api.names import GROUP
from uellm.hardware import GPU_RESOURCE, Device

MIB = 1 << 20
LONGEST_VALUE = 63
SHARED = ("time-slicing", "mps")
"""Values of GFD's label `nvidia.com/gpu.sharing-strategy` on nodes that share a GPU between pods."""
SHARING_STRATEGY = f"{GPU_RESOURCE}.sharing-strategy"
CAPABILITY_MAJOR = f"{GPU_RESOURCE}.compute.major"
CAPABILITY_MINOR = f"{GPU_RESOURCE}.compute.minor"


@dataclass(frozen=True, slots=True)
class LabelKeys:
    """The keys of the labels for one extended resource. Values of count and memory (MiB) are numbers."""

    count: str
    memory: str
    """Memory of the smallest GPU."""
    product: str

    @classmethod
    def of_gfd(cls, resource_name: str) -> LabelKeys:
        """GPU Feature Discovery's, such as `nvidia.com/gpu.count`."""
        return cls(f"{resource_name}.count", f"{resource_name}.memory", f"{resource_name}.product")


@dataclass(frozen=True, slots=True)
class OwnLabelKeys:
    """The keys of the profiler's own labels for one extended resource, such as `uellm.io/gpu.count`."""

    count: str
    memory: str
    product: str
    """Absent if the GPUs are of several products."""
    capability: str
    """The lowest compute capability as one number: 89 for 8.9, 100 for 10.0."""
    unlike: str
    """`true` if the GPUs are not identical."""
    simulated: str
    """`true` if the GPUs are described by a file."""

    @classmethod
    def of(cls, resource_name: str) -> OwnLabelKeys:
        """The keys for a resource."""
        prefix = f"{GROUP}/{resource_name.rpartition('/')[2]}"
        return cls(*(f"{prefix}.{each.name}" for each in fields(cls)))


def own_labels(devices: Iterable[Device], *, simulated: bool) -> dict[str, str]:
    """The profiler's own labels for a node with these devices."""
    by_resource: dict[str, list[Device]] = {}
    for device in devices:
        by_resource.setdefault(device.resource_name, []).append(device)
    labels: dict[str, str] = {}
    for resource_name in sorted(by_resource):
        labels |= _of_resource(OwnLabelKeys.of(resource_name), by_resource[resource_name])
        if simulated:
            labels[OwnLabelKeys.of(resource_name).simulated] = "true"
    return labels


def gfd_labels(devices: Iterable[Device]) -> dict[str, str]:
    """The labels that GPU Feature Discovery gives a node with these devices, as far as pods ask for them.

    It describes one product only, so a resource with unlike GPUs has none here.
    """
    by_resource: dict[str, list[Device]] = {}
    for device in devices:
        by_resource.setdefault(device.resource_name, []).append(device)
    labels: dict[str, str] = {}
    for resource_name, own in sorted(by_resource.items()):
        if len({(device.product, device.memory_bytes, device.compute_capability) for device in own}) > 1:
            continue
        keys, (major, _, minor) = LabelKeys.of_gfd(resource_name), own[0].compute_capability.partition(".")
        labels |= {keys.count: str(len(own)), keys.memory: str(own[0].memory_bytes // MIB)}
        if product := label_value(own[0].product):
            labels[keys.product] = product
        if major.isdecimal() and minor.isdecimal():
            labels |= {CAPABILITY_MAJOR: major, CAPABILITY_MINOR: minor}
    return labels


def gpu_labels(devices: Sequence[Device], *, simulated: bool) -> dict[str, str]:
    """The labels by which pods find a node with these devices before its profiler has run.

    GPU Feature Discovery's where they say enough, else the profiler's own.
    """
    found = {} if simulated else gfd_labels(devices)
    described = all(LabelKeys.of_gfd(device.resource_name).count in found for device in devices)
    return found if described else own_labels(devices, simulated=simulated)


def describes_gpus(key: str) -> bool:
    """Whether a label's key is one that describes a node's GPUs."""
    domain, _, name = key.partition("/")
    return domain in (GPU_RESOURCE.partition("/")[0], GROUP) and "." in name


def _of_resource(keys: OwnLabelKeys, devices: list[Device]) -> dict[str, str]:
    labels = {
        keys.count: str(len(devices)),
        keys.memory: str(min(device.memory_bytes for device in devices) // MIB),
    }
    products = {label_value(device.product) for device in devices}
    if len(products) == 1 and (product := products.pop()):
        labels[keys.product] = product
    capabilities = [capability_number(device.compute_capability) for device in devices]
    if all(capabilities):
        labels[keys.capability] = str(min(capabilities))
    if len({(device.product, device.memory_bytes, device.compute_capability) for device in devices}) > 1:
        labels[keys.unlike] = "true"
    return labels


def label_value(text: str) -> str:
    """The text in GPU Feature Discovery's form: blanks become dashes, and characters that a label may not contain
    are dropped.
    """
    kept = "".join(
        letter if letter.isalnum() or letter in "-_." else "-" if letter.isspace() else "" for letter in text
    )
    return kept.encode("ascii", "ignore").decode()[:LONGEST_VALUE].strip("-_.")


def capability_number(capability: str) -> int:
    """`8.9` as 89; 0 if it is unknown."""
    major, _, minor = capability.partition(".")
    return int(major) * 10 + int(minor) if major.isdecimal() and minor.isdecimal() else 0
