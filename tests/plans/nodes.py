"""Nodes as clouds offer them: products, their number, and the links between them."""

from __future__ import annotations

from uellm.hardware import Device, Link, Node
from uellm.hardware.products import BY_NAME
from uellm.planner.request import NodeOffer

DRIVER_NAMES = {
    "H100-80": "NVIDIA H100 80GB HBM3",
    "H200": "NVIDIA H200",
    "A100-80": "NVIDIA A100-SXM4-80GB",
    "L40S": "NVIDIA L40S",
    "L4": "NVIDIA L4",
    "RTX4090": "NVIDIA GeForce RTX 4090",
    "B200": "NVIDIA B200",
    "A100-40": "NVIDIA A100-SXM4-40GB",
    "A10G": "NVIDIA A10G",
    "T4": "Tesla T4",
    "V100-32": "Tesla V100-SXM2-32GB",
    "RTX5090": "NVIDIA GeForce RTX 5090",
    "GH200": "NVIDIA GH200 480GB",
}


def node(product: str, count: int, *, measured: bool, name: str = "node") -> NodeOffer:
    """A node of `count` GPUs; where it is not measured, the profile has names, memory and links alone."""
    known = BY_NAME[product]
    devices = tuple(
        Device(
            uuid=f"{name}-GPU-{index}",
            index=index,
            product=DRIVER_NAMES[product],
            memory_bytes=known.memory_bytes,
            compute_capability=known.compute_capability,
            bf16_flops_per_s=known.bf16_flops_per_s if measured else None,
            fp8_flops_per_s=known.fp8_flops_per_s if measured else None,
            memory_bytes_per_s=known.memory_bytes_per_s if measured else None,
        )
        for index in range(count)
    )
    links = tuple(
        Link(
            a.uuid,
            b.uuid,
            known.link_kind,
            known.link_bytes_per_s if measured else None,
            known.link_latency_s if measured else None,
        )
        for a in devices
        for b in devices
        if a is not b
    )
    return NodeOffer(Node(name, devices, links), tuple(device.uuid for device in devices))
