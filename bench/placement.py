"""CPU time of `uellm place` beside brute force and a MILP in HiGHS, and how it grows with the size of the problem.

    python bench/placement.py [--json FILE] [--plot FILE.png|svg] [--quick] [--seed 0]

Times are CPU seconds of one solve in this process; reading the JSON instance and importing numpy are not counted. Every
instance has its own seed, counted up from --seed. The MILP and brute force solve the same instances and must find the
same cost.

Targets: 8 unlike GPUs x 80 layers p99 < 10 ms; 16 unlike x 80 p99 < 100 ms; 64 GPUs in 8 nodes exact in < 1 s;
`uellm plan` for 72 nodes x 8 GPUs of three kinds and 126 layers < 2 s and < 300 MB.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp

from uellm.hardware import GPU_RESOURCE
from uellm.planner.placement.solver import Instance, Placement, solve

GIB = 2**30
MILP_LIMIT_S = 60.0
MEASURE = """import resource, subprocess, sys
code = subprocess.run(sys.argv[1:]).returncode
used = resource.getrusage(resource.RUSAGE_CHILDREN)
print(round(used.ru_utime + used.ru_stime, 2), used.ru_maxrss, file=sys.stderr)
sys.exit(code)"""
# What makes an instance hard: name -> (links, memory, unlike layers, ends of the pipeline).
UNIFORM = {
    "random links": ("random", "loose", False, False),
    "random links, tight memory": ("random", "tight", False, False),
    "clustered links, tight memory": ("clusters", "tight", False, False),
    "noisy clusters, hardly any spare memory": ("noisy clusters", "scarce", False, False),
}
ENDS = {
    "embedding and head": ("random", "loose", False, True),
    "embedding and head, tight memory": ("random", "tight", False, True),
    "embedding and head, noisy clusters, scarce memory": ("noisy clusters", "scarce", False, True),
}
UNLIKE = {
    "unlike layers, embedding and head": ("random", "loose", True, True),
    "unlike layers, noisy clusters, tight memory": ("noisy clusters", "tight", True, True),
    "unlike layers, scarce memory": ("random", "scarce", True, True),
}


def instance(seed: int, devices: int, layers: int, kind: tuple[str, str, bool, bool]) -> dict[str, Any]:
    """A random instance: GPUs with different memory and speed, link latencies from microseconds to milliseconds."""
    links, memory, unlike, ends = kind
    rng = random.Random(seed)
    if unlike:
        sizes: Any = [rng.choice([0.8e9, 1.0e9, 1.7e9, 2.3e9]) for _ in range(layers)]
        kv: Any = [rng.choice([0.1e9, 0.3e9]) for _ in range(layers)]
        total = sum(sizes) + sum(kv)
    else:
        sizes, kv = 1.7e9 * rng.uniform(0.5, 1.5), 0.2e9 * rng.uniform(0.5, 1.5)
        total = layers * (sizes + kv)
    first, last = (total * rng.uniform(0.005, 0.03) * ends for _ in range(2))
    slack = {"loose": rng.uniform(1.8, 3), "tight": rng.uniform(1.15, 1.3), "scarce": 1.08}[memory]
    raw = [rng.uniform(0.5, 2) for _ in range(devices)]
    scale, clusters = rng.choice([1e-6, 1e-4, 1e-3]), 4

    def hop(i: int, j: int) -> float:
        if links == "random":
            return scale * rng.uniform(1, 10)
        noise = rng.uniform(0.8, 1.2) if links == "noisy clusters" else 1.0
        return scale * noise * (1 if i % clusters == j % clusters else 10)

    return {
        "layers": layers,
        "layerBytes": sizes,
        "layerKvBytes": kv,
        "firstStageBytes": first,
        "lastStageBytes": last,
        "a1": 1.0,
        "a2": rng.choice([0.0, 1e-3, 1.0]),
        "devices": [
            {
                "id": f"g{i:02d}",
                "memoryBytes": share / sum(raw) * (total + first + last) * slack,
                "performance": rng.uniform(3e11, 3.3e12),
            }
            for i, share in enumerate(raw)
        ],
        "latencySeconds": [[0.0 if i == j else hop(i, j) for j in range(devices)] for i in range(devices)],
    }


def nodes(layers: int, slack: float, kinds: int, a2: float) -> dict[str, Any]:
    """Eight nodes of eight GPUs: 5 us inside a node, 50 us between nodes. The `kinds` of nodes alternate."""
    members = [
        (node, (80 - 16 * (node % kinds)) * 1e9, 2e12 / (1 + node % kinds)) for node in range(8) for _ in range(8)
    ]
    layer = sum(memory for _, memory, _ in members) / slack / layers
    return {
        "layers": layers,
        "layerBytes": layer * 0.9,
        "layerKvBytes": layer * 0.1,
        "a2": a2,
        "devices": [
            {"id": f"node{node}-gpu{i % 8}", "memoryBytes": memory, "performance": speed}
            for i, (node, memory, speed) in enumerate(members)
        ],
        "latencySeconds": [
            [0.0 if i == j else 5e-6 if i // 8 == j // 8 else 5e-5 for j in range(64)] for i in range(64)
        ],
    }


def timed(call: Callable[[], Any]) -> tuple[float, Any]:
    began = time.process_time()
    answer = call()
    return time.process_time() - began, answer


def summary(name: str, devices: int, layers: int, objective: str, data: list[dict[str, Any]]) -> dict[str, Any]:
    seconds, answers = [], list[Placement]()
    for each in data:
        given = Instance.from_dict(each)
        took, answer = timed(lambda given=given: solve(given, "HELR", objective))
        seconds.append(took)
        answers.append(answer)
    seconds.sort()
    feasible = [answer for answer in answers if answer.feasible]
    return {
        "case": name,
        "gpus": devices,
        "layers": layers,
        "objective": objective,
        "instances": len(data),
        "feasible": len(feasible),
        "p50Milliseconds": round(1e3 * statistics.median(seconds), 2),
        "p99Milliseconds": round(1e3 * seconds[min(len(seconds) - 1, int(0.99 * len(seconds)))], 2),
        "maxMilliseconds": round(1e3 * seconds[-1], 2),
        "proven": sum(answer.optimal for answer in feasible),
    }


def brute_force(data: dict[str, Any]) -> float | None:
    """The least cost over all orders and splits."""
    layers, best = data["layers"], None
    devices, hops = data["devices"], data["latencySeconds"]
    need = data["layerBytes"] + data["layerKvBytes"]
    for size in range(1, min(layers, len(devices)) + 1):
        for order in itertools.permutations(range(len(devices)), size):
            path = sum(hops[i][j] for i, j in itertools.pairwise(order))
            for cuts in itertools.combinations(range(1, layers), size - 1):
                parts = [b - a for a, b in itertools.pairwise((0, *cuts, layers))]
                taken = [part * need for part in parts]
                taken[0] += data["firstStageBytes"]
                taken[-1] += data["lastStageBytes"]
                if all(used <= devices[d]["memoryBytes"] for used, d in zip(taken, order, strict=True)):
                    time_s = sum(
                        n * data["layerBytes"] / devices[d]["performance"] for n, d in zip(parts, order, strict=True)
                    )
                    cost = data["a1"] * (time_s + path) + data["a2"] * size
                    best = cost if best is None else min(best, cost)
    return best


def by_milp(data: dict[str, Any]) -> tuple[float | None, bool]:
    """The least cost by HiGHS, and whether it is proven.

    Variables: layers x, use y, arcs z, first s, last e, position u (Miller-Tucker-Zemlin).
    """
    n, layers, hops = len(data["devices"]), data["layers"], np.array(data["latencySeconds"])
    per = data["layerBytes"] + data["layerKvBytes"]
    # Scaled to layers and to thousandths of a typical cost, because HiGHS's tolerances are absolute.
    memory = np.array([device["memoryBytes"] for device in data["devices"]]) / per
    ends = data["firstStageBytes"] / per, data["lastStageBytes"] / per
    time_s = np.array([data["layerBytes"] / device["performance"] for device in data["devices"]])
    x, y, s, e, u, z = (np.arange(n) + n * index for index in range(6))
    z = 5 * n + np.arange(n * n).reshape(n, n)
    size = 5 * n + n * n
    cost = np.zeros(size)
    cost[x], cost[y], cost[z] = data["a1"] * time_s, data["a2"], data["a1"] * hops
    unit = (layers * time_s.min() + data["a2"]) / 1e3
    cost /= unit
    rows: list[tuple[dict[int, float], float, float]] = [
        ({int(i): 1.0 for i in x}, layers, layers),
        ({int(i): 1.0 for i in s}, 1, 1),
        ({int(i): 1.0 for i in e}, 1, 1),
    ]
    for i in range(n):
        rows.append(({int(x[i]): 1, int(y[i]): -1}, 0, np.inf))
        load = {
            int(x[i]): 1,
            int(y[i]): -memory[i],
            int(s[i]): ends[0],
            int(e[i]): ends[1],
        }
        rows.append((load, -np.inf, 0))
        others = [j for j in range(n) if j != i]
        rows.append(({int(s[i]): 1, int(y[i]): -1, **{int(z[j, i]): 1 for j in others}}, 0, 0))
        rows.append(({int(e[i]): 1, int(y[i]): -1, **{int(z[i, j]): 1 for j in others}}, 0, 0))
        rows += [({int(u[j]): 1, int(u[i]): -1, int(z[i, j]): -n}, 1 - n, np.inf) for j in others]
    matrix = np.zeros((len(rows), size))
    for index, (entries, _, _) in enumerate(rows):
        for column, value in entries.items():
            matrix[index, column] = value
    upper = np.ones(size)
    upper[x], upper[u], upper[np.diag(z)] = layers, n, 0
    integral = np.ones(size)
    integral[u] = 0
    limits = LinearConstraint(matrix, [low for _, low, _ in rows], [high for _, _, high in rows])
    options = {"time_limit": MILP_LIMIT_S, "mip_rel_gap": 1e-9}
    answer = milp(cost, constraints=limits, bounds=Bounds(0, upper), integrality=integral, options=options)
    return (None if answer.x is None else float(answer.fun) * unit), answer.status == 0


def side_by_side(seed: int, sizes: list[tuple[int, int, int]]) -> Iterator[dict[str, Any]]:
    """The solver, brute force (up to 4 GPUs) and HiGHS on the same instances."""
    for devices, layers, count in sizes:
        kinds = itertools.cycle([*UNIFORM.values(), *ENDS.values()])
        figures: dict[str, list[float]] = {"solver": [], "brute force": [], "MILP": []}
        unlike = stopped = 0
        for offset, kind in zip(range(count), kinds, strict=False):
            data = instance(seed + offset, devices, layers, kind)
            took, answer = timed(lambda data=data: solve(Instance.from_dict(data)))
            figures["solver"].append(took)
            took, (cost, proven) = timed(lambda data=data: by_milp(data))
            figures["MILP"].append(took)
            stopped += int(not proven and answer.feasible)
            costs = [cost] if proven else []
            if devices <= 4:
                took, cost = timed(lambda data=data: brute_force(data))
                figures["brute force"].append(took)
                costs.append(cost)
            unlike += sum(
                (c is None) != (answer.cost is None) or abs(c - answer.cost) > 1e-6 * answer.cost
                for c in costs
                if c is not None or answer.feasible
            )
        medians = {name: round(1e3 * statistics.median(values), 2) for name, values in figures.items() if values}
        yield {
            "gpus": devices,
            "layers": layers,
            "instances": count,
            "differences": int(unlike),
            "stoppedMilp": stopped,
            "medianMilliseconds": medians,
        }


def growth(seed: int, quick: bool) -> dict[str, list[dict[str, Any]]]:
    """Medians of five instances with tight memory, by GPUs and by layers."""
    kinds = {"alike": UNIFORM["random links, tight memory"], "unlike": UNLIKE["unlike layers, embedding and head"]}
    gpus = [2, 4, 6, 8, 10, 12] + ([] if quick else [14, 16])
    result: dict[str, list[dict[str, Any]]] = {"gpus": [], "layers": []}
    points = [("gpus", count, 80) for count in gpus]
    points += [("layers", 10, layers) for layers in (20, 40, 80, 160, 320)]
    for (axis, devices, layers), (name, kind) in itertools.product(points, kinds.items()):
        data = [instance(seed + offset, devices, layers, kind) for offset in range(5)]
        result[axis].append({"layersAre": name, **summary(name, devices, layers, "latency", data)})
    return result


def plot(figures: dict[str, list[dict[str, Any]]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(10, 4), sharey=True)
    for axis, name, title in zip(
        axes, ("gpus", "layers"), ("unlike GPUs, 80 layers", "layers, 10 unlike GPUs"), strict=True
    ):
        for alike in ("alike", "unlike"):
            rows = [row for row in figures[name] if row["layersAre"] == alike]
            axis.plot(
                [row[name] for row in rows], [row["p50Milliseconds"] for row in rows], "o-", label=f"layers {alike}"
            )
        axis.set(xlabel=title, yscale="log")
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("median CPU time, ms")
    axes[0].legend()
    figure.savefig(path, bbox_inches="tight")


def full_plan(count: int = 72) -> dict[str, Any]:
    """`uellm plan` over nodes of eight GPUs of three kinds, for a model of 126 layers: wall time and peak memory."""
    kinds = [("H200", 141, 989_000, 4_800), ("H100", 80, 989_000, 3_350), ("A100", 80, 312_000, 2_039)]
    with tempfile.TemporaryDirectory() as folder:
        profiles, service = Path(folder, "profiles.json"), Path(folder, "service.json")
        profiles.write_text(json.dumps({"kind": "List", "items": [_profile(n, *kinds[n % 3]) for n in range(count)]}))
        service.write_text(json.dumps(_service()))
        command = [str(Path(sys.executable).parent / "uellm"), "plan", "-f", str(service), "--profiles", str(profiles)]
        began = time.monotonic()
        # Started through a small process, because a child's peak memory includes its parent's at the time of the fork.
        run = [sys.executable, "-c", MEASURE, *command, "-o", "json"]
        done = subprocess.run(run, capture_output=True, text=True, check=False)
        wall = time.monotonic() - began
    *said_on_error, usage = done.stderr.strip().splitlines()
    cpu, peak = usage.split()
    said = json.loads(done.stdout) if done.returncode == 0 else {}
    return {
        "nodes": count,
        "gpus": 8 * count,
        "layers": 126,
        "exitStatus": done.returncode,
        "wallSeconds": round(wall, 2),
        "cpuSeconds": float(cpu),
        "peakMegabytes": int(peak) // 1024,
        "plan": {k: said.get(k) for k in ("tensor", "pipeline", "layers")},
        "error": " ".join(said_on_error)[-300:],
    }


def _profile(index: int, product: str, gib: int, gigaflops: int, gigabytes: int) -> dict[str, Any]:
    measured = {"bf16GigaflopsPerSecond": gigaflops, "memoryBytesPerSecond": gigabytes * 10**9}
    devices = [
        {
            "index": g,
            "uuid": f"GPU-{index:03d}-{g}",
            "product": product,
            "memoryBytes": gib * GIB,
            "memoryFreeBytes": gib * GIB,
            "computeCapability": "9.0",
            "resourceName": GPU_RESOURCE,
            "health": {"state": "Healthy"},
            "measured": measured,
        }
        for g in range(8)
    ]
    links = [
        {
            "a": f"GPU-{index:03d}-{a}",
            "b": f"GPU-{index:03d}-{b}",
            "kind": "NVLink",
            "bytesPerSecond": 400 * 10**9,
            "latencyNanoseconds": 5000,
        }
        for a, b in itertools.combinations(range(8), 2)
    ]
    status = {"observedAt": "2026-01-01T00:00:00Z", "source": "NVML", "devices": devices, "links": links}
    return {
        "apiVersion": "uellm.io/v1alpha1",
        "kind": "GPUNodeProfile",
        "metadata": {"name": f"node-{index:03d}"},
        "status": status,
    }


def _service() -> dict[str, Any]:
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": 16384,
        "vocab_size": 128256,
        "intermediate_size": 53248,
        "num_hidden_layers": 126,
        "num_attention_heads": 128,
        "num_key_value_heads": 8,
        "max_position_embeddings": 131072,
        "torch_dtype": "bfloat16",
    }
    return {
        "apiVersion": "uellm.io/v1alpha1",
        "kind": "LLMService",
        "metadata": {"name": "llama-405b"},
        "spec": {
            "model": {"uri": "file:///models/x", "config": config, "maxModelLen": 8192},
            "slo": {"classes": [{"name": "interactive", "ttft": "2s", "tpot": "100ms"}]},
            "workload": {"requestsPerSecond": "1"},
        },
    }


def print_rows(rows: list[dict[str, Any]]) -> None:
    print(
        f"{'case':<52} {'GPUs':>4} {'layers':>6} {'objective':<10} {'n':>4} "
        f"{'p50 ms':>9} {'p99 ms':>9} {'max ms':>9} proven"
    )
    for row in rows:
        print(
            f"{row['case']:<52} {row['gpus']:>4} {row['layers']:>6} {row['objective']:<10} {row['instances']:>4} "
            f"{row['p50Milliseconds']:>9.1f} {row['p99Milliseconds']:>9.1f} {row['maxMilliseconds']:>9.1f} "
            f"{row['proven']}/{row['feasible']}"
        )


def cases(seed: int, quick: bool) -> Iterator[dict[str, Any]]:
    counts = {8: (20, 5), 16: (4, 1)} if quick else {8: (70, 25), 16: (34, 4)}
    for devices, (many, few) in counts.items():
        for group, number in ((UNIFORM, many), (ENDS, many), (UNLIKE, few)):
            for name, kind in group.items():
                data = [instance(seed + offset, devices, 80, kind) for offset in range(number)]
                yield summary(name, devices, 80, "latency", data)
        for name in ("random links, tight memory", "unlike layers, scarce memory"):
            data = [instance(seed + offset, devices, 80, (UNIFORM | UNLIKE)[name]) for offset in range(few)]
            yield summary(name, devices, 80, "bottleneck", data)
    for kinds, slack, objective in (
        (1, 1.3, "latency"),
        (1, 3.0, "latency"),
        (1, 1.3, "bottleneck"),
        (2, 1.5, "latency"),
    ):
        data = [nodes(126, slack, kinds, a2) for a2 in (0.0, 1.0)]
        yield summary(f"8 nodes of {kinds} kind(s), slack {slack}", 64, 126, objective, data)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--quick", action="store_true", help="a tenth of the instances")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    solve(Instance.from_dict(instance(0, 8, 8, UNLIKE["unlike layers, scarce memory"])))  # imports numpy
    beside = list(side_by_side(args.seed, [(4, 10, 14), (6, 24, 7), (8, 80, 3 if args.quick else 7)]))
    print("beside brute force and a MILP in HiGHS (median CPU ms)")
    for row in beside:
        print(
            f"{row['gpus']} GPUs x {row['layers']} layers, {row['instances']} instances: {row['medianMilliseconds']}, "
            f"{row['differences']} differences, {row['stoppedMilp']} times the MILP was stopped at {MILP_LIMIT_S:g} s"
        )
    rows = list(cases(args.seed, args.quick))
    print_rows(rows)
    grown = growth(args.seed, args.quick)
    print_rows([*grown["gpus"], *grown["layers"]])
    plan = full_plan()
    print(f"uellm plan, {plan['nodes']} nodes: {plan}")
    if args.plot:
        plot(grown, args.plot)
    if args.json:
        args.json.write_text(json.dumps({"sideBySide": beside, "cases": rows, "growth": grown, "plan": plan}, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
