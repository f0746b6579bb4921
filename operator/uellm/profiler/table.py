"""A GPUNodeProfile as a table."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from uellm.text import aligned

GIB = 2**30


def table(profile: Mapping[str, Any]) -> str:
    """The node, its devices, and how they are connected."""
    status = profile["status"]
    return "\n".join([*_head(profile["metadata"]["name"], status), "", *_devices(status), *_links(status)])


def _head(name: str, status: Mapping[str, Any]) -> Iterator[str]:
    versions = [f"driver {status['driverVersion']}"] if status.get("driverVersion") else []
    versions += [f"CUDA {status['cudaVersion']}"] if status.get("cudaVersion") else []
    yield ", ".join([f"{name}: {len(status['devices'])} devices", f"source {status['source']}", *versions])
    for condition in status["conditions"]:
        if "failed" in condition["message"] or condition["status"] != "True":
            yield condition["message"]


def _devices(status: Mapping[str, Any]) -> list[str]:
    head = ("GPU", "UUID", "PRODUCT", "MEMORY", "FREE", "CC", "NUMA", "BF16", "BANDWIDTH", "HEALTH", "POD")
    return aligned([head, *(_row(device) for device in status["devices"])])


def _row(device: Mapping[str, Any]) -> tuple[str, ...]:
    measured, health = device.get("measured") or {}, device["health"]
    return (
        f"{device['index']}{' MIG' if device.get('mig') else ''}",
        device["uuid"],
        device["product"] or "-",
        _scaled(device["memoryBytes"], GIB, "GiB"),
        _scaled(device.get("memoryFreeBytes"), GIB, "GiB"),
        device.get("computeCapability") or "-",
        str(device.get("numaNode", "-")),
        _scaled(measured.get("bf16GigaflopsPerSecond"), 1e3, "TFLOP/s"),
        _scaled(measured.get("memoryBytesPerSecond"), 1e9, "GB/s"),
        health["state"] if health["state"] == "Healthy" else f"{health['state']} ({health.get('reason', '')})",
        (device.get("allocatedTo") or {}).get("podUID", "-"),
    )


def _links(status: Mapping[str, Any]) -> Iterator[str]:
    """A matrix as of `nvidia-smi topo -m`: row from, column to."""
    if not status.get("links"):
        return
    cells = {(link["a"], link["b"]): _link(link) for link in status["links"]}
    devices = [(str(device["index"]), device["uuid"]) for device in status["devices"]]
    rows = [("FROM\\TO", *(f"GPU {index}" for index, _ in devices))]
    for index, a in devices:
        rows.append((f"GPU {index}", *("." if a == b else cells.get((a, b), "-") for _, b in devices)))
    yield ""
    yield from aligned(rows)


def _link(link: Mapping[str, Any]) -> str:
    figures = [_scaled(link["bytesPerSecond"], 1e9, "GB/s")] if "bytesPerSecond" in link else []
    figures += [f"{link['latencyNanoseconds'] / 1e3:.0f} us"] if "latencyNanoseconds" in link else []
    return " ".join([link["kind"], *figures])


def _scaled(value: float | None, unit: float, name: str) -> str:
    return "-" if value is None else f"{value / unit:.1f} {name}"
