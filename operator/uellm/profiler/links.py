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
from enum import Enum
from itertools import permutations
from typing import Any, NamedTuple

from uellm.hardware import NVLINK
from uellm.profiler.nvml_library import FUNCTION_NOT_FOUND, GONE, INVALID_ARGUMENT, NOT_SUPPORTED, ask

# nvmlGpuTopologyLevel_t: values of the common ancestor, nearest first.
_KIND_BY_LEVEL = {0: "PIX", 10: "PIX", 20: "PXB", 30: "PHB", 40: "NODE", 50: "SYS"}
_REMOTE_IS_SWITCH = 2  # NVML_NVLINK_DEVICE_TYPE_SWITCH
# What the driver answers for a link that the GPU does not have.
_NO_LINK = (INVALID_ARGUMENT, NOT_SUPPORTED, FUNCTION_NOT_FOUND)


class NVLinks(NamedTuple):
    """A GPU's NVLinks."""

    peers: frozenset[str] = frozenset()
    """PCI bus ids of the other ends of the active ones."""
    switch: bool = False
    """One of them leads to an NVSwitch."""
    active: int | None = None
    """How many are up; None where the GPU has none, or the driver does not tell of every one."""

    def to_dict(self) -> dict[str, Any] | None:
        """`nvlinks` of the device; None where their number is not known."""
        return None if self.active is None else {"active": self.active, "switched": self.switch}


class Linked(NamedTuple):
    """A GPU that may have links."""

    handle: Any
    bus_id: str
    nvlinks: NVLinks


def links(nvml: Any, gpus: Mapping[str, Linked]) -> Iterator[dict[str, str]]:
    """Entries of `status.links` for every ordered pair of the GPUs given by UUID, without measurements."""
    for a, b in permutations(gpus, 2):
        one, other = gpus[a], gpus[b]
        direct = other.bus_id in one.nvlinks.peers
        connected = direct or (one.nvlinks.switch and other.nvlinks.switch)
        yield {"a": a, "b": b, "kind": NVLINK if connected else _common_ancestor(nvml, one.handle, other.handle)}


def bus_id(text: str | bytes) -> str:
    """The kernel's form of NVML's PCI bus id: four digits of domain, lower case.

    >>> bus_id(b"00000000:3B:00.0")
    '0000:3b:00.0'
    """
    text = text.decode() if isinstance(text, bytes) else text
    domain, _, rest = text.lower().partition(":")
    return f"{domain[-4:]}:{rest}"


def nvlinks(nvml: Any, gpu: Any) -> NVLinks:
    """The NVLinks of a GPU. Raises NVMLError for a GPU that is lost."""
    peers, switch = set(), False
    states = [_state(nvml, gpu, link) for link in range(nvml.NVML_NVLINK_MAX_LINKS)]
    for link in (link for link, state in enumerate(states) if state is _LinkState.UP):
        remote = ask(nvml, nvml.nvmlDeviceGetNvLinkRemotePciInfo, gpu, link)
        if remote is not None:
            peers.add(bus_id(remote.busId))
        switch = switch or ask(nvml, nvml.nvmlDeviceGetNvLinkRemoteDeviceType, gpu, link) == _REMOTE_IS_SWITCH
    # A link whose state cannot be read must not look like one that is down.
    told = _LinkState.UNKNOWN not in states and any(state is not _LinkState.ABSENT for state in states)
    return NVLinks(frozenset(peers), switch, states.count(_LinkState.UP) if told else None)


class _LinkState(Enum):
    UP = "up"
    DOWN = "down"
    ABSENT = "absent"
    UNKNOWN = "unknown"


def _state(nvml: Any, gpu: Any, link: int) -> _LinkState:
    try:
        return _LinkState.UP if nvml.nvmlDeviceGetNvLinkState(gpu, link) else _LinkState.DOWN
    except nvml.NVMLError as error:
        if error.value in GONE:
            raise
        return _LinkState.ABSENT if error.value in _NO_LINK else _LinkState.UNKNOWN


def _common_ancestor(nvml: Any, a: Any, b: Any) -> str:
    try:
        return _KIND_BY_LEVEL.get(nvml.nvmlDeviceGetTopologyCommonAncestor(a, b), "SYS")
    except nvml.NVMLError:
        return "SYS"
