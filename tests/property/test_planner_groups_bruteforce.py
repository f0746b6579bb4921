"""Plans over several nodes against brute force: every choice of nodes, of GPUs on each and of stages on each.

Also: nothing spans nodes that a single one holds within the targets, and every stage is inside the node that the order
of the stages says.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from dataclasses import replace

import pytest

from helpers.sizes import MIB
from uellm.errors import PlanError
from uellm.hardware import Device, Link, Node
from uellm.models import read_architecture
from uellm.planner import Plan, plan
from uellm.planner.assignment.spanning import node_of_stage
from uellm.planner.cost.predict import Times
from uellm.planner.nodes.groups import groups_of
from uellm.planner.nodes.pools import pools_of
from uellm.planner.request import NodeOffer, PlanRequest, SloClass, Workload
from uellm.planner.search import ranking
from uellm.planner.search.candidate import Candidate
from uellm.planner.search.replicas import Sizer
from uellm.planner.shape import Shape

CASES = 160
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 2048,
    "intermediate_size": 5632,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "vocab_size": 32000,
    "max_position_embeddings": 4096,
    "torch_dtype": "float16",
}
MODELS = [read_architecture({**CONFIG, "num_hidden_layers": layers}) for layers in (20, 40, 64)]
KINDS = {"small": (1500, 2e13, 2e11), "large": (2600, 9e13, 9e11)}


def a_node(chance: random.Random, name: str) -> NodeOffer:
    kind, count = chance.choice(["small", "small", "large"]), chance.choice([1, 2, 2, 3, 4])
    memory, flops, rate = KINDS[kind]
    devices = tuple(
        Device(
            uuid=f"{name}-{index}",
            index=index,
            product=kind,
            memory_bytes=memory * MIB,
            bf16_flops_per_s=flops,
            memory_bytes_per_s=rate,
        )
        for index in range(count)
    )
    links = tuple(Link(a.uuid, b.uuid, "NVLink", 2e11, 3e-6) for a, b in itertools.permutations(devices, 2))
    promised = chance.choice([0, 0, 0, 1])
    return NodeOffer(Node(name, devices, links), tuple(device.uuid for device in devices), promised)


def a_request(seed: int) -> PlanRequest:
    chance = random.Random(seed)
    classes = chance.choice([(), (SloClass("a", chance.choice([0.2, 1.0]), chance.choice([0.01, 0.03, 0.1])),)])
    return PlanRequest(
        service="default/m",
        architecture=chance.choice(MODELS),
        max_model_len=chance.choice([512, 2048]),
        nodes=tuple(a_node(chance, f"n{index}") for index in range(chance.choice([2, 3, 4]))),
        classes=classes,
        workload=Workload(None, 200, None, 100),
        objective=chance.choice(["Efficiency", "Latency"]),
        multi_node=True,
    )


def every_candidate(request: PlanRequest) -> Iterator[tuple[ranking.Key, Candidate]]:
    """Every shape on every set of nodes of a kind, whatever other sets would do as well."""
    sizer, offers = Sizer(request), request.nodes
    for count in range(2, len(offers) + 1):
        for chosen in itertools.combinations(offers, count):
            pools = pools_of(replace(request, nodes=chosen))
            for group in (each for each in groups_of(request, pools) if len(each.members) == count):
                for tensor, each in itertools.product(range(1, 5), repeat=2):
                    shape = Shape(tensor, each * count)
                    if tensor * each > min(member.sure for member in group.members):
                        continue
                    if request.architecture.attention_heads % tensor or shape.pipeline > request.architecture.layers:
                        continue
                    found = sizer.attempt(group, shape, 1)
                    if isinstance(found, Candidate):
                        yield ranking.key(found, 1, placed=True), found


def on_fewest_nodes(every: Iterator[tuple[ranking.Key, Candidate]]) -> list[tuple[ranking.Key, Candidate]]:
    """Of each shape on each kind of GPU, those on the fewest nodes: every node more is a hop over the network more."""
    found, fewest = list(every), dict[tuple[str, Shape], int]()
    for _, each in found:
        key = each.pool.devices[0].product, each.shape
        fewest[key] = min(fewest.get(key, len(each.pool.members)), len(each.pool.members))
    return [
        entry
        for entry in found
        if len(entry[1].pool.members) == fewest[entry[1].pool.devices[0].product, entry[1].shape]
    ]


def on_one_node(request: PlanRequest) -> Plan | None:
    """The plan on single nodes; None where none of them keeps the targets."""
    try:
        found = plan(replace(request, multi_node=False))
    except PlanError:
        return None
    return found if found.slo is None or found.slo.feasible else None


def _planned(request: PlanRequest) -> Plan | None:
    try:
        return plan(request)
    except PlanError:
        return None


def seconds(times: Times | None) -> float:
    assert times is not None
    return times.end_to_end_s(100)


@pytest.mark.parametrize("part", range(4))
def test_a_plan_over_nodes_is_the_best_of_everything_there_is(part: int) -> None:
    spanned = 0
    for seed in range(part * CASES // 4, (part + 1) * CASES // 4):
        request = a_request(seed)
        if (alone := on_one_node(request)) is not None:
            assert plan(request) == alone, seed
            continue
        every = on_fewest_nodes(every_candidate(request))
        found = _planned(request)
        if found is None or not every:
            assert not every, seed
            assert found is None or (found.slo is not None and not found.slo.feasible), seed
            continue
        spanned += 1
        assert found.nodes_per_replica > 1, seed
        _, best = min(every, key=lambda entry: entry[0])
        if request.objective == "Efficiency":
            occupied = (1 << (each.shape.gpus - 1).bit_length() for _, each in every)
            assert 1 << (found.gpus_per_replica - 1).bit_length() == min(occupied), seed
        assert found.predicted.ttft_ms is not None
        assert found.predicted.tpot_ms is not None
        own = (found.predicted.ttft_ms + 100 * found.predicted.tpot_ms) / 1e3
        assert own == pytest.approx(seconds(best.times)), seed
        nodes = list(dict.fromkeys(uuid.split("-")[0] for uuid in found.devices))
        assert len(nodes) == found.nodes_per_replica
        for index, stage in enumerate(found.stages):
            home = nodes[node_of_stage(index, found.pipeline, found.nodes_per_replica)]
            assert {uuid.split("-")[0] for uuid in stage.devices} == {home}, seed
    assert spanned > 2
