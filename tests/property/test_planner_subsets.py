"""The every-subset rule against a check of every subset, and properties of any plan."""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import replace
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.sizes import MIB
from uellm.errors import PlanError
from uellm.hardware import GPU_RESOURCE, Device, Node
from uellm.models import read_architecture
from uellm.planner import Plan, plan
from uellm.planner.assignment.assign import Task, assign
from uellm.planner.assignment.every_subset import admits_some, refusal
from uellm.planner.cost.rates import Costs
from uellm.planner.handover.device_facts import facts_of
from uellm.planner.handover.late_binding import bind
from uellm.planner.handover.publish import plan_document
from uellm.planner.nodes.pools import Pool
from uellm.planner.refusals.kinds import PlanRefusal
from uellm.planner.request import NodeOffer, Overrides, PlanRequest, SloClass, Workload


@st.composite
def pools(draw: st.DrawFn) -> Pool:
    kinds = draw(st.lists(st.integers(0, 2), min_size=1, max_size=6))
    memory = [draw(st.integers(2, 14)) for _ in range(3)]
    devices = tuple(Device(f"g{index}", index, f"kind-{kind}", memory[kind]) for index, kind in enumerate(kinds))
    return Pool("n", GPU_RESOURCE, devices, (), promised=draw(st.integers(0, 2)))


@st.composite
def tasks(draw: st.DrawFn) -> tuple[Task, int]:
    """A task and a number of stages."""
    layers, stages = draw(st.integers(1, 6)), draw(st.integers(1, 4))
    unlike = draw(st.booleans())
    size = st.integers(1, 3)
    layer_bytes = [draw(size) for _ in range(layers)] if unlike else [draw(size)] * layers
    cuts = sorted(draw(st.permutations(range(1, layers)))[: stages - 1])
    given_layers = tuple(b - a for a, b in itertools.pairwise((0, *cuts, layers)))
    task = Task(
        layer_bytes=tuple(layer_bytes),
        layer_kv_bytes=(draw(st.integers(0, 1)),) * layers,
        first_bytes=draw(st.integers(0, 2)),
        last_bytes=draw(st.integers(0, 2)),
        fixed_bytes=draw(st.integers(0, 2)),
        margin="0",
        tensor=draw(st.sampled_from([1, 1, 2])),
        costs=Costs(),
        policy=draw(st.sampled_from(["HELR", "Even", "BGS"])),
        layers_override=given_layers if len(given_layers) == stages and draw(st.booleans()) else None,
    )
    return task, stages


def holds(devices: tuple[Device, ...], task: Task, stages: int) -> bool:
    """Whether exactly these devices admit a placement, by the solver."""
    alike = all(count % task.tensor == 0 for count in Counter(device.product for device in devices).values())
    return alike and not isinstance(assign(devices, (), task, stages), PlanRefusal)


@settings(max_examples=150, deadline=None)
@given(pools(), tasks())
def test_the_rule_agrees_with_a_check_of_every_subset(pool: Pool, question: tuple[Task, int]) -> None:
    task, stages = question
    count = task.tensor * stages
    sure = len(pool.devices) - pool.promised
    subsets = list(itertools.combinations(pool.devices, count))
    every = count <= sure and all(holds(subset, task, stages) for subset in subsets)
    some = count <= sure and any(holds(subset, task, stages) for subset in subsets)
    reason = refusal(pool, task, stages)
    assert (reason is None) == every, reason
    assert admits_some(pool, task, stages) == some


@st.composite
def requests(draw: st.DrawFn) -> PlanRequest:
    layers = draw(st.integers(2, 12))
    config = {
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": 512,
        "intermediate_size": 2048,
        "num_hidden_layers": layers,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "vocab_size": draw(st.sampled_from([4096, 65536])),
        "max_position_embeddings": 32768,
        "tie_word_embeddings": draw(st.booleans()),
        "torch_dtype": "bfloat16",
    }
    offers = []
    for name in ("a", "b")[: draw(st.integers(1, 2))]:
        products = draw(st.lists(st.integers(0, 2), min_size=1, max_size=4))
        memory = [draw(st.integers(450, 1200)) * MIB for _ in range(3)]
        speed = [draw(st.sampled_from([None, 1e11, 3e11])) for _ in range(3)]
        devices = tuple(
            Device(f"{name}{i}", i, f"p{k}", memory[k], memory_bytes_per_s=speed[k], bf16_flops_per_s=speed[k] and 5e13)
            for i, k in enumerate(products)
        )
        free = tuple(device.uuid for device in devices)
        offers.append(NodeOffer(Node(name, devices), free, draw(st.integers(0, 1))))
    return PlanRequest(
        service="default/m",
        architecture=read_architecture(config),
        max_model_len=draw(st.sampled_from([512, 8192])),
        nodes=tuple(offers),
        classes=draw(st.sampled_from([(), (SloClass("chat", 0.5, 0.05),)])),
        workload=Workload(draw(st.sampled_from([None, 2.0, 50.0])), 200, None, 100),
        overrides=draw(st.sampled_from([Overrides(), Overrides(tensor=1), Overrides(pipeline=2)])),
        objective=draw(st.sampled_from(["Efficiency", "Efficiency", "Latency", "Throughput"])),
        policy=draw(st.sampled_from(["HELR", "HELR", "LR", "BGS", "Even"])),
    )


def outcome(request: PlanRequest) -> Plan | str:
    try:
        return plan(request)
    except PlanError as error:
        return error.reason


@settings(max_examples=120, deadline=None)
@given(requests())
def test_every_plan_places_every_layer_once_within_memory_on_any_devices_a_pod_may_get(request: PlanRequest) -> None:
    made = outcome(request)
    if isinstance(made, str):
        assert made in ("NoFit", "NeedsExactDevices")
        return
    sizes = {device.uuid: device.memory_bytes for offer in request.nodes for device in offer.node.devices}
    assert sum(made.layers) == request.architecture.layers
    assert min(made.layers) >= 1
    assert made.gpus_per_replica == made.tensor * made.pipeline == len(set(made.devices))
    assert made.predicted.kv_cache_tokens >= made.kv_cache_tokens_required >= request.max_model_len
    for stage in made.stages:
        for uuid in stage.devices:
            assert stage.memory.required <= sizes[uuid] * 0.92
            assert stage.memory_bytes <= sizes[uuid]
    document = plan_document(made, request)
    for offer in request.nodes:
        if offer.node.name in made.nodes:
            for uuids in itertools.combinations(offer.free, made.gpus_per_replica):
                binding = bind(document, uuids, advice=facts_of(offer.node for offer in request.nodes))
                assert sorted(binding.order) == sorted(uuids)
                assert sum(binding.layers) == request.architecture.layers


@settings(max_examples=60, deadline=None)
@given(requests(), st.randoms(use_true_random=False))
def test_the_order_of_nodes_devices_and_links_changes_nothing(request: PlanRequest, random: Any) -> None:
    offers = []
    for offer in request.nodes:
        devices, free = list(offer.node.devices), list(offer.free)
        random.shuffle(devices)
        random.shuffle(free)
        offers.append(replace(offer, node=replace(offer.node, devices=tuple(devices)), free=tuple(free)))
    random.shuffle(offers)
    assert outcome(replace(request, nodes=tuple(offers))) == outcome(request)


def gpus_in_all(made: Plan) -> int:
    return made.gpus_per_replica * (made.recommended_replicas or 1)


@settings(max_examples=60, deadline=None)
@given(requests(), st.integers(1, 2000))
def test_more_memory_on_every_device_never_takes_more_gpus_in_all(request: PlanRequest, more: int) -> None:
    request = replace(request, objective="Efficiency", policy="HELR")
    before = outcome(request)
    larger = [
        replace(
            offer,
            node=replace(
                offer.node,
                devices=tuple(replace(d, memory_bytes=d.memory_bytes + more * MIB) for d in offer.node.devices),
            ),
        )
        for offer in request.nodes
    ]
    after = outcome(replace(request, nodes=tuple(larger)))
    if isinstance(before, Plan):
        assert isinstance(after, Plan)
        assert gpus_in_all(after) <= gpus_in_all(before)
