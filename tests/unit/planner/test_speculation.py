"""Speculation that the user set: its weights, KV cache and logits are in the plan, or the plan says they are not."""

from __future__ import annotations

import json

import pytest

from helpers.models import LATENT_ATTENTION
from uellm.errors import PlanError
from uellm.models import Tensor, read_architecture
from uellm.planner import plan
from uellm.planner.memory.footprint import footprint
from uellm.planner.request import EngineRequest
from uellm.planner.shape import Shape, Steps
from uellm.planner.vllm.flags import UserArgs
from uellm.planner.vllm.speculation import speculation_of

PREDICTING = {
    "architectures": ["DeepseekV3ForCausalLM"],
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 4096,
    "torch_dtype": "bfloat16",
    "num_nextn_predict_layers": 1,
    **LATENT_ATTENTION,
}
# So many sequences that logits are larger than activations.
STEPS = Steps(1024, 1024)


def args(**given) -> tuple[str, ...]:
    return ("--speculative-config", json.dumps(given))


def sized(own: tuple[str, ...], config=PREDICTING, pipeline: int = 1):
    return footprint(read_architecture(config), Shape(1, pipeline), STEPS, 1024, UserArgs(own))


def test_layers_for_multi_token_prediction_are_loaded_with_their_cache():
    model = read_architecture(PREDICTING)
    plain, drafting = sized(()), sized(args(method="mtp", num_speculative_tokens=1))
    assert model.predicting_bytes == model.layer_weight_bytes[-1] + 2 * 64 * 64 * 2
    assert drafting.head_bytes - plain.head_bytes == model.predicting_bytes
    assert drafting.layer_kv_bytes_per_token[:-1] == plain.layer_kv_bytes_per_token[:-1]
    assert drafting.layer_kv_bytes_per_token[-1] == 2 * plain.layer_kv_bytes_per_token[-1]


def test_their_bytes_are_those_of_the_checkpoints_headers():
    model = read_architecture(PREDICTING)
    tensors = {f"model.layers.{layer}.w": Tensor("BF16", (10,)) for layer in range(4)}
    tensors |= {"model.embed_tokens.weight": Tensor("BF16", (512, 64)), "model.layers.4.eh_proj": Tensor("BF16", (77,))}
    assert read_architecture(PREDICTING, tensors=tensors).predicting_bytes == 154
    assert read_architecture(PREDICTING, tensors=tensors).weight_bytes < model.weight_bytes


@pytest.mark.parametrize("method", ["ngram", "suffix"])
def test_drafts_from_the_prompt_take_no_weights(method):
    plain, drafting = sized(()), sized(args(method=method, num_speculative_tokens=3))
    assert drafting.head_bytes == plain.head_bytes
    assert drafting.layer_kv_bytes_per_token == plain.layer_kv_bytes_per_token


def test_each_drafted_token_has_a_row_of_logits():
    config = {**PREDICTING, "vocab_size": 100_000}
    plain, drafting = (sized(own, config) for own in ((), args(method="ngram", num_speculative_tokens=3)))
    whole = [sizes.sampler_bytes + sizes.activation_bytes for sizes in (plain, drafting)]
    assert whole[1] == pytest.approx(4 * whole[0], rel=1e-3)


@pytest.mark.parametrize(
    ("given", "note"),
    [
        ({"method": "ngram"}, "speculation by ngram takes no weights; predictions are those without it"),
        (
            {"method": "deepseek_mtp", "num_speculative_tokens": 1},
            "speculation by deepseek_mtp: its layers and their KV cache are counted, and predictions are without it",
        ),
        (
            {"model": "org/draft"},
            "--speculative-config is set in engine.args, and the draft's model is not in the plan: its weights, cache "
            "and time come on top; leave it room with --gpu-memory-utilization",
        ),
    ],
)
def test_the_plan_says_what_of_it_is_counted(build, given, note):
    engine = EngineRequest(args=args(**given))
    request = build.request(build.node("a", "L4"), config=PREDICTING, max_model_len=4096, engine=engine)
    assert note in plan(request).assumptions


@pytest.mark.parametrize("text", ["{", "3", "[" * 1000])
def test_what_is_no_object_is_refused(build, text):
    request = build.request(build.node("a", "L4"), engine=EngineRequest(args=("-sc", text)))
    with pytest.raises(PlanError, match=r"^spec.engine.args: --speculative-config .* is no JSON object$"):
        plan(request)


def test_nothing_is_speculated_where_nothing_is_set():
    assert speculation_of(UserArgs(())) is None
