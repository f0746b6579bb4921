"""Plans of models that are not a plain stack of equal layers: towers, experts, latent attention."""

from __future__ import annotations

import pytest

from uellm.models import read_architecture
from uellm.planner import plan
from uellm.planner.refusals.kinds import IndivisibleSize
from uellm.planner.request import Overrides
from uellm.planner.search.shapes import indivisible_size

TOWER = {
    "model_type": "siglip_vision_model",
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_hidden_layers": 27,
    "patch_size": 14,
    "image_size": 896,
}


def test_every_stage_holds_the_tower_of_a_multimodal_model(build) -> None:
    text = {**build.config, "model_type": "llama"}
    wrapper = {"architectures": ["LlavaForConditionalGeneration"], "text_config": text, "vision_config": TOWER}
    wrapper["torch_dtype"] = "bfloat16"
    request = build.request(build.node("a", "L4 L4"), config=wrapper, overrides=Overrides(pipeline=2))
    made = plan(request)
    model = request.architecture
    assert model.tower_bytes > 0
    assert sum(stage.memory.weights for stage in made.stages) == model.weight_bytes + model.tower_bytes
    for stage in made.stages:
        assert stage.memory.required + stage.memory.free == int(22.5 * (1 << 30))


@pytest.mark.parametrize(("tensor", "refusal"), [(2, None), (4, IndivisibleSize(4, "moe_intermediate_size", 90))])
def test_tensor_parallelism_divides_each_expert(tensor: int, refusal: IndivisibleSize | None) -> None:
    config = {
        "architectures": ["Qwen3MoeForCausalLM"],
        "vocab_size": 512,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 90,
        "torch_dtype": "bfloat16",
    }
    assert indivisible_size(read_architecture(config), tensor) == refusal


HYBRID = {
    "architectures": ["NemotronHForCausalLM"],
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 96,
    "hybrid_override_pattern": "M-*-",
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
    "mamba_num_heads": 8,
    "mamba_head_dim": 16,
    "ssm_state_size": 16,
    "torch_dtype": "bfloat16",
}


@pytest.mark.parametrize(("groups", "refusal"), [(2, IndivisibleSize(4, "n_groups", 2)), (4, None), (1, None)])
def test_tensor_parallelism_divides_the_groups_of_mamba_unless_there_is_one(
    groups: int, refusal: IndivisibleSize | None
) -> None:
    assert indivisible_size(read_architecture({**HYBRID, "n_groups": groups}), 4) == refusal


def test_tensor_parallelism_divides_the_heads_of_linear_attention() -> None:
    config = {
        "architectures": ["KimiLinearForCausalLM"],
        "vocab_size": 512,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 8,
        "num_key_value_heads": 8,
        "head_dim": 16,
        "linear_attn_config": {"num_heads": 6, "head_dim": 16, "short_conv_kernel_size": 4, "full_attn_layers": [2]},
        "torch_dtype": "bfloat16",
    }
    assert indivisible_size(read_architecture(config), 4) == IndivisibleSize(4, "linear_num_heads", 6)
