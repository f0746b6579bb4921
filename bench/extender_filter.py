"""How long kube-scheduler waits for the extender's filter, over a socket, at 100 and 1,000 nodes of 8 GPUs.

    python bench/extender_filter.py [--json FILE] [--seconds 5]

    pass-all     the baseline: the same question for a pod without a plan; every node passes unchecked
    known plan   a plan that was seen before, as for every pod of a service but its first
    new plan     a plan that was never seen before: every node is checked by the planner's rule

Targets: p99 below 20 ms at 100 nodes and below 100 ms at 1,000. CPU is the time that this process (extender and client)
spent on a request; other load on the machine does not change it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import aiohttp
import uvloop

from uellm.api.names import PLAN_ANNOTATION
from uellm.extender.metrics import ExtenderMetrics
from uellm.extender.server import ExtenderServer
from uellm.extender.view import View
from uellm.hardware import GPU_RESOURCE
from uellm.kube import GPUNODEPROFILE, POD, Event, Kind
from uellm.planner.handover.annotation import refusal_on

GIB = 2**30
HARDWARE = ("GPU A", 24 * GIB), ("GPU B", 40 * GIB), ("GPU C", 80 * GIB)
TARGET_P99_MS = {100: 20.0, 1000: 100.0}


class WrittenCluster:
    """A `Kube` whose watches report profiles that never change."""

    def __init__(self, profiles: list[dict[str, Any]]) -> None:
        self._objects = {GPUNODEPROFILE: profiles, POD: []}

    async def watch(self, kind: Kind, *, on_contact: Callable[[], None], **_: Any) -> AsyncIterator[Event]:
        for obj in self._objects[kind]:
            yield Event("ADDED", obj)
        on_contact()
        yield Event("SYNCED", {})
        while True:
            await asyncio.sleep(1)
            on_contact()


def profile(index: int, rng: random.Random) -> dict[str, Any]:
    """A node with 8 GPUs, two kinds of them on every third node, and some of them taken."""
    kinds = rng.sample(HARDWARE, 2) if index % 3 == 0 else [rng.choice(HARDWARE)] * 2
    devices = []
    for device in range(8):
        product, memory_bytes = kinds[device // 4]
        taken = {"allocatedTo": {"podUID": f"pod-{index}-{device}"}} if rng.random() < 0.3 else {}
        measured = {"memoryBytesPerSecond": memory_bytes * 40, "bf16GigaflopsPerSecond": 300_000}
        uuid = f"GPU-{index}-{device}"
        devices.append({"index": device, "uuid": uuid, "product": product, "memoryBytes": memory_bytes, **taken})
        devices[-1]["measured"] = measured
    return {"metadata": {"name": f"node-{index}"}, "status": {"source": "NVML", "devices": devices}}


def plan(serial: int, nodes: int) -> str:
    """Two stages of a 70-billion-parameter model in 8 bits. Each `serial` gives a different plan."""
    document = {
        "gpus": 2,
        "tensor": 1,
        "pipeline": 2,
        "resourceName": GPU_RESOURCE,
        "layerCount": 80,
        "layerBytes": 850_000_000 + serial,
        "layerKvBytes": 30_000_000,
        "firstStageBytes": 2 * GIB,
        "lastStageBytes": 2 * GIB,
        "reservedBytes": {"fixed": 2 * GIB, "fraction": "0.08"},
        "layers": None,
        "nodes": [f"node-{index}" for index in range(min(nodes, 32))],
        "service": f"bench/service-{serial}",
    }
    return json.dumps(document)


def question(text: str | None, names: list[str]) -> bytes:
    """The request that kube-scheduler posts."""
    annotations = {PLAN_ANNOTATION: text} if text else {}
    pod = {"metadata": {"name": "p", "namespace": "bench", "annotations": annotations}, "spec": {"containers": []}}
    return json.dumps({"Pod": pod, "Nodes": None, "NodeNames": names}).encode()


async def latencies_ms(client: aiohttp.ClientSession, bodies: Callable[[int], bytes], seconds: float) -> list[float]:
    """One request after the other, as the scheduler sends them."""
    taken: list[float] = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(taken) < 30:
        body = bodies(len(taken))
        start = time.perf_counter()
        async with client.post("/filter", data=body) as response:
            answer = await response.json()
        taken.append((time.perf_counter() - start) * 1e3)
        if answer["Error"] or len(answer["NodeNames"]) + len(answer["FailedNodes"]) == 0:
            raise RuntimeError(f"not an answer: {answer}")
    return taken


async def measure(nodes: int, seconds: float) -> list[dict[str, Any]]:
    """All cases at one size of cluster, on one extender."""
    rng = random.Random(nodes)
    view = View(WrittenCluster([profile(index, rng) for index in range(nodes)]))  # type: ignore[arg-type]
    watching = asyncio.create_task(view.run())
    names = [f"node-{index}" for index in range(nodes)]
    unplanned, known = question(None, names), question(plan(0, nodes), names)
    cases: dict[str, Callable[[int], bytes]] = {
        "pass-all": lambda _: unplanned,
        "known plan": lambda _: known,
        "new plan": lambda serial: question(plan(serial + 1, nodes), names),
    }
    rows = []
    async with (
        ExtenderServer(view, refusal_on, ExtenderMetrics(), "127.0.0.1", 0) as server,
        aiohttp.ClientSession(f"http://127.0.0.1:{server.port}") as client,
    ):
        for case, bodies in cases.items():
            await latencies_ms(client, bodies, 0)  # imports, caches and the connection are warm afterwards
            cpu_s = time.process_time()
            taken = await latencies_ms(client, lambda n, bodies=bodies: bodies(n + 1000), seconds)
            cpu_ms = (time.process_time() - cpu_s) * 1e3 / len(taken)
            rows.append(row(nodes, case, taken, cpu_ms, rows))
    watching.cancel()
    return rows


def row(nodes: int, case: str, taken: list[float], cpu_ms: float, before: list[dict[str, Any]]) -> dict[str, Any]:
    """The figures of one case. The ratio is to the p99 of the first case, the baseline."""
    p99 = statistics.quantiles(taken, n=100)[98]
    baseline = before[0]["p99Milliseconds"] if before else p99
    return {
        "nodes": nodes,
        "case": case,
        "requests": len(taken),
        "p50Milliseconds": round(statistics.median(taken), 3),
        "p99Milliseconds": round(p99, 3),
        "cpuMilliseconds": round(cpu_ms, 3),
        "timesPassAll": round(p99 / baseline, 2),
        "targetMilliseconds": TARGET_P99_MS[nodes],
    }


def main() -> int:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--seconds", type=float, default=5.0, help="seconds for each case (5)")
    args = parser.parse_args()
    rows = [each for nodes in TARGET_P99_MS for each in uvloop.run(measure(nodes, args.seconds))]
    titles = ("requests", 9), ("p50 ms", 9), ("p99 ms", 9), ("CPU ms", 9), ("x pass-all", 12), ("target ms", 11)
    print(f"{'nodes':>6}  {'case':<11}" + "".join(title.rjust(width) for title, width in titles))
    for each in rows:
        print(
            f"{each['nodes']:>6}  {each['case']:<11}{each['requests']:>9}{each['p50Milliseconds']:>9.2f}"
            f"{each['p99Milliseconds']:>9.2f}{each['cpuMilliseconds']:>9.2f}{each['timesPassAll']:>12.2f}{each['targetMilliseconds']:>11.0f}"
        )
    if args.json:
        args.json.write_text(json.dumps({"benchmark": "extender_filter", "results": rows}, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
