"""Objects of NVIDIA's DRA driver, as it makes them: its DeviceClass, and the ResourceSlice of a node."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from uellm.hardware import DRA_DRIVER, PCIE_ROOT

API = "resource.k8s.io/v1"


class Gpu(NamedTuple):
    """A GPU as both its profile and its driver describe it."""

    uuid: str
    product: str
    memory_bytes: int
    capability: str = "8.0"
    pcie_root: str = ""


def device_class() -> dict[str, Any]:
    """The class of whole GPUs."""
    expression = f"device.driver == '{DRA_DRIVER}' && device.attributes['{DRA_DRIVER}'].type == 'gpu'"
    return {
        "apiVersion": API,
        "kind": "DeviceClass",
        "metadata": {"name": DRA_DRIVER},
        "spec": {"selectors": [{"cel": {"expression": expression}}]},
    }


def resource_slice(node: str, gpus: Sequence[Gpu], *, generation: int = 1) -> dict[str, Any]:
    """What the driver publishes of a node."""
    return {
        "apiVersion": API,
        "kind": "ResourceSlice",
        "metadata": {"name": f"{node}-{DRA_DRIVER}"},
        "spec": {
            "driver": DRA_DRIVER,
            "nodeName": node,
            "pool": {"name": node, "generation": generation, "resourceSliceCount": 1},
            "devices": [published_gpu(index, gpu) for index, gpu in enumerate(gpus)],
        },
    }


def published_gpu(index: int, gpu: Gpu, *, kind: str = "gpu") -> dict[str, Any]:
    """One device of a slice."""
    attributes: dict[str, Any] = {
        "type": {"string": kind},
        "uuid": {"string": gpu.uuid},
        "productName": {"string": gpu.product},
        "brand": {"string": "Nvidia"},
        "architecture": {"string": "Ampere"},
        "cudaComputeCapability": {"version": f"{gpu.capability}.0"},
        "driverVersion": {"version": "580.95.5"},
        "cudaDriverVersion": {"version": "13.0.0"},
    }
    if gpu.pcie_root:
        attributes[PCIE_ROOT] = {"string": gpu.pcie_root}
    return {
        "name": f"gpu-{index}",
        "attributes": attributes,
        "capacity": {"memory": {"value": f"{gpu.memory_bytes >> 20}Mi"}},
    }


def profile(node: str, gpus: Sequence[Gpu], *, source: str = "Simulated") -> dict[str, Any]:
    """The node's GPUNodeProfile; every GPU is as fast as its memory is large."""
    return {
        "apiVersion": "uellm.io/v1alpha1",
        "kind": "GPUNodeProfile",
        "metadata": {"name": node},
        "status": {
            "observedAt": "2026-01-01T00:00:00Z",
            "source": source,
            "devices": [
                {
                    "index": index,
                    "uuid": gpu.uuid,
                    "product": gpu.product,
                    "computeCapability": gpu.capability,
                    "memoryBytes": gpu.memory_bytes,
                    "health": {"state": "Healthy"},
                    "measured": {
                        "bf16GigaflopsPerSecond": 100_000,
                        "memoryBytesPerSecond": 1_000_000_000_000,
                        "measuredAt": "2026-01-01T00:00:00Z",
                    },
                }
                for index, gpu in enumerate(gpus)
            ],
        },
    }
