"""A node's GPUs: plain, frozen types with units in their names, and their JSON form.

The JSON form is that of `GPUNodeProfile.status`: camelCase, integers with the unit in the name. It uses plain dicts, so
the launcher can read it in an engine's image without pydantic.
"""

from uellm.hardware.claim_needs import ClaimNeeds, StageNeeds, StageRequest
from uellm.hardware.device_class import DeviceClass, classes_of
from uellm.hardware.names import (
    AUTO,
    DEVICE_PLUGIN,
    DRA,
    DRA_DRIVER,
    GPU_RESOURCE,
    LINK_KINDS,
    NETWORK,
    NVLINK,
    PCIE_ROOT,
    SIMULATED_DEVICES_VARIABLE,
    LinkKind,
    class_place,
)
from uellm.hardware.node_needs import NodeNeeds
from uellm.hardware.published import Attribute, PublishedGpu
from uellm.hardware.types import Device, Link, NetworkLink, Node

__all__ = [
    "AUTO",
    "DEVICE_PLUGIN",
    "DRA",
    "DRA_DRIVER",
    "GPU_RESOURCE",
    "LINK_KINDS",
    "NETWORK",
    "NVLINK",
    "PCIE_ROOT",
    "SIMULATED_DEVICES_VARIABLE",
    "Attribute",
    "ClaimNeeds",
    "Device",
    "DeviceClass",
    "Link",
    "LinkKind",
    "NetworkLink",
    "Node",
    "NodeNeeds",
    "PublishedGpu",
    "StageNeeds",
    "StageRequest",
    "class_place",
    "classes_of",
]
