"""Plans of embedders and rerankers: prompts alone, a KV cache only where the engine keeps one, one time an answer."""

from __future__ import annotations

from dataclasses import replace

import pytest

from helpers.pooling_models import bert, qwen3
from uellm.errors import PlanError
from uellm.models import read_architecture
from uellm.planner import plan
from uellm.planner.handover.publish import plan_document
from uellm.planner.handover.sidecar_prior import step_time
from uellm.planner.request import EngineRequest, SloClass, Workload

LOAD = Workload(requests_per_s=50, prompt_tokens_mean=300)
SEARCH = (SloClass("search", e2e_s=0.2),)
ENGINE = EngineRequest(model="org/model", task_args=(("--runner", "pooling"),), leaves_length=True)


@pytest.fixture
def ask(build):
    def make(config=None, **changes):
        asked = {"task": "Embed", "workload": LOAD, "classes": SEARCH, "engine": ENGINE, "max_model_len": 512}
        asked |= {"least_step_tokens": 512, **changes}
        request = build.request(build.node("a", "L4 L4"), **asked)
        return replace(request, architecture=read_architecture(config or bert(), task="Embed"))

    return make


def flags(request):
    return plan_document(plan(request), request).engine.args


def test_an_encoder_gets_neither_a_kv_cache_nor_a_length(ask):
    request = ask()
    made = plan(request)
    assert (made.kv_cache_bytes, made.predicted.kv_cache_tokens, made.stages[0].memory.kv) == (0, 0, 0)
    args = flags(request)
    assert args[:2] == ("--runner", "pooling")
    assert not {"--kv-cache-memory-bytes", "--max-model-len"} & set(args)
    assert plan_document(made, request).kv_tokens == 0


def test_a_size_of_the_kv_cache_means_nothing_to_an_encoder(ask):
    own = replace(ENGINE, args=("--kv-cache-memory-bytes", "1G"))
    assert plan(ask(engine=own)).kv_cache_bytes == 0


def test_a_decoder_embedder_gets_a_kv_cache_for_the_longest_prompt(ask):
    request = ask(qwen3(), max_model_len=8192, least_step_tokens=8192)
    made = plan(request)
    assert made.predicted.kv_cache_tokens >= 8192
    assert "--kv-cache-memory-bytes" in flags(request)


def test_a_step_holds_the_longest_prompt(ask):
    assert plan(ask(qwen3(), max_model_len=20_000, least_step_tokens=20_000)).max_num_batched_tokens == 20_000
    made = plan(ask())
    assert made.max_num_batched_tokens == 2048
    assert any(note.startswith("--max-num-batched-tokens 2048: vLLM's default") for note in made.assumptions)


def test_a_step_that_cannot_hold_the_longest_prompt_is_refused(ask):
    own = replace(ENGINE, args=("--max-num-batched-tokens", "256"))
    with pytest.raises(PlanError) as refused:
        plan(ask(engine=own))
    assert str(refused.value) == (
        "spec.engine.args: --max-num-batched-tokens 256 is less than the 512 tokens of this model's longest input, "
        "which the engine does not cut: raise it, or lower spec.model.maxModelLen"
    )
    assert plan(ask(qwen3(), engine=own)).max_num_batched_tokens == 256


def test_logits_take_no_memory(ask):
    request = ask(qwen3(), max_model_len=8192)
    writes = replace(request, task="Generate", architecture=read_architecture(qwen3()), classes=())
    assert plan(request).stages[0].memory.activations <= plan(writes).stages[0].memory.activations


def test_the_answer_takes_as_long_as_its_prompt_and_there_is_no_time_per_token(ask):
    made = plan(ask())
    assert made.predicted.tpot_ms is None
    assert made.predicted.ttft_ms is not None
    longer = plan(ask(workload=replace(LOAD, prompt_tokens_mean=500)))
    assert longer.predicted.ttft_ms > made.predicted.ttft_ms
    assert longer.predicted.requests_per_s < made.predicted.requests_per_s


def test_ttft_and_e2e_are_the_same_target(ask):
    of_e2e, of_ttft = (plan(ask(classes=(SloClass("search", **{name: 0.05}),))) for name in ("e2e_s", "ttft_s"))
    assert of_e2e.predicted == of_ttft.predicted


def test_output_tokens_change_nothing_and_are_noted(ask):
    made = plan(ask(workload=replace(LOAD, output_tokens_mean=400)))
    assert made.predicted == plan(ask()).predicted
    assert "workload.outputTokens is ignored: a service with task Embed writes no tokens" in made.assumptions


def test_a_load_beyond_one_replica_takes_several_and_each_serves_its_share(ask):
    one = plan(ask())
    many = plan(ask(workload=replace(LOAD, requests_per_s=3.5 * one.predicted.requests_per_s)))
    assert one.recommended_replicas == 1
    assert many.recommended_replicas in (4, 5)


def test_a_tight_target_costs_throughput_and_an_impossible_one_is_said_to_be(ask):
    loose, tight = (plan(ask(classes=(SloClass("search", e2e_s=target),))) for target in (1.0, 0.04))
    assert tight.predicted.requests_per_s < loose.predicted.requests_per_s
    never = plan(ask(classes=(SloClass("search", e2e_s=0.0005),)))
    assert not never.slo.feasible
    assert never.slo.constraint.startswith("E2E 0.5 ms of class search")


def test_the_sidecar_gets_step_times_in_which_prompts_cost(ask):
    request = ask()
    step = step_time(plan(request), request)
    assert step is not None
    assert step.per_prefill_token_s > 0
    assert step.per_kv_token_s == 0


def test_a_service_without_a_load_is_sized_for_one_request(ask):
    made = plan(ask(workload=Workload()))
    assert "workload.requestsPerSecond is not given: sized for one request at a time" in made.assumptions
    assert made.recommended_replicas is None
