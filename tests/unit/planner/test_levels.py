"""Noise of measurements makes no classes, and what is planned with is nothing that some GPU has not."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from uellm.hardware import classes_of
from uellm.planner import constants as c
from uellm.planner import plan
from uellm.planner.handover.revalidate import evaluator_of, outlook, shape_of
from uellm.planner.nodes.levels import levelled, slowest_of_levels
from uellm.planner.nodes.node_classes import build as build_key
from uellm.planner.nodes.node_classes import families_of
from uellm.planner.nodes.pools import pools_of
from uellm.planner.shape import Steps

RATES = ("bf16_flops_per_s", "fp16_flops_per_s", "fp8_flops_per_s", "memory_bytes_per_s")


def noisy(build, name, rng, noise, products="H100 " * 8):
    """A node whose figures all differ by up to `noise` from those of its products."""

    def off(value):
        return value and value * (1 + rng.uniform(-noise, noise))

    node = build.all_links(build.node(name, products))
    devices = tuple(replace(device, **{rate: off(getattr(device, rate)) for rate in RATES}) for device in node.devices)
    links = tuple(
        replace(link, bytes_per_s=off(link.bytes_per_s), latency_s=off(link.latency_s)) for link in node.links
    )
    return replace(node, devices=devices, links=links)


def fleet(build, count, noise, seed=1, products="H100 " * 8):
    rng = random.Random(seed)
    return [noisy(build, f"n{index:03}", rng, noise, products) for index in range(count)]


@pytest.mark.parametrize("low_is_fast", [False, True])
def test_every_figure_gets_the_slowest_of_its_level_and_loses_less_than_a_step(low_is_fast):
    rng = random.Random(7)
    for _ in range(200):
        values = [rng.uniform(1, 1.3) for _ in range(rng.randint(1, 12))]
        levels = slowest_of_levels(values, 0.03, low_is_fast=low_is_fast)
        assert levels.keys() == set(values)
        for value, level in levels.items():
            assert level in values
            assert (value / 1.03 - 1e-12 <= level <= value) != low_is_fast or level == value
            if low_is_fast:
                assert value <= level <= value * 1.03 + 1e-12


@pytest.mark.parametrize("noise", [0.002, 0.01, 0.02, 0.05, 0.1])
def test_nodes_that_differ_by_noise_are_a_few_classes(build, noise):
    pools = levelled(pools_of(build.request(*fleet(build, 60, noise))))
    assert len(set(map(build_key, pools))) <= c.MOST_NOISY_CLASSES + 1
    if noise <= 0.01:
        assert len(families_of(pools)[0].classes) == 1


@pytest.mark.parametrize("noise", [0.01, 0.05, 0.15])
def test_no_gpu_and_no_link_is_taken_for_faster_than_it_is(build, noise):
    nodes = fleet(build, 12, noise, products="H100 H100 L4 L4")
    pools = pools_of(build.request(*nodes))
    changed = levelled(pools)
    assert changed != pools
    for pool, now in zip(pools, changed, strict=True):
        assert (now.node, [each.uuid for each in now.devices]) == (pool.node, [each.uuid for each in pool.devices])
        for own, planned in zip(pool.devices, now.devices, strict=True):
            assert all((getattr(planned, rate) or 0) <= (getattr(own, rate) or 0) for rate in RATES)
        for own, planned in zip(pool.links, now.links, strict=True):
            assert planned.bytes_per_s <= own.bytes_per_s
            assert planned.latency_s >= own.latency_s


@pytest.mark.parametrize("seed", range(6))
def test_a_plan_promises_nothing_that_one_of_its_nodes_cannot_hold(build, seed):
    nodes = fleet(build, 10, 0.03, seed, products="H100 H100 H100 H100")
    request = build.request(*nodes, config=build.large, workload=build.workload, classes=build.chat)
    made = plan(request)
    assert len(made.nodes) == 10
    sizes = Steps(made.max_num_batched_tokens, made.max_num_seqs)
    evaluator, own = evaluator_of(made, request), {pool.node: pool for pool in pools_of(request)}
    (family,) = families_of(levelled(pools_of(request)))
    for entry in family.classes:
        promised = evaluator.candidate(entry.pool, shape_of(made), sizes)
        for pool in entry.pools:
            alone = evaluator.candidate(own[pool.node], shape_of(made), sizes)  # with the node's own figures
            assert alone.kv.tokens >= promised.kv.tokens
            assert alone.times.requests_per_s >= promised.times.requests_per_s * (1 - 1e-6)
            assert alone.times.tpot_s <= promised.times.tpot_s * (1 + 1e-6)
            assert alone.times.ttft_s <= promised.times.ttft_s * (1 + 1e-6)
    best = next(entry for entry in family.classes if made.nodes[0] in [pool.node for pool in entry.pools])
    assert made.predicted.requests_per_s == evaluator.candidate(best.pool, shape_of(made), sizes).times.requests_per_s


def test_a_few_nodes_are_planned_on_as_they_were_measured(build):
    pools = pools_of(build.request(*fleet(build, c.MOST_NOISY_CLASSES + 1, 0.05)))
    assert levelled(pools) == pools


def test_the_order_of_nodes_changes_no_plan(build):
    request = build.request(*fleet(build, 11, 0.03, products="H100 H100"), workload=build.workload, classes=build.chat)
    assert plan(replace(request, nodes=request.nodes[::-1])) == plan(request)


def test_differences_above_a_step_still_move_layers(build):
    """One of two GPUs of a product is a third slower, on every node, beside noise."""
    rng = random.Random(3)
    nodes = []
    for index in range(12):
        node = noisy(build, f"n{index:02}", rng, 0.01, "L4 L4")
        slow = replace(
            node.devices[0],
            bf16_flops_per_s=node.devices[0].bf16_flops_per_s * 0.67,
            memory_bytes_per_s=node.devices[0].memory_bytes_per_s * 0.67,
        )
        nodes.append(replace(node, devices=(slow, *node.devices[1:])))
    made = plan(
        build.request(
            *nodes, gpus_min=2, overrides=build.overrides(tensor=1), workload=build.workload, classes=build.chat
        )
    )
    layers = dict(zip(made.devices, made.layers, strict=True))
    node = made.nodes[0]
    assert layers[f"{node}-gpu-0"] < layers[f"{node}-gpu-1"]


def test_a_slow_node_is_no_member_of_the_others_class(build):
    nodes = fleet(build, 12, 0.005)
    slow = noisy(build, "slow", random.Random(5), 0.0)
    slow = replace(
        slow, devices=tuple(replace(each, memory_bytes_per_s=each.memory_bytes_per_s * 0.5) for each in slow.devices)
    )
    (family,) = families_of(levelled(pools_of(build.request(*nodes, slow))))
    assert [[pool.node for pool in entry.pools] for entry in family.classes] == [
        [node.name for node in nodes],
        ["slow"],
    ]


def test_a_node_that_joins_within_the_noise_makes_no_plan_better_by_the_margin_of_a_replan(build):
    """Levels move with the set of nodes, and less than what a running service is planned anew for."""
    few = c.MOST_NOISY_CLASSES + 1  # with one more, there are levels
    nodes = fleet(build, few + 1, 0.02, products="H100 H100 H100 H100")
    before = build.request(*nodes[:few], config=build.large, workload=build.workload, classes=build.chat)
    made = plan(before)
    now = outlook(made, build.request(*nodes, config=build.large, workload=build.workload, classes=build.chat))
    assert now.requests_per_s == pytest.approx(outlook(made, before).requests_per_s, rel=0.09)


def test_the_classes_of_a_plan_are_the_same_for_two_measurements_of_the_same_gpus(build):
    devices = [
        replace(each, bf16_flops_per_s=7.0e14 * factor, memory_bytes_per_s=2.95e12 * factor)
        for factor, each in zip((0.999, 1.0, 1.004, 1.01), build.node("a", "H100 " * 4).devices, strict=True)
    ]
    again = [
        replace(
            each, bf16_flops_per_s=each.bf16_flops_per_s * 1.003, memory_bytes_per_s=each.memory_bytes_per_s * 1.003
        )
        for each in devices
    ]
    assert classes_of(devices) == classes_of(again)
