from __future__ import annotations

import json

import pytest

from helpers.children import IMAGES, pod, pod_template
from uellm.errors import BadInput
from uellm.reconcile.children import Images, frozen
from uellm.reconcile.drift import holds
from uellm.reconcile.names import belonged_to_namesake, belongs_to


def test_the_deployment_comes_last_for_its_pods_need_the_others(made):
    assert [kind for kind in made() if kind != "files"] == [
        "ConfigMap",
        "Revision",
        "Service",
        "PodDisruptionBudget",
        "Deployment",
    ]


def test_names_are_functions_of_the_service(made):
    found = made()
    revision = pod_template(found)["metadata"]["labels"]["uellm.io/revision"]
    names = {kind: child["metadata"]["name"] for kind, child in found.items() if kind != "files"}
    assert names == {
        "ConfigMap": "llama-config",
        "Revision": f"llama-{revision}",
        "Service": "llama",
        "PodDisruptionBudget": "llama",
        "Deployment": "llama-engine",
    }


def test_the_same_service_gives_the_same_bytes(made):
    assert json.dumps(made()) == json.dumps(made())


def test_pods_name_no_node(made):
    affinity = pod(made())["affinity"]["nodeAffinity"]
    assert "node-1" not in json.dumps(affinity)
    assert list(affinity) == ["requiredDuringSchedulingIgnoredDuringExecution"]


def test_replicas_rollout_and_scheduling_do_not_touch_the_pods(made):
    before = made()["Deployment"]["spec"]["template"]
    after = made(replicas=3, rollout={"maxSurge": 1, "maxUnavailable": 0}, scheduling={"policy": "FCFS"})["Deployment"]
    assert after["spec"]["template"] == before
    assert after["spec"]["replicas"] == 3
    assert after["spec"]["strategy"]["rollingUpdate"] == {"maxSurge": 1, "maxUnavailable": 0}


def test_a_users_template_overrides_ours(made):
    template = {"metadata": {"labels": {"team": "a"}}, "spec": {"priorityClassName": "high"}}
    spec = made(template=template)["Deployment"]["spec"]["template"]
    assert spec["metadata"]["labels"] == {
        "app.kubernetes.io/name": "uellm-engine",
        "app.kubernetes.io/instance": "llama",
        "app.kubernetes.io/managed-by": "uellm",
        "uellm.io/service": "llama",
        "uellm.io/revision": spec["metadata"]["labels"]["uellm.io/revision"],
        "team": "a",
    }
    assert spec["spec"]["priorityClassName"] == "high"


def test_a_template_that_cannot_be_merged_is_refused(made):
    with pytest.raises(BadInput, match=r"spec\.template\.spec\.containers"):
        made(template={"spec": {"containers": "engine"}})


def test_a_frozen_deployment_changes_its_number_alone(make, made):
    document = make.service()
    live = {**made()["Deployment"], "metadata": {**made()["Deployment"]["metadata"], "uid": "x"}}
    assert holds(frozen(document, live, 1), live)
    assert frozen(document, live, 0)["spec"] == {**live["spec"], "replicas": 0}


def test_a_child_is_known_by_its_owner_or_by_its_annotation(make, made):
    document, child = make.service(), made()["Service"]
    assert belongs_to(child, document)
    orphan = {"metadata": {**child["metadata"], "ownerReferences": []}}
    assert belongs_to(orphan, document)
    stranger = {"metadata": {"name": "llama"}}
    assert not belongs_to(stranger, document)
    successor = {**document, "metadata": {**document["metadata"], "uid": "another"}}
    assert not belongs_to(child, successor)
    assert belonged_to_namesake(child, successor)


def test_images_are_read_back_as_written():
    assert Images.from_json(IMAGES.to_json()) == IMAGES
    assert Images.from_json("{}") is None
    assert Images.from_json("not json") is None
