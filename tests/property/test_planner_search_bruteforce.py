"""The whole search against brute force: every shape, every number of replicas, every node, without pruning.

On nodes with a few GPUs both have the same GPUs in all, the same time of a request, and the same rate. Also
monotonicity: more memory, faster links and more free GPUs never cost more.
"""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest

from helpers.sizes import MIB
from uellm.errors import PlanError
from uellm.hardware import Device, Link, Node
from uellm.models import read_architecture
from uellm.planner import Plan, plan
from uellm.planner.nodes.pools import pools_of
from uellm.planner.request import NodeOffer, Overrides, PlanRequest, SloClass, Workload
from uellm.planner.search.candidate import Candidate
from uellm.planner.search.replicas import Sizer
from uellm.planner.search.search import Search, ranking

CASES = 120
MOST_REPLICAS = 4

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
MODELS = [read_architecture({**CONFIG, "num_hidden_layers": layers}) for layers in (3, 5, 8)]
# memory, FLOP/s, bytes/s
KINDS = {"small": (1100, 2e13, 2e11), "middle": (1600, 6e13, 5e11), "large": (3000, 9e13, 9e11)}
LINKS = {"NVLink": (2e11, 3e-6), "PHB": (2e10, 1e-5)}


def device(node: str, index: int, kind: str, noise: float) -> Device:
    memory, flops, rate = KINDS[kind]
    return Device(
        uuid=f"{node}-{index}",
        index=index,
        product=kind,
        memory_bytes=memory * MIB,
        bf16_flops_per_s=flops * noise,
        memory_bytes_per_s=rate * noise,
    )


def a_node(chance: random.Random, name: str) -> Node:
    count = chance.choice([1, 2, 2, 3, 4])
    kinds = chance.choices(list(KINDS), k=count) if chance.random() < 0.3 else [chance.choice(list(KINDS))] * count
    noise = chance.choice([1.0, 1.0, 0.97, 1.02])
    devices = tuple(device(name, index, kind, noise) for index, kind in enumerate(kinds))
    links = []
    for a in devices:
        for b in devices:
            if a is not b:
                kind = "NVLink" if a.index // 2 == b.index // 2 else "PHB"
                links.append(Link(a.uuid, b.uuid, kind, *LINKS[kind]))
    return Node(name, devices, tuple(links))


def a_request(seed: int) -> PlanRequest:
    chance = random.Random(seed)
    nodes = [a_node(chance, f"n{index}") for index in range(chance.choice([1, 1, 2, 3]))]
    offers = tuple(NodeOffer(node, tuple(d.uuid for d in node.devices), chance.choice([0, 0, 0, 1])) for node in nodes)
    targets = [(), (SloClass("a", chance.choice([0.05, 0.2, 1.0]), chance.choice([0.005, 0.02, 0.1])),)]
    return PlanRequest(
        service="default/m",
        architecture=chance.choice(MODELS),
        max_model_len=chance.choice([512, 2048]),
        nodes=offers,
        classes=chance.choice([*targets, targets[1]]),
        workload=Workload(chance.choice([None, 1.0, 10.0, 60.0, 200.0]), 200, None, 100),
        objective=chance.choice(["Efficiency", "Efficiency", "Efficiency", "Latency", "Throughput"]),
        policy=chance.choice(["HELR", "HELR", "LR", "HE"]),
        overrides=chance.choice([Overrides(), Overrides(), Overrides(tensor=1), Overrides(pipeline=2)]),
        gpus_min=chance.choice([1, 1, 1, 2]),
    )


def every_outcome(request: PlanRequest) -> list[tuple[ranking.Key, int, Candidate]]:
    """The key of the best node for every shape and number of replicas, all of them computed."""
    pools, sizer = pools_of(request), Sizer(request)
    most = MOST_REPLICAS if request.workload.requests_per_s is not None else 1
    found = []
    for shape in Search(request, pools).every_shape():
        of_shape: list[tuple[ranking.Key, int, Candidate]] = []
        for replicas in range(1, most + 1):
            outcomes = [(pool, sizer.attempt(pool, shape, replicas)) for pool in pools]
            does = [(pool, outcome) for pool, outcome in outcomes if isinstance(outcome, Candidate)]
            placed = sum(pool.sure // shape.gpus for pool, _ in does) >= replicas
            for _, outcome in does:
                of_shape.append((ranking.key(outcome, replicas, placed=placed), replicas, outcome))
        found += _fewest(request, of_shape)
    return found


def _fewest(
    request: PlanRequest, of_shape: list[tuple[ranking.Key, int, Candidate]]
) -> list[tuple[ranking.Key, int, Candidate]]:
    """For the objective Latency, the fewest replicas of a shape that do: more of them would always be faster."""
    if request.objective != "Latency" or request.policy == "HE" or not of_shape:
        return of_shape
    least = min(of_shape, key=lambda entry: (entry[0][:2], entry[1]))
    return [entry for entry in of_shape if entry[1] == least[1]]


@pytest.mark.parametrize("part", range(4))
def test_the_plan_is_the_best_of_everything_there_is(part: int) -> None:
    planned = 0
    for seed in range(part * CASES // 4, (part + 1) * CASES // 4):
        request = a_request(seed)
        search = Search(request, pools_of(request))
        best = search.run().best
        everything = every_outcome(request)
        if best is not None and best.replicas > MOST_REPLICAS:
            # More than were tried: none of those tried may have room, or it would have been chosen.
            assert not any(key[:2] <= best.key[:2] and key < best.key for key, _, _ in everything), seed
            continue
        if best is None:
            assert not everything, seed
            continue
        planned += 1
        key, replicas, candidate = min(everything, key=lambda entry: entry[0])
        assert best.key == key, (seed, best.shape, best.replicas, candidate.shape, replicas)
    assert planned > CASES // 12


def outcome(request: PlanRequest) -> Plan | str:
    try:
        return plan(request)
    except PlanError as error:
        return error.reason


def with_nodes(request: PlanRequest, change: Any) -> PlanRequest:
    return replace(request, nodes=tuple(replace(offer, node=change(offer.node)) for offer in request.nodes))


def more_memory(node: Node) -> Node:
    return replace(node, devices=tuple(replace(d, memory_bytes=d.memory_bytes + 700 * MIB) for d in node.devices))


def faster_links(node: Node) -> Node:
    links = (replace(link, bytes_per_s=link.bytes_per_s * 4, latency_s=link.latency_s / 4) for link in node.links)
    return replace(node, links=tuple(links))


def one_more_node(request: PlanRequest) -> PlanRequest:
    node = a_node(random.Random(1), "z")
    return replace(request, nodes=(*request.nodes, NodeOffer(node, tuple(d.uuid for d in node.devices))))


@pytest.mark.parametrize(
    "change",
    [lambda r: with_nodes(r, more_memory), lambda r: with_nodes(r, faster_links), one_more_node],
    ids=["more memory", "faster links", "one more node"],
)
def test_more_of_anything_never_costs_more(change: Any) -> None:
    for seed in range(1000, 1030):
        request = replace(a_request(seed), objective="Efficiency", policy="HELR")
        before, after = outcome(request), outcome(change(request))
        if isinstance(before, str):
            continue
        assert isinstance(after, Plan), (seed, before, after)
        if before.slo is not None and not before.slo.feasible:
            continue  # another target may be reachable now
        assert after.slo is None or after.slo.feasible, seed
        assert gpus_in_all(after) <= gpus_in_all(before) or not has_room(before, request), seed


def gpus_in_all(made: Plan) -> int:
    return made.gpus_per_replica * (made.recommended_replicas or 1)


def has_room(made: Plan, request: PlanRequest) -> bool:
    """Whether all replicas have room. If not, a plan with room for more of them precedes it."""
    room = sum(
        max(0, len(offer.free) - offer.promised) // made.gpus_per_replica
        for offer in request.nodes
        if offer.node.name in made.nodes
    )
    return room >= (made.recommended_replicas or 1)


def test_the_same_request_in_any_order_gives_the_same_plan() -> None:
    for seed in range(2000, 2040):
        request = a_request(seed)
        chance = random.Random(seed)
        offers = []
        for offer in chance.sample(request.nodes, len(request.nodes)):
            node = offer.node
            devices = tuple(chance.sample(node.devices, len(node.devices)))
            links = tuple(chance.sample(node.links, len(node.links)))
            free = tuple(chance.sample(offer.free, len(offer.free)))
            offers.append(replace(offer, node=replace(node, devices=devices, links=links), free=free))
        assert outcome(replace(request, nodes=tuple(offers))) == outcome(request), seed


def test_a_search_whose_budget_is_spent_ends_with_a_plan_that_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    unproven = 0
    for seed in range(60):
        request = a_request(seed)
        monkeypatch.setattr("uellm.planner.constants.MOST_PLACEMENTS", 10**9)
        whole = Search(request, pools_of(request)).run()
        monkeypatch.setattr("uellm.planner.constants.MOST_PLACEMENTS", 0)
        short = Search(request, pools_of(request)).run()
        assert whole.proven
        assert (short.best is None) == (whole.best is None), seed
        if whole.best is None or short.best is None:
            continue
        assert short.best.key >= whole.best.key, seed
        if short.best.shape != whole.best.shape:
            assert not short.proven, seed
        if not short.proven:
            unproven += 1
            assert any(
                note.startswith("best found, not proven: the search ended") for note in plan(request).assumptions
            )
            assert plan(request) == plan(request)
    assert unproven
