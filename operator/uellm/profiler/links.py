"""How the GPUs of a node are connected, with the terms of `nvidia-smi topo -m`.

NVLink  an active NVLink to the other GPU, or from both into a switch
PIX     one PCIe bridge at most
PXB     several PCIe bridges, no host bridge
PHB     the host bridge of one CPU
NODE    several host bridges of one NUMA node
SYS     the link between NUMA nodes, and any link that the driver does not classify: the slowest, so the safest
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import permutations
from typing import Any, NamedTuple

from uellm.hardware import NVLINK

# nvmlGpuTopologyLevel_t: values of the common ancestor, nearest first.
_KIND_BY_LEVEL = {0: "PIX", 10: "PIX", 20: "PXB", 30: "PHB", 40: "NODE", 50: "SYS"}
_REMOTE_IS_SWITCH = 2  # NVML_NVLINK_DEVICE_TYPE_SWITCH


class NVLinks(NamedTuple):
    """Where a GPU's active NVLinks lead."""

    peers: frozenset[str]
    """PCI bus ids."""
    switch: bool
    """One of them leads to an NVSwitch."""


def links(nvml: Any, handles: Mapping[str, Any]) -> Iterator[dict[str, str]]:
    """Entries of `status.links` for every ordered pair of the GPUs given by UUID, without measurements."""
    nvlinks = {uuid: _nvlinks(nvml, handle) for uuid, handle in handles.items()}
    bus_ids = {uuid: bus_id(nvml.nvmlDeviceGetPciInfo(handle).busId) for uuid, handle in handles.items()}
    for a, b in permutations(handles, 2):
        direct = bus_ids[b] in nvlinks[a].peers
        connected = direct or (nvlinks[a].switch and nvlinks[b].switch)
        kind = NVLINK if connected else _common_ancestor(nvml, handles[a], handles[b])
        yield {"a": a, "b": b, "kind": kind}


def bus_id(text: str | bytes) -> str:
    """The kernel's form of NVML's PCI bus id: four digits of domain, lower case.

    >>> bus_id(b"00000000:3B:00.0")
    '0000:3b:00.0'
    """
    text = text.decode() if isinstance(text, bytes) else text
    domain, _, rest = text.lower().partition(":")
    return f"{domain[-4:]}:{rest}"


def _nvlinks(nvml: Any, handle: Any) -> NVLinks:
    peers, switch = set(), False
    for link in range(nvml.NVML_NVLINK_MAX_LINKS):
        try:
            if not nvml.nvmlDeviceGetNvLinkState(handle, link):
                continue
            peers.add(bus_id(nvml.nvmlDeviceGetNvLinkRemotePciInfo(handle, link).busId))
            switch = switch or nvml.nvmlDeviceGetNvLinkRemoteDeviceType(handle, link) == _REMOTE_IS_SWITCH
        except nvml.NVMLError:
            # This GPU has no such link (or no NVLink at all); the numbers need not be contiguous.
            continue
    return NVLinks(frozenset(peers), switch)


def _common_ancestor(nvml: Any, a: Any, b: Any) -> str:
    try:
        return _KIND_BY_LEVEL.get(nvml.nvmlDeviceGetTopologyCommonAncestor(a, b), "SYS")
    except nvml.NVMLError:
        return "SYS"
