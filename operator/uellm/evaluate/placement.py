"""`uellm evaluate placement`: the placement policies over random clusters, or over given instances.

A cluster is a number of nodes, each with GPUs of one commercially available kind. GPUs are connected by NVLink or PCIe
within a node, and by a network with a random latency between nodes. Part of the memory may be taken. The model is drawn
as well. Decoding reads every weight once for each token, so a stage's time is its bytes divided by the memory
bandwidth.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any

from uellm.placement_policies import PLACEMENT_POLICIES
from uellm.planner.placement.solver import Instance, PlaceDevice, Placement, solve
from uellm.planner.spans import spans

GB = 10**9


@dataclass(frozen=True, slots=True)
class GpuKind:
    """A GPU model from its data sheet: memory and memory bandwidth."""

    name: str
    memory_bytes: int
    bytes_per_s: float


@dataclass(frozen=True, slots=True)
class ModelSizes:
    """A model: its layers, the bytes of one in 16 bits, and a layer's KV cache for about 32,000 tokens."""

    name: str
    layers: int
    layer_bytes: int
    layer_kv_bytes: int
    end_bytes: int


KINDS = (
    GpuKind("V100-32GB", 32 * GB, 0.900e12),
    GpuKind("L40S", 48 * GB, 0.864e12),
    GpuKind("A100-40GB", 40 * GB, 1.555e12),
    GpuKind("A100-80GB", 80 * GB, 2.039e12),
    GpuKind("H100-80GB", 80 * GB, 3.350e12),
)
MODELS = (
    ModelSizes("8B", 32, 436_000_000, 131_000_000, 1_050_000_000),
    ModelSizes("32B", 64, 976_000_000, 131_000_000, 1_560_000_000),
    ModelSizes("70B", 80, 1_711_000_000, 131_000_000, 2_100_000_000),
)
WITHIN_NODE_S = (6e-6, 25e-6)
BETWEEN_NODES_S = (40e-6, 400e-6)
DEVICE_WORTH_S = 2e-3
"""HELR's cost of an additional GPU: the GPU is used if it saves more time per token than this."""
TAKEN_SHARES = (0.0, 0.0, 0.08, 0.25, 0.5)


def random_instance(generator: random.Random, most_devices: int) -> Instance:
    """A cluster of 2 to `most_devices` GPUs, and a model."""
    nodes: list[tuple[GpuKind, int, float]] = []
    wanted = generator.randint(2, most_devices)
    while (had := sum(count for _, count, _ in nodes)) < wanted:
        count = min(generator.choice((1, 2, 4)), wanted - had)
        nodes.append((generator.choice(KINDS), count, generator.choice(WITHIN_NODE_S)))
    node_of = [node for node, (_, count, _) in enumerate(nodes) for _ in range(count)]
    devices = tuple(_device(generator, index, nodes[node][0]) for index, node in enumerate(node_of))
    between_s = generator.uniform(*BETWEEN_NODES_S)
    latency_s = tuple(
        tuple(0.0 if i == j else nodes[a][2] if a == b else between_s for j, b in enumerate(node_of))
        for i, a in enumerate(node_of)
    )
    model = generator.choice(MODELS)
    return Instance(
        layer_bytes=(model.layer_bytes,) * model.layers,
        layer_kv_bytes=(model.layer_kv_bytes,) * model.layers,
        devices=devices,
        latency_s=latency_s,
        first_stage_bytes=model.end_bytes,
        last_stage_bytes=model.end_bytes,
        a2=DEVICE_WORTH_S,
    )


def _device(generator: random.Random, index: int, kind: GpuKind) -> PlaceDevice:
    reserved = round(kind.memory_bytes * generator.choice(TAKEN_SHARES))
    return PlaceDevice(f"g{index:02}-{kind.name}", kind.memory_bytes, kind.bytes_per_s, reserved)


def compare(instances: Sequence[Instance], objective: str, progress: Callable[[str], None]) -> dict[str, Any]:
    """Every policy over every instance: one entry of `results` for each policy.

    latencyRatio      seconds per token over the least possible, mean over the instances that every policy could place
    bottleneckRatio   the same for the slowest stage, which limits the throughput
    devices           GPUs used, mean over the same instances
    placed            share of the instances that the policy could place
    solveSeconds      CPU time, mean and largest
    """
    placed: dict[str, list[Placement]] = {policy: [] for policy in PLACEMENT_POLICIES}
    spent_s: dict[str, list[float]] = {policy: [] for policy in PLACEMENT_POLICIES}
    for number, instance in enumerate(instances, 1):
        for policy in PLACEMENT_POLICIES:
            begin_s = time.process_time()
            placed[policy].append(solve(instance, policy, objective))
            spent_s[policy].append(time.process_time() - begin_s)
        if number % 25 == 0:
            progress(f"{number}/{len(instances)} clusters")
    common = [i for i in range(len(instances)) if all(placed[policy][i].feasible for policy in PLACEMENT_POLICIES)]
    least = [_least(instances[i]) for i in common]
    results = []
    for policy, placements in placed.items():
        times = [stage_times(instances[i], placements[i]) for i in common]
        results.append(
            {
                "policy": policy,
                "placed": fmean(placement.feasible for placement in placements) if placements else 0.0,
                "latencyRatio": _mean_ratio([whole for whole, _ in times], [best for best, _ in least]),
                "bottleneckRatio": _mean_ratio([slowest for _, slowest in times], [best for _, best in least]),
                "devices": fmean(len(placements[i].order) for i in common) if common else None,
                "solveSeconds": {"mean": fmean(spent_s[policy]), "max": max(spent_s[policy])},
            }
        )
    return {"clusters": len(instances), "compared": len(common), "objective": objective, "results": results}


def _least(instance: Instance) -> tuple[float, float]:
    """The least latency and the least time of the slowest stage over all placements, in seconds per token."""
    latency = solve(replace(instance, a1=1.0, a2=0.0), "HELR", "latency")
    bottleneck = solve(instance, "HELR", "bottleneck")
    return stage_times(instance, latency)[0], stage_times(instance, bottleneck)[1]


def stage_times(instance: Instance, placement: Placement) -> tuple[float, float]:
    """Seconds per token through all stages, and of the slowest stage with its hop to the next."""
    index_of = {device.id: index for index, device in enumerate(instance.devices)}
    order = [index_of[name] for name in placement.order]
    stages = []
    for place, (device, (first, end)) in enumerate(zip(order, spans(placement.layers), strict=True)):
        work = instance.work_per_byte * math.fsum(instance.layer_bytes[first:end])
        hop_s = instance.latency_s[device][order[place + 1]] if place + 1 < len(order) else 0.0
        stages.append(work / instance.devices[device].performance + hop_s)
    return math.fsum(stages), max(stages)


def _mean_ratio(values: Sequence[float], best: Sequence[float]) -> float | None:
    return fmean(value / least for value, least in zip(values, best, strict=True)) if values else None
