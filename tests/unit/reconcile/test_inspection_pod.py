"""What is asked about a model, and the pod that asks it."""

from __future__ import annotations

import copy

import pytest

from uellm.api import parse_service
from uellm.hub import DraftFacts, ModelFacts
from uellm.reconcile.inspection.pod import inspection_pod
from uellm.reconcile.inspection.question import KnownCommits, question_of

SPECULATION = '{"method": "draft_model", "model": "org/small", "num_speculative_tokens": 2}'
TOKEN = {"name": "hub", "key": "token"}
VOLUMES = [
    {"name": "disk", "hostPath": {"path": "/data"}},
    {"name": "inner", "emptyDir": {}},
    {"name": "ca", "configMap": {"name": "ca"}},
]
MOUNTS = [
    {"name": "disk", "mountPath": "/data"},
    {"name": "inner", "mountPath": "/data/inner", "subPath": "x"},
    {"name": "ca", "mountPath": "/etc/ca"},
    {"name": "missing", "mountPath": "/missing"},
]


def document(make, uri="hf://org/model", *, template=None, env=(), **model):
    spec = {"template": {"spec": template}} if template else {}
    made = make.service(model={"uri": uri, **model}, engine={"env": list(env)}, **spec)
    return {name: made[name] for name in ("apiVersion", "kind", "metadata", "spec")}


def question(make, *args, **options):
    return question_of(parse_service(document(make, *args, **options)))


def pod(make, *args, **options):
    made = document(make, *args, **options)
    service = parse_service(made)
    return inspection_pod(made, service, question_of(service), "operator:1")


def on_disk(**more):
    return {"volumes": VOLUMES, "containers": [{"name": "engine", "volumeMounts": MOUNTS}], **more}


def test_a_given_configuration_leaves_nothing_to_ask(make):
    assert question(make, config={}) is None


def test_a_name_is_asked_at_its_revision(make):
    assert question(make).arguments == ("hf://org/model@main",)
    assert question(make, revision="v2").arguments == ("hf://org/model@v2",)


def test_an_added_adapter_is_asked_about_with_the_model_at_the_commit_that_is_known(make):
    before = question(make)
    after = question(make, adapters=[{"name": "sql", "uri": "hf://org/sql"}])
    assert (after.source != before.source, after.model) == (True, before.model)
    known = KnownCommits("c0ffee")
    assert after.at(known).arguments == ("hf://org/model@c0ffee", "--adapter=sql=hf://org/sql@main")
    made = document(make, adapters=[{"name": "sql", "uri": "hf://org/sql"}])
    asked = inspection_pod(made, parse_service(made), after, "operator:1", known=known)
    assert asked["spec"]["containers"][0]["args"][1] == "hf://org/model@c0ffee"
    assert asked["metadata"]["labels"]["uellm.io/source"] == after.source


def test_another_revision_or_hub_is_another_model(make):
    env = [{"name": "HF_ENDPOINT", "value": "https://mirror"}]
    others = [question(make, revision="v2"), question(make, uri="hf://org/other"), question(make, env=env)]
    assert len({question(make).model, *(each.model for each in others)}) == 4
    assert question(make).model == question(make, tokenSecretRef=TOKEN).model


def test_a_directory_and_a_model_that_is_not_asked_about_have_no_commit(make):
    adapters = [{"name": "sql", "uri": "hf://org/sql"}]
    known = KnownCommits("c0ffee")
    given = question(make, config={}, adapters=adapters)
    on_claim = question(make, uri="pvc://models/llama")
    assert (given.at(known), on_claim.at(known)) == (given, on_claim)


def test_a_draft_is_asked_at_its_known_commit_and_keeps_its_name(make):
    made = make.service(model={"uri": "hf://org/model"}, engine={"args": ["--speculative-config", SPECULATION]})
    asked = question_of(parse_service(made))
    at = asked.at(KnownCommits("c0ffee", "hf://org/small@main", "beef"))
    assert at.arguments == ("hf://org/model@c0ffee", "--draft=hf://org/small@beef")
    assert asked.at(KnownCommits("c0ffee", "hf://org/other@main", "beef")).arguments[1] == asked.arguments[1]
    facts = ModelFacts("c0ffee", {}, None, draft=DraftFacts("hf://org/small@beef", ModelFacts("beef", {}, None)))
    told = asked.answered(facts)
    assert (told.draft.source, told.draft.facts.commit, told.commit) == ("hf://org/small@main", "beef", "c0ffee")


def test_the_variables_that_matter_are_those_of_the_engine_and_the_template_wins(make):
    env = [{"name": name, "value": f"{name} of env"} for name in ("HF_ENDPOINT", "https_proxy", "OMP_NUM_THREADS")]
    secret = {"secretKeyRef": {"name": "proxy", "key": "url"}}
    own = [{"name": "https_proxy", "valueFrom": secret}, {"name": "NCCL_DEBUG", "value": "INFO"}]
    template = {"containers": [{"name": "engine", "env": own}, {"name": "sidecar", "env": [{"name": "HF_TOKEN"}]}]}
    assert question(make, env=env, template=template, tokenSecretRef=TOKEN).environment == (
        {"name": "HF_ENDPOINT", "value": "HF_ENDPOINT of env"},
        {"name": "HF_TOKEN", "valueFrom": {"secretKeyRef": TOKEN}},
        {"name": "https_proxy", "valueFrom": secret},
    )


def test_certificates_are_mounted_with_their_volume(make):
    env = [{"name": "SSL_CERT_FILE", "value": "/etc/ca/bundle.pem"}]
    asked = question(make, env=env, template=on_disk())
    assert asked.mounts == ({"name": "ca", "mountPath": "/etc/ca", "readOnly": True},)
    assert asked.volumes == (VOLUMES[2],)


def test_a_file_is_read_on_the_innermost_volume_that_holds_it(make):
    asked = question(make, "file:///data/inner/llama", template=on_disk())
    assert asked.arguments == ("/data/inner/llama", "--volume=/data/inner", "--called=file:///data/inner/llama")
    assert asked.mounts == ({"name": "inner", "mountPath": "/data/inner", "subPath": "x", "readOnly": True},)
    assert asked.volumes == (VOLUMES[1],)
    assert question(make, "file:///data/innermost", template=on_disk()).volumes == (VOLUMES[0],)


@pytest.mark.parametrize("name", [["disk"], {"disk": ""}, 1, None])
def test_what_has_no_proper_name_is_left_to_the_api_server(make, name):
    template = on_disk()
    template["volumes"] = [{"name": name, "emptyDir": {}}, *VOLUMES]
    engine = {"name": "engine", "env": [{"name": name, "value": "1"}]}
    engine["volumeMounts"] = [{"name": name, "mountPath": "/data/inner"}, *MOUNTS[:1]]
    template["containers"] = [{"name": name}, engine]
    assert question(make, "file:///data/inner/llama", template=template).volumes == (VOLUMES[0],)


@pytest.mark.parametrize("path", ["/models/llama", "/missing/llama", "/database"])
def test_a_file_on_no_volume_cannot_be_read_before_the_engine_starts(make, path):
    message = (
        f"file://{path} is on no volume that spec.template mounts into the engine's container, so it cannot be read "
        "before the engine starts: put the model's config.json into spec.model.config"
    )
    assert question(make, f"file://{path}", template=on_disk()) == ("NotOnVolume", message)


def test_an_image_is_read_by_a_pod_that_mounts_it(make):
    uri = "oci://registry:5000/org/model:V2@sha256:" + "0a" * 32
    asked = question(make, f"{uri}#8b")
    assert asked.arguments == ("/models/8b", "--volume=/models", f"--called={uri}#8b")
    assert asked.volumes == ({"name": "model", "image": {"reference": uri.removeprefix("oci://")}},)
    assert asked.mounts == ({"name": "model", "mountPath": "/models", "readOnly": True},)


def test_a_pod_that_has_to_pull_the_model_first_has_hours_for_it(make):
    assert pod(make, "oci://ghcr.io/org/model")["spec"]["activeDeadlineSeconds"] == 6 * 3600


@pytest.mark.parametrize("uri", ["s3://bucket/llama", "gs://bucket/llama"])
def test_a_bucket_is_read_by_the_engine_alone(make, uri):
    message = (
        f"{uri} is in an object store, which the engine alone reads: put the model's config.json into spec.model.config"
    )
    assert question(make, uri) == ("NotReadable", message)
    assert question(make, uri, config={}) is None


def test_the_answer_depends_on_source_token_and_environment_and_on_nothing_else(make):
    base = question(make).source
    changed = [
        question(make, "hf://org/other"),
        question(make, revision="v2"),
        question(make, tokenSecretRef=TOKEN),
        question(make, env=[{"name": "HF_ENDPOINT", "value": "http://mirror"}]),
        question(make, "pvc://models/llama"),
    ]
    assert len({base, *(each.source for each in changed)}) == 6
    same = [
        question(make, dtype="float16", maxModelLen=8, servedName="x"),
        question(make, env=[{"name": "NCCL_DEBUG", "value": "INFO"}]),
        question(make, template={"nodeSelector": {"a": "b"}, "tolerations": [{"operator": "Exists"}]}),
    ]
    assert {each.source for each in same} == {base}


def test_the_pod_is_small_without_rights_and_without_gpus(make):
    made = pod(make, tokenSecretRef=TOKEN)
    spec = made["spec"]
    (container,) = spec["containers"]
    assert (spec["restartPolicy"], spec["automountServiceAccountToken"], spec["activeDeadlineSeconds"]) == (
        "Never",
        False,
        900,
    )
    assert spec["securityContext"] == {
        "runAsNonRoot": True,
        "runAsUser": 65532,
        "runAsGroup": 65532,
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "readOnlyRootFilesystem": True,
    }
    assert container["args"] == ["inspect", "hf://org/model@main", "--listen=:8002", "--seconds=600"]
    assert container["env"] == [{"name": "HF_TOKEN", "valueFrom": {"secretKeyRef": TOKEN}}]
    assert not any("nvidia" in name for part in container["resources"].values() for name in part)


def test_the_pod_is_owned_and_no_selector_of_an_engine_selects_it(make):
    metadata = pod(make)["metadata"]
    assert metadata["generateName"] == "llama-model-"
    assert metadata["ownerReferences"][0]["uid"] == "service-uid"
    assert metadata["labels"]["uellm.io/service"] == ""
    assert metadata["labels"]["uellm.io/inspection"] == "llama"
    assert metadata["labels"]["uellm.io/source"] == question(make).source


def test_the_pod_goes_where_the_engine_s_pods_go_if_the_model_is_on_a_volume(make):
    toleration = {"key": "team", "operator": "Exists"}
    context = {"runAsUser": 1000, "fsGroup": 2000, "runAsNonRoot": False, "sysctls": []}
    placed = {
        "nodeSelector": {"disk": "fast"},
        "tolerations": [toleration],
        "imagePullSecrets": [{"name": "pull"}],
        "securityContext": context,
    }
    elsewhere = pod(make, template=placed)["spec"]
    assert "nodeSelector" not in elsewhere
    assert elsewhere["securityContext"]["runAsUser"] == 65532
    for uri in ("pvc://models/llama", "file:///data/llama"):
        spec = pod(make, uri, template=on_disk(**placed))["spec"]
        assert spec["nodeSelector"] == {"disk": "fast"}
        assert toleration in spec["tolerations"]
        assert spec["imagePullSecrets"] == [{"name": "pull"}]
        assert (spec["securityContext"]["runAsUser"], spec["securityContext"]["fsGroup"]) == (1000, 2000)
        assert spec["securityContext"]["runAsNonRoot"] is True


def test_the_pod_never_runs_as_root(make):
    spec = pod(make, "pvc://models/llama", template={"securityContext": {"runAsUser": 0}})["spec"]
    assert spec["securityContext"]["runAsUser"] == 65532


def test_a_claim_is_mounted_read_only(make):
    spec = pod(make, "pvc://models/llama/8b")["spec"]
    (container,) = spec["containers"]
    assert spec["volumes"] == [{"name": "model", "persistentVolumeClaim": {"claimName": "models", "readOnly": True}}]
    assert container["volumeMounts"] == [{"name": "model", "mountPath": "/models", "readOnly": True}]
    assert container["args"][1:4] == ["/models/llama/8b", "--volume=/models", "--called=pvc://models/llama/8b"]


@pytest.mark.parametrize(
    "broken",
    [{"volumes": 7}, {"containers": "x"}, {"imagePullSecrets": {}}, {"securityContext": 7}],
)
def test_a_malformed_template_is_left_to_the_api_server(make, broken):
    template = {**on_disk(), **broken}
    before = copy.deepcopy(template)
    for uri in ("hf://org/model", "pvc://models/llama"):
        assert pod(make, uri, template=template)["kind"] == "Pod"
    assert template == before
