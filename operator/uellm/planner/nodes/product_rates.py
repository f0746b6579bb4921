"""The rates of a product, for devices and links that nobody measured.

Simulated devices are described by a file and keep what it says. A device of an unknown product stays unmeasured.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from uellm.hardware import NVLINK, Device, Link, Node
from uellm.hardware.products import Product, product_of


def with_product_rates(node: Node) -> Node:
    """The node with the rates of its products wherever it has none of its own."""
    if node.simulated:
        return node
    devices = tuple(_device(device) for device in node.devices)
    if devices == node.devices and all(link.bytes_per_s for link in node.links):
        return node
    products = {device.uuid: product_of(device.product) for device in devices}
    return replace(node, devices=devices, links=tuple(_link(link, products) for link in node.links))


def _device(device: Device) -> Device:
    product = product_of(device.product)
    lacks_compute = not (device.bf16_flops_per_s or device.fp16_flops_per_s)
    if product is None or device.mig or not (lacks_compute or not device.memory_bytes_per_s):
        return device
    return replace(
        device,
        rated=True,
        compute_capability=device.compute_capability or product.compute_capability,
        bf16_flops_per_s=product.bf16_flops_per_s if lacks_compute else device.bf16_flops_per_s,
        fp8_flops_per_s=device.fp8_flops_per_s or product.fp8_flops_per_s,
        memory_bytes_per_s=device.memory_bytes_per_s or product.memory_bytes_per_s,
    )


def _link(link: Link, products: Mapping[str, Product | None]) -> Link:
    """NVLink is as fast as the product's; of another link nothing is known but its kind."""
    product = products.get(link.a)
    if link.bytes_per_s or product is None or (link.kind == NVLINK) != (product.link_kind == NVLINK):
        return link
    return replace(
        link,
        bytes_per_s=product.link_bytes_per_s,
        latency_s=product.link_latency_s if link.latency_s is None else link.latency_s,
    )
