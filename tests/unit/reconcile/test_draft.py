"""The draft of a service's speculation: looked up with its model, planned with it, copied with it."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from helpers.models import SMALLEST_LLAMA
from uellm.api import parse_service
from uellm.errors import PlanError
from uellm.hub import DraftFacts, ModelFacts
from uellm.planner.vllm.flags import UserArgs
from uellm.planner.vllm.speculation import speculation_of
from uellm.reconcile.download.needed import needed_copies
from uellm.reconcile.download.order import order_of
from uellm.reconcile.draft import draft_is_known
from uellm.reconcile.inspection.model_state import found
from uellm.reconcile.inspection.question import question_of
from uellm.reconcile.obstacle import Obstacle
from uellm.reconcile.planning.request import architecture_of, plan_request

CONFIG = SMALLEST_LLAMA
SMALL = {**SMALLEST_LLAMA, "num_hidden_layers": 2}
COMMIT, OTHER = "c" * 40, "d" * 40
FACTS = ModelFacts(COMMIT, CONFIG, None)


def service(make, *, speculation=None, uri="hf://org/model", template=None, **model):
    given = {"model": "org/small", "num_speculative_tokens": 2} if speculation is None else speculation
    spec = {"engine": {"args": ["--speculative-config", json.dumps(given)]}}
    return parse_service(
        make.service(model={"uri": uri, **model}, **spec, **({"template": template} if template else {}))
    )


def with_draft(source="hf://org/small@main", config=SMALL, commit=OTHER, of=FACTS):
    return replace(of, draft=DraftFacts(source, ModelFacts(commit, config, None)))


def told(service, facts):
    """The speculation that the engine is started with."""
    args = plan_request(service, architecture_of(service, facts), (), facts=facts).engine.args
    return speculation_of(UserArgs(args))


def test_a_draft_is_asked_about_with_the_model_in_one_question(make):
    assert question_of(service(make)).arguments == ("hf://org/model@main", "--draft=hf://org/small@main")
    named = service(make, speculation={"model": "org/small", "revision": "v2", "num_speculative_tokens": 1})
    assert question_of(named).arguments[-1] == "--draft=hf://org/small@v2"


def test_a_model_whose_configuration_is_given_is_not_asked_about_again(make):
    asked = question_of(service(make, config=CONFIG))
    assert asked.arguments == ("hf://org/model", "--only-adapters", "--draft=hf://org/small@main")


@pytest.mark.parametrize(
    "given", [{"method": "ngram", "num_speculative_tokens": 1}, {"model": "s3://b/x"}, {"method": 3}]
)
def test_what_is_in_no_repository_and_at_no_path_is_not_asked_about(make, given):
    assert question_of(service(make, speculation=given)).arguments == ("hf://org/model@main",)


def test_a_path_is_read_on_the_models_claim_or_on_a_volume_of_the_template(make):
    given = {"model": "/models/small", "num_speculative_tokens": 1}
    asked = question_of(service(make, speculation=given, uri="pvc://weights/llama"))
    assert asked.arguments[-1] == "--draft=/models/small,/models"
    assert [each["persistentVolumeClaim"]["claimName"] for each in asked.volumes] == ["weights"]
    mounts = {"name": "engine", "volumeMounts": [{"name": "data", "mountPath": "/data"}]}
    template = {"spec": {"containers": [mounts], "volumes": [{"name": "data", "hostPath": {"path": "/srv"}}]}}
    given = {"model": "/data/small", "num_speculative_tokens": 1}
    asked = question_of(service(make, speculation=given, template=template))
    assert (asked.arguments[-1], asked.on_volume) == ("--draft=/data/small,/data", True)


def test_a_path_on_no_volume_cannot_be_read(make):
    asked = question_of(service(make, speculation={"model": "/data/small", "num_speculative_tokens": 1}))
    assert isinstance(asked, Obstacle)
    assert (asked.reason, asked.message.startswith("draft model: /data/small is on no volume")) == ("NotOnVolume", True)


def test_the_draft_is_a_part_of_the_architecture_in_the_models_dtype(make):
    read = architecture_of(service(make, dtype="float32"), with_draft())
    assert (read.draft.layers, read.draft.dtype) == (2, "float32")
    assert architecture_of(service(make), FACTS).draft is None
    assert architecture_of(service(make), with_draft("hf://org/another@main")).draft is None


def test_a_draft_whose_configuration_cannot_be_read_is_named(make):
    with pytest.raises(PlanError) as caught:
        architecture_of(service(make), with_draft(config={**SMALL, "hidden_size": "many"}))
    assert caught.value.reason == "InvalidModel"
    assert str(caught.value).startswith("draft model org/small: config.hidden_size")


@pytest.mark.parametrize(
    "config",
    [
        {**CONFIG, "architectures": ["LlamaForCausalLMEagle3"]},
        {"speculators_config": {}, "transformer_layer_config": {}},
    ],
)
def test_a_draft_is_no_model_by_itself(make, config):
    with pytest.raises(PlanError) as caught:
        architecture_of(parse_service(make.service(model={"uri": "hf://org/head"})), ModelFacts(COMMIT, config, None))
    assert caught.value.reason == "InvalidModel"
    assert str(caught.value) == (
        "hf://org/head drafts for another model and is none by itself: serve that model, and name this one as `model` "
        "in --speculative-config of spec.engine.args"
    )


def test_a_head_whose_class_the_engine_does_not_have_is_refused(make):
    own = service(make, speculation={"model": "org/small", "method": "eagle3", "num_speculative_tokens": 1})
    with pytest.raises(PlanError) as caught:
        architecture_of(own, with_draft(config={**SMALL, "architectures": ["BloomForCausalLM"]}))
    assert "hf://org/small@main needs the class Eagle3BloomForCausalLM, which the engine does not have" in str(
        caught.value
    )


def test_a_draft_model_with_code_of_its_own_needs_the_users_trust(make):
    theirs = {**SMALL, "architectures": ["TheirsForCausalLM"], "auto_map": {"AutoConfig": "configuration.Config"}}
    with pytest.raises(PlanError) as caught:
        architecture_of(service(make), with_draft(config=theirs))
    assert caught.value.reason == "NeedsRemoteCode"
    trusted = service(make, trustRemoteCode=True)
    assert architecture_of(trusted, with_draft(config={**theirs, "model_type": "llama"})).draft.layers == 2


def test_the_engine_is_started_with_the_commit_of_the_draft_that_was_looked_up(make):
    assert (told(service(make), with_draft()).model, told(service(make), with_draft()).revision) == ("org/small", OTHER)
    assert told(service(make), FACTS).revision == "main"


def test_with_a_cache_the_engine_is_started_with_the_copy_of_the_draft(make):
    cached = service(make, cache={"claimName": "models"})
    found = told(cached, with_draft())
    assert (found.model, found.revision) == (f"/models/org/small/{OTHER}", "")
    order = order_of(cached, with_draft())
    assert order.arguments[-1] == f"--draft=hf://org/small@{OTHER}"
    assert order.other_directories == [f"org/small/{OTHER}"]
    assert order.copy_digest != order_of(cached, with_draft(commit=COMMIT)).copy_digest


def test_a_draft_at_a_path_is_neither_copied_nor_renamed(make):
    given = {"model": "/models/small", "num_speculative_tokens": 1}
    named = service(make, speculation=given, cache={"claimName": "models"})
    assert order_of(named, FACTS).draft is None
    assert told(named, with_draft("/models/small")).model == "/models/small"


def test_a_draft_is_known_when_the_facts_are_of_its_source(make):
    assert not draft_is_known(service(make), FACTS)
    assert draft_is_known(service(make), with_draft())
    assert not draft_is_known(service(make), with_draft("hf://org/small@v2"))
    assert draft_is_known(service(make, speculation={"method": "ngram", "num_speculative_tokens": 1}), None)


def test_the_condition_tells_the_draft(make):
    message = found(with_draft()).condition.message
    assert message.endswith(
        "; its draft: org/small, commit dddddddddddd, sized by its configuration: no safetensors headers"
    )
    alone = found(with_draft(of=ModelFacts("", {}, None))).condition.message
    assert alone.startswith("spec.model.config is given, so the model itself is not looked up; its draft: org/small")


def test_the_copy_of_a_draft_that_engines_run_with_is_needed(make):
    args = ["--speculative-config", json.dumps({"model": f"/models/org/small/{OTHER}", "num_speculative_tokens": 1})]
    engine = {"model": f"/models/org/model/{COMMIT}", "args": args}
    revisions = {"llama-r1": {"data": {"plan.json": json.dumps({"engine": engine})}}}
    document = make.service(model={"uri": "hf://org/model"}) | {"status": {"revision": "r1"}}
    needed = needed_copies(document, revisions, None, [], [])
    assert needed - {""} == {f"org/model/{COMMIT}", f"org/small/{OTHER}"}
