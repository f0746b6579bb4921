"""How long the operator takes from LLMServices applied to planned, on a real API server; and how much memory.

    python bench/operator_scale.py [--json FILE] [--services 50] [--nodes 20] [--gpus 8] [--log FILE]

The control plane is real, the nodes are played by kwok; each has GPUs of unlike sizes in its GPUNodeProfile. The
services are applied at once, while the operator runs; the clock stops when the last of them is planned. Then
every pod runs (kwok's at once), and the clock stops again when the last service is Ready.

Target: 50 services on 20 nodes planned in under 10 s in all.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import yaml

from uellm.kube import CRD, GPUNODEPROFILE, LEASE, LLMSERVICE, NODE, Kube
from uellm_devcluster import ControlPlane

ROOT = Path(__file__).parents[1]
GIB = 2**30
TARGET_S = 10.0
MANAGER = "uellm-bench"
# Half of the nodes have large GPUs and small ones, the others middling ones.
SIZES_GIB = (80, 80, 24, 24, 48, 48, 24, 24), (40, 40, 40, 40, 24, 24, 16, 16)
LAYERS = (16, 32, 48, 64)  # of four models: 4 to 15 billion parameters
LONGEST_S = 300.0


def profile(node: str, index: int, gpus: int) -> dict[str, Any]:
    sizes = SIZES_GIB[index % 2]
    devices = [
        {
            "index": number,
            "uuid": f"GPU-{node}-{number}",
            "product": f"Simulated {sizes[number % len(sizes)]}",
            "memoryBytes": sizes[number % len(sizes)] * GIB,
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
    for index in range(nodes):
        node, count = f"kwok-{index}", {"nvidia.com/gpu": str(gpus)}
        status = {"status": {"capacity": count, "allocatable": count}}
        await kube.apply_status(
            {"apiVersion": "v1", "kind": NODE.kind, "metadata": {"name": node}, **status}, manager=MANAGER
        )
        document = profile(node, index, gpus)
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
    command += ["--namespace=default", "--sidecar-image=sidecar:1", "--launcher-image=launcher:1"]
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


async def measure(args: argparse.Namespace, kubeconfig: Path) -> dict[str, Any]:
    async with await Kube.connect(kubeconfig=str(kubeconfig)) as kube:
        await prepare(kube, args.nodes, args.gpus)
        async with controller(kube, kubeconfig, args.log) as pid:
            counts: dict[str, float] = {}

            async def all_have(condition: str) -> bool:
                counts[condition] = await having(kube, condition)
                return counts[condition] == args.services

            start = time.perf_counter()
            await asyncio.gather(*(kube.create(service(index)) for index in range(args.services)))
            applied_s = time.perf_counter() - start
            await until(lambda: all_have("Planned"))
            planned_s = time.perf_counter() - start
            await until(lambda: all_have("Ready"))
            ready_s = time.perf_counter() - start
            memory = resident(pid)
    return {
        "services": args.services,
        "nodes": args.nodes,
        "appliedSeconds": round(applied_s, 2),
        "plannedSeconds": round(planned_s, 2),
        "readySeconds": round(ready_s, 2),
        "targetSeconds": TARGET_S,
        **memory,
    }


async def having(kube: Kube, condition: str) -> int:
    held = 0
    for document in await kube.list(LLMSERVICE, "default"):
        entries = (document.get("status") or {}).get("conditions") or []
        held += any(entry["type"] == condition and entry["status"] == "True" for entry in entries)
    return held


def resident(pid: int) -> dict[str, float]:
    """Resident memory and CPU time of the operator's process and of the planner's process under it."""
    children = [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return {
        "operatorMebibytes": round(_resident_mib(pid), 1),
        "plannerMebibytes": round(sum(map(_resident_mib, children)), 1),
        "operatorCpuSeconds": round(_cpu_s(pid), 1),
        "plannerCpuSeconds": round(sum(map(_cpu_s, children)), 1),
    }


def _resident_mib(pid: int) -> float:
    fields = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":" in line)
    return int(fields.get("VmRSS", "0 kB").split()[0]) / 1024


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--services", type=int, default=50)
    parser.add_argument("--nodes", type=int, default=20)
    parser.add_argument("--gpus", type=int, default=8, help="GPUs of each node (8)")
    parser.add_argument("--log", type=Path, default=Path(os.devnull), help="the operator's log goes to this file")
    args = parser.parse_args()
    with ControlPlane(kwok_nodes=args.nodes) as plane:
        figures = asyncio.run(measure(args, plane.kubeconfig))
    for name, value in figures.items():
        print(f"{name:<20}{value:>10}")
    if args.json:
        args.json.write_text(json.dumps({"benchmark": "operator_scale", "results": [figures]}, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
