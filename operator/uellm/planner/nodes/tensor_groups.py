"""Tensor-parallel groups: identical GPUs, over the fastest links between them.

vLLM divides a layer evenly. So a group is as fast as its slowest link and holds as much as its smallest GPU, and
different GPUs never share a layer here. The k disjoint groups of a shape are chosen to

    minimise (cost of the costliest group, then the sum over groups),  cost of a group = cost of its costliest pair

A greedy choice, the first free GPU and its nearest, is not optimal. If an NVLink joins GPUs 1 and 2, and GPU 0 has only
PCIe links, the best group of two is 1-2 and not 0-1.

    >>> best_groups(((0, 9, 9, 9), (9, 0, 1, 9), (9, 1, 0, 9), (9, 9, 9, 0)), 1, 2)
    ((1, 2),)
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from functools import cache, lru_cache
from itertools import combinations

from uellm.hardware import LINK_KINDS, NVLINK, Device, Link
from uellm.planner import constants as c
from uellm.planner.cost.rates import Costs, Links

_UNITS_PER_SECOND = 10**12

Pairs = tuple[tuple[int, ...], ...]
Groups = tuple[tuple[int, ...], ...]


def kind_of(device: Device) -> tuple[str, int, str]:
    """What makes two GPUs identical."""
    return device.product, device.memory_bytes, device.compute_capability


def group_kinds(devices: Sequence[Device], tensor: int) -> list[tuple[str, int, str]]:
    """The kinds of the groups of `tensor` identical devices that can be formed at the same time, one entry a group."""
    counts = Counter(kind_of(device) for device in devices)
    return [kind for kind in sorted(counts) for _ in range(counts[kind] // tensor)]


def group_choices(
    devices: Sequence[Device], links: Sequence[Link], tensor: int, stages: int, costs: Costs
) -> Iterator[list[tuple[Device, ...]]]:
    """The choices of groups that may be optimal: the best groups for each way to divide `stages` among the kinds.

    With tensor 1 there is one choice: every device is a group, and the solver uses `stages` of them.
    """
    ordered = sorted(devices, key=lambda device: (device.index, device.uuid))
    if tensor == 1:
        yield [(device,) for device in ordered]
        return
    position = {device.uuid: index for index, device in enumerate(ordered)}
    kinds = sorted({kind_of(device) for device in ordered})
    members = [[device for device in ordered if kind_of(device) == kind] for kind in kinds]
    for counts in _shares(stages, [len(alike) // tensor for alike in members]):
        groups = [
            tuple(alike[index] for index in group)
            for alike, count in zip(members, counts, strict=True)
            if count
            for group in best_groups(_pairs(alike, links, costs), count, tensor)
        ]
        yield sorted(groups, key=lambda group: position[group[0].uuid])


def _shares(total: int, most: Sequence[int]) -> Iterator[tuple[int, ...]]:
    """Every way to write `total` as a sum of counts, with count i at most `most[i]`."""
    if not most:
        if total == 0:
            yield ()
        return
    for count in range(min(total, most[0]), -1, -1):
        for rest in _shares(total - count, most[1:]):
            yield (count, *rest)


def _pairs(devices: Sequence[Device], links: Sequence[Link], costs: Costs) -> Pairs:
    """[n, n]: a mean request's time between two devices in picoseconds, in the slower direction.

    If some link of the node is not measured, links are compared by kind first: the figures of the measured ones say
    nothing about the others.
    """
    known = Links(links)
    measured = all(known.between(a.uuid, b.uuid).bytes_per_s for a, b in combinations(devices, 2))

    def cost(a: Device, b: Device) -> int:
        seconds = max(known.hop_s(a.uuid, b.uuid, costs), known.hop_s(b.uuid, a.uuid, costs))
        kind = known.between(a.uuid, b.uuid).kind
        rank = 0 if measured else LINK_KINDS.index(kind) + 1 if kind in LINK_KINDS else len(LINK_KINDS) + 1
        return rank * 10**6 * _UNITS_PER_SECOND + round(seconds * _UNITS_PER_SECOND)

    return tuple(tuple(0 if a is b else cost(a, b) for b in devices) for a in devices)


@lru_cache(maxsize=4096)
def best_groups(pairs: Pairs, count: int, tensor: int) -> Groups:
    """The best `count` disjoint groups of `tensor` of n positions; of equal choices, the first.

    `pairs` [n, n]: cost between two positions; n >= count * tensor. Exact up to n = c.MOST_EXACT_GROUPING, by dynamic
    programming over (first position, used positions, groups left).
    """
    everyone = range(len(pairs))
    if len({pairs[i][j] for i, j in combinations(everyone, 2)}) <= 1:
        return tuple(tuple(range(start * tensor, (start + 1) * tensor)) for start in range(count))
    if len(pairs) > c.MOST_EXACT_GROUPING:
        return _greedy(pairs, count, tensor)
    groups = {group: max(pairs[i][j] for i, j in combinations(group, 2)) for group in combinations(everyone, tensor)}
    by_first: list[list[tuple[int, tuple[int, ...], int]]] = [[] for _ in everyone]
    for group, cost in groups.items():
        by_first[group[0]].append((cost, group, sum(1 << index for index in group)))

    @cache
    def best(first: int, used: int, left: int) -> tuple[int, int, Groups] | None:
        """The best `left` groups of the unused positions from `first` on."""
        if left == 0:
            return (0, 0, ())
        if len(pairs) - first - (used >> first).bit_count() < left * tensor:
            return None
        found = [best(first + 1, used, left)]
        if not used >> first & 1:
            for cost, group, mask in by_first[first]:
                if not mask & used and (rest := best(first + 1, used | mask, left - 1)) is not None:
                    found.append((max(cost, rest[0]), cost + rest[1], (group, *rest[2])))
        return min((entry for entry in found if entry is not None), default=None)

    chosen = best(0, 0, count)
    assert chosen is not None
    return chosen[2]


def _greedy(pairs: Pairs, count: int, tensor: int) -> Groups:
    """A heuristic: each group is the cheapest that consists of a free position and its nearest ones."""
    left, groups = list(range(len(pairs))), list[tuple[int, ...]]()
    for _ in range(count):
        options = []
        for seed in left:
            nearest = sorted((index for index in left if index != seed), key=lambda index: (pairs[seed][index], index))
            group = tuple(sorted((seed, *nearest[: tensor - 1])))
            options.append((max(pairs[i][j] for i, j in combinations(group, 2)), group))
        groups.append(min(options)[1])
        left = [index for index in left if index not in groups[-1]]
    return tuple(sorted(groups))


def fast_links(groups: Sequence[Sequence[Device]], links: Sequence[Link]) -> bool:
    """Whether all links within the groups are NVLink; true for groups of one."""
    known = Links(links)
    return all(known.between(a.uuid, b.uuid).kind == NVLINK for group in groups for a, b in combinations(group, 2))
