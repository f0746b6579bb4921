"""`uellm evaluate placement --compare allocation`: what each way to give out GPUs can place, and what is counted."""

from __future__ import annotations

import json
import random
from dataclasses import replace

import pytest

from uellm.cli.main import main
from uellm.evaluate.allocation.compare import ModeOutcome, PlacedService, Wanted, place, play, wanted_of
from uellm.evaluate.allocation.modes import AnyScheduler, ByClaim, WithExtender
from uellm.evaluate.allocation.world import (
    ClusterState,
    GivenDevices,
    ServiceDemand,
    TwoOwners,
    node_of,
    random_nodes,
    random_services,
)
from uellm.hardware.products import BY_NAME
from uellm.planner.request import SloClass, Workload

UNLIKE = {"n": node_of("n", [BY_NAME[name] for name in ("A100-80", "A100-80", "L4", "L4")])}
MODES = (AnyScheduler, WithExtender, ByClaim)


def service(model: str, *, tpot_s: float = 0.2, arrives_h: float = 0.0, stays_h: float = 10.0) -> ServiceDemand:
    classes = (SloClass("chat", ttft_s=5.0, tpot_s=tpot_s),)
    return ServiceDemand(f"random/{model}", model, classes, Workload(0.1, 512, 2048, 256, 1024), arrives_h, stays_h)


def placed(kind, wanted, taken=()):
    mode = kind()
    state = ClusterState(mode.nodes(UNLIKE))
    if taken:
        state.take("another", GivenDevices("n", taken))
    return place(mode, wanted, state, random.Random(1))


def test_a_model_that_needs_the_large_gpus_takes_the_whole_node_from_a_device_plugin_and_two_gpus_by_claim():
    found = {kind.name: placed(kind, service("Llama-3.3-70B")) for kind in MODES}
    assert {name: outcome.gpus for name, outcome in found.items()} == {
        "device-plugin": 4,
        "device-plugin+extender": 4,
        "dra": 2,
    }
    assert set(found["dra"].devices) == {"n-gpu-0", "n-gpu-1"}
    per_gpu = {name: outcome.requests_per_s / outcome.gpus for name, outcome in found.items()}
    assert per_gpu["dra"] > 1.2 * per_gpu["device-plugin"] > 0


def test_only_the_extender_knows_that_the_gpus_left_on_a_node_are_the_large_ones():
    small_ones = ("n-gpu-2", "n-gpu-3")
    assert isinstance(placed(AnyScheduler, service("Qwen2.5-32B"), small_ones), str)
    known = placed(WithExtender, service("Qwen2.5-32B"), small_ones)
    assert isinstance(known, PlacedService)
    assert set(known.devices) <= {"n-gpu-0", "n-gpu-1"}
    claimed = placed(ByClaim, service("Qwen2.5-32B"), small_ones)
    assert isinstance(claimed, PlacedService)


def test_services_that_the_empty_cluster_does_not_hold_are_not_counted():
    light = service("Llama-3.3-70B")
    two_replicas = replace(light, name="two", workload=replace(light.workload, requests_per_s=2.5))
    # Two replicas of two large GPUs are as many GPUs as the node has, but only two of these are large.
    assert wanted_of(UNLIKE, [light, two_replicas]) == [Wanted(light, 2)]
    both_large = {"n": node_of("n", [BY_NAME["A100-80"]] * 4)}
    assert wanted_of(both_large, [two_replicas]) == [Wanted(two_replicas, 4)]


def test_gpus_beyond_the_need_of_placed_services_and_free_ones_that_refused_services_needed_count_as_wasted():
    first, second = service("Llama-3.3-70B"), service("Qwen2.5-32B", arrives_h=1.0, stays_h=5.0)
    outcome = ModeOutcome()
    play(AnyScheduler(), UNLIKE, [Wanted(first, 2), Wanted(second, 1)], outcome, random.Random(1))
    # The first holds all four GPUs for 10 hours, two of them without need; none is free for the second.
    assert (outcome.held_h, outcome.beyond_h, outcome.stranded_h) == (40.0, 20.0, 0.0)
    assert sum(outcome.refused.values()) == 1

    alone = ModeOutcome()
    misses = service("Qwen2.5-32B", tpot_s=0.001)
    play(ByClaim(), UNLIKE, [Wanted(misses, 1)], alone, random.Random(1))
    assert alone.refused == {"TargetsMissed": 1}
    assert alone.stranded_h == 10.0


def test_gpus_of_services_that_have_left_are_given_out_again():
    first, second = service("Llama-3.3-70B", stays_h=1.0), service("Llama-3.3-70B", arrives_h=2.0)
    outcome = ModeOutcome()
    state = play(AnyScheduler(), UNLIKE, [Wanted(first, 2), Wanted(second, 2)], outcome, random.Random(1))
    assert not outcome.refused
    assert len(state.holders) == 4


@pytest.mark.parametrize("devices", [("n-gpu-0",), ("n-gpu-1", "n-gpu-1"), ("other-gpu-0",)])
def test_a_gpu_is_given_to_one_pod_and_only_if_its_node_has_it(devices):
    state = ClusterState(dict(UNLIKE))
    state.take("one", GivenDevices("n", ("n-gpu-0",)))
    with pytest.raises(TwoOwners, match="another was given"):
        state.take("another", GivenDevices("n", devices))


def test_the_same_seed_draws_the_same_nodes_and_services():
    assert random_nodes(random.Random(5), 4, 0.5) == random_nodes(random.Random(5), 4, 0.5)
    assert random_services(random.Random(5), 9, 16) == random_services(random.Random(5), 9, 16)


def test_all_nodes_or_none_are_unlike_at_the_ends_of_the_share():
    for share, kinds in ((0.0, {1}), (1.0, {2})):
        nodes = random_nodes(random.Random(3), 8, share).values()
        assert {len({device.product for device in node.devices}) for node in nodes} == kinds


def test_the_command_prints_a_line_for_each_way_and_the_same_figures_for_the_same_seed(capsys):
    options = ["evaluate", "placement", "--compare", "allocation", "--clusters", "1", "--nodes", "1", "--services", "2"]
    assert main([*options, "-o", "json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert [result["mode"] for result in document["results"]] == ["device-plugin", "device-plugin+extender", "dra"]
    assert document["services"] <= 2

    assert main(options) == 0
    table = capsys.readouterr().out
    assert table.startswith(f"1 clusters, {document['services']} services that need ")
    for result in document["results"]:
        (line,) = [line for line in table.splitlines() if line.startswith(f"{result['mode']} ")]
        assert f"{result['placed']:.1%}" in line


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--unlike", "1.5"], "1.5 is not a share from 0 to 1"),
        (["--nodes", "0"], "--nodes: a comparison takes 1 or more"),
        (["--services", "0"], "--services: a comparison takes 1 or more"),
        (["--clusters", "0"], "a comparison takes 1 cluster or more"),
        (["--instance", "x.json"], "has no nodes to compare allocation on"),
    ],
)
def test_wrong_options_are_refused_with_what_is_wrong(capsys, options, message):
    assert main(["evaluate", "placement", "--compare", "allocation", *options]) == 2
    assert message in capsys.readouterr().err
