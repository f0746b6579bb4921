"""LoRA adapters between spec, plan and sidecars: where they are, which slots they need, which of them are told."""

from __future__ import annotations

import dataclasses

import pytest
import yaml

from helpers.models import SMALLEST_LLAMA
from uellm.api import parse_service
from uellm.api.sidecar_document import ToldAdapters
from uellm.errors import PlanError
from uellm.hub import ModelFacts
from uellm.hub.adapter import AdapterFacts
from uellm.kube.kinds import DEPLOYMENT
from uellm.planner.adapter_slots import AdapterSlots
from uellm.reconcile.adapter_claims import adapter_claims, adapter_path
from uellm.reconcile.adapters import are_known, are_told, entries, handed_over, read_told, still_wanted
from uellm.reconcile.children.configmap import sidecar_document
from uellm.reconcile.desired import adapters_told, reloaded
from uellm.reconcile.inspection.model_state import found as found_facts
from uellm.reconcile.inspection.question import question_of
from uellm.reconcile.observe import Observed
from uellm.reconcile.planning.adapters import adapter_slots, base_warnings
from uellm.reconcile.planning.request import architecture_of, plan_request

SQL = {"name": "sql", "uri": "hf://org/sql", "revision": "v2"}
CHAT = {"name": "chat", "uri": "pvc://adapters/chat/1"}
CONFIG = {**SMALLEST_LLAMA, "tie_word_embeddings": False}
HIDDEN, LAYERS = CONFIG["hidden_size"], CONFIG["num_hidden_layers"]
COMMIT = "c" * 40


def service(make, *adapters, args=(), uri="hf://org/model", **model):
    spec = {"uri": uri, "adapters": list(adapters), **model}
    return parse_service(make.service(model=spec, engine={"args": list(args)}))


def adapter(name="sql", source="hf://org/sql@v2", *, rank=8, base="", layers=1, widths=()):
    return AdapterFacts(name, source, COMMIT, rank, 1000, base, layers, widths)


def facts(*adapters):
    return ModelFacts("c0ffee", CONFIG, None, 0, adapters)


def test_an_adapter_s_path_is_on_its_claim_in_the_container_or_on_the_models_claim(make):
    found = service(make, CHAT, {"name": "c", "uri": "file:///data/c/"}, {"name": "d", "uri": "pvc://models/d"})
    chat, file, other = found.spec.model.adapters
    assert adapter_path(found, chat) == "/adapters/adapters/chat/1"
    assert adapter_path(found, file) == "/data/c"
    assert adapter_path(found, other) == "/adapters/models/d"
    assert adapter_claims(found) == {"adapters": "/adapters/adapters", "models": "/adapters/models"}
    same = service(make, {"name": "d", "uri": "pvc://models/d"}, uri="pvc://models/llama")
    assert (adapter_path(same, same.spec.model.adapters[0]), adapter_claims(same)) == ("/models/d", {})


def test_sidecars_are_told_the_commit_of_an_adapter_on_the_hub_and_the_path_of_any_other(make):
    found = service(make, SQL, CHAT)
    sql, chat = (each.to_dict() for each in entries(found, facts(adapter())))
    assert sql == {"name": "sql", "source": "hf://org/sql@v2", "repository": "org/sql", "commit": COMMIT}
    assert chat == {"name": "chat", "source": CHAT["uri"], "path": "/adapters/adapters/chat/1"}


def test_with_a_cache_sidecars_are_told_the_path_of_the_copy_of_an_adapter_on_the_hub(make):
    found = service(make, SQL, CHAT, cache={"claimName": "models"})
    sql, chat = (each.to_dict() for each in entries(found, facts(adapter())))
    assert sql == {"name": "sql", "source": "hf://org/sql@v2", "path": f"/models/org/sql/{COMMIT}"}
    assert chat == {"name": "chat", "source": CHAT["uri"], "path": "/adapters/adapters/chat/1"}


def test_adapters_are_known_when_the_facts_are_of_their_names_and_sources(make):
    found = service(make, SQL)
    assert are_known(found, facts(adapter()))
    assert not are_known(found, facts(adapter(source="hf://org/sql@v1")))
    assert not are_known(found, facts(adapter("other")))
    assert not are_known(found, None)


def test_what_the_service_no_longer_has_is_no_longer_told(make):
    told = ToldAdapters(entries(service(make, SQL, CHAT), facts(adapter())))
    fewer = service(make, CHAT)
    assert [each.name for each in still_wanted(fewer, told).adapters] == ["chat"]
    assert not are_told(fewer, told)
    assert are_told(fewer, still_wanted(fewer, told))


@pytest.mark.parametrize("text", ["", "classes: []", "adapters: 5", "adapters: [5]", "adapters: [{", "[adapters]"])
def test_a_file_without_adapters_tells_none(text):
    assert read_told({"data": {"sidecar.yaml": text}}, "sidecar.yaml") == ToldAdapters()
    assert read_told(None, "sidecar.yaml") == ToldAdapters()


@pytest.mark.parametrize("change", [{"revision": "v33"}, {"uri": "hf://org/sql-next"}])
def test_a_changed_source_is_served_from_the_former_one_until_the_new_one_is_known(make, change):
    before = service(make, SQL, CHAT)
    told = ToldAdapters(entries(before, facts(adapter())))
    edited = service(make, {**SQL, **change}, CHAT)
    assert still_wanted(edited, told) == told
    assert not are_told(edited, told)
    assert are_told(before, told)


NEXT = {**SQL, "uri": "hf://org/sql-next"}


@pytest.fixture
def versions(make):
    """What is told of an adapter, and of the same one after a retraining."""
    return entries(service(make, SQL), facts(adapter())), entries(service(make, NEXT), None)


def test_during_a_rollout_each_pod_goes_on_with_its_own_adapters(make, versions):
    old, new = versions
    told = handed_over(ToldAdapters(old), new, "r2", {"r1"})
    assert (told.of("r1"), told.of("r2")) == (old, new)
    assert are_told(service(make, NEXT), told)
    assert handed_over(told, new, "r2", {"r1"}) == told
    assert handed_over(told, new, "r2", ()) == ToldAdapters(new)


def test_an_adapter_that_made_room_necessary_is_told_to_the_pods_that_have_it(versions):
    _, new = versions
    told = handed_over(ToldAdapters(), new, "r2", {"r1"})
    assert (told.of("r1"), told.of("r2")) == ((), new)


def test_a_third_revision_takes_over_while_two_have_pods_and_the_first_may_come_back(versions):
    old, new = versions
    half = handed_over(ToldAdapters(old), new, "r2", {"r1"})
    third = handed_over(half, (*old, *new), "r3", {"r1", "r2"})
    assert [third.of(name) for name in ("r1", "r2", "r3")] == [old, new, (*old, *new)]
    back = handed_over(half, old, "r1", {"r2"})
    assert [back.of(name) for name in ("r1", "r2")] == [old, new]


def test_what_is_told_of_revisions_is_read_back_from_the_file(make, versions):
    old, new = versions
    told = handed_over(ToldAdapters(old), new, "r2", {"r1"})
    text = yaml.safe_dump(sidecar_document(service(make, NEXT), told).to_dict())
    assert read_told({"data": {"sidecar.yaml": text}}, "sidecar.yaml") == told


class TestThePass:
    """From the state of the cluster to what the sidecars are told."""

    @pytest.fixture
    def observed(self, make, versions):
        def build(spec, *, deployed="r1", **state):
            document = make.service(model=spec)
            known = yaml.safe_dump(sidecar_document(parse_service(document), ToldAdapters(versions[0])).to_dict())
            config = {"metadata": {"name": "llama-config"}, "data": {"sidecar.yaml": known}}
            pods = [make.pod("a")]
            pods[0]["metadata"]["labels"]["uellm.io/revision"] = "r1"
            children = {DEPLOYMENT: make.deployment(revision=deployed)}
            parts = {"configmaps": {"llama-config": config}, "children": children, "pods": tuple(pods)}
            return Observed(document, parse_service(document), **parts, **state)

        return build

    def test_an_edit_that_is_not_carried_out_yet_tells_the_pods_what_they_were_told(self, observed, versions):
        found = observed({"uri": "hf://org/model", "adapters": [NEXT]})
        assert reloaded(found).adapters == ToldAdapters(versions[0])

    @pytest.mark.parametrize("deployed", ["r1", "r2"])
    def test_new_adapters_are_told_to_no_pod_of_another_revision(self, make, observed, versions, deployed):
        spec = {"uri": "hf://org/model", "adapters": [NEXT], "config": CONFIG}
        known = found_facts(ModelFacts("", {}, None, 0, (adapter(source="hf://org/sql-next@v2"),)))
        found = observed(spec, deployed=deployed, model=known)
        plan = dataclasses.replace(make.plan(), adapters=AdapterSlots(4, 8))
        told = adapters_told(found, plan, "r2")
        assert told.of("r1") == versions[0]
        assert [each.source for each in told.of("r2")] == ["hf://org/sql-next@v2"]

    def test_adapters_that_replace_no_pod_are_told_to_all_at_once(self, make, observed):
        known = found_facts(ModelFacts("", {}, None, 0, (adapter(source="hf://org/sql-next@v2"),)))
        found = observed({"uri": "hf://org/model", "adapters": [NEXT], "config": CONFIG}, model=known)
        told = adapters_told(found, dataclasses.replace(make.plan(), adapters=AdapterSlots(4, 8)), "r1")
        assert told == ToldAdapters(entries(found.service, found.facts))


def test_slots_that_suffice_are_kept_also_when_the_last_adapter_is_gone(make):
    there = AdapterSlots(8, 64)
    assert adapter_slots(service(make, SQL), facts(adapter()), there) == there
    assert adapter_slots(service(make), None, there) == there
    assert adapter_slots(service(make), None, None) is None
    assert adapter_slots(service(make, SQL), facts(adapter(rank=128)), there) == AdapterSlots(4, 128)


def test_the_users_own_flags_decide_the_slots(make):
    found = service(make, SQL, args=["--max-loras=2", "--max-lora-rank", "256"])
    assert adapter_slots(found, facts(adapter()), None) == AdapterSlots(2, 256)


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        ({"layers": LAYERS + 1}, f"it has weights for layer {LAYERS}, and the model has {LAYERS} layers"),
        (
            {"widths": (("o_proj", 8, 2 * HIDDEN),)},
            f"its o_proj is for a hidden size of {2 * HIDDEN}, and the model's is {HIDDEN}",
        ),
    ],
)
def test_an_adapter_of_another_model_is_refused(make, wrong, why):
    with pytest.raises(PlanError) as caught:
        architecture_of(service(make, SQL), facts(adapter(**wrong)))
    assert (caught.value.reason, str(caught.value)) == (
        "InvalidAdapter",
        f"adapter sql (hf://org/sql@v2) is not of this model: {why}",
    )


def test_a_class_without_adapters_is_refused(make):
    config = {**CONFIG, "architectures": ["BloomForCausalLM"], "model_type": "llama"}
    with pytest.raises(PlanError, match="the engine serves no LoRA adapters for BloomForCausalLM: merge them"):
        architecture_of(service(make, SQL, config=config), facts(adapter()))


def test_a_vocabulary_that_is_too_large_is_refused(make):
    with pytest.raises(PlanError, match="with a vocabulary of 300000: at most 258048"):
        architecture_of(service(make, SQL, config={**CONFIG, "vocab_size": 300000}), facts(adapter()))


def test_an_embedder_has_no_lm_head_for_which_a_vocabulary_could_be_too_large(make):
    embedder = service(make, SQL, config={**CONFIG, "vocab_size": 300000}, task="Embed")
    assert architecture_of(embedder, facts(adapter())).vocab_size == 300000


@pytest.mark.parametrize("flag", ["--enable-lora", "--lora-modules=a=/b", "--no-enable-lora", "--api-server-count=2"])
def test_flags_that_adapters_decide_are_refused_beside_them(make, flag):
    with pytest.raises(PlanError, match=r"is not allowed beside spec\.model\.adapters"):
        architecture_of(service(make, SQL, args=[flag]), facts(adapter()))


def test_a_rank_above_the_users_own_flag_is_refused(make):
    with pytest.raises(PlanError, match="--max-lora-rank 8 is below the rank of adapter sql, 16"):
        architecture_of(service(make, SQL, args=["--max-lora-rank=8"]), facts(adapter(rank=16)))


def test_another_base_is_a_note_and_the_same_name_under_another_owner_is_not(make):
    found, told = service(make, SQL), "adapter sql says that it was trained on org/other, and the model is org/model"
    assert base_warnings(found, facts(adapter(base="org/other"))) == (told,)
    assert (
        told in plan_request(found, architecture_of(found, facts()), (), facts=facts(adapter(base="org/other"))).notes
    )
    assert base_warnings(found, facts(adapter(base="mirror/Model"))) == ()
    assert base_warnings(found, facts(adapter(base="/home/me/model"))) == ()


def test_adapters_are_asked_about_with_the_model_in_one_question(make):
    asked = question_of(service(make, SQL, CHAT))
    assert asked.arguments == (
        "hf://org/model@main",
        "--adapter=sql=hf://org/sql@v2",
        "--adapter=chat=/adapters/adapters/chat/1,/adapters/adapters,pvc://adapters/chat/1",
    )
    assert asked.on_volume
    assert [each["persistentVolumeClaim"]["claimName"] for each in asked.volumes] == ["adapters"]


def test_a_model_whose_configuration_is_given_is_not_asked_about_again(make):
    asked = question_of(service(make, SQL, config=CONFIG))
    assert asked.arguments == ("hf://org/model", "--only-adapters", "--adapter=sql=hf://org/sql@v2")


def test_an_adapter_on_no_volume_cannot_be_read(make):
    asked = question_of(service(make, {"name": "c", "uri": "file:///data/c"}))
    assert asked.reason == "NotOnVolume"
    assert asked.message.startswith("adapter c: file:///data/c is on no volume")
