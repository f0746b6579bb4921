"""Which shapes (tensor x pipeline) there are to look at."""

from __future__ import annotations

from collections.abc import Iterator

from uellm.models import Architecture
from uellm.planner.request import PlanRequest
from uellm.planner.shape import Shape


def shapes(request: PlanRequest, gpus: int) -> Iterator[Shape]:
    """The shapes of so many GPUs that the model and the overrides allow, the least tensor-parallel first."""
    own = request.overrides
    stages = len(own.layers) if own.layers is not None else own.pipeline
    for tensor in range(1, gpus + 1):
        shape = Shape(tensor, gpus // tensor)
        if (
            gpus % tensor == 0
            and own.tensor in (None, tensor)
            and stages in (None, shape.pipeline)
            and shape.pipeline <= (request.architecture.layers if request.architecture.supports_pipeline else 1)
            and divides(request.architecture, tensor) is None
        ):
            yield shape


def divides(model: Architecture, tensor: int) -> str | None:
    """None where a layer can be divided into so many parts, else which size stands against it."""
    if model.attention_heads % tensor:
        return f"num_attention_heads {model.attention_heads}"
    # vLLM gives each GPU whole KV heads, or several GPUs the same one.
    if model.kv_heads % tensor and tensor % model.kv_heads:
        return f"num_key_value_heads {model.kv_heads}"
    # Of experts each one's width is divided, which may be odder than the MLP's.
    return next((f"{field} {width}" for field, width in model.tensor_widths if width % tensor), None)
