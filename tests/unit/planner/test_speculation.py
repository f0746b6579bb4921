"""Speculation that the user set: its weights, KV cache and logits are in the plan, or the plan says they are not."""

from __future__ import annotations

import json
import re
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest

from helpers.models import LATENT_ATTENTION, SMALLEST_LLAMA
from uellm.errors import PlanError
from uellm.models import Tensor, read_architecture
from uellm.models.drafts import read_draft
from uellm.planner import plan
from uellm.planner.cost.pipeline import Pipeline
from uellm.planner.cost.rates import Costs
from uellm.planner.cost.work import stage_loads
from uellm.planner.memory.footprint import footprint
from uellm.planner.request import EngineRequest, Overrides
from uellm.planner.shape import Shape, Steps
from uellm.planner.vllm.drafting import check_drafting, drafting_note, drafting_of, uncut_because
from uellm.planner.vllm.flags import UserArgs
from uellm.planner.vllm.speculation import speculation_of
from uellm.planner.vllm.speculation import with_draft as with_draft_args

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


def test_those_of_deepseek_v4_are_counted_too():
    facts = json.loads((Path(__file__).parents[2] / "data" / "published-facts.json").read_text())["models"]
    model = read_architecture(next(each["config"] for each in facts if each["name"] == "DeepSeek-V4-Flash"))
    note = drafting_note(model, UserArgs(args(method="mtp", num_speculative_tokens=1)))
    assert "speculation by mtp by the model's own layers: 3.4 GiB of weights" in note


def test_their_bytes_are_those_of_the_checkpoints_headers():
    model = read_architecture(PREDICTING)
    tensors = {f"model.layers.{layer}.w": Tensor("BF16", (10,)) for layer in range(4)}
    tensors |= {"model.embed_tokens.weight": Tensor("BF16", (512, 64)), "model.layers.4.eh_proj": Tensor("BF16", (77,))}
    assert read_architecture(PREDICTING, tensors=tensors).predicting_bytes == 154
    assert read_architecture(PREDICTING, tensors=tensors).weight_bytes < model.weight_bytes


SMALL = {**PREDICTING, "num_hidden_layers": 2, "num_nextn_predict_layers": 0}
"""A draft model of the same family."""


def with_draft(config=PREDICTING, draft=SMALL, method="draft_model"):
    model = read_architecture(config)
    return replace(model, draft=read_draft(draft, method, dtype=model.dtype))


def footprint_of(model, own, shape=None):
    return footprint(model, shape or Shape(1, 1), STEPS, 1024, UserArgs(own))


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


def test_a_draft_model_is_on_the_last_stage_with_its_weights_and_its_cache():
    model, own = with_draft(), args(model="org/small", num_speculative_tokens=3)
    plain, drafting = footprint_of(model, ()), footprint_of(model, own)
    assert drafting.head_bytes - plain.head_bytes == model.draft.weight_bytes
    more = [a - b for a, b in zip(drafting.layer_kv_bytes_per_token, plain.layer_kv_bytes_per_token, strict=True)]
    assert more == [0, 0, 0, model.draft.kv_bytes_per_token]
    assert drafting.graph_bytes > plain.graph_bytes


def test_tensor_parallelism_divides_a_head_and_not_its_projection():
    config = {**SMALL, "model_type": "deepseek_v3", "draft_vocab_size": 128}
    model, own = with_draft(draft=config, method="eagle3"), args(model="o/h", method="eagle3", num_speculative_tokens=3)
    whole, halved = (
        footprint_of(model, own, Shape(tensor, 1)).head_bytes - footprint_of(model, (), Shape(tensor, 1)).head_bytes
        for tensor in (1, 2)
    )
    undivided = model.draft.embedding_bytes + model.draft.final_norm_bytes
    assert whole == model.draft.weight_bytes
    assert halved == pytest.approx((whole - undivided) / 2 + undivided, abs=2)


def test_layers_of_the_models_own_load_its_embedding_again_where_the_first_stage_is_another():
    own = args(method="mtp", num_speculative_tokens=1)
    alone, split = (sized(own, pipeline=stages).head_bytes - sized((), pipeline=stages).head_bytes for stages in (1, 2))
    assert split - alone == read_architecture(PREDICTING).token_embedding_bytes


def test_probabilities_of_drafted_tokens_take_memory_where_they_are_kept():
    model = with_draft()
    greedy, kept = (
        footprint_of(model, args(model="org/small", num_speculative_tokens=2, draft_sample_method=how)).head_bytes
        for how in ("greedy", "probabilistic")
    )
    assert kept - greedy == 1024 * 2 * 512 * 4


def test_the_cache_of_a_draft_has_the_width_that_the_engine_is_asked_for():
    model, base = with_draft(), args(model="org/small", num_speculative_tokens=2)
    per_token = model.draft.kv_bytes_per_token
    plain = footprint_of(model, ()).layer_kv_bytes_per_token[-1]
    assert footprint_of(model, base).layer_kv_bytes_per_token[-1] - plain == per_token
    narrow = args(model="org/small", num_speculative_tokens=2, kv_cache_dtype="fp8")
    assert footprint_of(model, narrow).layer_kv_bytes_per_token[-1] - plain == per_token // 2
    whole = footprint_of(model, (*base, "--kv-cache-dtype", "fp8")).layer_kv_bytes_per_token[-1]
    assert whole == (plain + per_token) // 2


def step_s(build, model, own, sequences=8.0, prefill=0.0):
    """Seconds of a step on one L4."""
    device = build.node("a", "L4").devices[0]
    loads = stage_loads(model, [(device,)], [model.layers], drafting=drafting_of(model, UserArgs(own)))
    return Pipeline(loads, None, Costs.of(model, 100, 100)).round_s(prefill, sequences)


def test_drafting_and_verifying_take_time_in_every_step(build):
    model = with_draft()
    times = [
        step_s(build, model, own)
        for own in (
            (),
            args(method="ngram", num_speculative_tokens=4),
            args(model="org/small", num_speculative_tokens=1),
            args(model="org/small", num_speculative_tokens=4),
        )
    ]
    assert times[0] <= times[1] < times[2] < times[3]
    # Each further token is a pass of the draft over the sequences.
    alone = [step_s(build, model, args(model="org/small", num_speculative_tokens=k)) for k in (2, 3, 4)]
    assert alone[2] - alone[1] == pytest.approx(alone[1] - alone[0], rel=0.05)


def test_a_draft_that_is_parallel_passes_once(build):
    model = with_draft(draft={**SMALL, "draft_vocab_size": 128}, method="eagle3")
    one, many = (
        step_s(build, model, args(model="o/h", method="eagle3", num_speculative_tokens=8, parallel_drafting=at_once))
        for at_once in (True, False)
    )
    assert one < many


def test_a_step_has_room_for_all_tokens_that_are_verified(build):
    engine = EngineRequest(args=(*args(method="ngram", num_speculative_tokens=7), "--max-num-batched-tokens", "1024"))
    request = build.request(build.node("a", "L4"), config=PREDICTING, max_model_len=4096, engine=engine)
    found = plan(request)
    assert found.max_num_seqs <= 1024 // 8
    assert any("a step needs a token for each of them, and 7 that were drafted" in note for note in found.assumptions)


VERIFIED = "predictions count the verification of 3 drafted tokens in every step, and none as accepted"


@pytest.mark.parametrize(
    ("given", "note"),
    [
        ({"method": "ngram"}, f"speculation by ngram takes no weights; {VERIFIED}"),
        (
            {"method": "deepseek_mtp"},
            "speculation by mtp by the model's own layers: 242344 B of weights and 96 bytes of KV cache a token are "
            f"counted on the last stage, and the time to draft; {VERIFIED}",
        ),
        (
            {"model": "org/draft"},
            "--speculative-config is set in engine.args, and the draft's model is not in the plan: its weights, cache "
            f"and time come on top; leave it room with --gpu-memory-utilization; {VERIFIED}",
        ),
    ],
)
def test_the_plan_says_what_of_it_is_counted(build, given, note):
    engine = EngineRequest(args=args(**given, num_speculative_tokens=3))
    request = build.request(build.node("a", "L4"), config=PREDICTING, max_model_len=4096, engine=engine)
    assert note in plan(request).assumptions


def refused(build, *own, model=None):
    engine = EngineRequest(args=tuple(own))
    request = build.request(build.node("a", "L4"), config=PREDICTING, max_model_len=4096, engine=engine)
    with pytest.raises(PlanError) as caught:
        plan(request if model is None else replace(request, architecture=model))
    assert caught.value.reason == "InvalidOverride"
    return str(caught.value)


@pytest.mark.parametrize("text", ["{", "3", "[" * 1000])
def test_what_is_no_object_is_refused(build, text):
    assert re.match(r"spec.engine.args: --speculative-config .* is no JSON object$", refused(build, "-sc", text))


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ({"method": "magic", "num_speculative_tokens": 1}, "names the method 'magic', which the engine does not have"),
        ({"method": "my_mtp", "num_speculative_tokens": 1}, "names the method 'my_mtp', which the engine does not"),
        (
            {"method": "ngram", "num_speculative_tokens": 1, "tensor_parallel_size": 1},
            "has no use for tensor_parallel_size: give draft_tensor_parallel_size",
        ),
        ({"method": 3}, "has a method that is no name, 3: give a text"),
        ({"model": "org/x", "acceptance": 0.8}, "has no field 'acceptance': leave it out"),
        ({"method": "eagle3", "num_speculative_tokens": 1}, "names no model that drafts by eagle3: add `model`"),
        ({"method": "ngram"}, "does not say how many tokens are drafted: add `num_speculative_tokens`"),
        ({"method": "mtp"}, "does not say how many tokens are drafted: add `num_speculative_tokens`"),
        ({"model": "org/x", "num_speculative_tokens": 0}, "has num_speculative_tokens 0, which is no whole number"),
        ({"model": "org/x", "num_speculative_tokens": "5"}, "has num_speculative_tokens '5', which is no whole number"),
        ({"model": "org/x", "num_speculative_tokens": True}, "has num_speculative_tokens True, which is no whole"),
    ],
)
def test_what_the_engine_refuses_is_refused_with_the_remedy(build, given, why):
    assert refused(build, *args(**given)).startswith(f"spec.engine.args: --speculative-config {why}")


def test_a_draft_model_needs_the_models_vocabulary(build):
    model, own = with_draft(draft={**SMALL, "vocab_size": 500}), {"model": "org/x", "num_speculative_tokens": 1}
    assert refused(build, *args(**own), model=model) == (
        "spec.engine.args: --speculative-config: the draft model org/x has a vocabulary of 500, and "
        "DeepseekV3ForCausalLM one of 512: take one of the same family"
    )
    check_drafting(model, UserArgs(args(**own, use_heterogeneous_vocab=True)))


def test_a_head_of_another_width_is_refused(build):
    model = with_draft(draft={**SMALL, "hidden_size": 128}, method="eagle")
    own = args(model="org/h", method="eagle", num_speculative_tokens=1)
    assert "org/h drafts from a hidden size of 128, and that of DeepseekV3ForCausalLM is 64" in refused(
        build, *own, model=model
    )


def test_a_model_without_layers_that_predict_drafts_by_none(build):
    model = read_architecture(SMALLEST_LLAMA)
    assert "LlamaForCausalLM has no layers of its own that draft by mtp in vLLM: name a `model` that does" in refused(
        build, *args(method="mtp", num_speculative_tokens=1), model=model
    )


@pytest.mark.parametrize("name", ["MiniMaxM2ForCausalLM", "BailingMoeV2ForCausalLM"])
def test_layers_that_predict_and_that_the_engine_has_no_class_for_draft_by_none(build, name):
    model = replace(read_architecture(PREDICTING), name=name)
    assert model.predicting_bytes
    assert f"{name} has no layers of its own that draft by mtp in vLLM" in refused(
        build, *args(method="mtp", num_speculative_tokens=1), model=model
    )


@pytest.mark.parametrize(
    ("name", "method", "problem"),
    [
        ("DeepseekV41ForCausalLM", "mtp", "the layers of DeepseekV41ForCausalLM draft by dspark alone"),
        ("DeepseekV3ForCausalLM", "dspark", "DeepseekV3ForCausalLM has no layers of its own that draft by dspark"),
        ("DeepseekV41ForCausalLM", "dspark", ""),
        ("DeepseekV4ForCausalLM", "mtp", ""),
    ],
)
def test_dspark_and_mtp_each_need_layers_made_for_them(name, method, problem):
    model = replace(read_architecture(PREDICTING), name=name)
    user = UserArgs(args(method=method, num_speculative_tokens=1))
    with pytest.raises(PlanError, match=problem) if problem else nullcontext():
        check_drafting(model, user)


def test_a_class_that_does_not_give_its_inner_states_drafts_not_from_them(build):
    model = replace(read_architecture(SMALLEST_LLAMA), name="BloomForCausalLM")
    own = args(method="eagle3", model="org/h", num_speculative_tokens=1)
    assert "vLLM does not draft by eagle3 for BloomForCausalLM: take another method" in refused(
        build, *own, model=model
    )


def test_tokens_are_a_multiple_of_the_layers_that_draft(build):
    model = read_architecture({**PREDICTING, "num_nextn_predict_layers": 2})
    assert "num_speculative_tokens 3 must be a multiple of the 2 layers that draft" in refused(
        build, *args(method="mtp", num_speculative_tokens=3), model=model
    )


@pytest.mark.parametrize(
    ("given", "config", "why"),
    [
        ({"model": "org/x"}, PREDICTING, "vLLM would split the draft model into stages as well"),
        ({"model": "org/h", "method": "eagle3"}, PREDICTING, "vLLM does not hand the inner states of DeepseekV3"),
        ({"model": "org/h", "method": "eagle3"}, SMALLEST_LLAMA, ""),
        ({"method": "mtp"}, PREDICTING, ""),
        ({"method": "ngram"}, PREDICTING, ""),
    ],
)
def test_what_cannot_draft_across_stages_is_planned_on_one(given, config, why):
    model, user = read_architecture(config), UserArgs(args(**given, num_speculative_tokens=1))
    assert uncut_because(model, user).startswith(why) is True
    assert bool(uncut_because(model, user)) is bool(why)


def test_a_head_without_an_embedding_stays_with_the_first_stage():
    model = read_architecture(SMALLEST_LLAMA)
    tensors = {"fc.weight": Tensor("F16", (64, 192)), "midlayer.q": Tensor("F16", (64, 128))}
    head = read_draft(SMALLEST_LLAMA, "eagle3", dtype="float16", tensors=tensors)
    user = UserArgs(args(method="eagle3", model="org/h", num_speculative_tokens=1))
    assert "the draft's checkpoint has no embedding of its own" in uncut_because(replace(model, draft=head), user)
    whole = read_draft(
        SMALLEST_LLAMA,
        "eagle3",
        dtype="float16",
        tensors={**tensors, "embed_tokens.weight": Tensor("F16", (100, 64))},
    )
    assert uncut_because(replace(model, draft=whole), user) == ""


def test_stages_that_the_user_asks_for_are_refused_with_a_draft_model(build):
    engine = EngineRequest(args=args(model="org/x", num_speculative_tokens=1))
    request = build.request(build.node("a", "L4"), config=PREDICTING, max_model_len=4096, engine=engine)
    with pytest.raises(PlanError) as caught:
        plan(replace(request, overrides=Overrides(pipeline=2)))
    assert str(caught.value) == (
        "spec.parallelism.pipeline: 2: not with the speculation in spec.engine.args, for vLLM would split the draft "
        "model into stages as well, and it runs on the last one alone; leave one of them out"
    )


@pytest.mark.parametrize(
    "own",
    [
        ("--speculative-config", '{"model": "org/x", "num-speculative-tokens": 5}'),
        ("-sc", '{"model": "org/x", "num_speculative_tokens": 5}'),
        ('--speculative_config={"model": "org/x", "num_speculative_tokens": 5}',),
        ("--speculative-config.model", "org/x", "--speculative-config.num_speculative_tokens=5"),
        ("-sc.model=org/x", "--spec-tokens", "5"),
        ("--spec-model", "org/x", "--spec-tokens=5"),
    ],
)
def test_all_forms_of_the_flag_are_read_and_rewritten(own):
    found = speculation_of(UserArgs(own))
    assert (found.method, found.model, found.tokens) == ("draft_model", "org/x", 5)
    told = with_draft_args(("--a", *own, "--b", "1"), "/models/org/x/c0", "")
    assert told[:3] == ("--a", "--b", "1")
    again = speculation_of(UserArgs(told))
    assert (again.model, again.tokens, again.revision) == ("/models/org/x/c0", 5, "")


@pytest.mark.parametrize(
    ("given", "method"),
    [
        ({"model": "yuhuili/EAGLE-LLaMA3-8B"}, "eagle"),
        ({"model": "AngelSlim/Qwen3-8B_eagle3"}, "eagle3"),
        ({"model": "z-lab/Qwen3-8B-DFlash"}, "dflash"),
        ({"model": "[ngram]"}, "ngram"),
        ({"model": "theirs.Proposer"}, "custom_class"),
        ({"model": "org/small"}, "draft_model"),
        ({"method": "qwen3_next_mtp"}, "mtp"),
    ],
)
def test_the_method_is_found_as_the_engine_finds_it(given, method):
    assert speculation_of(UserArgs(args(**given, num_speculative_tokens=1))).method == method


def test_nothing_is_speculated_where_nothing_is_set():
    assert speculation_of(UserArgs(())) is None
    assert drafting_of(read_architecture(PREDICTING), UserArgs(())) is None
