"""What is copied for a service, by which pod, onto which claim; and what is said meanwhile."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from uellm.api import parse_service
from uellm.hub import LookUpRefusal, ModelFacts
from uellm.hub.adapter import AdapterFacts
from uellm.hub.copy_state import Copied, Progress
from uellm.hub.freeing import Kept
from uellm.reconcile.conditions import Condition
from uellm.reconcile.download.claim import claim_manifest, claim_obstacle
from uellm.reconcile.download.download_state import NOT_BEGUN, NOT_NEEDED, copied
from uellm.reconcile.download.kept_copy import copy_configmap, read_copy
from uellm.reconcile.download.order import order_of
from uellm.reconcile.download.pod import download_pod
from uellm.reconcile.download.steps import KEPT_S, ToldProgress, after_progress, after_silence, download_inputs
from uellm.reconcile.helper_pods.steps import after_refusal, next_step
from uellm.reconcile.model_source import model_path

COMMIT = "0123456789abcdef0123456789abcdef01234567"
FACTS = ModelFacts(COMMIT, {}, None)
NOW = datetime(2026, 1, 1, tzinfo=UTC)
SHARED = {"claimName": "models"}
OWN = {"size": "200Gi", "accessModes": ["ReadWriteMany"], "storageClassName": "fast"}
TOKEN = {"name": "hub", "key": "token"}
COPY = Copied(COMMIT, f"org/model/{COMMIT}", 12, 141_000_000_000)


def document(make, cache=SHARED, *, template=None, env=(), **model):
    spec = {"template": {"spec": template}} if template else {}
    made = make.service(model={"uri": "hf://org/model", "cache": cache, **model}, engine={"env": list(env)}, **spec)
    return {name: made[name] for name in ("apiVersion", "kind", "metadata", "spec")}


def order(make, facts=FACTS, uid="", **options):
    return order_of(parse_service(document(make, **options)), facts, uid)


def pod(make, nodes=(), **options):
    made = document(make, **options)
    service = parse_service(made)
    return download_pod(made, service, order_of(service, FACTS), "operator:1", nodes)


# What is copied.


def test_the_commit_that_was_looked_up_is_copied_to_a_directory_that_the_engine_finds(make):
    made = order(make)
    assert made.arguments == (f"hf://org/model@{COMMIT}", "/models", "--called=claim models", "--compiled=llama")
    service = parse_service(document(make))
    assert model_path(service, FACTS) == f"/models/{made.directory}" == f"/models/org/model/{COMMIT}"


def test_with_a_given_configuration_the_commit_is_that_of_the_spec(make):
    later = "f" * 40
    service = parse_service(document(make, config={}, revision=later))
    assert order_of(service, None).commit == later
    assert model_path(service, None) == f"/models/org/model/{later}"


def test_a_service_without_a_cache_needs_no_copy_and_its_engine_gets_the_name(make):
    service = parse_service(document(make, cache=None))
    assert order_of(service, FACTS) is None
    assert model_path(service, FACTS) == "org/model"


def test_a_copy_is_the_same_whatever_the_way_to_the_hub_and_another_claim_or_commit_makes_another(make):
    base = order(make)
    same = [order(make, tokenSecretRef=TOKEN), order(make, env=[{"name": "HF_ENDPOINT", "value": "http://mirror"}])]
    assert {each.copy_digest for each in same} == {base.copy_digest}
    assert len({base.source, *(each.source for each in same)}) == 3
    others = [
        order(make, ModelFacts("e" * 40, {}, None)),
        order(make, cache={"claimName": "other"}),
        order(make, uri="hf://org/other"),
        order(make, uid="made-anew"),
    ]
    assert len({base.copy_digest, *(each.copy_digest for each in others)}) == 5


# The claim.


def test_a_claim_of_ours_is_owned_by_the_service(make):
    made = document(make, cache=OWN)
    claim = claim_manifest(made, parse_service(made))
    assert claim["metadata"]["name"] == "llama-weights"
    assert claim["metadata"]["ownerReferences"][0]["uid"] == "service-uid"
    assert claim["spec"] == {
        "accessModes": ["ReadWriteMany"],
        "resources": {"requests": {"storage": "200Gi"}},
        "storageClassName": "fast",
    }
    assert order(make, cache=OWN).claim == "llama-weights"


def test_the_default_storage_class_is_left_to_the_cluster(make):
    made = document(make, cache={"size": "1Gi", "accessModes": ["ReadWriteOnce"]})
    assert "storageClassName" not in claim_manifest(made, parse_service(made))["spec"]


def test_no_claim_is_made_beside_one_that_exists(make):
    made = document(make)
    assert claim_manifest(made, parse_service(made)) is None


def test_a_claim_whose_class_was_changed_is_told_in_one_line(make):
    made = document(make, cache=OWN)
    wanted = claim_manifest(made, parse_service(made))
    assert claim_obstacle(wanted, {**wanted, "spec": {**wanted["spec"], "volumeName": "pv-1"}}) is None
    assert claim_obstacle(wanted, {**wanted, "spec": {**wanted["spec"], "storageClassName": "slow"}}) == (
        "ClaimDiffers",
        "claim llama-weights has storage class slow, and spec.model.cache.storageClassName is fast, to which a claim "
        "cannot be changed: restore the field, or set spec.suspend, delete the claim and resume when it is gone; its "
        "files are downloaded anew then",
    )


@pytest.mark.parametrize("differs", [{}, {"storageClassName": "slow"}])
def test_a_claim_that_is_being_deleted_is_told_whether_or_not_it_differs(make, differs):
    made = document(make, cache=OWN)
    wanted = claim_manifest(made, parse_service(made))
    metadata = {**wanted["metadata"], "deletionTimestamp": "2026-01-01T00:00:00Z"}
    obstacle = claim_obstacle(wanted, {"metadata": metadata, "spec": {**wanted["spec"], **differs}})
    assert obstacle == (
        "ClaimDeleted",
        "claim llama-weights is being deleted, and no pod that moves can start from it; it goes when no pod mounts it "
        "any more: set spec.suspend until it is gone; its files are downloaded anew then",
    )


def test_adapters_of_the_hub_are_copied_at_the_commits_that_were_looked_up(make):
    adapters = [{"name": "sql", "uri": "hf://org/sql"}, {"name": "chat", "uri": "pvc://adapters/chat"}]
    sql = AdapterFacts("sql", "hf://org/sql@main", "a" * 40, 8, 1000, "", 1, ())
    made = order(make, replace(FACTS, adapters=(sql,)), adapters=adapters)
    assert made.arguments[4:] == (f"--adapter=sql=hf://org/sql@{'a' * 40}",)
    base = order(make)
    assert len({base.copy_digest, made.copy_digest}) == 2
    renamed = order(make, replace(FACTS, adapters=(replace(sql, name="x"),)), adapters=[{**adapters[0], "name": "x"}])
    assert renamed.copy_digest == made.copy_digest


# The pod.


def test_the_pod_may_write_to_the_claim_and_has_no_rights(make):
    spec = pod(make, tokenSecretRef=TOKEN)["spec"]
    (container,) = spec["containers"]
    assert container["args"] == [
        "fetch",
        f"hf://org/model@{COMMIT}",
        "/models",
        "--called=claim models",
        "--compiled=llama",
        "--listen=:8002",
        "--seconds=600",
    ]
    assert container["env"] == [{"name": "HF_TOKEN", "valueFrom": {"secretKeyRef": TOKEN}}]
    assert container["volumeMounts"] == [{"name": "model", "mountPath": "/models"}]
    assert spec["volumes"] == [{"name": "model", "persistentVolumeClaim": {"claimName": "models"}}]
    assert (spec["restartPolicy"], spec["automountServiceAccountToken"]) == ("Never", False)
    assert "activeDeadlineSeconds" not in spec
    assert spec["securityContext"] == {
        "runAsNonRoot": True,
        "runAsUser": 65532,
        "runAsGroup": 65532,
        "seccompProfile": {"type": "RuntimeDefault"},
        "fsGroup": 65532,
        "fsGroupChangePolicy": "OnRootMismatch",
    }
    assert container["securityContext"]["readOnlyRootFilesystem"] is True


def test_the_pod_is_owned_and_no_selector_of_an_engine_selects_it(make):
    metadata = pod(make)["metadata"]
    assert metadata["generateName"] == "llama-weights-"
    assert metadata["ownerReferences"][0]["uid"] == "service-uid"
    labels = metadata["labels"]
    assert (labels["uellm.io/service"], labels["uellm.io/download"]) == ("", "llama")
    assert labels["app.kubernetes.io/name"] == "uellm-download"
    assert labels["uellm.io/source"] == order(make).source


def test_the_pod_goes_where_the_engine_will_be_if_it_can(make):
    spec = pod(make, ("node-1", "node-2"), template={"nodeSelector": {"disk": "fast"}})["spec"]
    (preferred,) = spec["affinity"]["nodeAffinity"]["preferredDuringSchedulingIgnoredDuringExecution"]
    assert preferred["preference"]["matchExpressions"] == [
        {"key": "kubernetes.io/hostname", "operator": "In", "values": ["node-1", "node-2"]}
    ]
    assert spec["nodeSelector"] == {"disk": "fast"}
    assert "affinity" not in pod(make)["spec"]


def test_the_groups_of_the_template_win(make):
    context = {"fsGroup": 2000, "supplementalGroups": [3000]}
    security = pod(make, template={"securityContext": context})["spec"]["securityContext"]
    assert (security["fsGroup"], security["supplementalGroups"]) == (2000, [3000])


# What is said.


def test_a_pod_that_may_make_room_is_told_what_stays_and_since_when(make):
    made = document(make, OWN)
    service = parse_service(made)

    def freeing(kept):
        container = download_pod(made, service, order_of(service, FACTS), "operator:1", (), kept)["spec"]["containers"][
            0
        ]
        return [each for each in container["args"] if each.startswith(("--free", "--keep"))]

    assert freeing(None) == []
    assert freeing(Kept(frozenset(), 9.0)) == ["--free", "--keep-as-of=9"]
    kept = Kept(frozenset({"org/model/b", "org/model/a"}), 1_800_000_000.7)
    told = ["--free", "--keep-as-of=1800000001", "--keep=org/model/a", "--keep=org/model/b"]
    assert freeing(kept) == told


def running():
    return {
        "metadata": {"name": "p", "uid": "uid-p", "labels": {"uellm.io/source": "s"}},
        "spec": {},
        "status": {
            "phase": "Running",
            "podIP": "10.0.0.1",
            "containerStatuses": [{"name": "fetch", "state": {"running": {"startedAt": "2026-01-01T00:00:00Z"}}}],
        },
    }


def seen(*pods, copy=None, attempt=None):
    return download_inputs("s", "models", 1, copy, pods, attempt, {}, {})


def said(step):
    return step.state.condition[1:]


def test_progress_is_told_with_share_size_and_time():
    step = after_progress(
        next_step(seen(running()), NOW), "models", Progress(52_200_000_000, 141_000_000_000, 238.0, False)
    )
    message = "the model is being copied to claim models: 37 % of 141 GB, about 4 min"
    assert said(step) == ("Unknown", "ModelDownloading", message)
    assert step.state.obstacle == ("ModelDownloading", message)
    assert (step.ask, step.again_s) == (None, 10.0)


def test_near_the_end_it_is_asked_more_often():
    step = next_step(seen(running()), NOW)
    assert after_progress(step, "models", Progress(1, 2, 5.0, False)).again_s == 2.0
    assert after_progress(step, "models", Progress(0, 0, None, False)).again_s == 2.0


def test_a_pod_that_is_hidden_is_told():
    later = NOW + timedelta(seconds=60)
    step = after_silence(next_step(seen(running()), later), "models", running(), later)
    assert said(step)[2] == (
        "the model is being copied to claim models: pod p runs and does not answer: allow the operator to reach port "
        "8002 of the pods"
    )


def test_a_pod_that_misses_an_answer_leaves_what_it_said_last():
    later = NOW + timedelta(seconds=60)
    step = next_step(seen(running()), later)
    answered = after_progress(step, "models", Progress(1, 2, 90.0, False))
    told = ToldProgress("uid-p", answered.state, NOW)
    assert after_silence(step, "models", running(), later, told).state == answered.state
    for other in (told._replace(pod_uid="uid-of-another"), told._replace(at=NOW - timedelta(seconds=KEPT_S))):
        assert "does not answer" in said(after_silence(step, "models", running(), later, other))[2]


def test_a_hidden_pod_is_asked_less_often_than_one_that_has_just_begun():
    for age_s, again_s in ((5, 1.0), (60, 10.0)):
        later = NOW + timedelta(seconds=age_s)
        assert after_silence(next_step(seen(running()), later), "models", running(), later).again_s == again_s


def test_a_volume_that_is_full_is_told_and_tried_again_after_a_growing_delay():
    full = LookUpRefusal("VolumeFull", "claim models is too small: ...")
    step = after_refusal(seen(running()), full, NOW)
    assert said(step) == ("False", "VolumeFull", full.message)
    assert (len(step.remove), step.again_s) == (1, 60.0)
    again = after_refusal(seen(running(), attempt=step.attempt), full, NOW + timedelta(seconds=61))
    assert again.again_s == 120.0


def test_a_pod_that_was_killed_is_told_in_the_kubelet_s_words():
    killed = running()
    killed["status"] = {"phase": "Failed", "reason": "Evicted", "message": "the node was low on memory"}
    assert said(next_step(seen(killed), NOW)) == (
        "Unknown",
        "DownloadFailed",
        "the model could not be copied, which is tried again in 15 s: pod p failed: Evicted; the node was low on "
        "memory",
    )


def test_a_copy_that_is_complete_is_added_to_what_is_said_of_the_model():
    step = next_step(seen(running(), copy=COPY), NOW)
    assert (len(step.remove), step.state.obstacle) == (1, None)
    model = Condition("ModelAccessible", "True", "Found", "commit 0123: 131 GiB in 9 safetensors files")
    told = step.state.told(model)
    assert told == model._replace(message=f"{model.message}; 12 files of 141 GB on claim models")


def test_before_there_is_a_plan_nothing_is_said_and_no_engine_may_start():
    model = Condition("ModelAccessible", "True", "Found", "commit 0123")
    assert (NOT_BEGUN.told(model), NOT_BEGUN.obstacle.reason) == (model, "ModelDownloading")
    assert (NOT_NEEDED.told(model), NOT_NEEDED.obstacle) == (model, None)
    assert copied("models", COPY).complete


# What is kept.


def test_what_is_read_of_a_copy_is_what_was_written(make):
    kept = copy_configmap(document(make), "digest", COPY)
    assert kept["metadata"]["name"] == "llama-weights"
    assert read_copy(kept, "digest") == COPY


@pytest.mark.parametrize("data", [None, {}, {"copy.json": ""}, {"copy.json": "[]"}, {"copy.json": '{"copied": 7}'}])
def test_a_configmap_that_was_edited_says_nothing(make, data):
    kept = copy_configmap(document(make), "digest", COPY)
    assert read_copy({**kept, "data": data}, "digest") is None
    assert read_copy(kept, "of another copy") is None
