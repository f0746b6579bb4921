"""What it costs to plan many services that all come at once, by number of services and nodes.

    python bench/planning_scale.py [--json FILE] [--services 100 1000] [--nodes 200] [--noise 0]

The cache is filled directly, and the work of the planners is done in this process, through the same parcels that are
sent to them. So there is no API server, and all figures are CPU time, which other programs do not change much:

    LOOP      of the operator's event loop, for each service
    PLANNER   of a planner's process, for each service
    BYTES     sent to it, for each service
    IN ALL    seconds until all are planned, with two planners, where nothing else takes time

With `--noise 0.02` all figures of all nodes differ by up to 2 %, as if every node was measured.

Targets: 1,000 services on 200 nodes are planned within 60 s, and one service on 500 nodes that all differ within 5 s
(`--services 1 --nodes 500 --noise 0.02`).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import operator_scale as scale

from uellm.api.node_labels import own_labels
from uellm.hardware import Node
from uellm.kube.kinds import GPUNODEPROFILE, LLMSERVICE, NODE
from uellm.planner.request import PlanRequest
from uellm.planner.result import Plan
from uellm.reconcile.cache import Cache
from uellm.reconcile.observe import observe
from uellm.reconcile.planning import parcel
from uellm.reconcile.planning.answer import PlanningAnswer, PlanningQuestion, answer
from uellm.reconcile.planning.planning import Planning
from uellm.reconcile.planning.render import render
from uellm.reconcile.rendered_plan import RenderedPlan
from uellm.text import aligned

TARGET_S, TARGET_OF_ONE_S = 60.0, 5.0
PLANNERS = 2


class Planner:
    """A planner's process, played by this one."""

    def __init__(self) -> None:
        self._sender = parcel.Sender()
        self.cpu_s = 0.0
        self.sent_bytes = 0

    async def answer(self, question: PlanningQuestion) -> PlanningAnswer:
        """Plan, as in the planner's process."""
        sent = self._sender.pack(answer, question)
        start_s = time.process_time()
        found: PlanningAnswer = parcel.run(sent)
        self.cpu_s += time.process_time() - start_s
        self._sender.delivered()
        self.sent_bytes += len(sent.call) + sum(len(content) for _, content in sent.shared)
        return found

    async def render(self, plan: Plan, request: PlanRequest) -> RenderedPlan:
        """Render a plan that was chosen earlier."""
        return render(plan, request)


def unlike(document: dict[str, Any], noise: float, rng: random.Random) -> None:
    """Make every figure of a profile differ by up to this share."""
    status = document["status"]
    sections = [(each["measured"], "PerSecond") for each in status["devices"] if "measured" in each]
    sections += [(link, ("PerSecond", "Nanoseconds")) for link in status.get("links") or ()]
    for section, names in sections:
        for name in [name for name in section if name.endswith(names)]:
            section[name] = max(1, round(section[name] * (1 + rng.uniform(-noise, noise))))


def filled(services: int, nodes: int, noise: float = 0.0) -> Cache:
    """A cluster of nodes with eight GPUs each, and its services."""
    cache, rng = Cache(), random.Random(1)
    for index in range(nodes):
        name = f"kwok-{index}"
        document = scale.profile(name, index, 8)
        document["metadata"].update(uid=f"profile-{name}", resourceVersion="1")
        if noise:
            unlike(document, noise, rng)
        labels = own_labels(Node.from_profile(document).devices, simulated=False)
        metadata = {"name": name, "uid": f"node-{name}", "resourceVersion": "1", "labels": labels}
        cache.put(GPUNODEPROFILE, document)
        cache.put(NODE, {"metadata": metadata, "spec": {}})
    for index in range(services):
        document = scale.service(index)
        document["metadata"].update(uid=f"uid-{index}", generation=1, resourceVersion="1")
        cache.put(LLMSERVICE, document)
    return cache


async def measure(services: int, nodes: int, noise: float) -> dict[str, Any]:
    """Plan every service once."""
    cache, planner, now = filled(services, nodes, noise), Planner(), datetime.now(UTC)
    planning = Planning(cache, planner)
    start_s = time.process_time()
    for key in cache.service_keys():
        observed = observe(cache, key)
        assert observed is not None
        planned = await planning.plan(observed, now)
        assert planned is not None
        assert planned.choice.plan is not None, planned.choice.failure
    loop_s = time.process_time() - start_s - planner.cpu_s
    return {
        "services": services,
        "nodes": nodes,
        "noise": noise,
        "loopMilliseconds": round(1e3 * loop_s / services, 2),
        "plannerMilliseconds": round(1e3 * planner.cpu_s / services, 2),
        "bytes": planner.sent_bytes // services,
        "seconds": round(max(loop_s, planner.cpu_s / min(services, PLANNERS)), 1),
    }


def table(results: list[dict[str, Any]]) -> str:
    """The table that is printed."""
    lines = [["SERVICES", "NODES", "NOISE", "LOOP", "PLANNER", "BYTES", "IN ALL"]]
    for each in results:
        milliseconds = [f"{each[name]:.1f} ms" for name in ("loopMilliseconds", "plannerMilliseconds")]
        lines.append(
            [
                str(each["services"]),
                str(each["nodes"]),
                f"{each['noise']:.0%}",
                *milliseconds,
                str(each["bytes"]),
                f"{each['seconds']} s",
            ]
        )
    return "\n".join(aligned(lines))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--services", type=int, nargs="+", default=[100, 1000])
    parser.add_argument("--nodes", type=int, default=200)
    parser.add_argument("--noise", type=float, default=0.0, help="share by which figures of equal GPUs differ")
    args = parser.parse_args()
    results = [asyncio.run(measure(services, args.nodes, args.noise)) for services in args.services]
    print(table(results))
    if args.json:
        args.json.write_text(json.dumps({"benchmark": "planning_scale", "results": results}, indent=2) + "\n")
    return int(any(each["seconds"] > (TARGET_S if each["services"] > 1 else TARGET_OF_ONE_S) for each in results))


if __name__ == "__main__":
    sys.exit(main())
