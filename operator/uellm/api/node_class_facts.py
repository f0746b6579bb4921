"""Conversions between a node's profile, a GPUNodeClass and the facts that a plan is made from. Pure."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from uellm.api.gpunodeclass import GPUNodeClass
from uellm.api.node_labels import gpu_labels
from uellm.hardware import Device, Link, Node, class_place

_LONGEST_NAME = 63


def class_name(node: Node) -> str:
    """A name for the class of a node, such as `8x-nvidia-h100-80gb-hbm3`."""
    kinds = Counter(device.product or "gpu" for device in node.devices)
    text = "-".join(f"{count}x-{product}" for product, count in sorted(kinds.items()))
    return re.sub(r"[^a-z0-9]+", "-", text.lower())[:_LONGEST_NAME].strip("-")


def class_document(node: Node, name: str, labels: Mapping[str, str]) -> dict[str, Any]:
    """The GPUNodeClass of a node like this one. `labels`: what its nodes carry besides the labels of their GPUs."""
    index = {device.uuid: position for position, device in enumerate(node.devices)}
    spec: dict[str, Any] = {"labels": {**labels, **gpu_labels(node.devices, simulated=node.simulated)}}
    if node.simulated:
        spec["simulated"] = True
    spec["devices"] = [_device(device, position) for position, device in enumerate(node.devices)]
    links = [link for link in node.links if link.a in index and link.b in index]
    if links:
        spec["links"] = [{**link.to_dict(), "a": index[link.a], "b": index[link.b]} for link in links]
    return {"apiVersion": "uellm.io/v1alpha1", "kind": "GPUNodeClass", "metadata": {"name": name}, "spec": spec}


def _device(device: Device, position: int) -> dict[str, Any]:
    entry = device.to_dict()
    kept = ("product", "computeCapability", "memoryBytes", "resourceName", "mig", "measured")
    found = {"index": position, **{name: entry[name] for name in kept if name in entry}}
    if "measured" in found:
        rates = ("bf16GigaflopsPerSecond", "fp16GigaflopsPerSecond", "fp8GigaflopsPerSecond", "memoryBytesPerSecond")
        found["measured"] = {name: found["measured"][name] for name in rates if name in found["measured"]}
    return found


def class_node(node_class: GPUNodeClass) -> Node:
    """A node of the class, with made-up uuids. Its name cannot be that of a node, for it has a blank."""
    spec, name = node_class.spec, class_place(str(node_class.metadata["name"]))
    uuids = {device.index: f"{name}#{device.index}" for device in spec.devices}
    devices = [Device.from_dict({**device.to_dict(), "uuid": uuids[device.index]}) for device in spec.devices]
    links = [Link.from_dict({**link.to_dict(), "a": uuids[link.a], "b": uuids[link.b]}) for link in spec.links]
    return Node(
        name=name,
        devices=tuple(sorted(devices, key=lambda device: device.index)),
        links=tuple(links),
        source="Simulated" if spec.simulated else "NVML",
        labels=dict(spec.labels),
    )


def device_summary(devices: Sequence[Device]) -> dict[str, str]:
    """`status.summary`."""
    counts = Counter(device.product or "GPU" for device in devices)
    products = ", ".join(f"{count} x {product}" for product, count in counts.items())
    return {"gpus": str(len(devices)), "products": products[:256]}
