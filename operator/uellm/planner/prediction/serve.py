"""Times and memory of a point, by the same cost model and byte budget that plans are made with."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

from uellm.errors import CannotBeDone
from uellm.hardware import Device, Link
from uellm.planner import constants as c
from uellm.planner.cost.open_loop import OpenLoop, open_loop
from uellm.planner.cost.pipeline import Pipeline
from uellm.planner.cost.rates import Costs, Links
from uellm.planner.cost.replay import ClosedLoop, Limits, LoopSteps, Served, replay
from uellm.planner.cost.work import stage_loads
from uellm.planner.efficiency import Efficiency
from uellm.planner.memory.footprint import Footprint, footprint
from uellm.planner.memory.kv_cache import kv_cache
from uellm.planner.prediction.point import Point
from uellm.planner.refusals.sentences import sentence
from uellm.planner.search.shapes import indivisible_size
from uellm.planner.shape import Shape, Steps
from uellm.planner.spans import spans
from uellm.planner.units import size
from uellm.planner.vllm.cache_dtype import with_cache
from uellm.planner.vllm.defaults import default_steps
from uellm.planner.vllm.drafting import drafting_of
from uellm.planner.vllm.flags import UserArgs
from uellm.planner.vllm.partition import even_split
from uellm.planner.vllm.version import engine_version


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes on the GPU with the least room."""

    weight_bytes: int
    kv_bytes: int
    kv_tokens: int
    """Of the whole engine."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What is predicted of a point; times are means."""

    memory: Memory
    ttft_s: float
    tpot_s: float
    requests_per_s: float
    output_tokens_per_s: float


def predict_point(point: Point, efficiency: Efficiency | None = None) -> Outcome:
    """The outcome of a point. Raises CannotBeDone where the engine would not start."""
    if (indivisible := indivisible_size(point.model, point.tensor)) is not None:
        raise CannotBeDone(sentence(indivisible))
    if point.pipeline > point.model.layers:
        raise CannotBeDone(f"pipeline {point.pipeline} is more than the model's {point.model.layers} layers")
    memory = memory_of(point)
    pipeline = pipeline_of(point, efficiency or Efficiency.of_version(point.engine_version, eager=point.eager))
    if point.decode_batch is not None:
        step_s = pipeline.round_s(0.0, point.decode_batch)
        rate = point.decode_batch / step_s
        alone = pipeline.costs.before_engine_s + pipeline.round_s(point.prompt_tokens, point.decode_batch)
        return Outcome(memory, alone, step_s, rate / point.output_tokens, rate)
    served = _served(point, memory, pipeline)
    per_s = served.requests / served.seconds
    return Outcome(memory, served.ttft_s, served.tpot_s, per_s, per_s * point.output_tokens)


def closed_loop(point: Point, memory: Memory | None = None) -> LoopSteps:
    """The steps of a point with clients that wait for their answers."""
    assert point.concurrency is not None
    limits = _limits(point, memory or memory_of(point))
    requests = _replayable(point, point.prompts or c.PROMPTS_PER_CLIENT * point.concurrency, limits)
    return replay(ClosedLoop(point.concurrency, requests, *_tokens(point)), limits)


def _served(point: Point, memory: Memory, pipeline: Pipeline) -> Served:
    before_s = pipeline.costs.before_engine_s
    if point.requests_per_s is None or point.concurrency is not None:
        return closed_loop(point, memory).served(pipeline.round_s, before_s)
    limits = _limits(point, memory)
    requests = _replayable(point, point.prompts or c.REQUESTS_AT_A_RATE, limits)
    load = OpenLoop(point.requests_per_s, requests, *_tokens(point))
    return open_loop(load, limits, pipeline.round_s, before_s)


def _replayable(point: Point, requests: int, limits: Limits) -> int:
    """The number of requests. Raises CannotBeDone where a replay of so many would take hours."""
    tokens, _ = _tokens(point)
    steps = requests * math.ceil(tokens / limits.chunk)
    if steps > c.MOST_REPLAYED_STEPS:
        raise CannotBeDone(
            f"{requests} requests with prompts of {tokens} tokens take up to {steps} steps, and at most "
            f"{c.MOST_REPLAYED_STEPS} are replayed: set prompts, the number of requests in all, to fewer"
        )
    return requests


def _limits(point: Point, memory: Memory) -> Limits:
    held = point.prompt_tokens + point.output_tokens / 2
    sizes = _sizes(point)
    most = max(1, min(sizes.sequences, int(memory.kv_tokens / held)))
    return Limits(sizes.batched_tokens * point.pipeline, most)


def _sizes(point: Point) -> Steps:
    default = default_steps(point.gpu.name, point.gpu.memory_bytes)
    return Steps(point.batched_tokens or default[0], point.sequences or default[1])


def _tokens(point: Point) -> tuple[int, int]:
    """Whole tokens of a mean request: prompt and output."""
    return max(1, round(point.prompt_tokens)), max(1, round(point.output_tokens))


def _devices(point: Point) -> tuple[tuple[Device, ...], Links]:
    gpu = point.gpu
    devices = tuple(
        Device(
            uuid=f"gpu-{index}",
            index=index,
            product=gpu.name,
            memory_bytes=gpu.memory_bytes,
            compute_capability=gpu.compute_capability,
            bf16_flops_per_s=gpu.bf16_flops_per_s,
            fp8_flops_per_s=gpu.fp8_flops_per_s,
            memory_bytes_per_s=gpu.memory_bytes_per_s,
        )
        for index in range(point.tensor * point.pipeline)
    )
    links = (
        Link(a.uuid, b.uuid, gpu.link_kind, gpu.link_bytes_per_s, gpu.link_latency_s)
        for a in devices
        for b in devices
        if a is not b
    )
    return devices, Links(links)


def pipeline_of(point: Point, efficiency: Efficiency) -> Pipeline:
    """The pipeline of a point, for its mean request."""
    devices, links = _devices(point)
    groups = [devices[first : first + point.tensor] for first in range(0, len(devices), point.tensor)]
    user = UserArgs(point.engine_args)
    layers = even_split(point.model.layers, point.pipeline)
    loads = stage_loads(with_cache(point.model, user), groups, layers, drafting=drafting_of(point.model, user))
    return Pipeline(loads, links, Costs.of(point.model, *_tokens(point), efficiency))


def memory_of(point: Point) -> Memory:
    """The memory of a point. Raises CannotBeDone where the weights leave no room."""
    engine = engine_version(point.engine_version, point.gpu.capability)
    args = point.engine_args
    if point.utilization is None:
        args = (*args, "--gpu-memory-utilization", engine.utilization)
    found = footprint(
        point.model,
        Shape(point.tensor, point.pipeline),
        _sizes(point),
        0,
        UserArgs(args),
        request_tokens=math.ceil(point.prompt_tokens + point.output_tokens),
        engine=engine,
        nvlink=point.gpu.link_kind == "NVLink",
    )
    stages = [
        _stage(found, first, end, last=end == point.model.layers)
        for first, end in spans(even_split(point.model.layers, point.pipeline))
    ]
    usable = point.gpu.memory_bytes - found.reserved_bytes(point.gpu.memory_bytes)
    rooms = [usable - weights - sampler for weights, sampler, _ in stages]
    if min(rooms) <= 0:
        weights = max(weights for weights, _, _ in stages)
        raise CannotBeDone(
            f"{size(weights)} of weights leave no room for KV cache on a GPU where {size(usable)} can be used: take "
            "more GPUs or a smaller precision"
        )
    per_token = [kv for _, _, kv in stages]
    tightest = min(range(len(stages)), key=lambda index: Fraction(rooms[index], max(1, per_token[index])))
    return Memory(stages[tightest][0], rooms[tightest], kv_cache(rooms, per_token).tokens)


def _stage(found: Footprint, first: int, end: int, *, last: bool) -> tuple[int, int, int]:
    """Bytes on each GPU of a stage: weights, what sampling takes, and KV cache of a token."""
    weights = sum(found.layer_bytes[first:end]) + found.tower_bytes
    weights += (found.embedding_bytes if first == 0 else 0) + (found.head_bytes if last else 0)
    return weights, found.sampler_bytes if last else 0, sum(found.layer_kv_bytes_per_token[first:end])
