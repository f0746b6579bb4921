"""What a plan assumes of images, videos and sound."""

from __future__ import annotations

from uellm.planner.request import PlanRequest
from uellm.planner.units import size
from uellm.planner.vllm.flags import UTILIZATION, UserArgs
from uellm.planner.vllm.media import LIMIT, PROCESSOR, TEXT_ONLY, largest_item_tokens


def encoder_notes(request: PlanRequest, encoder_bytes: int) -> list[str]:
    """The largest image or video that has room, and how it is limited; or that nothing is kept for them."""
    model, user = request.architecture, UserArgs(request.engine.args)
    if model.encoder is None:
        return [] if TEXT_ONLY in user.flags or not model.tower_bytes else [_not_counted()]
    item = min(largest_item_tokens(model.encoder, user), request.max_model_len)
    if not item:
        return []
    return [
        f"{size(encoder_bytes)} of memory are kept for images and videos of up to {item} tokens each, by usual limits "
        f"of the model's processor: lower them in spec.engine.args by {LIMIT} or {PROCESSOR}, or leave images out by "
        f"{TEXT_ONLY}"
    ]


def encoder_share(encoder_bytes: int) -> str:
    """What images and videos have of a need that is not met, as the end of a sentence; empty: nothing."""
    if not encoder_bytes:
        return ""
    return f"; {size(encoder_bytes)} of it is for images and videos, which {LIMIT} in spec.engine.args limits"


def _not_counted() -> str:
    return (
        "what the encoder of images or sound computes on is not in the memory budget: where the engine runs out of "
        f"memory, set a lower {UTILIZATION} in spec.engine.args, or {TEXT_ONLY} where requests are text"
    )
