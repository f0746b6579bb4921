"""Pods a second of the real kube-scheduler, alone and with extenders: 500 pods on 100 nodes of 8 GPUs.

    python bench/scheduling_rate.py [--json FILE] [--rounds 3] [--nodes 100] [--pods 500]

A control plane on this machine, its nodes played by kwok. All pods, of 1 and 2 GPUs, exist before the scheduler
starts; the rate counts from its first binding to its last. All schedulers have the chart's configuration, but for the
extender, and no limit on their requests, which would hide the difference. Rounds alternate; the medians are compared.

    plain      no extender
    passing    one that answers at once what was written beforehand: what the protocol alone costs
    extender   ours

CPU is the time of the scheduler and of the extender for each pod. Other load on the machine does change the rates: each
pod waits for the extender's process twice, and for the scheduler's after each answer.

Target: 0.7 of the plain scheduler's rate. Every round checks that all pods are placed and that no node gives more than
it has.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import aclosing, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from uellm.api.names import PLAN_ANNOTATION
from uellm.kube import CRD, GPUNODEPROFILE, NODE, POD, SYNCED, Kube
from uellm_devcluster import ControlPlane
from uellm_devcluster.binaries import ensure
from uellm_devcluster.local import free_ports

ROOT = Path(__file__).parents[1]
MANAGER = "bench"
GIB = 2**30
GPUS = 8
TARGET = 0.7
AT_A_TIME = 16
LIMIT_S = 300.0
DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def profile(node: str) -> dict[str, Any]:
    """A node's GPUs, none of them taken."""
    measured = {"bf16GigaflopsPerSecond": 989_000, "memoryBytesPerSecond": 3_350 * 10**9}
    devices = [
        {
            "index": index,
            "uuid": f"GPU-{node}-{index}",
            "product": "H100",
            "memoryBytes": 80 * GIB,
            "resourceName": "nvidia.com/gpu",
            "health": {"state": "Healthy"},
            "measured": measured,
        }
        for index in range(GPUS)
    ]
    status = {"observedAt": "2026-01-01T00:00:00Z", "source": "NVML", "devices": devices}
    metadata = {"name": node}
    return {
        "apiVersion": GPUNODEPROFILE.api_version,
        "kind": GPUNODEPROFILE.kind,
        "metadata": metadata,
        "status": status,
    }


def pod(name: str, gpus: int, scheduler: str) -> dict[str, Any]:
    """A pod with the plan of a model of 14 GB on each of its GPUs."""
    plan = {
        "gpus": gpus,
        "tensor": gpus,
        "pipeline": 1,
        "resourceName": "nvidia.com/gpu",
        "layerCount": 32,
        "layerBytes": 440_000_000 * gpus,
        "layerKvBytes": 100_000_000,
        "firstStageBytes": 0,
        "lastStageBytes": 0,
        "reservedBytes": {"fixed": GIB, "fraction": "0.08"},
        "layers": None,
        "service": f"bench/gpus-{gpus}",
    }
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": name,
            "namespace": "default",
            "labels": {"uellm.io/service": f"gpus-{gpus}", "bench": scheduler},
            "annotations": {PLAN_ANNOTATION: json.dumps(plan)},
        },
        "spec": {
            "schedulerName": scheduler,
            "terminationGracePeriodSeconds": 0,
            "containers": [
                {
                    "name": "engine",
                    "image": "engine",
                    "resources": {
                        "requests": {"cpu": "1", "memory": "1Gi"},
                        "limits": {"nvidia.com/gpu": str(gpus)},
                    },
                }
            ],
        },
    }


async def each_of(calls: Iterable[Awaitable[Any]]) -> None:
    """All of them, some at a time."""
    gate = asyncio.Semaphore(AT_A_TIME)

    async def one(call: Awaitable[Any]) -> None:
        async with gate:
            await call

    await asyncio.gather(*map(one, calls))


async def until(holds: Callable[[], Awaitable[bool]]) -> None:
    """Wait for something that happens by itself."""
    deadline = time.monotonic() + LIMIT_S
    while not await holds():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {LIMIT_S:g} s")
        await asyncio.sleep(0.1)


async def prepare(kube: Kube, nodes: int) -> None:
    """The CRDs, and GPUs for kwok's nodes."""
    for path in sorted((ROOT / "manifests" / "crds").glob("*.yaml")):
        crd = yaml.safe_load(path.read_text())
        await kube.apply(crd, manager=MANAGER)

        async def is_established(name: str = crd["metadata"]["name"]) -> bool:
            conditions = ((await kube.get(CRD, name) or {}).get("status") or {}).get("conditions") or ()
            return any(each["type"] == "Established" and each["status"] == "True" for each in conditions)

        await until(is_established)
    await each_of(prepare_node(kube, f"kwok-{index}") for index in range(nodes))


async def prepare_node(kube: Kube, node: str) -> None:
    """GPUs and a profile for one node."""
    count = {"nvidia.com/gpu": str(GPUS)}
    status = {"capacity": count, "allocatable": count}
    await kube.apply_status(
        {"apiVersion": "v1", "kind": NODE.kind, "metadata": {"name": node}, "status": status}, manager=MANAGER
    )
    document = profile(node)
    await kube.apply({name: document[name] for name in ("apiVersion", "kind", "metadata")}, manager=MANAGER)
    await kube.apply_status(document, manager=MANAGER)


@contextmanager
def running(log: Path, *command: str) -> Iterator[subprocess.Popen[bytes]]:
    """A process for as long as the block."""
    with log.open("ab") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output)
    try:
        yield process
    finally:
        process.terminate()
        process.wait(30)


def scheduler(kubeconfig: Path, directory: Path, name: str, extender: str) -> tuple[str, ...]:
    """The command of a scheduler. `extender`: its address; empty for none."""
    asked = {
        "urlPrefix": extender,
        "filterVerb": "filter",
        "prioritizeVerb": "prioritize",
        "weight": 10,
        "nodeCacheCapable": True,
        "httpTimeout": "5s",
        "managedResources": [{"name": "nvidia.com/gpu", "ignoredByScheduler": False}],
    }
    configuration = {
        "apiVersion": "kubescheduler.config.k8s.io/v1",
        "kind": "KubeSchedulerConfiguration",
        "clientConnection": {"kubeconfig": str(kubeconfig), "qps": 5000, "burst": 5000},
        "leaderElection": {"leaderElect": False},
        "percentageOfNodesToScore": 100,
        "profiles": [{"schedulerName": name}],
        "extenders": [asked] if extender else [],
    }
    path = directory / f"{name}.yaml"
    path.write_text(yaml.safe_dump(configuration))
    return str(ensure({"kube-scheduler"}) / "kube-scheduler"), f"--config={path}", "--secure-port=0"


def cpu_s(pid: int) -> float:
    """CPU time of all threads of a process."""
    return sum(int(path.read_text().split()[0]) for path in Path(f"/proc/{pid}/task").glob("*/schedstat")) / 1e9


class Round(NamedTuple):
    """What one round measured."""

    pods_per_s: float
    scheduler_ms: float
    """CPU for each pod, from the scheduler's first binding to its last."""
    extender_ms: float


async def one_round(
    kube: Kube, name: str, number: int, pods: int, directory: Path, command: tuple[str, ...], extender: int
) -> Round:
    """One scheduler, which finds all pods waiting. `extender`: the id of its process."""
    # Each round has names of its own: kwok ends a deleted pod by its name, and may do so after the next one is made.
    sized = {f"{name}-{number}-{index}": 1 + index % 2 for index in range(pods)}
    await each_of(kube.create(pod(each, gpus, name)) for each, gpus in sized.items())
    bound: dict[str, float] = {}
    selector, ready, first = f"bench={name}", asyncio.Event(), asyncio.Event()

    async def follow() -> None:
        async with aclosing(kube.watch(POD, namespace="default", label_selector=selector)) as events:
            async for event in events:
                if event.type == SYNCED:
                    ready.set()
                elif event.object["spec"].get("nodeName"):
                    bound.setdefault(event.object["metadata"]["name"], time.monotonic())
                    first.set()
                    if len(bound) == pods:
                        return

    following = asyncio.create_task(follow())
    await ready.wait()
    with running(directory / f"{name}.log", *command) as process:
        async with asyncio.timeout(LIMIT_S):
            await first.wait()
            pids, already = (process.pid, extender), len(bound)
            before = [cpu_s(pid) for pid in pids]
            await following
            left = max(1, pods - already)
            scheduler_ms, extender_ms = ((cpu_s(pid) - own) * 1e3 / left for pid, own in zip(pids, before, strict=True))
    taken: Counter[str] = Counter()
    for each in await kube.list(POD, "default", label_selector=selector):
        taken[each["spec"]["nodeName"]] += int(each["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"])
    if max(taken.values()) > GPUS:
        raise RuntimeError(f"more GPUs were given than a node has: {taken.most_common(1)}")
    await each_of(kube.delete(POD, each, "default", grace_s=0) for each in sized)

    async def is_empty() -> bool:
        return not await kube.list(POD, "default", label_selector=selector)

    await until(is_empty)
    return Round((pods - 1) / (max(bound.values()) - min(bound.values())), scheduler_ms, extender_ms)


async def measure(plane: ControlPlane, args: argparse.Namespace, directory: Path) -> dict[str, list[Round]]:
    """All rounds, by scheduler."""
    rounds: dict[str, list[Round]] = {"plain": [], "passing": [], "extender": []}
    urls = {name: f"http://127.0.0.1:{port}" for name, port in free_ports("passing", "extender").items()}
    passing = str(Path(__file__).with_name("passing_extender.py"))
    port = urls["passing"].rpartition(":")[2]
    uellm = str(Path(sys.executable).parent / "uellm")
    options = (
        f"--listen={urls['extender'].removeprefix('http://')}",
        f"--kubeconfig={plane.kubeconfig}",
        "--log-level=WARNING",
    )
    async with await Kube.connect(kubeconfig=str(plane.kubeconfig)) as kube:
        await prepare(kube, args.nodes)
        with (
            running(directory / "extender.log", uellm, "extender", *options) as extender,
            running(directory / "passing.log", sys.executable, passing, port, str(args.nodes)) as passes,
        ):
            for url in urls.values():
                await until(lambda url=url: asyncio.to_thread(answers, f"{url}/readyz"))
            for number in range(args.rounds):
                # Whoever comes last finds the machine warmer.
                for name in list(rounds) if number % 2 == 0 else list(reversed(rounds)):
                    command = scheduler(plane.kubeconfig, directory, name, urls.get(name, ""))
                    asked = (passes if name == "passing" else extender).pid
                    found = await one_round(kube, name, number, args.pods, directory, command, asked)
                    rounds[name].append(found)
                    print(f"round {number + 1}, {name}: {found.pods_per_s:.1f} pods/s", flush=True)
    return rounds


def answers(url: str) -> bool:
    """Whether a probe succeeds."""
    try:
        with DIRECT.open(url, timeout=5):
            return True
    except OSError:
        return False


def main() -> int:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of each (3)")
    parser.add_argument("--nodes", type=int, default=100)
    parser.add_argument("--pods", type=int, default=500)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, ControlPlane(kwok_nodes=args.nodes, scheduler=False) as plane:
        rounds = asyncio.run(measure(plane, args, Path(folder)))
    rates = {name: statistics.median(each.pods_per_s for each in found) for name, found in rounds.items()}
    cpu = {
        name: [statistics.median(each[field] for each in found) for field in (1, 2)] for name, found in rounds.items()
    }
    ratio = rates["extender"] / rates["plain"]
    print(f"{'':<12}{'pods/s':>8}{'CPU ms/pod: scheduler':>25}{'extender':>10}")
    for name, rate in rates.items():
        print(f"{name:<12}{rate:>8.1f}{cpu[name][0]:>25.2f}{cpu[name][1]:>10.2f}")
    protocol = rates["passing"] / rates["plain"]
    print(
        f"of the plain rate: {ratio:.2f} with the extender, {protocol:.2f} with one that does nothing; target {TARGET}"
    )
    if args.json:
        result = {
            "benchmark": "scheduling_rate",
            "podsPerSecond": rates,
            "cpuMillisecondsPerPod": cpu,
        }
        args.json.write_text(json.dumps({**result, "ratio": round(ratio, 3), "target": TARGET}, indent=2) + "\n")
    return 0 if ratio >= TARGET else 1


if __name__ == "__main__":
    sys.exit(main())
