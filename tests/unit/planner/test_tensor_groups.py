"""Which GPUs share layers: the best choice, compared with every possible choice."""

from __future__ import annotations

import random
from itertools import combinations

import pytest

from uellm.hardware import Link, Node
from uellm.planner import plan
from uellm.planner.constants import MOST_EXACT_GROUPING
from uellm.planner.nodes.tensor_groups import best_groups, group_kinds


def every_choice(positions, count, tensor):
    """All sets of `count` disjoint groups."""
    if count == 0:
        yield ()
        return
    for group in combinations(positions, tensor):
        rest = [index for index in positions if index > group[0] and index not in group]
        for others in every_choice(rest, count - 1, tensor):
            yield (group, *others)


def value(pairs, groups):
    costs = [max(pairs[i][j] for i, j in combinations(group, 2)) for group in groups]
    return max(costs), sum(costs)


@pytest.mark.parametrize(
    ("size", "count", "tensor"), [(4, 1, 2), (5, 2, 2), (6, 3, 2), (7, 2, 3), (8, 2, 4), (8, 3, 2)]
)
def test_the_groups_are_the_best_of_all_choices(size: int, count: int, tensor: int) -> None:
    chance = random.Random(size * 100 + count * 10 + tensor)
    for _ in range(30):
        pairs = [[0] * size for _ in range(size)]
        for i, j in combinations(range(size), 2):
            pairs[i][j] = pairs[j][i] = chance.choice([1, 2, 5, 9])
        table = tuple(tuple(row) for row in pairs)
        best = min(value(table, groups) for groups in every_choice(range(size), count, tensor))
        chosen = best_groups(table, count, tensor)
        assert value(table, chosen) == best
        assert len({index for group in chosen for index in group}) == count * tensor


def test_groups_are_found_even_for_too_many_gpus_for_the_exact_search() -> None:
    size = MOST_EXACT_GROUPING + 4
    pairs = tuple(tuple(0 if i == j else 1 + (i // 4 != j // 4) for j in range(size)) for i in range(size))
    assert best_groups(pairs, 4, 4) == tuple(tuple(range(start, start + 4)) for start in range(0, size, 4))


def test_possible_groups_are_counted_by_kind(build) -> None:
    node = build.node("a", "L4 L4 L4 A10 A10")
    assert [kind[0] for kind in group_kinds(node.devices, 2)] == ["A10", "L4"]


def test_gpus_joined_by_nvlink_share_layers_though_another_comes_first(build) -> None:
    """The first GPU has only slow links. A group of it and its nearest GPU would split the only NVLink pair."""
    given = build.node("a", "L4 L4 L4")
    ids = [device.uuid for device in given.devices]
    links = [Link(ids[1], ids[2], "NVLink", 3e11, 3e-6)]
    links += [Link(ids[0], other, "PHB", 2e10, 1e-5) for other in ids[1:]]
    node = Node("a", given.devices, tuple(links))
    made = plan(build.request(node, gpus_min=2, gpus_max=2, overrides=build.overrides(tensor=2)))
    assert made.devices == (ids[1], ids[2])


def test_kinds_of_links_decide_where_figures_are_missing(build) -> None:
    given = build.node("a", "L4 L4 L4")
    ids = [device.uuid for device in given.devices]
    links = [Link(ids[0], ids[1], "SYS", 9e11, 1e-6), Link(ids[0], ids[2], "NVLink"), Link(ids[1], ids[2], "PHB")]
    node = Node("a", given.devices, tuple(links))
    made = plan(build.request(node, gpus_min=2, gpus_max=2, overrides=build.overrides(tensor=2)))
    assert made.devices == (ids[0], ids[2])
