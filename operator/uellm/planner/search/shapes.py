"""The candidate shapes (tensor x pipeline) of a replica."""

from __future__ import annotations

from collections.abc import Iterator

from uellm.models import Architecture
from uellm.planner import constants as c
from uellm.planner.refusals.kinds import IndivisibleSize, SplitBlocks
from uellm.planner.request import PlanRequest
from uellm.planner.shape import Shape
from uellm.planner.vllm.drafting import uncut_because
from uellm.planner.vllm.flags import UserArgs


def shapes(request: PlanRequest, gpus: int) -> Iterator[Shape]:
    """The shapes with this many GPUs that the model and the overrides allow, by ascending tensor parallelism."""
    own = request.overrides
    stages = len(own.layers) if own.layers is not None else own.pipeline
    model, user = request.architecture, UserArgs(request.engine.args)
    most_stages = model.layers if model.supports_pipeline and not uncut_because(model, user) else 1
    for tensor in range(1, gpus + 1):
        shape = Shape(tensor, gpus // tensor)
        if (
            gpus % tensor == 0
            and own.tensor in (None, tensor)
            and stages in (None, shape.pipeline)
            and shape.pipeline <= most_stages
            and indivisible_size(model, tensor) is None
            and (model.draft is None or indivisible_size(model.draft, tensor) is None)
        ):
            yield shape


def indivisible_size(model: Architecture, tensor: int) -> IndivisibleSize | SplitBlocks | None:
    """The first size that cannot be divided among this number of GPUs; None if all can."""
    if model.attention_heads % tensor:
        return IndivisibleSize(tensor, "num_attention_heads", model.attention_heads)
    # vLLM gives each GPU whole KV heads, or several GPUs the same one.
    if model.kv_heads % tensor and tensor % model.kv_heads:
        return IndivisibleSize(tensor, "num_key_value_heads", model.kv_heads)
    # vLLM divides the width of each expert. It may be indivisible where that of the dense MLP is not.
    widths = (IndivisibleSize(tensor, field, width) for field, width in model.tensor_widths if width % tensor)
    return next(widths, None) or _split_blocks(model, tensor)


def _split_blocks(model: Architecture, tensor: int) -> SplitBlocks | None:
    """The first quantised matrix that this number of GPUs cuts inside a block, which the engine refuses to load."""
    limit = next((limit for limit in model.split_limits if not limit.admits(tensor)), None)
    if limit is None:
        return None
    others = tuple(
        other
        for other in range(1, c.MOST_GPUS_OF_A_NODE + 1)
        if all(each.admits(other) for each in model.split_limits) and _divides(model, other)
    )
    return SplitBlocks(tensor, limit.name, limit.part(tensor), limit.multiple, others)


def _divides(model: Architecture, tensor: int) -> bool:
    return model.attention_heads % tensor == 0 and all(width % tensor == 0 for _, width in model.tensor_widths)
