"""Whether the engine's image is vLLM's own, whose kernels are known, and what follows for a plan."""

from __future__ import annotations

import dataclasses

import pytest

from helpers.models import SMALLEST_LLAMA
from helpers.sizes import GIB
from uellm.api import parse_service
from uellm.planner import plan
from uellm.reconcile.engine_image import STOCK_ENGINE_IMAGE, is_stock
from uellm.reconcile.planning.evaluate import evaluate
from uellm.reconcile.planning.ledger import offers
from uellm.reconcile.planning.planning import Planning
from uellm.reconcile.planning.request import architecture_of, plan_request
from uellm.reconcile.profiled_node import profiled_node

DIGEST = "@sha256:" + "0" * 64
BUILT = "registry.local:5000/vllm-openai:v0.32.0-cu126"


@pytest.mark.parametrize(
    ("image", "stock"),
    [
        (STOCK_ENGINE_IMAGE, True),
        (f"docker.io/{STOCK_ENGINE_IMAGE}", True),
        ("registry.local:5000/vllm/vllm-openai:v0.32.0", True),
        ("vllm-openai:v0.32.0", True),
        (STOCK_ENGINE_IMAGE + DIGEST, True),
        (BUILT, False),
        ("vllm/vllm-openai:v0.11.0", False),
        ("vllm/vllm-openai", False),
        ("vllm/vllm-openai" + DIGEST, False),
        ("registry.local/vllm-volta:v0.32.0", False),
        ("registry.local/my-vllm-openai:v0.32.0", False),
    ],
)
def test_a_copy_of_vllms_own_image_is_stock_and_no_other_image_is(image: str, stock: bool) -> None:
    assert is_stock(image) is stock


def on_v100(make, engine_image: str = STOCK_ENGINE_IMAGE, **spec):
    """The planner's request for a service where the only GPUs are V100s."""
    service = parse_service(make.service(model={"uri": "hf://org/model", "config": SMALLEST_LLAMA}, **spec))
    device = {"memoryBytes": 32 * GIB, "product": "Tesla V100", "computeCapability": "7.0"}
    nodes = offers([profiled_node(make.profile("node-1", (None, None), **device))], [], [])
    return plan_request(service, architecture_of(service), nodes, engine_image=engine_image)


def test_the_operators_engine_image_is_taken_to_have_its_kernels_as_a_services_own_is(make) -> None:
    assert plan(on_v100(make, BUILT)).nodes == ("node-1",)
    assert plan(on_v100(make, engine={"image": BUILT})).nodes == ("node-1",)
    mirror = "registry.local:5000/vllm/vllm-openai:v0.32.0"
    assert evaluate(on_v100(make, mirror), None, None).failure.reason == "NoFit"


async def test_the_planner_is_told_of_the_operators_engine_image(world) -> None:
    world.node("a", None, None)
    world.service("one")
    await world.plan("one")
    world.planning = Planning(world.cache, world, engine_image=BUILT)
    await world.plan("one")
    assert [request.engine.own_image for request in world.requests] == [False, True]


def test_a_plan_in_force_keeps_the_gpus_on_which_its_pods_run_whatever_the_image(make) -> None:
    incumbent = plan(on_v100(make, BUILT))
    stock = on_v100(make)
    kept = evaluate(stock, incumbent, stock.nodes)
    assert (kept.plan, kept.broken, kept.broken_hardware) == (None, None, None)
    gone = evaluate(dataclasses.replace(stock, nodes=()), incumbent, ())
    assert gone.broken == gone.broken_hardware == "no GPU of node-1 is free"


def test_a_plan_in_force_holds_on_no_other_gpus_without_kernels(make) -> None:
    stock = on_v100(make)
    newer = dataclasses.replace(plan(on_v100(make, BUILT)), nodes=("node-0",))  # a node with other GPUs, which is gone
    assert evaluate(stock, newer, stock.nodes).broken_hardware == "no GPU of node-0 is free"
