"""What the operator costs with many services, on a real API server.

    python bench/operator_scale.py [--json FILE] [--services 100 300 1000] [--nodes 200] [--gpus 8] [--settle S]
                                   [--log FILE]

The control plane is real, the nodes are played by kwok; each has eight GPUs in its GPUNodeProfile. The sidecars of its
pods are played by this program. All services exist when the operator starts. Measured are

    planned      until the last of them is planned (target 60 s at 1,000)
    scaled       meanwhile, from `kubectl scale` of one service to its Deployment (1 s)
    idle         CPU time of the operator's process when all has settled (2 % of a core)
    allocation   CPU time of that process when a pod that is none of ours takes a GPU (50 ms)
    memory       resident, of the operator's process (200 MiB) and of its planners

Everything runs on the same cores here: API server, etcd, controllers, scheduler, kwok and operator. In a cluster the
operator has a core of its own. So CPU time is shown for each of them, until all services are planned and in all, and of
the operator for each service.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Iterable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import yaml
from played_sidecars import PlayedSidecars

from uellm.api.node_labels import own_labels
from uellm.hardware import Node
from uellm.kube import CRD, DEPLOYMENT, GPUNODEPROFILE, LEASE, LLMSERVICE, NODE, Kube
from uellm_devcluster import ControlPlane

ROOT = Path(__file__).parents[1]
GIB = 2**30
TARGET_S = 60.0
OBSERVED_S = 10.0
IDLE_WINDOWS = 3
ALLOCATIONS, ALLOCATION_S = 7, 3.0
MANAGER = "uellm-bench"
IMAGES = [f"--{role}-image={role}:1" for role in ("sidecar", "launcher", "inspector")]
# The nodes are of three kinds. GPUs of a node are alike, so that any scheduler can place pods on it.
SIZES_GIB = (80, 48, 24)
LAYERS = (16, 32, 48, 64)  # of four models: 4 to 15 billion parameters
LONGEST_S = 400.0


def profile(node: str, index: int, gpus: int) -> dict[str, Any]:
    size_gib = SIZES_GIB[index % len(SIZES_GIB)]
    devices = [
        {
            "index": number,
            "uuid": f"GPU-{node}-{number}",
            "product": f"Simulated {size_gib}",
            "computeCapability": "9.0",
            "memoryBytes": size_gib * GIB,
            "resourceName": "nvidia.com/gpu",
            "health": {"state": "Healthy"},
            "measured": {"bf16GigaflopsPerSecond": 150_000, "memoryBytesPerSecond": 10**12},
        }
        for number in range(gpus)
    ]
    return {
        "apiVersion": GPUNODEPROFILE.api_version,
        "kind": GPUNODEPROFILE.kind,
        "metadata": {"name": node},
        "status": {"observedAt": "2026-01-01T00:00:00Z", "source": "NVML", "devices": devices},
    }


def service(index: int) -> dict[str, Any]:
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": LAYERS[index % len(LAYERS)],
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 128256,
        "max_position_embeddings": 8192,
        "torch_dtype": "bfloat16",
    }
    return {
        "apiVersion": LLMSERVICE.api_version,
        "kind": LLMSERVICE.kind,
        "metadata": {"name": f"service-{index}", "namespace": "default"},
        "spec": {
            "model": {"uri": "file:///models/x", "config": config, "maxModelLen": 4096},
            "placement": {"schedulerName": "default-scheduler"},
            "workload": {"requestsPerSecond": "1"},
        },
    }


async def prepare(kube: Kube, nodes: int, gpus: int) -> None:
    for path in sorted((ROOT / "manifests" / "crds").glob("*.yaml")):
        crd = yaml.safe_load(path.read_text())
        await kube.apply(crd, manager=MANAGER)
        await until(lambda crd=crd: established(kube, crd["metadata"]["name"]))
    await each_of(prepare_node(kube, index, gpus) for index in range(nodes))


async def prepare_node(kube: Kube, index: int, gpus: int) -> None:
    """GPUs for one of kwok's nodes, its labels and its profile."""
    node, count = f"kwok-{index}", {"nvidia.com/gpu": str(gpus)}
    status = {"status": {"capacity": count, "allocatable": count}}
    await kube.apply_status(
        {"apiVersion": "v1", "kind": NODE.kind, "metadata": {"name": node}, **status}, manager=MANAGER
    )
    document = profile(node, index, gpus)
    labels = own_labels(Node.from_profile(document).devices, simulated=False)
    await kube.apply(
        {"apiVersion": "v1", "kind": NODE.kind, "metadata": {"name": node, "labels": labels}}, manager=MANAGER
    )
    await kube.apply({name: document[name] for name in ("apiVersion", "kind", "metadata")}, manager=MANAGER)
    await kube.apply_status(document, manager=MANAGER)


async def established(kube: Kube, name: str) -> bool:
    conditions = ((await kube.get(CRD, name)) or {}).get("status", {}).get("conditions") or []
    return any(entry["type"] == "Established" and entry["status"] == "True" for entry in conditions)


async def until(check: Any, *, every_s: float = 0.1) -> None:
    deadline = time.monotonic() + LONGEST_S
    while not await check():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {LONGEST_S:g} s")
        await asyncio.sleep(every_s)


@asynccontextmanager
async def controller(kube: Kube, kubeconfig: Path, log: Path) -> AsyncIterator[int]:
    """`uellm controller`, from when it holds its lease; yields its process id."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [str(Path(sys.executable).with_name("uellm")), "controller", f"--health-listen=127.0.0.1:{port}"]
    command += ["--namespace=default", *IMAGES]
    with log.open("wb") as output:
        process = subprocess.Popen(  # noqa: ASYNC220 - it starts in a moment, and nothing else runs meanwhile
            command, env={**os.environ, "KUBECONFIG": str(kubeconfig)}, stdout=output, stderr=output
        )
    try:
        await until(lambda: kube.get(LEASE, "uellm-controller", "default"))
        yield process.pid
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=15)


async def measure(args: argparse.Namespace, services: int, kubeconfig: Path) -> dict[str, Any]:
    async with await Kube.connect(kubeconfig=str(kubeconfig)) as kube:
        await prepare(kube, args.nodes, args.gpus)
        await each_of(kube.create(service(index)) for index in range(services))
        before = cpu_seconds(kubeconfig.parent)
        start = time.perf_counter()
        async with (
            PlayedSidecars(kube, "default").played(),
            controller(kube, kubeconfig, args.log) as pid,
            Progress().followed(kube) as progress,
        ):
            await progress.until(services // 4)
            scaled_s = await scale(kube)
            planned_s = await progress.until(services) - start
            until_planned = cpu_seconds(kubeconfig.parent, pid, before)
            settled_s = await until_quiet(pid, args.settle or 120.0 + services / 2)
            settled = cpu_seconds(kubeconfig.parent, pid, before)
            idle = statistics.mean([await share_of_a_core(pid) for _ in range(IDLE_WINDOWS)])
            allocation_s = await cost_of_an_allocation(kube, args.nodes - 1, pid)
            figures = resident(pid)
    return {
        "services": services,
        "nodes": args.nodes,
        "plannedSeconds": round(planned_s, 1),
        "settledSeconds": None if settled_s is None else round(planned_s + settled_s, 1),
        "scaledMeanwhileSeconds": round(scaled_s, 2),
        "idlePercentOfACore": round(100 * idle, 2),
        "allocationMilliseconds": round(1000 * allocation_s, 1),
        "plannedCpuMillisecondsPerService": round(1000 * until_planned["operator"] / services, 1),
        "settledCpuMillisecondsPerService": round(1000 * settled["operator"] / services, 1),
        **figures,
        "cpuSecondsUntilPlanned": until_planned,
        "cpuSecondsUntilSettled": settled,
    }


async def each_of(calls: Iterable[Awaitable[Any]]) -> None:
    """All of them, some at a time: the API server refuses a thousand at once."""
    slots = asyncio.Semaphore(20)

    async def one(call: Awaitable[Any]) -> None:
        async with slots:
            await call

    await asyncio.gather(*map(one, calls))


class Progress:
    """The services that are planned, as a watch tells: lists of a thousand would keep the API server busy."""

    def __init__(self) -> None:
        self._planned: dict[str, float] = {}
        """When each was planned, on the clock of `perf_counter`, in this order."""
        self._changed = asyncio.Condition()

    @asynccontextmanager
    async def followed(self, kube: Kube) -> AsyncIterator[Progress]:
        """Follow the watch for as long as the block runs."""
        task = asyncio.create_task(self._follow(kube))
        try:
            yield self
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def until(self, services: int) -> float:
        """Wait until so many are planned. Returns when they were."""
        async with asyncio.timeout(LONGEST_S), self._changed:
            await self._changed.wait_for(lambda: len(self._planned) >= services)
        return list(self._planned.values())[services - 1]

    async def _follow(self, kube: Kube) -> None:
        async for event in kube.watch(LLMSERVICE, namespace="default"):
            entries = (event.object.get("status") or {}).get("conditions") or []
            if any(entry["type"] == "Planned" and entry["status"] == "True" for entry in entries):
                self._planned.setdefault(event.object["metadata"]["name"], time.perf_counter())
            async with self._changed:
                self._changed.notify_all()


async def scale(kube: Kube) -> float:
    """Seconds from a change of the replicas of one service to that of its Deployment, in the middle of all else."""
    # Pods are held back for a moment while other services wait to be planned.
    await until(lambda: kube.list(DEPLOYMENT, "default"))
    deployments = await kube.list(DEPLOYMENT, "default")
    name = deployments[0]["metadata"]["name"]
    key = name.removesuffix("-engine")
    document = service(int(key.removeprefix("service-")))
    document["spec"]["replicas"] = 2
    start = time.perf_counter()
    await kube.apply(document, manager=MANAGER)

    async def is_scaled() -> bool:
        return ((await kube.get(DEPLOYMENT, name, "default")) or {})["spec"]["replicas"] == 2

    await until(is_scaled, every_s=0.05)
    return time.perf_counter() - start


async def cost_of_an_allocation(kube: Kube, node: int, pid: int) -> float:
    """CPU time in seconds that it takes the operator to see that a pod which is none of ours takes or frees a GPU.

    The operator does other things from time to time. So the time is the median of several differences between a period
    with such a change and the one before it.
    """
    differences_s = []
    for number in range(ALLOCATIONS):
        before = await share_of_a_core(pid, ALLOCATION_S)
        await allocate(kube, node, taken=number % 2 == 0)
        differences_s.append((await share_of_a_core(pid, ALLOCATION_S) - before) * ALLOCATION_S)
    return statistics.median(differences_s)


async def allocate(kube: Kube, node: int, *, taken: bool) -> None:
    """A pod that is none of ours takes a GPU, or frees it."""
    document = profile(f"kwok-{node}", node, 8)
    if taken:
        document["status"]["devices"][-1]["allocatedTo"] = {"podUID": "stranger"}
    await kube.apply_status(document, manager=MANAGER)


async def share_of_a_core(pid: int, observed_s: float = OBSERVED_S) -> float:
    before_s = _cpu_s(pid)
    await asyncio.sleep(observed_s)
    return (_cpu_s(pid) - before_s) / observed_s


async def until_quiet(pid: int, longest_s: float) -> float | None:
    """Wait until pods, ReplicaSets and their events have settled. Returns after how many seconds; None: not in time."""
    start_s = time.monotonic()
    while time.monotonic() < start_s + longest_s:
        if await share_of_a_core(pid) < 0.02:
            return time.monotonic() - start_s
    return None


def resident(pid: int) -> dict[str, float]:
    """Resident memory of the operator's process and of the planners' processes under it."""
    return {
        "operatorMebibytes": round(_resident_mib(pid), 1),
        "plannerMebibytes": round(sum(map(_resident_mib, _children(pid))), 1),
    }


def cpu_seconds(
    plane: Path, operator: int | None = None, before: Mapping[str, float] | None = None
) -> dict[str, float]:
    """CPU time in seconds of the operator, its planners and the control plane's programs, less that of `before`."""
    found: dict[str, float] = {}
    if operator is not None:
        found = {"operator": _cpu_s(operator), "planners": sum(map(_cpu_s, _children(operator)))}
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            program, *arguments = path.read_bytes().decode(errors="replace").split("\0")
            if any(str(plane) in argument for argument in arguments):
                found[Path(program).name] = _cpu_s(int(path.parent.name))
    return {name: round(value - (before or {}).get(name, 0.0), 1) for name, value in found.items()}


def _children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def _resident_mib(pid: int) -> float:
    fields = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":" in line)
    return int(fields.get("VmRSS", "0 kB").split()[0]) / 1024


def _cpu_s(pid: int) -> float:
    """CPU time of all threads, to the nanosecond."""
    return sum(int(path.read_text().split()[0]) for path in Path(f"/proc/{pid}/task").glob("*/schedstat")) / 1e9


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--services", type=int, nargs="+", default=[100])
    parser.add_argument("--nodes", type=int, default=200)
    parser.add_argument("--gpus", type=int, default=8, help="GPUs of each node (8)")
    parser.add_argument(
        "--settle",
        type=float,
        metavar="S",
        help="seconds to wait until pods have settled (two minutes and a second for each two services)",
    )
    parser.add_argument("--log", type=Path, default=Path(os.devnull), help="the operator's log goes to this file")
    args = parser.parse_args()
    results = []
    for services in args.services:
        with ControlPlane(kwok_nodes=args.nodes) as plane:
            results.append(asyncio.run(measure(args, services, plane.kubeconfig)))
        for name, value in results[-1].items():
            shown = ", ".join(f"{key} {each:g}" for key, each in value.items()) if isinstance(value, dict) else value
            print(f"{name:<34}{shown}", flush=True)
        if args.json:
            args.json.write_text(json.dumps({"benchmark": "operator_scale", "results": results}, indent=2) + "\n")
    return int(any(result["plannedSeconds"] > TARGET_S for result in results))


if __name__ == "__main__":
    sys.exit(main())
