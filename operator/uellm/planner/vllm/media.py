"""The largest image or video of a prompt, by vLLM's flags, in tokens of the text model.

The processor's own limits are in a file of the checkpoint that is not read; its published default is assumed, and a
limit in the user's flags replaces it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from itertools import zip_longest
from typing import Any

from uellm.models import EncoderWidths
from uellm.planner.vllm.flags import UserArgs
from uellm.planner.vllm.refused_flags import flag_name

LIMIT = "--limit-mm-per-prompt"
PROCESSOR = "--mm-processor-kwargs"
TEXT_ONLY = "--language-model-only"
# 12,845,056 pixels of Qwen2-VL and Qwen2.5-VL, 16,777,216 of Qwen3-VL.
IMAGE_TOKENS = 16_384
# Pairs of frames in the longest video that vLLM reckons with where each frame is scaled as an image
# (vllm/model_executor/models/qwen2_vl.py, _MAX_FRAMES_PER_VIDEO: 14). Later processors scale the video as a whole, to
# fewer tokens than an image has.
FRAME_PAIRS = 7


def largest_item_tokens(encoder: EncoderWidths, user: UserArgs) -> int:
    """Of one image or video, whatever the length of a prompt; 0: prompts have none."""
    if TEXT_ONLY in user.flags:
        return 0
    limits, given = _object(user, LIMIT), _object(user, PROCESSOR)
    tokens = [0]
    if _count(limits, "image"):
        tokens.append(_image_tokens(given, "images_kwargs", encoder))
    if _count(limits, "video"):
        frame = _image_tokens(given, "videos_kwargs", encoder)
        tokens.append(frame * FRAME_PAIRS if encoder.scales_by_frame else frame)
    return max(tokens)


def _count(limits: Mapping[str, Any], kind: str) -> bool:
    limit = limits.get(kind, 1)
    return bool(limit.get("count", 1) if isinstance(limit, Mapping) else limit)


def _image_tokens(given: Mapping[str, Any], scope: str, encoder: EncoderWidths) -> int:
    scoped = given.get(scope)
    for options in (scoped, given):
        if not isinstance(options, Mapping):
            continue
        size = options.get("size")
        pixels = options.get("max_pixels") or (size.get("longest_edge") if isinstance(size, Mapping) else None)
        if type(pixels) is int and pixels > 0:
            return -(-pixels // encoder.pixels_per_token)
    return IMAGE_TOKENS


def _object(user: UserArgs, flag: str) -> dict[str, Any]:
    """A flag's JSON object, with members that are given one by one (`--limit-mm-per-prompt.video 0`)."""
    found: dict[str, Any] = {}
    for argument, following in zip_longest(user.args, user.args[1:], fillvalue=""):
        if flag_name(argument) != flag:
            continue
        name, attached, text = argument.partition("=")
        value = _value(text if attached else following)
        member, _, rest = name.partition(".")[2].partition(".")
        if member:
            found[member] = {rest: value} if rest else value
        elif isinstance(value, dict):
            found |= value
    return found


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None  # the engine refuses it
