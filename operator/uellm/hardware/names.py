"""The names that Kubernetes and NVIDIA's tools use for GPUs and for the links between them."""

from __future__ import annotations

from typing import Literal, get_args

GPU_RESOURCE = "nvidia.com/gpu"
"""The extended resource by which pods request whole GPUs; MIG slices may have one of their own."""

DEVICE_PLUGIN, DRA, AUTO = "DevicePlugin", "DRA", "Auto"
"""Ways in which pods are given GPUs; AUTO chooses one of the others."""

DRA_DRIVER = "gpu.nvidia.com"
"""NVIDIA's DRA driver; its DeviceClass of whole GPUs has the same name."""

PCIE_ROOT = "resource.kubernetes.io/pcieRoot"
"""The attribute of the PCIe root complex, by its full name."""

SIMULATED_DEVICES_VARIABLE = "UELLM_SIMULATED_DEVICES"
"""In a container on a simulated node: what its devices are, as JSON. Set by the device plugin; no driver knows them."""

LinkKind = Literal["NVLink", "PIX", "PXB", "PHB", "NODE", "SYS"]
"""Links between GPUs, with the names of `nvidia-smi topo -m`."""

LINK_KINDS: tuple[str, ...] = get_args(LinkKind)
"""Fastest first."""

NVLINK: LinkKind = "NVLink"
NETWORK = "Network"
"""Between GPUs of two nodes; no profile has such links."""
SLOWEST_LINK = "SYS"


def class_place(node_class: str) -> str:
    """The name under which a class of nodes is planned on. It cannot be a node's own name, for it has a blank."""
    return f"class {node_class}"
