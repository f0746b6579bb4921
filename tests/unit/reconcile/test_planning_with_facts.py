"""A plan from the facts of a model that was looked up."""

from __future__ import annotations

import dataclasses
from datetime import timedelta

import pytest

from helpers.checkpoints import llama_tensors
from helpers.models import SMALLEST_LLAMA
from uellm.api import parse_service
from uellm.errors import PlanError
from uellm.hub import ModelFacts
from uellm.kube.kinds import LLMSERVICE
from uellm.planner.handover.publish import planned_engine
from uellm.reconcile.inspection.model_state import found, inspecting, refused
from uellm.reconcile.planning.request import architecture_of, plan_request
from uellm.reconcile.revisions import inputs_of

CONFIG = {**SMALLEST_LLAMA, "tie_word_embeddings": False}
FACTS = ModelFacts("c0ffee", CONFIG, llama_tensors(CONFIG, "F16"), 1)
CODE = {"auto_map": {"AutoConfig": "configuration.Config"}}


def service(make, uri="hf://org/model", *, args=(), **model):
    return parse_service(make.service(model={"uri": uri, **model}, engine={"args": list(args)}))


def requested(service, facts=None):
    return plan_request(service, architecture_of(service, facts), (), facts=facts)


def test_bytes_come_from_the_headers_and_facts_that_are_known_already_are_not_read_again(make):
    found = architecture_of(service(make), FACTS)
    assert found.source == "safetensors"
    assert architecture_of(service(make, maxModelLen=8), FACTS) is found


def test_the_engine_is_started_with_the_commit_that_was_looked_up(make):
    assert requested(service(make), FACTS).engine.revision == "c0ffee"
    assert requested(service(make, config=CONFIG, revision="v2")).engine.revision == "v2"
    copy = requested(service(make, cache={"claimName": "models"}), FACTS).engine
    assert (copy.model, copy.revision) == ("/models/org/model/c0ffee", "")
    directory = ModelFacts("", CONFIG, None)
    assert requested(service(make, "pvc://models/llama"), directory).engine.revision == ""


def test_smaller_variants_are_those_of_the_looked_up_configuration(make):
    assert next(name for name, _ in requested(service(make), FACTS).variants) == "fp8"


def test_headers_that_could_not_be_kept_are_noted(make):
    note = "sized by its config.json: the headers of its 90 files are too long to be kept"
    assert note in requested(service(make), ModelFacts("c", CONFIG, None, 90)).notes
    assert note not in requested(service(make), FACTS).notes


def test_a_given_configuration_wins(make):
    given = {**CONFIG, "num_hidden_layers": 2}
    assert architecture_of(service(make, config=given)).layers == 2


def test_a_configuration_that_cannot_be_read_names_the_model(make):
    with pytest.raises(PlanError) as caught:
        architecture_of(service(make), ModelFacts("c", {**CONFIG, "hidden_size": "many"}, None))
    assert caught.value.reason == "InvalidModel"
    assert str(caught.value).startswith("hf://org/model: config.hidden_size")


def test_without_facts_and_configuration_the_model_is_unknown(make):
    with pytest.raises(PlanError) as caught:
        architecture_of(service(make))
    assert caught.value.reason == "ModelUnknown"


def test_a_class_that_only_the_repository_has_needs_the_user_s_trust(make):
    theirs = ModelFacts("c", {**CONFIG, **CODE, "architectures": ["TheirsForCausalLM"], "model_type": "theirs"}, None)
    with pytest.raises(PlanError) as caught:
        architecture_of(service(make), theirs)
    assert (caught.value.reason, str(caught.value)) == (
        "NeedsRemoteCode",
        "'TheirsForCausalLM' is no class of the engine, and hf://org/model brings code of its own for it: set "
        "spec.model.trustRemoteCode if you trust that code",
    )
    assert architecture_of(service(make, trustRemoteCode=True), theirs).layers == 8
    assert architecture_of(service(make, args=["--trust-remote-code"]), theirs).layers == 8


def test_code_beside_a_class_of_the_engine_is_not_needed(make):
    assert architecture_of(service(make), ModelFacts("c", {**CONFIG, **CODE}, None)).layers == 8


@pytest.mark.parametrize("args", [[], ["--trust-remote-code"]])
def test_trust_is_a_flag_of_the_engine(make, args):
    request = requested(service(make, trustRemoteCode=True, args=args), FACTS)
    assert planned_engine(make.plan(), request).args.count("--trust-remote-code") == 1
    assert "--trust-remote-code" not in planned_engine(make.plan(), requested(service(make), FACTS)).args


def by_name(world, name="one", model=None):
    """The service by its name alone, as it is observed, with what is known of its model."""
    world.service(name, model={"uri": "hf://org/model"})
    return lambda: dataclasses.replace(world.observed(name), model=model or found(FACTS))


async def test_a_service_is_not_planned_before_its_model_is_known(world):
    world.node("a", None, None)
    for state in (inspecting("a pod runs"), refused("Gated", "accept its terms")):
        observed = by_name(world, model=state)()
        choice = (await world.planning.plan(observed, world.now)).choice
        assert (choice.plan, choice.failure.reason) == (None, state.condition.reason)
    assert world.requests == []
    observed = by_name(world)()
    assert (await world.planning.plan(observed, world.now)).choice.plan is not None
    assert world.requests[0].engine.revision == "c0ffee"


async def test_facts_that_were_lost_withdraw_no_plan_of_pods_that_run(world, make, monkeypatch):
    monkeypatch.setattr("uellm.reconcile.planning.planning.kept_revision", lambda *_: make.revision(""))
    world.node("a", None, None)
    plan = make.plan(nodes=("a",))
    world.service("one", plan=plan)
    for state in (inspecting("a pod runs"), refused("Unreachable", "no network")):
        observed = dataclasses.replace(world.observed("one"), model=state)
        assert (await world.planning.plan(observed, world.now)).choice == (plan, None, "", "")
    assert world.requests == []


def test_the_engine_s_flags_count_as_the_spec_s_fields(make):
    args = ("--max-model-len", "64", "--dtype", "float32")
    told, plain = service(make, config=CONFIG, args=args), service(make, config=CONFIG)
    request = requested(told)
    assert request.max_model_len == 64
    assert (request.engine.dtype, request.architecture.dtype) == ("float32", "float32")
    assert request.architecture.weight_bytes == 2 * requested(plain).architecture.weight_bytes
    assert requested(service(make, config=CONFIG, maxModelLen=64, dtype="float32")).architecture == request.architecture
    assert planned_engine(make.plan(), request).args[-4:] == args
    quantized = requested(service(make, config=CONFIG, args=("-q", "fp8"))).architecture
    assert (quantized.quantization, quantized.weight_bytes < requested(plain).architecture.weight_bytes) == (
        "fp8",
        True,
    )


def test_the_engine_is_told_its_own_name_of_a_method(make):
    section = {"quant_method": "gptq", "bits": 4, "group_size": 128, "sym": True}
    named = service(make, config={**CONFIG, "quantization_config": section}, quantization="gptqmodel")
    assert requested(named).engine.quantization == "gptq"


def test_a_flag_may_repeat_the_method_of_a_checkpoint_that_only_its_headers_can_size(make):
    theirs = {**CONFIG, "quantization_config": {"quant_method": "moe_wna16"}}
    facts = ModelFacts("c", theirs, llama_tensors(CONFIG, "F16"), 1)
    assert (
        requested(service(make, args=("-q", "moe_wna16")), facts).architecture
        == requested(service(make), facts).architecture
    )


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("--quantization", "awq"), "--quantization: awq needs a checkpoint made with it, and config has no"),
        (("--dtype", "int3"), "--dtype 'int3' is not one of "),
        (("--max-model-len", "abc"), "--max-model-len 'abc' is not a positive whole number"),
    ],
)
async def test_flags_that_cannot_be_are_refused_before_any_pod_exists(world, args, message):
    world.node("a", None, None)
    world.service("one", engine={"args": list(args)})
    failure = (await world.plan("one")).failure
    assert failure.reason == "InvalidOverride"
    assert failure.message.startswith(f"spec.engine.args: {message}")
    assert world.requests == []


async def test_a_service_that_runs_with_refused_flags_since_before_keeps_its_plan_until_its_spec_changes(world, make):
    world.node("a", None, None)
    plan, args = make.plan(nodes=("a",)), ["--dtype", "int3"]
    world.service("one", plan=plan, engine={"args": args})
    world.deployed("one")
    revision = world.observed("one").revision
    assert revision is not None
    kept = dataclasses.replace(revision, inputs=inputs_of(plan))
    world.revisions["one"] = {kept.name: kept}
    assert (await world.plan("one")) == (plan, None, "", "")
    edited = world.service("one", plan=plan, engine={"args": [*args, "--seed=1"]})
    world.put(LLMSERVICE, {**edited, "metadata": {**edited["metadata"], "generation": 2}})
    assert (await world.plan("one")).failure.reason == "InvalidOverride"


GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 64, "sym": False, "desc_act": False}
ASYMMETRIC = {"uri": "file:///m", "config": {**SMALLEST_LLAMA, "torch_dtype": "float16", "quantization_config": GPTQ}}


async def test_a_service_that_runs_with_what_the_stock_engine_no_longer_starts_with_moves_to_other_gpus(world, make):
    world.node("a", "x", "y")
    world.node("b", None, None)
    kept = make.plan(nodes=("a",))
    world.service("one", plan=kept, model=ASYMMETRIC)
    world.deployed("one", inputs=inputs_of(kept))
    world.pod("one", "p", make.unschedulable(since=world.now.strftime("%Y-%m-%dT%H:%M:%SZ")))
    assert (await world.plan("one")).plan.nodes == ("a",)
    world.now += timedelta(seconds=61)
    assert (await world.plan("one")).plan.nodes == ("b",)


@pytest.mark.parametrize(("image", "reason"), [(None, "InvalidModel"), ("vllm/vllm-openai:v0.9.2", None)])
async def test_what_the_stock_engine_does_not_start_with_is_planned_for_an_engine_of_ones_own(world, image, reason):
    world.node("a", None, None)
    world.service("one", model=ASYMMETRIC, **({"engine": {"image": image}} if image else {}))
    choice = await world.plan("one")
    assert (choice.failure and choice.failure.reason) == reason
    assert (choice.plan is None) == (reason is not None)
