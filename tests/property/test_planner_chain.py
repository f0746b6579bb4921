"""The split over devices in a given order, against every split there is."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator

import pytest

from uellm.planner.placement.chain import place_chain
from uellm.planner.placement.instance import Instance, PlaceDevice
from uellm.planner.spans import spans

CASES = 300


def an_instance(chance: random.Random) -> Instance:
    layers, count = chance.randint(2, 9), chance.randint(1, 4)
    uniform = chance.random() < 0.5
    sizes = [chance.randint(5, 15)] * layers if uniform else [chance.randint(5, 15) for _ in range(layers)]
    rooms = [chance.randint(5, 15 * layers) for _ in range(count)]
    speeds = [chance.choice([1.0, 1.0, 2.0, 3.5]) for _ in range(count)]
    hops = tuple(tuple(chance.choice([0.0, 1.0, 7.0]) for _ in range(count)) for _ in range(count))
    return Instance(
        layer_bytes=tuple(sizes),
        layer_kv_bytes=(1,) * layers,
        devices=tuple(
            PlaceDevice(f"{index:04d}", room, speed)
            for index, (room, speed) in enumerate(zip(rooms, speeds, strict=True))
        ),
        latency_s=hops,
        first_stage_bytes=chance.choice([0, 4]),
        last_stage_bytes=chance.choice([0, 6]),
    )


def splits(layers: int, stages: int) -> Iterator[tuple[int, ...]]:
    for cuts in itertools.combinations(range(1, layers), stages - 1):
        yield tuple(b - a for a, b in itertools.pairwise((0, *cuts, layers)))


def cost(instance: Instance, layers: tuple[int, ...], objective: str) -> float | None:
    """None where it does not fit."""
    times = []
    for index, (a, b) in enumerate(spans(layers)):
        device = instance.devices[index]
        need = sum(instance.layer_bytes[a:b]) + b - a
        need += instance.first_stage_bytes * (a == 0) + instance.last_stage_bytes * (b == len(instance.layer_bytes))
        if need > device.memory_bytes:
            return None
        hop = instance.latency_s[index][index + 1] if index + 1 < len(layers) else 0.0
        times.append(sum(instance.layer_bytes[a:b]) / device.performance + hop)
    return sum(times) if objective == "latency" else max(times)


@pytest.mark.parametrize("objective", ["latency", "bottleneck"])
def test_the_split_over_devices_in_a_given_order_is_the_best_there_is(objective: str) -> None:
    placed = 0
    for seed in range(CASES):
        instance = an_instance(random.Random(seed))
        every = [
            (each, layers)
            for layers in splits(len(instance.layer_bytes), len(instance.devices))
            if (each := cost(instance, layers, objective)) is not None
        ]
        found = place_chain(instance, objective)
        assert found.feasible == bool(every), seed
        if found.feasible:
            placed += 1
            assert found.cost == pytest.approx(min(each for each, _ in every)), seed
            assert cost(instance, found.layers, objective) == pytest.approx(found.cost), seed
            assert found.order == tuple(device.id for device in instance.devices)
        else:
            assert found.reason
    assert placed > CASES // 4


def test_a_given_split_is_kept_if_each_stage_fits_on_its_own_device() -> None:
    kept = refused = 0
    for seed in range(CASES):
        chance = random.Random(seed)
        instance = an_instance(chance)
        every = list(splits(len(instance.layer_bytes), len(instance.devices)))
        if not every:
            continue
        layers = chance.choice(every)
        found = place_chain(instance, "latency", layers)
        assert found.feasible == (cost(instance, layers, "latency") is not None), seed
        kept, refused = kept + found.feasible, refused + (not found.feasible)
        assert found.layers == (layers if found.feasible else ())
        assert found.feasible or found.reason.startswith("stage ")
    assert kept > 20
    assert refused > 20


@pytest.mark.parametrize(("layers", "reason"), [((4, 0), "leave one"), ((2, 1, 1), "need as many devices")])
def test_a_split_that_does_not_match_the_devices_is_refused_with_its_reason(
    layers: tuple[int, ...], reason: str
) -> None:
    devices = (PlaceDevice("0000", 100, 1.0), PlaceDevice("0001", 100, 1.0))
    instance = Instance((1,) * 4, (0,) * 4, devices, ((0.0, 0.0),) * 2)
    assert reason in place_chain(instance, "latency", layers).reason
