"""The placement solver's contract, case by case. Brute force is in tests/property."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from uellm.errors import BadInput
from uellm.planner.placement.solver import Instance, solve


def instance(*devices: dict[str, Any], hop: float | list = 0.0, **changes: Any) -> dict[str, Any]:
    count = len(devices)
    latency = hop if isinstance(hop, list) else [[0.0 if i == j else hop for j in range(count)] for i in range(count)]
    return {"layers": 4, "layerBytes": 1.0, "devices": list(devices), "latencySeconds": latency, **changes}


def device(name: str, memory: float = 10.0, performance: float = 1.0, **changes: Any) -> dict[str, Any]:
    return {"id": name, "memoryBytes": memory, "performance": performance, **changes}


def place(data: dict[str, Any], policy: str = "HELR", objective: str = "latency") -> dict[str, Any]:
    return solve(Instance.from_dict(data), policy, objective).to_dict()


def test_the_answer_has_exactly_the_contracts_fields() -> None:
    assert place(instance(device("g0"))) == {
        "feasible": True,
        "cost": 4.0,
        "order": ["g0"],
        "layers": [4],
        "optimal": True,
        "lowerBound": 4.0,
    }


def test_a_device_holds_as_many_layers_as_its_free_memory_has_room_for_with_their_kv() -> None:
    # floor((10 - 1) / (2 + 1)) = 3 of 4 layers
    fast = device("fast", 10.0, 100.0, reservedBytes=1.0)
    answer = place(instance(fast, device("slow", 100.0), layerBytes=2.0, layerKvBytes=1.0))
    assert dict(zip(answer["order"], answer["layers"], strict=True)) == {"fast": 3, "slow": 1}


def test_filling_the_fastest_device_first_is_not_the_best_where_hops_cost() -> None:
    data = instance(device("x", 2.0, 1.0), device("y", 4.0, 0.5), hop=5.0)
    assert place(data) | {"lowerBound": 8.0} == {
        "feasible": True,
        "cost": 8.0,
        "order": ["y"],
        "layers": [4],
        "optimal": True,
        "lowerBound": 8.0,
    }


def test_the_direction_of_a_link_matters() -> None:
    one_way = [[0.0, 9.0], [1.0, 0.0]]
    assert place(instance(device("a", 2.0), device("b", 2.0), hop=one_way))["order"] == ["b", "a"]


def test_equal_costs_go_to_the_smaller_ids_whatever_the_order_of_the_list() -> None:
    devices = [device(name, 2.0) for name in ("g3", "g1", "g2")]
    for shuffled in itertools.permutations(devices):
        assert place(instance(*shuffled, hop=1.0))["order"] == ["g1", "g2"]


def test_one_of_many_unlike_devices_must_have_room_for_both_ends_if_it_is_alone() -> None:
    # Each end by itself would fit beside the layers on the fast device.
    others = [device(f"z{index}", 0.5, 9.0 + index) for index in range(5)]
    devices = (device("roomy", 9.0, 1.0), device("fast", 7.0, 2.0), *others)
    answer = place(instance(*devices, firstStageBytes=2.0, lastStageBytes=2.0, hop=9.0))
    assert answer["order"] == ["roomy"]


def test_equal_devices_share_layers_so_that_the_highest_utilisation_is_lowest() -> None:
    # The last stage carries an LM head of two layers' size, so it gets two layers fewer.
    data = instance(device("a", 9.0), device("b", 9.0), layers=10, lastStageBytes=2.0)
    assert place(data)["layers"] == [6, 4]


def test_embedding_and_head_on_one_device_take_room_of_both_ends() -> None:
    data = instance(device("a", 6.0), layers=4, firstStageBytes=1.0, lastStageBytes=1.0)
    assert place(data)["feasible"]
    assert not place({**data, "lastStageBytes": 1.5})["feasible"]


def test_unlike_layers_are_placed_by_their_sums() -> None:
    data = instance(device("a", 6.0, 2.0), device("b", 6.5, 1.0), layerBytes=[1, 1, 5, 5])
    assert not place(data)["feasible"]
    answer = place({**data, "layerBytes": [1, 1, 4, 5]})
    assert (answer["order"], answer["layers"]) == (["a", "b"], [3, 1])


def test_work_weighs_bytes_over_performance() -> None:
    assert place(instance(device("g", 12.0, 2.0), layerBytes=3.0, workPerByte=0.5))["cost"] == 4 * 3.0 * 0.5 / 2


def test_high_efficiency_costs_one_a_device_and_takes_the_fastest_of_the_fewest() -> None:
    data = instance(device("a", 3.0, 9.0), device("b", 4.0, 1.0), device("c", 4.0, 2.0), a1=5.0)
    answer = place(data, "HE")
    assert (answer["order"], answer["cost"]) == (["c"], 1.0)


def test_low_latency_weighs_latency_tenfold_against_devices() -> None:
    # One device: 10 * 4 + 1; two: 10 * (2 * 0.5 + 2 * 1) + 2.
    data = instance(device("fast", 2.0, 2.0), device("slow", 4.0, 1.0))
    assert place(data, "LR")["cost"] == pytest.approx(32.0)
    assert place({**data, "a1": 1.0, "a2": 10.0}, "HELR")["order"] == ["slow"]


def test_greedy_best_fit_takes_the_smallest_device_that_holds_what_is_left() -> None:
    data = instance(device("big", 9.0, 9.0), device("snug", 4.0, 1.0), device("small", 3.0, 1.0))
    answer = place(data, "BGS")
    assert (answer["order"], answer["layers"], answer["optimal"]) == (["snug"], [4], False)
    assert answer["lowerBound"] == pytest.approx(4 / 9)


def test_greedy_best_fit_fills_the_largest_where_none_holds_all() -> None:
    answer = place(instance(device("a", 3.0), device("b", 2.0), device("c", 1.0), layers=4), "BGS")
    assert (answer["order"], answer["layers"]) == (["a", "c"], [3, 1])


def test_the_even_split_is_vllms_own() -> None:
    devices = [device(name, 16.0) for name in "abcd"]
    answer = place(instance(*devices, layers=61), "Even")
    assert answer["layers"] == [15, 15, 16, 15]


def test_the_even_split_uses_the_fewest_devices_on_which_it_fits() -> None:
    data = instance(device("a", 9.0), device("b", 3.0), device("c", 3.0), layers=9)
    assert place(data, "Even")["layers"] == [9]
    assert place({**data, "layers": 10}, "Even")["order"] == ["b", "a", "c"]  # 3,4,3
    assert place({**data, "layers": 11}, "Even")["feasible"] is False  # neither 6,5 nor 4,4,3
    assert place({**data, "layers": 11})["feasible"] is True


def test_the_slowest_stage_is_balanced_by_speed() -> None:
    data = instance(device("a", 100.0, 1.0), device("b", 100.0, 3.0), layers=8)
    answer = place(data, objective="bottleneck")
    assert answer["cost"] == 2.0
    assert dict(zip(answer["order"], answer["layers"], strict=True)) == {"a": 2, "b": 6}


def test_a_stage_pays_the_hop_to_the_next_one_in_the_bottleneck() -> None:
    data = instance(device("a", 100.0), device("b", 100.0), layers=2, hop=[[0.0, 0.4], [0.7, 0.0]])
    assert place(data, objective="bottleneck") | {"lowerBound": 1.4} == {
        "feasible": True,
        "cost": 1.4,
        "order": ["a", "b"],
        "layers": [1, 1],
        "optimal": True,
        "lowerBound": 1.4,
    }


def test_equal_bottlenecks_go_to_the_least_latency() -> None:
    # Either of b and c as the second stage leaves the bottleneck at 3; c finishes its layer sooner.
    data = instance(device("a", 3.0), device("b", 1.0), device("c", 1.0, 2.0), layers=4)
    answer = place(data, objective="bottleneck")
    assert answer["cost"] == 2.0
    assert sorted(answer["order"]) == ["a", "b", "c"]
    pair = place(instance(device("a", 3.0), device("c", 1.0, 2.0), layers=4), objective="bottleneck")
    assert pair["cost"] == 3.0


def test_sixteen_identical_devices_are_solved_exactly() -> None:
    devices = [device(f"g{index:02d}", 6.0) for index in range(16)]
    answer = place(instance(*devices, layers=80, hop=0.25, firstStageBytes=2.0, lastStageBytes=2.0))
    assert answer["optimal"]
    assert len(answer["order"]) == 14  # 12 x 6 + 2 x 4 = 80
    assert answer["cost"] == pytest.approx(80 + 13 * 0.25)


def test_many_unlike_devices_get_an_answer_with_an_honest_bound() -> None:
    devices = [device(f"g{index:02d}", 8.0 + index % 7, 1.0 + index / 10) for index in range(24)]
    hop = [[0.0 if i == j else 0.01 * (1 + (i * j) % 5) for j in range(24)] for i in range(24)]
    for objective in ("latency", "bottleneck"):
        answer = place(instance(*devices, layers=60, hop=hop), objective=objective)
        assert answer["feasible"]
        assert sum(answer["layers"]) == 60
        assert answer["lowerBound"] <= answer["cost"]
        assert answer["optimal"] == (answer["cost"] == pytest.approx(answer["lowerBound"]))


def test_many_unlike_devices_that_are_too_small_together_are_proven_to_be() -> None:
    devices = [device(f"g{index:02d}", 1.5 + index / 100, 1.0 + index / 10) for index in range(24)]
    answer = place(instance(*devices, layers=60))
    assert not answer["feasible"]
    assert "24 devices have 38 B free: 21 B are missing" in answer["reason"]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (instance(device("a", 1.5), device("b", 1.2)), ("4 B", "2 devices have 2 B")),
        (instance(device("a", 0.5)), ("no device has room for even one layer", "a, has 0 B free")),
        (
            instance(device("a", 9.0), device("b", 9.0), layers=2, layerBytes=[1, 10]),
            ("no device has room for layer 1",),
        ),
        (instance(device("a", 2.5), device("b", 1.5), layers=4), ("leave gaps",)),
        (instance(device("a", 30 * 2.0**30), layers=32, layerBytes=2.0**30), ("32.0 GiB", "30.0 GiB", "2.0 GiB")),
    ],
)
def test_the_reason_why_nothing_fits_names_device_and_amount(data: dict[str, Any], words: tuple[str, ...]) -> None:
    answer = place(data)
    assert answer["feasible"] is False
    for part in words:
        assert part in answer["reason"]


def test_a_baseline_that_finds_nothing_names_the_solvers_placement() -> None:
    data = instance(device("a", 9.0), device("b", 3.0), layers=12)
    assert "HELR has one: 9 on a, 3 on b" in place(data, "Even")["reason"]


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"layers": 0}, "layers"),
        ({"layers": -1}, "layers"),
        ({"layers": 2.5}, "layers"),
        ({"layers": True}, "layers"),
        ({"layers": 10**9}, "layers"),
        ({"layers": None}, "layers"),
        ({"layerBytes": 0}, "layerBytes"),
        ({"layerBytes": None}, "layerBytes"),
        ({"layerBytes": [1, 2]}, "layerBytes"),
        ({"layerBytes": [1, 1, "x", 1]}, "layerBytes[2]"),
        ({"layerKvBytes": -1}, "layerKvBytes"),
        ({"firstStageBytes": "1"}, "firstStageBytes"),
        ({"lastStageBytes": float("nan")}, "lastStageBytes"),
        ({"workPerByte": float("inf")}, "workPerByte"),
        ({"a1": -1}, "a1"),
        ({"a2": []}, "a2"),
        ({"devices": []}, "devices"),
        ({"devices": {}}, "devices"),
        ({"devices": [3]}, "devices[0]"),
        ({"devices": [{"memoryBytes": 1, "performance": 1}]}, "devices[0].id"),
        ({"devices": [device("a"), device("a")]}, "devices[1].id"),
        ({"devices": [{"id": "a", "performance": 1}]}, "devices[0].memoryBytes"),
        ({"devices": [device("a", performance=0)]}, "devices[0].performance"),
        ({"devices": [device("a", reservedBytes=-1)]}, "devices[0].reservedBytes"),
        ({"latencySeconds": None}, "latencySeconds"),
        ({"latencySeconds": [[0, 1]]}, "latencySeconds"),
        ({"latencySeconds": [[0, 1], [1]]}, "latencySeconds[1]"),
        ({"latencySeconds": [[0, 1], [-1, 0]]}, "latencySeconds[1][0]"),
        ({"a1": 10**400}, "a1"),
    ],
)
def test_an_error_in_an_instance_names_its_field(change: dict[str, Any], field: str) -> None:
    with pytest.raises(BadInput) as raised:
        Instance.from_dict({**instance(device("a"), device("b")), **change})
    assert raised.value.field == field
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(("policy", "objective", "field"), [("X", "latency", "policy"), ("HE", "speed", "objective")])
def test_unknown_policies_and_objectives_are_named(policy: str, objective: str, field: str) -> None:
    with pytest.raises(BadInput) as raised:
        place(instance(device("a")), policy, objective)
    assert raised.value.field == field


def test_a_device_without_a_possible_successor_does_not_hide_other_orders() -> None:
    # b, a, c has stages of one second each. With b before c their hop would be added.
    hop = [[0.0, 0.0, 0.0], [0.0, 0.0, 1.3], [0.0, 1.3, 0.0]]
    data = instance(device("a", 2.0), device("b", 1.0), device("c", 1.0), layers=3, hop=hop)
    answer = place(data, objective="bottleneck")
    assert (answer["cost"], answer["order"]) == (1.0, ["b", "a", "c"])


def test_twelve_unlike_devices_reach_what_the_exact_solver_reaches_on_the_ten_that_matter() -> None:
    useful = [device(f"g{index}", 8.0 + index, 2.0 + index / 10) for index in range(4)]
    useless = [device(f"z{index}", 0.5 + index / 100, 9.0 + index) for index in range(8)]
    exact = place(instance(*useful, layers=24, hop=0.1))
    found = place(instance(*useful, *useless, layers=24, hop=0.1))
    assert exact["optimal"]
    assert found["cost"] == pytest.approx(exact["cost"], rel=0.05)
    assert found["lowerBound"] <= exact["cost"]


@pytest.mark.parametrize(("layers", "fullest"), [(32, 11), (40, 14)])
@pytest.mark.parametrize("fast", [7.77e11, 9.13e11, 1.37e12])
def test_among_equal_splits_around_a_slower_stage_the_highest_utilisation_is_lowest(
    fast: float, layers: int, fullest: int
) -> None:
    # Any split over the three fast devices costs the same, although the solver rounds their times to its grid.
    order = ("a", "b", "slow", "c")
    data = {
        "layers": layers,
        "layerBytes": 436224001,
        "lastStageBytes": 2 * 436224001,
        "devices": [
            {"id": name, "memoryBytes": 1e11, "performance": 1.3e11 if name == "slow" else fast} for name in order
        ],
        "latencySeconds": [[1e-5 if j == i + 1 else 1.0 if i != j else 0 for j in range(4)] for i in range(4)],
    }
    answer = solve(Instance.from_dict(data), stages=4)
    assert answer.order == order
    assert answer.layers[2] == 1
    assert max(answer.layers[0], answer.layers[1], answer.layers[3] + 2) == fullest
