"""The placement solver against brute force, which follows only the text of the contract."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from uellm.planner.placement.arrays import search
from uellm.planner.placement.solver import Instance, Placement, solve

WEIGHTS = {"HE": (0.0, 1.0), "LR": (10.0, 1.0)}


def placements(data: dict[str, Any]) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Every order of every set of devices, with every split that fits."""
    layers, room = data["layers"], [device["memoryBytes"] - device["reservedBytes"] for device in data["devices"]]
    for count in range(1, min(layers, len(data["devices"])) + 1):
        for cuts in itertools.combinations(range(1, layers), count - 1):
            ends = (0, *cuts, layers)
            parts = tuple(b - a for a, b in itertools.pairwise(ends))
            needs = [need(data, a, b) for a, b in itertools.pairwise(ends)]
            for order in itertools.permutations(range(len(room)), count):
                if all(wanted <= room[d] for d, wanted in zip(order, needs, strict=True)):
                    yield order, parts


def need(data: dict[str, Any], a: int, b: int) -> float:
    total = sum(by_layer(data, "layerBytes")[a:b]) + sum(by_layer(data, "layerKvBytes")[a:b])
    return total + (data["firstStageBytes"] if a == 0 else 0) + (data["lastStageBytes"] if b == data["layers"] else 0)


def by_layer(data: dict[str, Any], name: str) -> list[float]:
    return data[name] if isinstance(data[name], list) else [data[name]] * data["layers"]


def stage_times(
    data: dict[str, Any], order: tuple[int, ...], parts: tuple[int, ...]
) -> tuple[list[float], list[float]]:
    times, a = [], 0
    for d, count in zip(order, parts, strict=True):
        work = sum(by_layer(data, "layerBytes")[a : a + count])
        times.append(data["workPerByte"] * work / data["devices"][d]["performance"])
        a += count
    return times, [data["latencySeconds"][i][j] for i, j in itertools.pairwise(order)]


def latency_cost(data: dict[str, Any], policy: str, order: tuple[int, ...], parts: tuple[int, ...]) -> float:
    a1, a2 = WEIGHTS.get(policy, (data["a1"], data["a2"]))
    times, hops = stage_times(data, order, parts)
    return a1 * (sum(times) + sum(hops)) + a2 * len(order)


def slowest(data: dict[str, Any], order: tuple[int, ...], parts: tuple[int, ...]) -> float:
    times, hops = stage_times(data, order, parts)
    return max(time + hop for time, hop in zip(times, [*hops, 0.0], strict=True))


sizes = st.sampled_from([1, 1, 2, 3, 5, 8])
small = st.integers(0, 4)


@st.composite
def instances(draw: st.DrawFn) -> dict[str, Any]:
    layers = draw(st.integers(1, 8))
    count = draw(st.integers(1, 4))
    unlike = draw(st.booleans())
    lists = st.lists(sizes, min_size=layers, max_size=layers)
    kv_lists = st.lists(small, min_size=layers, max_size=layers)
    # Few values, so that ties and identical devices are common; small rooms, so that many instances are infeasible.
    devices = [
        {
            "id": f"g{index}",
            "memoryBytes": draw(st.integers(0, 30)),
            "reservedBytes": draw(st.integers(0, 3)),
            "performance": draw(st.sampled_from([1.0, 2.0, 2.0, 3.7])),
        }
        for index in range(count)
    ]
    hop = st.sampled_from([0.0, 0.1, 0.1, 1.3, 7.0])
    return {
        "layers": layers,
        "layerBytes": draw(lists) if unlike else draw(sizes),
        "layerKvBytes": draw(kv_lists) if unlike else draw(small),
        "firstStageBytes": draw(small),
        "lastStageBytes": draw(small),
        "workPerByte": draw(st.sampled_from([0.0, 1.0, 0.3])),
        "a1": draw(st.sampled_from([1.0, 0.0, 2.5])),
        "a2": draw(st.sampled_from([0.0, 1.0, 0.4])),
        "devices": devices,
        "latencySeconds": [[0.0 if i == j else draw(hop) for j in range(count)] for i in range(count)],
    }


@settings(max_examples=1000, deadline=None)
@given(instances(), st.sampled_from(["HELR", "HE", "LR"]))
def test_the_least_cost_is_that_of_brute_force(data: dict[str, Any], policy: str) -> None:
    answer = solve(Instance.from_dict(data), policy)
    found = set(placements(data))
    assert answer.feasible == bool(found)
    if found:
        best = min(latency_cost(data, policy, order, parts) for order, parts in found)
        assert answer.optimal
        assert answer.cost == pytest.approx(best, rel=1e-9)
        assert answer.lower_bound == answer.cost
        order = tuple(int(name[1:]) for name in answer.order)
        assert (order, answer.layers) in found
        assert latency_cost(data, policy, order, answer.layers) == pytest.approx(answer.cost)
    else:
        assert answer.reason


@settings(max_examples=150, deadline=None)
@given(instances())
def test_the_least_bottleneck_is_that_of_brute_force_and_ties_go_to_the_least_cost(data: dict[str, Any]) -> None:
    answer = solve(Instance.from_dict(data), "HELR", "bottleneck")
    found = list(placements(data))
    assert answer.feasible == bool(found)
    if found:
        best = min(slowest(data, *placement) for placement in found)
        assert answer.cost == pytest.approx(best, rel=1e-9)
        order = tuple(int(name[1:]) for name in answer.order)
        ties = [placement for placement in found if slowest(data, *placement) <= best * (1 + 1e-12)]
        least = min(latency_cost(data, "HELR", *placement) for placement in ties)
        assert latency_cost(data, "HELR", order, answer.layers) == pytest.approx(least, rel=1e-9)


@settings(max_examples=100, deadline=None)
@given(instances())
def test_high_efficiency_uses_the_fewest_devices_and_then_the_least_latency(data: dict[str, Any]) -> None:
    answer = solve(Instance.from_dict(data), "HE")
    found = list(placements(data))
    if found:
        fewest = min(len(order) for order, _ in found)
        assert answer.cost == len(answer.order) == fewest
        latency = {**data, "a1": 1.0, "a2": 0.0}
        least = min(latency_cost(latency, "HELR", *placement) for placement in found if len(placement[0]) == fewest)
        order = tuple(int(name[1:]) for name in answer.order)
        assert latency_cost(latency, "HELR", order, answer.layers) == pytest.approx(least)


@settings(max_examples=100, deadline=None)
@given(instances(), st.sampled_from(["latency", "bottleneck"]), st.randoms(use_true_random=False))
def test_the_order_of_the_input_changes_nothing(data: dict[str, Any], objective: str, random: Any) -> None:
    answer = solve(Instance.from_dict(data), "HELR", objective)
    shuffled = list(range(len(data["devices"])))
    random.shuffle(shuffled)
    other = {
        **data,
        "devices": [data["devices"][i] for i in shuffled],
        "latencySeconds": [[data["latencySeconds"][i][j] for j in shuffled] for i in shuffled],
    }
    again = solve(Instance.from_dict(other), "HELR", objective)
    assert again.to_dict() == answer.to_dict() or (not answer.feasible and not again.feasible)


@settings(max_examples=100, deadline=None)
@given(instances(), st.data())
def test_more_memory_or_faster_links_never_cost_more(data: dict[str, Any], choices: st.DataObject) -> None:
    answer = solve(Instance.from_dict(data))
    index = choices.draw(st.integers(0, len(data["devices"]) - 1))
    devices = [dict(device) for device in data["devices"]]
    devices[index]["memoryBytes"] += choices.draw(st.integers(0, 10))
    factor = choices.draw(st.sampled_from([1.0, 0.5, 0.0]))
    latency = [[value * factor for value in row] for row in data["latencySeconds"]]
    better = solve(Instance.from_dict({**data, "devices": devices, "latencySeconds": latency}))
    if answer.feasible:
        assert better.feasible
        assert better.cost <= answer.cost * (1 + 1e-9)


@settings(max_examples=150, deadline=None)
@given(instances(), st.sampled_from(["BGS", "Even"]))
def test_a_baseline_is_a_valid_placement_that_never_beats_the_optimum(data: dict[str, Any], policy: str) -> None:
    answer, best = solve(Instance.from_dict(data), policy), solve(Instance.from_dict(data))
    if answer.feasible:
        order = tuple(int(name[1:]) for name in answer.order)
        assert (order, answer.layers) in set(placements(data))
        assert answer.cost == pytest.approx(latency_cost(data, policy, order, answer.layers))
        assert answer.cost >= best.cost * (1 - 1e-9)
        assert answer.lower_bound == pytest.approx(best.cost)
        assert answer.optimal == math.isclose(answer.cost, best.cost, rel_tol=1e-9)


@settings(max_examples=150, deadline=None)
@given(instances())
def test_even_uses_the_fewest_devices_that_the_even_split_fits(data: dict[str, Any]) -> None:
    answer = solve(Instance.from_dict(data), "Even")
    splits = []
    for count in range(1, data["layers"] + 1):
        parts = [data["layers"] // count] * count
        for index in range(data["layers"] % count):
            parts[-2 - index] += 1
        splits.append(tuple(parts))
    found = [(order, parts) for order, parts in placements(data) if parts in splits]
    assert answer.feasible == bool(found)
    if found:
        assert len(answer.order) == min(len(order) for order, _ in found)
        assert answer.layers in splits


@settings(max_examples=100, deadline=None)
@given(instances(), st.integers(1, 5))
def test_a_pinned_number_of_stages_is_kept(data: dict[str, Any], stages: int) -> None:
    answer = solve(Instance.from_dict(data), stages=stages)
    costs = [latency_cost(data, "HELR", *placement) for placement in placements(data) if len(placement[0]) == stages]
    assert answer.feasible == bool(costs)
    if costs:
        assert len(answer.order) == stages
        assert answer.cost == pytest.approx(min(costs))


# The searches for larger instances, run on small ones and compared with the enumeration of orders and with brute force.

POLICIES = st.sampled_from(["HELR", "HE", "LR"])
OBJECTIVES = st.sampled_from(["latency", "bottleneck"])
# With tables over all sets of devices, or with none, so that the search over states must solve it.
WAYS = st.sampled_from([{}, {"MOST_TABLED_SETS": 0}, {"MOST_TABLED_SETS": 0, "MOST_CODES": 10**6}])


@contextmanager
def without_trying_all_orders(**limits: int) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(search, "FEW_CELLS", 0)
        for name, value in limits.items():
            patch.setattr(search, name, value)
        yield


def solved(data: dict[str, Any], *how: str, stages: int | None = None, **limits: int) -> Placement:
    with without_trying_all_orders(**limits):
        return solve(Instance.from_dict(data), *how, stages=stages)


@st.composite
def clusters(draw: st.DrawFn) -> dict[str, Any]:
    """Up to three nodes of up to three identical GPUs; nodes may be identical, too."""
    data = draw(instances())
    count, size = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    kinds = [draw(st.sampled_from(data["devices"])) for _ in range(count)]
    inside = [draw(st.sampled_from([0.0, 0.1, 0.1])) for _ in range(count)]
    between = draw(st.sampled_from([0.1, 1.3]))
    names = draw(st.permutations([f"g{index}" for index in range(count * size)]))
    return {
        **data,
        "devices": [{**kinds[i // size], "id": name} for i, name in enumerate(names)],
        "latencySeconds": [
            [0.0 if i == j else inside[i // size] if i // size == j // size else between for j in range(len(names))]
            for i in range(len(names))
        ],
    }


@settings(max_examples=200, deadline=None)
@given(st.one_of(instances(), clusters()), POLICIES, OBJECTIVES, st.one_of(st.none(), st.integers(1, 4)), WAYS)
def test_the_searches_find_what_trying_every_order_finds(
    data: dict[str, Any], policy: str, objective: str, stages: int | None, way: dict[str, int]
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(search, "FEW_CELLS", 1 << 40)
        expected = solve(Instance.from_dict(data), policy, objective, stages=stages)
    answer = solved(data, policy, objective, stages=stages, **way)
    assert answer.feasible == expected.feasible
    assert answer.optimal == expected.optimal
    assert len(answer.order) == len(expected.order)
    if expected.feasible:
        assert answer.cost == pytest.approx(expected.cost, rel=1e-9)
        weights = latency_cost(data, policy, *indices(answer)), latency_cost(data, policy, *indices(expected))
        assert weights[0] == pytest.approx(weights[1], rel=1e-9)


def indices(answer: Placement) -> tuple[tuple[int, ...], tuple[int, ...]]:
    return tuple(int(name[1:]) for name in answer.order), answer.layers


@settings(max_examples=150, deadline=None)
@given(instances(), POLICIES, OBJECTIVES, WAYS)
def test_no_placement_is_better_than_what_the_searches_find(
    data: dict[str, Any], policy: str, objective: str, way: dict[str, int]
) -> None:
    answer, found = solved(data, policy, objective, **way), list(placements(data))
    assert answer.feasible == bool(found)
    if found:
        cost = (
            (lambda *p: slowest(data, *p)) if objective == "bottleneck" else (lambda *p: latency_cost(data, policy, *p))
        )
        assert indices(answer) in set(found)
        assert answer.cost == pytest.approx(min(cost(*placement) for placement in found), rel=1e-9)
        assert answer.optimal


@settings(max_examples=150, deadline=None)
@given(instances(), OBJECTIVES, st.integers(1, 3))
def test_a_search_that_is_cut_off_has_a_valid_bound(data: dict[str, Any], objective: str, codes: int) -> None:
    best = solve(Instance.from_dict(data), "HELR", objective)
    cells = codes * (data["layers"] + 1) * len(data["devices"]) ** 2
    answer = solved(data, "HELR", objective, MOST_TABLED_SETS=0, MOST_CODES=codes, MOST_STEPS=0, CUT_STEPS=cells)
    if answer.feasible:
        assert best.feasible
        assert answer.lower_bound <= best.cost * (1 + 1e-9)
        assert answer.cost >= best.cost * (1 - 1e-9)
        assert not answer.optimal or answer.cost == pytest.approx(best.cost, rel=1e-9)
    elif best.feasible:
        assert "not proven" in answer.reason


@settings(max_examples=100, deadline=None)
@given(instances(), OBJECTIVES, st.data())
def test_a_faster_device_never_costs_more(data: dict[str, Any], objective: str, choices: st.DataObject) -> None:
    answer = solved(data, "HELR", objective)
    index = choices.draw(st.integers(0, len(data["devices"]) - 1))
    devices = [dict(device) for device in data["devices"]]
    devices[index]["performance"] *= choices.draw(st.sampled_from([1.0, 1.5, 4.0]))
    faster = solved({**data, "devices": devices}, "HELR", objective)
    if answer.feasible:
        assert faster.cost <= answer.cost * (1 + 1e-9)


@settings(max_examples=60, deadline=None)
@given(clusters(), OBJECTIVES, st.randoms(use_true_random=False))
def test_the_order_in_which_identical_devices_are_given_changes_nothing(
    data: dict[str, Any], objective: str, random: Any
) -> None:
    shuffled = list(range(len(data["devices"])))
    random.shuffle(shuffled)
    other = {
        **data,
        "devices": [data["devices"][i] for i in shuffled],
        "latencySeconds": [[data["latencySeconds"][i][j] for j in shuffled] for i in shuffled],
    }
    assert solved(other, "HELR", objective) == solved(data, "HELR", objective)
