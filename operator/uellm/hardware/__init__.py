"""A node's GPUs: plain, frozen types with units in their names, and their JSON form.

The JSON form is that of `GPUNodeProfile.status`: camelCase, integers with the unit in the name. It uses plain dicts, so
the launcher can read it in an engine's image without pydantic.
"""

from uellm.hardware.device_class import DeviceClass, classes_of
from uellm.hardware.names import GPU_RESOURCE, LINK_KINDS, NVLINK, SIMULATED_DEVICES_VARIABLE, LinkKind, class_place
from uellm.hardware.node_needs import NodeNeeds
from uellm.hardware.types import Device, Link, Node

__all__ = [
    "GPU_RESOURCE",
    "LINK_KINDS",
    "NVLINK",
    "SIMULATED_DEVICES_VARIABLE",
    "Device",
    "DeviceClass",
    "Link",
    "LinkKind",
    "Node",
    "NodeNeeds",
    "class_place",
    "classes_of",
]
