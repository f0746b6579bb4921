"""The size of the engine's steps: --max-num-batched-tokens and --max-num-seqs.

A step with a chunk of one request's prompt delays all other requests. So the chunk follows from the targets and the
step-time model (chunk.py). The model assumes an even split over devices that are all as slow as the slowest. If speeds
are not measured, or no class has a TPOT or E2E target, both sizes are vLLM's defaults for the device's memory.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache

from uellm.hardware import Device
from uellm.models import Architecture
from uellm.planner import constants as c
from uellm.planner.cost.chunk import Chunk, best_chunk
from uellm.planner.cost.demand import Demand
from uellm.planner.cost.pipeline import Pipeline
from uellm.planner.cost.rates import Costs, Links, flops_per_s, measured
from uellm.planner.cost.work import stage_loads
from uellm.planner.request import SloClass
from uellm.planner.shape import Shape, Steps
from uellm.planner.vllm.defaults import MOST_SEQUENCES, default_steps
from uellm.planner.vllm.drafting import Drafting, drafting_of, rows_of
from uellm.planner.vllm.flags import BATCHED_TOKENS, SEQUENCES, UserArgs
from uellm.planner.vllm.partition import even_split
from uellm.step_time import StepTime

SET = "set in engine.args and kept"


def steps(
    model: Architecture,
    demand: Demand,
    devices: Sequence[Device],
    shape: Shape,
    user: UserArgs,
    costs: Costs,
    links: Links | None = None,
) -> Steps:
    """The step sizes for a shape on any of these devices. The slowest and the smallest device decide."""
    drafting = drafting_of(model, user)
    rows = rows_of(drafting)
    smallest = min(devices, key=lambda device: device.memory_bytes)
    tokens, sequences = default_steps(smallest.product, smallest.memory_bytes)
    why_tokens = why_sequences = "vLLM's default for GPUs of this memory"
    if demand.concurrency is not None:
        # A place that no request takes costs memory for its logits.
        enough = max(c.ENOUGH_SEQUENCES, math.ceil(demand.concurrency * c.PLACES_PER_REQUEST / 8) * 8)
        if enough < sequences:
            sequences, why_sequences = enough, "more are never in flight at this load"
    if demand.tpot_s is not None and len(devices) >= shape.gpus and all(measured(device) for device in devices):
        step = step_time(model, devices, shape, costs, links, drafting)
        if (most := most_sequences(step, costs, demand.tpot_s)) < sequences:
            sequences, why_sequences = most, "as many as decode together within the tightest TPOT"
        chunk = _chunk(step, demand.classes, demand.prompt_tokens, demand.output_tokens, sequences)
        # A round carries one chunk for the batch of each stage.
        each = max(c.CHUNKS[0], chunk.tokens // shape.pipeline // c.CHUNKS[0] * c.CHUNKS[0])
        if each < tokens:
            tokens, why_tokens = each, chunk.reason
    if tokens < demand.least_step_tokens:
        tokens, why_tokens = demand.least_step_tokens, "the engine does not cut this model's inputs into chunks"
    if (own := user.number(BATCHED_TOKENS)) is not None:
        tokens, why_tokens = own, SET
    if tokens < sequences * rows:
        sequences, why_sequences = max(1, tokens // rows), "a step needs a token for each of them"
        why_sequences += f", and {rows - 1} that were drafted" * (rows > 1)
    if (own := user.number(SEQUENCES)) is not None:
        sequences, why_sequences = own, SET
    reason = f"{BATCHED_TOKENS} {tokens}: {why_tokens}; {SEQUENCES} {sequences}: {why_sequences}"
    return Steps(tokens, sequences, reason)


def enlarged(sizes: Steps, factor: int, most_tokens: int, user: UserArgs) -> Steps:
    """Steps with `factor` times the prompt tokens, for prompts that would wait too long; the same if the user set them.

    A chunk is chosen for steps that are all full. At the load of a plan most are not, and a larger one may keep the
    targets with fewer GPUs: a prompt then takes fewer steps, each of which costs a constant.
    """
    tokens = min(sizes.batched_tokens * factor, most_tokens)
    if user.number(BATCHED_TOKENS) is not None or tokens == sizes.batched_tokens:
        return sizes
    reason = (
        f"{BATCHED_TOKENS} {tokens}: smaller ones make prompts wait longer at this load; {SEQUENCES} {sizes.sequences}"
    )
    return Steps(tokens, sizes.sequences, reason)


def step_time(
    model: Architecture,
    devices: Sequence[Device],
    shape: Shape,
    costs: Costs,
    links: Links | None,
    drafting: Drafting | None = None,
) -> StepTime:
    """The step-time model of an even split over devices as slow as the slowest. All devices must be measured."""
    compute = min(flops_per_s(device) or 0.0 for device in devices)
    memory = min(device.memory_bytes_per_s or 0.0 for device in devices)
    alike = [replace(device, bf16_flops_per_s=compute, memory_bytes_per_s=memory) for device in devices[: shape.gpus]]
    groups = [tuple(alike[first : first + shape.tensor]) for first in range(0, shape.gpus, shape.tensor)]
    loads = stage_loads(model, groups, even_split(model.layers, shape.pipeline), drafting=drafting)
    return Pipeline(loads, links, costs).step_time(c.TYPICAL_CHUNK, c.TYPICAL_SEQUENCES)


def most_sequences(step: StepTime, costs: Costs, tpot_s: float) -> int:
    """The most mean requests that can decode together within the target, in steps without prompts; a multiple of 8.

    With more, every request would be late. It is better that some wait in the queue, which knows their deadlines. If
    fewer than c.LEAST_SEQUENCES can, the target is out of reach, and the result is vLLM's default.
    """
    each = step.per_sequence_s + step.per_kv_token_s * costs.held_tokens
    spare = tpot_s - step.floor_s - step.overhead_s
    most, default = spare / each if each > 0 else math.inf, MOST_SEQUENCES
    return default if most < c.LEAST_SEQUENCES else int(min(most // 8 * 8, default))


@lru_cache(maxsize=4096)
def _chunk(
    step: StepTime, classes: tuple[SloClass, ...], prompt_tokens: int, output_tokens: int, sequences: int
) -> Chunk:
    """Cached, because equal nodes ask for the same chunk. The KV cache is not known before there is a placement."""
    return best_chunk(
        step,
        classes=classes,
        prompt_tokens=prompt_tokens,
        output_tokens=output_tokens,
        sequences=sequences,
        kv_tokens=sequences * (prompt_tokens + output_tokens),
    )
