"""Tensor-parallel groups: identical GPUs, over the fastest links between them.

vLLM divides a layer evenly, so a group runs at the pace of its slowest member and holds what its smallest holds:
unlike GPUs never share a layer here.
"""

from __future__ import annotations

from collections.abc import Sequence

from uellm.hardware import Device, Link
from uellm.planner.speed import Links

# Ways between GPUs from the fastest on, as `nvidia-smi topo -m` names them.
KINDS = ("NVLink", "PIX", "PXB", "PHB", "NODE", "SYS")


def kind_of(device: Device) -> tuple[str, int, str]:
    """What makes two GPUs identical."""
    return device.product, device.memory_bytes, device.compute_capability


def tensor_groups(devices: Sequence[Device], links: Sequence[Link], tensor: int) -> list[tuple[Device, ...]]:
    """Disjoint groups of `tensor` identical devices, in the order of their first members.

    Each group starts with the first device left and takes the ones nearest to it: greedy, and exact where links come
    in cliques of the group's size, as NVLink pairs and switches do.
    """
    if tensor == 1:
        return [(device,) for device in devices]
    known = Links(links)
    groups: list[tuple[Device, ...]] = []
    for kind in sorted({kind_of(device) for device in devices}):
        left = [device for device in devices if kind_of(device) == kind]
        while len(left) >= tensor:
            seed = left[0]
            nearest = sorted(left[1:], key=lambda device, seed=seed: distance(known, seed, device))  # type: ignore[misc]
            members = {seed.uuid, *(device.uuid for device in nearest[: tensor - 1])}
            groups.append(tuple(device for device in left if device.uuid in members))
            left = [device for device in left if device.uuid not in members]
    position = {device.uuid: index for index, device in enumerate(devices)}
    return sorted(groups, key=lambda group: position[group[0].uuid])


def distance(links: Links, a: Device, b: Device) -> tuple[int, float, float]:
    """Smaller is nearer: by the kind of link, then its rate, then its latency."""
    link = links.between(a.uuid, b.uuid)
    rank = KINDS.index(link.kind) if link.kind in KINDS else len(KINDS)
    return rank, -(link.bytes_per_s or 0.0), link.latency_s or 0.0
