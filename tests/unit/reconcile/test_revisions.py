"""Revisions: named by their content, frozen, restored from what is known of them, forgotten when nothing needs them."""

from __future__ import annotations

import dataclasses
import json

import pytest
import yaml

from helpers.models import SMALLEST_LLAMA
from uellm.api import parse_service
from uellm.hardware import NodeNeeds
from uellm.kube.kinds import DEPLOYMENT
from uellm.reconcile.children import DesiredState, FormerConfig, Images, make_revision, read_revision
from uellm.reconcile.children.configmap import sidecar_document
from uellm.reconcile.children.former import former_spec_digest
from uellm.reconcile.names import Key, possible_owners
from uellm.reconcile.observe import Observed
from uellm.reconcile.rendered_plan import RenderedPlan
from uellm.reconcile.revisions import HISTORY, KnownRevisions, inputs_of, kept_revision, needed_by, superseded

IMAGES = Images("engine:1", "sidecar:1", "launcher:1")
MODEL = {"uri": "file:///m", "config": SMALLEST_LLAMA}
RENDERED = RenderedPlan(
    node_needs=NodeNeeds("nvidia.com/gpu", 1, 1, 1),
    gpus_per_pod=1,
    resource_name="nvidia.com/gpu",
    weight_bytes=1,
    host_memory_bytes=1,
    host_millicores=1,
    annotation="{}",
    plan_json='{"plan": 1}',
    max_model_len=2048,
    max_num_seqs=64,
    max_num_batched_tokens=512,
    priority_scheduling=True,
    step_seconds=None,
)


@pytest.fixture
def desired(make):
    def build(rendered=RENDERED, **spec):
        document = make.service(**{"model": MODEL, **spec})
        return DesiredState(document, parse_service(document), rendered, IMAGES, 1, "1/digest", inputs="plan")

    return build


@pytest.fixture
def configmap(desired):
    """The ConfigMap of a revision, as the API server has it."""

    def build(*, version="1", **spec):
        wanted = desired(**spec)
        manifest = make_revision(wanted).manifest(wanted.document)
        manifest["metadata"] |= {"uid": "x", "resourceVersion": version}
        return manifest

    return build


def name_of(configmap):
    return configmap["metadata"]["labels"]["uellm.io/revision"]


@pytest.fixture
def observed(make):
    def build(*configmaps, revision="", deployed="", pods=(), **spec):
        document = make.service(**{"model": MODEL, **spec}, status={"revision": revision} if revision else None)
        children = {DEPLOYMENT: make.deployment(revision=deployed)} if deployed else {}
        found = {each["metadata"]["name"]: each for each in configmaps}
        return Observed(document, parse_service(document), children=children, configmaps=found, pods=tuple(pods))

    return build


def test_the_same_content_has_the_same_name_and_any_other_content_another(desired):
    one = make_revision(desired())
    assert make_revision(desired()).name == one.name
    others = [
        desired(model={**MODEL, "servedName": "other"}),
        desired(engine={"env": [{"name": "A", "value": "1"}]}),
        desired(dataclasses.replace(RENDERED, plan_json='{"plan": 2}')),
        desired(dataclasses.replace(RENDERED, max_num_seqs=65)),
    ]
    assert len({one.name, *(make_revision(each).name for each in others)}) == 5


def test_what_is_reloaded_is_no_part_of_a_revision(desired):
    classes = [{"name": "chat", "ttft": "1s"}]
    reloaded = desired(slo={"classes": classes}, scheduling={"policy": "FCFS"}, replicas=3)
    assert make_revision(reloaded).name == make_revision(desired()).name


def test_the_revision_is_in_its_files_and_in_the_template_that_mounts_it(desired):
    revision = make_revision(desired())
    assert yaml.safe_load(revision.files["engine.yaml"])["revision"] == revision.name
    assert revision.template["metadata"]["labels"]["uellm.io/revision"] == revision.name
    volumes = {each["name"]: each for each in revision.template["spec"]["volumes"]}
    assert volumes["revision"]["configMap"]["name"] == f"llama-{revision.name}"


def test_no_template_of_the_users_hides_the_revision(desired):
    template = {"metadata": {"labels": {"uellm.io/revision": "mine"}}}
    revision = make_revision(desired(template=template))
    assert revision.template["metadata"]["labels"]["uellm.io/revision"] == revision.name


def test_keys_are_looked_for_only_by_pods_that_mount_them(desired):
    keyed = make_revision(desired(auth={"apiKeysSecretRef": {"name": "keys"}}))
    assert yaml.safe_load(keyed.files["engine.yaml"])["auth"] == {"keysDirectory": "/etc/uellm-auth"}
    assert "auth" not in yaml.safe_load(make_revision(desired()).files["engine.yaml"])


def test_a_revision_is_read_back_as_it_was_frozen(desired, configmap):
    assert read_revision(configmap()) == make_revision(desired())


@pytest.mark.parametrize(
    "edit",
    [
        lambda made: made["data"].update({"plan.json": "{}"}),
        lambda made: made["data"].pop("plan.json"),
        lambda made: made["data"].update({"more": ""}),
        lambda made: made.pop("data"),
    ],
)
def test_content_that_its_name_does_not_stand_for_is_no_revision(configmap, edit):
    made = json.loads(json.dumps(configmap()))
    edit(made)
    assert read_revision(made) is None


def test_a_revision_whose_label_was_taken_away_is_known_by_its_name(configmap, desired):
    made = configmap()
    del made["metadata"]["labels"]["uellm.io/revision"]
    assert read_revision(made) == make_revision(desired())


@pytest.mark.parametrize("service", ["llama", "llama-config", "llama-0123456789", "a-b-c"])
def test_a_revisions_name_leads_to_its_service_and_to_no_other_services_children(service):
    for other in ("llama", "llama-config", "llama-0123456789", "a-b-c", "a-b"):
        owners = possible_owners({"metadata": {"name": f"{service}-abcdef0123", "namespace": "ns"}})
        assert Key("ns", service) in owners
        assert f"{service}-abcdef0123" not in {f"{other}-config", f"{other}-devices"}


def test_what_is_deleted_or_edited_while_it_is_in_use_is_known_all_the_same(observed, configmap):
    known, made = KnownRevisions(), configmap()
    name = name_of(made)
    before = known.of(observed(made, revision=name))[name]
    edited = {**made, "metadata": {**made["metadata"], "annotations": {}}}
    assert known.of(observed(edited, revision=name))[name] == before
    assert known.of(observed(revision=name)) == {name: before}
    assert known.of(observed(deployed=name)) == {name: before}
    assert known.of(observed()) == {}
    assert known.of(observed(revision=name)) == {}


def test_pods_keep_their_revision_until_spec_or_plan_call_for_another(make, observed, configmap):
    plan, made = make.plan(), configmap()
    name = name_of(made)

    def kept(plan_made_for, **spec):
        seen = observed(made, revision=name, **spec)
        found = read_revision(made).marked(observed(made).spec_mark, inputs_of(plan_made_for))
        return kept_revision(dataclasses.replace(seen, revisions={name: found}), plan)

    assert kept(plan).name == name
    assert kept(make.plan(layers=(4, 4))) is None
    assert kept(make.plan(nodes=("elsewhere",))).name == name


def test_a_later_generation_is_another_spec_only_where_a_field_that_rolls_differs(make, observed, configmap):
    made, plan = configmap(), make.plan()
    name, mark = name_of(made), observed(made).spec_mark
    revision = read_revision(made).marked(mark, inputs_of(plan))
    for spec, same in (({"replicas": 7}, True), ({"engine": {"args": ["--seed=1"]}}, False)):
        seen = dataclasses.replace(observed(made, revision=name, **spec), revisions={name: revision})
        seen.document["metadata"]["generation"] = 2
        assert (kept_revision(seen, plan) is not None) is same


def test_of_revisions_that_nothing_needs_the_last_three_stay(observed, configmap, make):
    old = [configmap(version=str(day + 7), template={"metadata": {"labels": {"day": str(day)}}}) for day in range(1, 7)]
    current, used = name_of(old[-1]), name_of(old[0])
    pod = make.pod()
    pod["metadata"]["labels"]["uellm.io/revision"] = used
    found = superseded(observed(*old, revision=current, pods=[pod]))
    assert [name_of(each) for each in found] == [name_of(old[1])]
    assert len(old) - len(found) == HISTORY + 2


def test_a_replicaset_that_may_start_pods_needs_its_revision():
    def replicaset(name, replicas, running=0):
        template = {"metadata": {"labels": {"uellm.io/revision": name}}}
        return {"spec": {"replicas": replicas, "template": template}, "status": {"replicas": running}}

    sets = [replicaset("a", 1), replicaset("b", 0, running=1), replicaset("c", 0)]
    assert needed_by(sets) == {"a", "b"}


SIDECAR = {
    "version": 1,
    "model": "llama",
    "classes": [],
    "scheduling": {"policy": "FCFS"},
    "engine": {"maxNumSeqs": 8},
    "auth": {"keysDirectory": "/etc/uellm-auth"},
}
PLAN = {"engine": {"args": ["--scheduling-policy", "priority"]}}


def test_pods_of_a_release_without_revisions_find_their_files_and_the_new_targets(desired):
    data = {"sidecar.yaml": yaml.safe_dump(SIDECAR), "plan.json": json.dumps(PLAN)}
    former = FormerConfig.of(data)
    service = desired(slo={"classes": [{"name": "chat", "ttft": "1s"}]}).service
    files = former.files(sidecar_document(service), accepts_priority=True)
    assert files["plan.json"] == data["plan.json"]
    written = yaml.safe_load(files["sidecar.yaml"])
    assert [each["name"] for each in written["classes"]] == ["chat"]
    assert (written["model"], written["auth"]) == ("llama", SIDECAR["auth"])
    assert written["engine"] == {"maxNumSeqs": 8, "acceptsPriority": True}
    unordered = former.files(sidecar_document(service), accepts_priority=False)
    assert yaml.safe_load(unordered["sidecar.yaml"])["engine"] == {"maxNumSeqs": 8}


@pytest.mark.parametrize("data", [{}, {"sidecar.yaml": "classes: []"}, {"sidecar.yaml": "[", "plan.json": "{}"}])
def test_a_configmap_of_this_release_holds_nothing_for_former_pods(data):
    assert FormerConfig.of(data) is None


def test_the_number_of_replicas_is_no_part_of_what_a_release_without_revisions_built_pods_from(make):
    spec = make.service()["spec"]
    assert former_spec_digest({**spec, "autoscaling": {"maxReplicas": 4}}) == former_spec_digest(spec)
    assert former_spec_digest({**spec, "slo": {"attainment": "90%"}}) != former_spec_digest(spec)
