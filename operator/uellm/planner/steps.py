"""How much the engine does in one step: --max-num-batched-tokens and --max-num-seqs.

A step that carries a chunk of somebody's prompt makes everybody else wait for it, so the chunk follows from the
tightest TPOT: time(chunk) = reading the weights + chunk * FLOP per token / compute rate <= TPOT. Where speeds are not
measured, or no class has such a target, they are vLLM's own defaults for the device's memory.
"""

from __future__ import annotations

from collections.abc import Sequence

from uellm.hardware import Device
from uellm.models import Architecture
from uellm.planner import constants as c
from uellm.planner.demand import Demand
from uellm.planner.engine_args import BATCHED_TOKENS, SEQUENCES, UserArgs
from uellm.planner.footprint import Shape, Steps
from uellm.planner.speed import flops_per_s, measured


def steps(model: Architecture, demand: Demand, devices: Sequence[Device], shape: Shape, user: UserArgs) -> Steps:
    """The step sizes for a shape on any of these devices; the slowest and the smallest of them decide."""
    smallest = min(device.memory_bytes for device in devices)
    tokens, sequences = next((tokens, seqs) for least, tokens, seqs in c.ENGINE_DEFAULTS if smallest >= least)
    reason = f"{BATCHED_TOKENS} {tokens}: vLLM's default for GPUs of this memory"
    chunk = _chunk(model, demand, devices, shape)
    if chunk is not None and chunk < tokens:
        tokens = chunk
        reason = (
            f"{BATCHED_TOKENS} {tokens}: more in one step would hold up running requests beyond the tightest TPOT "
            f"of {(demand.tpot_s or 0) * 1e3:.0f} ms"
        )
    if (own := user.number(BATCHED_TOKENS)) is not None:
        tokens, reason = own, f"{BATCHED_TOKENS} {own} is set in engine.args and kept"
    return Steps(tokens, user.number(SEQUENCES) or min(sequences, tokens), reason)


def _chunk(model: Architecture, demand: Demand, devices: Sequence[Device], shape: Shape) -> int | None:
    """Tokens whose step stays within the tightest TPOT; None where that cannot be told."""
    if demand.tpot_s is None or not all(measured(device) for device in devices):
        return None
    flops = min(flops_per_s(device) or 0.0 for device in devices) * c.COMPUTE_EFFICIENCY * shape.tensor
    rate = min(device.memory_bytes_per_s or 0.0 for device in devices) * c.MEMORY_EFFICIENCY * shape.tensor
    spare = demand.tpot_s - model.weight_bytes / rate - c.STEP_OVERHEAD_S
    tokens = int(spare * flops / (2 * model.parameters))
    return max(c.LEAST_BATCHED_TOKENS, tokens // c.BATCHED_TOKENS_STEP * c.BATCHED_TOKENS_STEP)
