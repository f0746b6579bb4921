"""What others have set in the spec of a child is found by the API server's own record of who has set what."""

from __future__ import annotations

import copy

import pytest

from uellm.kube.kinds import DEPLOYMENT, POD
from uellm.reconcile.additions import additions, others_fields

OURS = {
    "apiVersion": "apps/v1",
    "kind": "Deployment",
    "metadata": {"name": "a-engine"},
    "spec": {
        "replicas": 1,
        "selector": {"matchLabels": {"a": "b"}},
        "template": {
            "metadata": {"labels": {"a": "b"}},
            "spec": {
                "containers": [
                    {"name": "engine", "env": [{"name": "A", "value": "1"}], "ports": [{"containerPort": 8000}]}
                ]
            },
        },
    },
}
ENGINE = 'k:{"name":"engine"}'


def edited(change, fields, manager="kubectl-edit", **entry):
    live = copy.deepcopy(OURS)
    live["metadata"]["managedFields"] = [{"manager": manager, "fieldsV1": {"f:spec": fields}, **entry}]
    change(live["spec"])
    return live


def containers(spec):
    return spec["template"]["spec"]["containers"]


def in_engine(fields):
    return {"f:template": {"f:spec": {"f:containers": {ENGINE: fields}}}}


def test_an_object_that_only_the_operator_has_set_has_none():
    assert not additions(OURS, OURS)
    assert not additions(OURS, edited(lambda spec: spec.update(dnsPolicy="ClusterFirst"), {}))


def test_a_field_that_is_not_ours_is_to_be_removed():
    live = edited(lambda spec: spec.update(paused=True), {"f:paused": {}})
    assert additions(OURS, live).removable == (("spec", "paused"),)


def test_a_value_of_ours_that_was_changed_is_no_addition():
    assert not additions(OURS, edited(lambda spec: spec.update(replicas=3), {"f:replicas": {}}))


def test_elements_of_a_list_are_found_by_their_keys():
    def change(spec):
        containers(spec)[0]["env"] = [{"name": name} for name in ("B", "A", "C")]

    env = {'k:{"name":"B"}': {".": {}, "f:name": {}}, 'k:{"name":"C"}': {".": {}, "f:name": {}}}
    at = ("spec", "template", "spec", "containers", 0, "env")
    assert additions(OURS, edited(change, in_engine({"f:env": env}))).of_pods == ((*at, 0), (*at, 2))


def test_a_key_that_is_left_out_has_the_servers_default():
    def change(spec):
        containers(spec)[0]["ports"] = [{"containerPort": 8000, "protocol": "TCP", "hostPort": 80}]

    port = {'k:{"containerPort":8000,"protocol":"TCP"}': {".": {}, "f:hostPort": {}}}
    at = ("spec", "template", "spec", "containers", 0, "ports", 0, "hostPort")
    assert additions(OURS, edited(change, in_engine({"f:ports": port}))).of_pods == (at,)


def test_a_map_that_is_applied_as_a_whole_needs_only_to_be_applied():
    found = additions(
        OURS, edited(lambda spec: spec["selector"]["matchLabels"].update(c="d"), {"f:selector": {"f:matchLabels": {}}})
    )
    assert (found.removable, found.replaced) == ((), True)


def test_what_is_gone_again_and_what_is_metadata_are_none():
    fields = {
        "f:paused": {},
        "f:template": {"f:metadata": {"f:annotations": {"f:kubectl.kubernetes.io/restartedAt": {}}}},
    }
    restarted = {"kubectl.kubernetes.io/restartedAt": "now"}
    live = edited(lambda spec: spec["template"]["metadata"].update(annotations=restarted), fields)
    assert not additions(OURS, live)


@pytest.mark.parametrize(
    "entry",
    [
        {"manager": "uellm", "fieldsV1": {"f:spec": {"f:replicas": {}}}},
        {"manager": "kubectl", "subresource": "scale", "fieldsV1": {"f:spec": {"f:replicas": {}}}},
        {"manager": "kube-controller-manager", "fieldsV1": {"f:metadata": {}}},
    ],
)
def test_only_what_others_set_in_the_spec_of_a_child_is_kept(entry):
    other = {"manager": "kubectl", "fieldsV1": {"f:spec": {"f:paused": {}}}}
    assert others_fields(DEPLOYMENT, [entry, other]) == [other]
    assert others_fields(POD, [other]) == []
