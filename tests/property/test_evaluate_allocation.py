"""Random clusters in every way to give out GPUs: no GPU has two owners, and who knows more places no less."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from uellm.evaluate.allocation.compare import ModeOutcome, Wanted, place, play
from uellm.evaluate.allocation.modes import MODES
from uellm.evaluate.allocation.world import ClusterState, GivenDevices, random_nodes, random_services


@pytest.mark.timeout(300)  # some clusters take many times as long as most
@settings(max_examples=8, deadline=None)
@given(st.integers(0, 10**6))
def test_every_gpu_has_one_owner_whatever_comes_and_goes(seed: int) -> None:
    generator = random.Random(seed)
    nodes = random_nodes(generator, 2, 0.7)
    services = random_services(generator, 5, sum(len(node.devices) for node in nodes.values()))
    for kind in MODES:
        outcome = ModeOutcome()
        # `take` raises where a GPU is given a second time.
        state = play(kind(), nodes, [Wanted(service, 1) for service in services], outcome, random.Random(seed))
        running = [found.devices for found in outcome.placed.values()]
        assert set(state.holders) <= {uuid for devices in running for uuid in devices}
        assert len(outcome.placed) + sum(outcome.refused.values()) == len(services)


@settings(max_examples=12, deadline=None)
@given(st.integers(0, 10**6))
def test_what_counting_places_the_extender_places_and_what_the_extender_places_a_claim_places(seed: int) -> None:
    generator = random.Random(seed)
    nodes = random_nodes(generator, 1, 0.8)
    (drawn,) = random_services(generator, 1, 8)
    # A light load: one replica, so that the order in which replicas find nodes does not matter.
    service = replace(drawn, workload=replace(drawn.workload, requests_per_s=0.05))
    everything = [device.uuid for device in nodes["node-0"].devices]
    taken = tuple(generator.sample(everything, generator.randint(0, len(everything) - 1)))
    could = []
    for kind in MODES:
        mode = kind()
        state = ClusterState(mode.nodes(nodes))
        state.take("another", GivenDevices("node-0", taken))
        could.append(not isinstance(place(mode, service, state, random.Random(seed)), str))
    assert could == sorted(could), dict(zip((kind.name for kind in MODES), could, strict=True))
