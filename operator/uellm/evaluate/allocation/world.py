"""Random clusters of GPU nodes, and services that come and go.

A node has 4 or 8 GPUs of one product, or of two. GPUs of a product are linked as they usually are, others over PCIe.
A service is a model that is in common use with targets, a load and a number of hours that it stays.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, NamedTuple

from uellm.hardware import Device, Link, Node
from uellm.hardware.products import BY_NAME, Product
from uellm.models import Architecture, read_architecture
from uellm.planner.request import SloClass, Workload

SIZES = (4, 8)
PRODUCTS = ("H100-80", "A100-80", "A100-40", "L40S", "A10G", "L4")
PAIRS = (("A100-80", "L4"), ("A100-80", "L40S"), ("A100-40", "A10G"), ("H100-80-PCIe", "L40S"), ("L40S", "L4"))
"""Products that are in one node after it was added to."""
BETWEEN_PRODUCTS = ("PHB", 13e9, 15e-6)

MAX_MODEL_LEN = 8192
TPOT_S = (0.05, 0.1, 0.2)
REQUESTS_PER_S = (0.25, 0.5, 1.0, 2.0, 4.0)
GPUS_OF_A_SERVICE = 3
"""About as many on average; it sets how long services stay, so that they want about what the cluster has."""

_LLAMA = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "num_key_value_heads": 8, "vocab_size": 128256}
_QWEN = {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "num_key_value_heads": 8, "vocab_size": 152064}
_SIZES: dict[str, tuple[dict[str, Any], tuple[int, int, int, int]]] = {
    "Llama-3.1-8B": (_LLAMA, (4096, 14336, 32, 32)),
    "Qwen2.5-14B": (_QWEN, (5120, 13824, 48, 40)),
    "Qwen2.5-32B": (_QWEN, (5120, 27648, 64, 40)),
    "Llama-3.3-70B": (_LLAMA, (8192, 28672, 80, 64)),
}
MODELS = tuple(_SIZES)


@dataclass(frozen=True, slots=True)
class ServiceDemand:
    """A service: what it asks for, when it comes, and how long it stays."""

    name: str
    model: str
    classes: tuple[SloClass, ...]
    workload: Workload
    arrives_h: float
    stays_h: float

    @property
    def architecture(self) -> Architecture:
        """Of its model."""
        return architecture(self.model)


class GivenDevices(NamedTuple):
    """A pod's node and GPUs."""

    node: str
    devices: tuple[str, ...]


class TwoOwners(Exception):
    """A GPU was given to a second pod."""


@dataclass(slots=True)
class ClusterState:
    """The nodes, and who holds their GPUs."""

    nodes: dict[str, Node]
    holders: dict[str, str] = field(default_factory=dict)
    """Pod by uuid of its GPU."""

    def free(self, name: str) -> tuple[str, ...]:
        """The GPUs of a node that nobody holds."""
        return tuple(device.uuid for device in self.nodes[name].devices if device.uuid not in self.holders)

    def free_share(self, name: str) -> float:
        """The share of a node's GPUs that nobody holds."""
        return len(self.free(name)) / len(self.nodes[name].devices)

    def take(self, pod: str, given: GivenDevices) -> None:
        """A pod gets GPUs. Raises TwoOwners."""
        taken = [uuid for uuid in given.devices if uuid in self.holders]
        strangers = set(given.devices) - {device.uuid for device in self.nodes[given.node].devices}
        if taken or strangers or len(set(given.devices)) < len(given.devices):
            raise TwoOwners(f"{pod} was given {', '.join(given.devices)} of {given.node}: {taken or strangers}")
        self.holders.update(dict.fromkeys(given.devices, pod))

    def release(self, devices: Iterable[str]) -> None:
        """Pods have gone."""
        for uuid in devices:
            del self.holders[uuid]


@lru_cache(maxsize=len(MODELS))
def architecture(model: str) -> Architecture:
    """The architecture of one of MODELS."""
    family, (hidden, intermediate, layers, heads) = _SIZES[model]
    return read_architecture(
        {
            **family,
            "hidden_size": hidden,
            "intermediate_size": intermediate,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "max_position_embeddings": 131072,
            "tie_word_embeddings": False,
            "torch_dtype": "bfloat16",
        }
    )


def random_nodes(generator: random.Random, count: int, unlike_share: float) -> dict[str, Node]:
    """Nodes by name; about that share of them have GPUs of two products."""
    nodes = {}
    for number in range(count):
        size, unlike = generator.choice(SIZES), generator.random() < unlike_share
        one, other = generator.choice(PAIRS) if unlike else (generator.choice(PRODUCTS),) * 2
        name = f"node-{number}"
        nodes[name] = node_of(name, [BY_NAME[one]] * (size // 2) + [BY_NAME[other]] * (size // 2))
    return nodes


def node_of(name: str, products: Sequence[Product]) -> Node:
    """A node with one GPU of each of the products, which may repeat."""
    devices = tuple(
        Device(
            uuid=f"{name}-gpu-{index}",
            index=index,
            product=product.name,
            memory_bytes=product.memory_bytes,
            compute_capability=product.compute_capability,
            bf16_flops_per_s=product.bf16_flops_per_s,
            fp8_flops_per_s=product.fp8_flops_per_s,
            memory_bytes_per_s=product.memory_bytes_per_s,
        )
        for index, product in enumerate(products)
    )
    kinds = dict(zip((device.uuid for device in devices), products, strict=True))
    links = tuple(_link(a, b, kinds) for a in kinds for b in kinds if a != b)
    return Node(name, devices, links)


def _link(a: str, b: str, kinds: Mapping[str, Product]) -> Link:
    product = kinds[a]
    if product is kinds[b]:
        return Link(a, b, product.link_kind, product.link_bytes_per_s, product.link_latency_s)
    return Link(a, b, *BETWEEN_PRODUCTS)


def random_services(generator: random.Random, count: int, gpus: int) -> tuple[ServiceDemand, ...]:
    """Services that come one an hour on average, and stay until they want about as many GPUs as there are."""
    services, at_h = [], 0.0
    for number in range(count):
        at_h += generator.expovariate(1.0)
        services.append(
            ServiceDemand(
                name=f"random/service-{number}",
                model=generator.choice(MODELS),
                classes=(SloClass("chat", ttft_s=2.0, tpot_s=generator.choice(TPOT_S)),),
                workload=Workload(generator.choice(REQUESTS_PER_S), 512, 2048, 256, 1024),
                arrives_h=at_h,
                stays_h=generator.expovariate(GPUS_OF_A_SERVICE / gpus),
            )
        )
    return tuple(services)
