"""Memory for images and videos: as much as the largest one takes, by vLLM's rules and the user's flags."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from helpers.sizes import GIB
from uellm.cli.plan_table import render
from uellm.errors import PlanError
from uellm.models import read_architecture
from uellm.planner import plan, still_holds
from uellm.planner.memory.footprint import Footprint, footprint
from uellm.planner.request import EngineRequest, Overrides
from uellm.planner.shape import Shape, Steps
from uellm.planner.vllm.flags import UserArgs

VISION = {"model_type": "qwen2_5_vl", "hidden_size": 1280, "intermediate_size": 3420, "out_hidden_size": 3584}
VISION |= {"depth": 32, "num_heads": 16, "patch_size": 14, "spatial_merge_size": 2, "temporal_patch_size": 2}
QWEN25_VL_7B: dict[str, Any] = {
    "architectures": ["Qwen2_5_VLForConditionalGeneration"],
    "model_type": "qwen2_5_vl",
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "vocab_size": 152064,
    "max_position_embeddings": 128000,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "vision_config": VISION,
}
PATCH_BYTES = 2 * (2 * 1280 + 3 * 3420 + 3 * 2 * 14 * 14)
TOKEN_BYTES = 2 * 3584
STEPS = Steps(2048, 64)


def sizes(*args: str, longest: int = 65536, tensor: int = 1, **changes: Any) -> Footprint:
    model = read_architecture({**QWEN25_VL_7B, **changes})
    return footprint(model, Shape(tensor, 1), STEPS, 1024, UserArgs(args), longest=longest)


def kept(*args: str, **more: Any) -> int:
    """Bytes for images and videos, beyond those of a step of text, in whose room they are encoded."""
    return sizes(*args, **more).encoder_bytes


def of_item(tokens: int) -> int:
    """Four patches a token, and its embedding."""
    text = sizes(longest=0)
    return max(0, tokens * 4 * PATCH_BYTES - text.activation_bytes - text.sampler_bytes) + tokens * TOKEN_BYTES


def limit(**counts: Any) -> tuple[str, str]:
    return "--limit-mm-per-prompt", json.dumps(counts)


def test_a_video_is_as_long_as_a_prompt_may_be_and_has_seven_pairs_of_frames_at_most() -> None:
    assert kept() == of_item(65536)
    assert kept(longest=8192) == of_item(8192)
    assert kept(longest=128_000) == of_item(7 * 16384)


def test_without_videos_the_largest_image_counts() -> None:
    assert kept(*limit(image=4, video=0)) == of_item(16384)
    for member in ("video", "video.count"):
        assert kept(f"--limit-mm-per-prompt.{member}", "0") == of_item(16384)
        assert kept(f"--limit_mm_per_prompt.{member}=0") == of_item(16384)
    assert kept(*limit(video={"count": 0})) == of_item(16384)


@pytest.mark.parametrize("given", [{"max_pixels": 1_003_520}, {"size": {"longest_edge": 1_003_520}}])
def test_a_limit_of_pixels_makes_images_smaller(given: dict[str, Any]) -> None:
    images = limit(video=0)
    # A token is 28 x 28 pixels; a step holds more tokens than the largest image has.
    assert kept(*images, "--mm-processor-kwargs", json.dumps(given)) == of_item(2048)
    assert kept(*images, "--mm-processor-kwargs", json.dumps({"images_kwargs": given})) == of_item(2048)
    # The engine refuses what is no number of pixels.
    assert kept(*images, "--mm-processor-kwargs", json.dumps({"max_pixels": True})) == of_item(16384)
    doubled = json.dumps({"max_pixels": 4 * 784 * 1024})
    assert kept(*images, "--mm-processor-kwargs", doubled) == of_item(4096)


@pytest.mark.parametrize("args", [("--language-model-only",), limit(image=0, video=0)])
def test_a_service_of_text_keeps_nothing_for_images(args: tuple[str, ...]) -> None:
    assert kept(*args) == 0


def test_later_processors_scale_a_whole_video_to_less_than_an_image() -> None:
    later = {**VISION, "model_type": "qwen3_vl"}
    assert kept(vision_config=later, longest=128_000) == kept(*limit(video=0), vision_config=later, longest=128_000)


def test_tensor_parallelism_divides_the_encoders_matrices_unless_it_divides_the_images() -> None:
    assert kept(tensor=2) < kept()
    assert kept("--mm-encoder-tp-mode", "data", tensor=2) == kept()


def request_(build, *args: str, **changes: Any):
    node = build.node("a", [build.gpu("a", index, "H100") for index in range(2)])
    model = read_architecture(QWEN25_VL_7B)
    made = replace(build.request(node), architecture=model, max_model_len=65536, **changes)
    return replace(made, engine=EngineRequest(args=args))


def test_the_plan_takes_it_off_the_kv_cache_and_says_what_it_assumes(build) -> None:
    step = ("--max-num-seqs", "64", "--max-num-batched-tokens", "2048")
    images, text = request_(build, *step), request_(build, *step, "--language-model-only")
    with_images, without = (plan(replace(each, overrides=Overrides(1, 1))) for each in (images, text))
    memory, rest = with_images.stages[0].memory, without.stages[0].memory
    assert memory.encoder > GIB
    assert memory.kv + memory.encoder == pytest.approx(rest.kv, abs=64 << 20)
    assert rest.encoder == 0
    (told,) = [each for each in with_images.assumptions if "images and videos" in each]
    assert "of up to 65536 tokens each" in told
    assert "--limit-mm-per-prompt" in told
    assert not [each for each in without.assumptions if "images" in each]
    assert "ENCODER" in render(with_images, images)
    assert "ENCODER" not in render(without, text)


def test_only_the_first_stage_encodes(build) -> None:
    found = plan(request_(build, overrides=Overrides(1, 2)))
    assert [stage.memory.encoder > 0 for stage in found.stages] == [True, False]


def test_an_encoder_of_another_kind_is_said_not_to_be_counted(build) -> None:
    request = replace(request_(build), architecture=replace(read_architecture(QWEN25_VL_7B), encoder=None))
    assert any("is not in the memory budget" in each for each in plan(request).assumptions)
    text = replace(request, engine=EngineRequest(args=("--language-model-only",)))
    assert not any("is not in the memory budget" in each for each in plan(text).assumptions)


def test_where_images_leave_no_room_the_refusal_says_how_much_they_take_and_its_remedy_works(build) -> None:
    request = replace(request_(build), nodes=(build.offer(build.node("a", "L4")),), max_model_len=32768)
    with pytest.raises(PlanError, match=r"of it is for images and videos, which --limit-mm-per-prompt in spec\.engine"):
        plan(request)
    assert plan(replace(request, engine=EngineRequest(args=limit(video=0)))).nodes == ("a",)


def test_a_plan_that_was_made_without_memory_for_images_still_holds(build) -> None:
    request = replace(request_(build), nodes=(build.offer(build.node("a", "L4")),), max_model_len=32768)
    earlier = plan(replace(request, architecture=replace(request.architecture, encoder=None)))
    assert still_holds(earlier, request) is None
