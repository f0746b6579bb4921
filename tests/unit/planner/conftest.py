"""Builders of models, nodes and requests for the planner's tests."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from helpers.models import LLAMA_8B
from helpers.plan_documents import ENGINE
from helpers.sizes import GIB
from uellm.hardware import Device, Link, Node
from uellm.models import read_architecture
from uellm.planner.request import NodeOffer, Overrides, PlanRequest, SloClass, Workload

LLAMA_70B = {**LLAMA_8B, "hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80}
LLAMA_70B["num_attention_heads"] = 64

# memory, bf16 FLOP/s, memory bytes/s: roughly what the products reach
PRODUCTS = {
    "L4": (22.5 * GIB, 1.0e14, 2.6e11),
    "T4": (15.0 * GIB, 5.0e13, 2.8e11),
    "A10": (22.5 * GIB, 1.1e14, 5.2e11),
    "H100": (79.6 * GIB, 7.0e14, 2.9e12),
    "tiny": (2.0 * GIB, 4.0e12, 4.0e10),
}


def gpu(node: str, index: int, kind: str = "L4", **changes: Any) -> Device:
    memory, flops, rate = PRODUCTS[kind]
    facts = {
        "uuid": f"{node}-gpu-{index}",
        "index": index,
        "product": kind,
        "memory_bytes": int(memory),
        "bf16_flops_per_s": flops,
        "memory_bytes_per_s": rate,
    }
    return Device(**{**facts, **changes})


def unmeasured(node_name: str, index: int, product: str = "L4") -> Device:
    """A GPU whose speeds nobody knows: its product is none that has known rates."""
    return gpu(node_name, index, product, product="unknown", bf16_flops_per_s=None, memory_bytes_per_s=None)


def node(name: str, products: str | Iterable[Any], **facts: Any) -> Node:
    """A node of products by name ("L4 L4 T4") or of devices."""
    entries = products.split() if isinstance(products, str) else list(products)
    devices = [gpu(name, index, entry) if isinstance(entry, str) else entry for index, entry in enumerate(entries)]
    return Node(name, tuple(devices), **facts)


def offer(given: Node, *, promised: int = 0, taken: Iterable[int] = ()) -> NodeOffer:
    free = tuple(device.uuid for device in given.devices if device.index not in set(taken) and device.usable)
    return NodeOffer(given, free, promised)


def all_links(given: Node, kind: str = "NVLink", bytes_per_s: float = 2e11, latency_s: float = 5e-6) -> Node:
    """The node with a link from every device to every other."""
    links = [
        Link(a.uuid, b.uuid, kind, bytes_per_s, latency_s) for a in given.devices for b in given.devices if a is not b
    ]
    return Node(given.name, given.devices, tuple(links), given.source)


def request(*nodes: Node | NodeOffer, config: dict[str, Any] | None = None, **changes: Any) -> PlanRequest:
    offers = tuple(entry if isinstance(entry, NodeOffer) else offer(entry) for entry in nodes)
    facts = {
        "service": "default/llama",
        "architecture": read_architecture(config or LLAMA_8B),
        "max_model_len": 8192,
        "nodes": offers,
    }
    return PlanRequest(**{**facts, **changes})


@pytest.fixture
def build() -> SimpleNamespace:
    return SimpleNamespace(
        gpu=gpu,
        unmeasured=unmeasured,
        node=node,
        offer=offer,
        all_links=all_links,
        request=request,
        config=LLAMA_8B,
        large=LLAMA_70B,
        overrides=Overrides,
        chat=(SloClass("chat", ttft_s=0.5, tpot_s=0.05),),
        workload=Workload(requests_per_s=4, prompt_tokens_mean=512, output_tokens_mean=256),
    )


@pytest.fixture
def unlike(build):
    """Four unlike GPUs; any two of them can hold the model."""
    devices = [build.gpu("a", index, product) for index, product in enumerate(["L4", "A10", "L4", "A10"])]
    devices[2] = replace(devices[2], memory_bytes=20 << 30)
    node = build.all_links(build.node("a", devices), "PIX")
    # A load and a pace that any two of them can serve.
    load, pace = replace(build.workload, requests_per_s=1), (replace(build.chat[0], tpot_s=0.1),)
    return build.request(node, build.node("b", "T4"), gpus_min=2, workload=load, classes=pace, engine=ENGINE)
