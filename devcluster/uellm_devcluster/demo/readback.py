"""A pod's actual placement from three sources: its processes' environments, the kubelet, and the status.

The environments are read by `kubectl exec` in the engine's container. The kubelet is asked through its PodResources
API, by the profiler's own client in the profiler's pod on the same node.
"""

from __future__ import annotations

import json
import urllib.request
from dataclasses import dataclass
from typing import Any

from uellm_devcluster.demo.shell import Shell
from uellm_devcluster.install import PROFILER_NAMESPACE

# All processes of the engine that have a partition, so that a worker with a different one would be noticed.
_ENVIRONMENTS = """
import glob, json
found = []
for path in glob.glob("/proc/[0-9]*/environ"):
    try:
        pairs = [entry.split("=", 1) for entry in open(path).read().split(chr(0)) if "=" in entry]
    except OSError:
        continue
    environment = dict(pairs)
    if "VLLM_PP_LAYER_PARTITION" in environment:
        found.append([environment["VLLM_PP_LAYER_PARTITION"], environment.get("NVIDIA_VISIBLE_DEVICES", "")])
print(json.dumps(found))
"""

_POD_RESOURCES = """
import asyncio, json, sys
from uellm.profiler.podresources import PodKey, PodResources

async def devices(namespace, name):
    kubelet = PodResources()
    try:
        listed = await kubelet.held()
    finally:
        await kubelet.close()
    return [device.name for device, pod in listed.devices.items() if pod == PodKey(namespace, name)]

print(json.dumps(asyncio.run(devices(*sys.argv[1:]))))
"""


@dataclass(frozen=True)
class Placement:
    """One pod's placement as the three sources report it."""

    pod: str
    partition: str
    processes: int
    products: tuple[str, ...]
    devices_by_status: tuple[str, ...]
    devices_by_kubelet: tuple[str, ...]
    difference: str

    @property
    def agrees(self) -> bool:
        """Whether all sources agree."""
        return not self.difference


def of_pod(shell: Shell, service: str, pod: dict[str, Any]) -> Placement:
    """Read one pod's placement from the three sources."""
    name = pod["metadata"]["name"]
    found = environments(shell, name)
    partitions = sorted({partition for partition, _ in found})
    kubelet = allocated(shell, pod)
    status = shell.json(f"kubectl get llmservice/{service}").get("status", {})
    reported: dict[str, Any] = next((entry for entry in status.get("placements", []) if entry["pod"] == name), {})
    actual = tuple(reported.get("actual", ()))
    layers = ",".join(map(str, reported.get("layers", ())))
    return Placement(
        pod=name,
        partition="|".join(partitions),
        processes=len(found),
        products=_products(shell, pod["spec"]["nodeName"], actual),
        devices_by_status=actual,
        devices_by_kubelet=kubelet,
        difference=_difference(name, partitions, layers, actual, kubelet),
    )


def environments(shell: Shell, pod: str) -> list[tuple[str, str]]:
    """Partition and devices of each process of a pod's engine that has a partition."""
    return [tuple(each) for each in json.loads(shell.python(f"{pod} --container engine", _ENVIRONMENTS))]


def table(placements: list[Placement]) -> str:
    """One line for each pod and source."""
    lines = []
    for placement in placements:
        lines += [
            f"pod {placement.pod}",
            f"  VLLM_PP_LAYER_PARTITION in {placement.processes} processes: {placement.partition}",
            f"  devices in stage order, by status.placements: {', '.join(placement.devices_by_status)}",
            f"  devices by the kubelet's PodResources:        {', '.join(placement.devices_by_kubelet)}",
            f"  products in stage order: {', '.join(placement.products)}",
        ]
    return "\n".join(lines)


def fetch(url: str) -> str:
    """GET on loopback, without a proxy."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(url, timeout=10) as response:
        return str(response.read().decode())


def _difference(pod: str, partitions: list[str], layers: str, actual: tuple[str, ...], kubelet: tuple[str, ...]) -> str:
    if partitions != [layers]:
        return f"{pod}: the processes run partition {partitions}, status says {layers or 'nothing'}"
    if sorted(actual) != sorted(kubelet):
        return f"{pod}: status says devices {list(actual)}, the kubelet {list(kubelet)}"
    return ""


def allocated(shell: Shell, pod: dict[str, Any]) -> tuple[str, ...]:
    """The pod's devices by the kubelet's PodResources."""
    selector = "--selector app.kubernetes.io/name=uellm-profiler"
    node = pod["spec"]["nodeName"]
    profilers = shell.json(f"kubectl get pods --namespace {PROFILER_NAMESPACE} {selector}")["items"]
    profiler = next(entry["metadata"]["name"] for entry in profilers if entry["spec"].get("nodeName") == node)
    where = f"{profiler} --namespace {PROFILER_NAMESPACE}"
    name, namespace = pod["metadata"]["name"], pod["metadata"]["namespace"]
    return tuple(json.loads(shell.python(where, _POD_RESOURCES, namespace, name)))


def _products(shell: Shell, node: str, uuids: tuple[str, ...]) -> tuple[str, ...]:
    devices = shell.json(f"kubectl get gpunodeprofile/{node}")["status"]["devices"]
    products = {device["uuid"]: device["product"] for device in devices}
    return tuple(products.get(uuid, "?") for uuid in uuids)
