"""Many devices: what is proven optimal there, and the paper's own setting."""

from __future__ import annotations

import itertools
import random
from typing import Any

import pytest

from uellm.planner.placement.fixed_split import place_fixed
from uellm.planner.placement.solver import Instance, solve


def nodes(count: int, size: int, layers: int, per_device: int) -> dict[str, Any]:
    """Identical GPUs in identical nodes: a hop costs 1 inside a node and 10 between nodes."""
    total = count * size
    return {
        "layers": layers,
        "layerBytes": 1.0,
        "devices": [
            {"id": f"n{i // size}g{i % size}", "memoryBytes": per_device, "performance": 1.0} for i in range(total)
        ],
        "latencySeconds": [
            [0 if i == j else 1 if i // size == j // size else 10 for j in range(total)] for i in range(total)
        ],
    }


@pytest.mark.parametrize(("count", "size", "layers"), [(2, 2, 7), (8, 8, 126)])
def test_identical_gpus_in_nodes_are_placed_node_by_node_and_proven(count: int, size: int, layers: int) -> None:
    answer = solve(Instance.from_dict(nodes(count, size, layers, 2)))
    used = -(-layers // 2)
    whole = -(-used // size)
    assert answer.optimal
    assert answer.cost == layers + (used - whole) * 1 + (whole - 1) * 10
    assert answer.order == tuple(f"n{i // size}g{i % size}" for i in range(used))


def test_sixty_four_gpus_share_layers_so_that_the_slowest_stage_is_proven_the_fastest() -> None:
    answer = solve(Instance.from_dict(nodes(8, 8, 126, 4)), objective="bottleneck")
    # Even stages of one layer would include a hop between nodes: seven of them, 11 each.
    assert (answer.cost, answer.optimal) == (11.0, True)


def unlike(count: int, layers: int, seed: int, **changes: Any) -> dict[str, Any]:
    rng = random.Random(seed)
    return {
        "layers": layers,
        "layerBytes": 1.0,
        "devices": [
            {"id": f"g{i:02d}", "memoryBytes": rng.uniform(5, 12), "performance": rng.uniform(1, 9)}
            for i in range(count)
        ],
        "latencySeconds": [[rng.uniform(0.01, 0.3) for _ in range(count)] for _ in range(count)],
        **changes,
    }


@pytest.mark.parametrize("ends", [{}, {"firstStageBytes": 1.7, "lastStageBytes": 2.2}])
def test_twelve_unlike_gpus_have_one_best_placement_whichever_way_it_is_found(
    ends: dict[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    instance = Instance.from_dict(unlike(12, 60, 7, **ends))
    by_sets = solve(instance)
    monkeypatch.setattr("uellm.planner.placement.arrays.search.MOST_TABLED_SETS", 0)
    by_states = solve(instance)
    assert by_sets == by_states
    assert by_sets.optimal


def test_the_search_is_cut_off_by_count_so_the_answer_is_deterministic() -> None:
    instance = Instance.from_dict(unlike(22, 60, 3))
    first, second = solve(instance), solve(instance)
    assert first == second
    assert first.lower_bound <= first.cost


def test_the_papers_two_gpus_rank_its_five_splits_and_the_solver_chooses_the_best() -> None:
    # Table 1 of arXiv 2409.14961: layers 0-15|16-32 11.19 tokens/s .. 0-31|32 22.55. So the first GPU is the faster
    # one.
    measured = {(16, 17): 11.19, (20, 13): 13.09, (24, 9): 14.85, (28, 5): 17.23, (32, 1): 22.55}
    data = {
        "layers": 33,
        "layerBytes": 1.0,
        "devices": [
            {"id": "gpu0", "memoryBytes": 32, "performance": 35.0},
            {"id": "gpu1", "memoryBytes": 33, "performance": 11.0},
        ],
        "latencySeconds": [[0, 0.001], [0.001, 0]],
    }
    instance = Instance.from_dict({**data, "a2": 0.0})
    costs = {split: priced(data, split) for split in measured}
    assert sorted(costs, key=lambda split: costs[split]) == sorted(measured, key=lambda split: -measured[split])
    best = solve(instance)
    assert dict(zip(best.order, best.layers, strict=True)) == {"gpu0": 32, "gpu1": 1}
    assert best.cost == pytest.approx(costs[32, 1])
    for split in itertools.islice(measured, 4):
        assert place_fixed(instance, split).cost > best.cost


def priced(data: dict[str, Any], split: tuple[int, int]) -> float:
    return sum(count / device["performance"] for count, device in zip(split, data["devices"], strict=True)) + 0.001
