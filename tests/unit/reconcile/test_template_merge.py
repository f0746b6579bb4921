from __future__ import annotations

import pytest

from uellm.errors import BadInput
from uellm.reconcile.children.merge import merge_template

TERMS = "requiredDuringSchedulingIgnoredDuringExecution"
OURS = {
    "metadata": {"labels": {"uellm.io/service": "llama"}},
    "spec": {
        "schedulerName": "uellm-scheduler",
        "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists"}],
        "containers": [
            {
                "name": "engine",
                "image": "engine:1",
                "command": ["python3", "launcher"],
                "env": [{"name": "HOME", "value": "/cache"}, {"name": "USER", "value": "uellm"}],
                "readinessProbe": {"httpGet": {"path": "/ready"}, "periodSeconds": 2},
                "volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}],
                "securityContext": {"readOnlyRootFilesystem": True},
            }
        ],
        "volumes": [{"name": "tmp", "emptyDir": {}}, {"name": "cache", "emptyDir": {}}],
        "affinity": {
            "nodeAffinity": {TERMS: {"nodeSelectorTerms": [{"matchFields": ["node-1"]}, {"matchFields": ["node-2"]}]}}
        },
    },
}


def merged(**spec):
    return merge_template(OURS, {"spec": spec})["spec"]


def test_merging_nothing_keeps_our_template():
    assert merge_template(OURS, {}) == OURS


def test_maps_merge_deeply_and_keep_the_types_of_json():
    template = merge_template(OURS, {"metadata": {"labels": {"team": "a"}, "annotations": {"x": "1"}}})
    assert template["metadata"] == {
        "labels": {"uellm.io/service": "llama", "team": "a"},
        "annotations": {"x": "1"},
    }
    assert merged(hostNetwork=True, priority=5)["priority"] == 5


def test_containers_merge_by_name_and_new_ones_are_appended():
    extra = {"name": "extra", "image": "extra:1"}
    containers = merged(containers=[extra, {"name": "engine", "securityContext": {"readOnlyRootFilesystem": False}}])[
        "containers"
    ]
    assert [each["name"] for each in containers] == ["engine", "extra"]
    assert containers[0]["image"] == "engine:1"
    assert containers[0]["securityContext"] == {"readOnlyRootFilesystem": False}


def test_an_environment_variable_replaces_ours_completely():
    source = {"name": "HOME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}
    (engine,) = merged(containers=[{"name": "engine", "env": [source, {"name": "NEW", "value": "1"}]}])["containers"]
    assert engine["env"] == [source, {"name": "USER", "value": "uellm"}, {"name": "NEW", "value": "1"}]


def test_a_volume_replaces_ours_completely():
    claim = {"name": "cache", "persistentVolumeClaim": {"claimName": "models"}}
    assert merged(volumes=[claim])["volumes"] == [{"name": "tmp", "emptyDir": {}}, claim]


def test_volume_mounts_are_matched_by_path():
    (engine,) = merged(containers=[{"name": "engine", "volumeMounts": [{"name": "x", "mountPath": "/tmp"}]}])[
        "containers"
    ]
    assert engine["volumeMounts"] == [{"name": "x", "mountPath": "/tmp"}]


def test_another_handler_of_a_probe_replaces_ours_and_its_timing_stays():
    (engine,) = merged(containers=[{"name": "engine", "readinessProbe": {"exec": {"command": ["true"]}}}])["containers"]
    assert engine["readinessProbe"] == {"exec": {"command": ["true"]}, "periodSeconds": 2}


def test_null_removes_our_field():
    (engine,) = merged(containers=[{"name": "engine", "readinessProbe": None}])["containers"]
    assert "readinessProbe" not in engine


def test_plain_lists_are_replaced():
    (engine,) = merged(containers=[{"name": "engine", "command": ["sleep"]}])["containers"]
    assert engine["command"] == ["sleep"]


def test_tolerations_add_to_ours_once():
    other = {"key": "spot", "operator": "Exists"}
    assert merged(tolerations=[other, OURS["spec"]["tolerations"][0]])["tolerations"] == [
        OURS["spec"]["tolerations"][0],
        other,
    ]


def test_node_affinity_asks_for_both_ours_and_the_users_terms():
    zone = {"matchExpressions": ["zone-a"]}
    affinity = merged(affinity={"nodeAffinity": {TERMS: {"nodeSelectorTerms": [zone, {"matchExpressions": ["b"]}]}}})
    assert affinity["affinity"]["nodeAffinity"][TERMS]["nodeSelectorTerms"] == [
        {"matchFields": ["node-1"], "matchExpressions": ["zone-a"]},
        {"matchFields": ["node-2"], "matchExpressions": ["zone-a"]},
        {"matchFields": ["node-1"], "matchExpressions": ["b"]},
        {"matchFields": ["node-2"], "matchExpressions": ["b"]},
    ]


def test_pod_affinity_stands_beside_our_node_affinity():
    affinity = merged(affinity={"podAntiAffinity": {"x": 1}})["affinity"]
    assert affinity["podAntiAffinity"] == {"x": 1}
    assert "nodeAffinity" in affinity


@pytest.mark.parametrize(
    ("spec", "field"),
    [
        ({"containers": {"name": "engine"}}, "spec.template.spec.containers"),
        ({"containers": [{"image": "x"}]}, "spec.template.spec.containers[0]"),
        ({"containers": ["engine"]}, "spec.template.spec.containers[0]"),
        ({"containers": [{"name": ["engine"]}]}, "spec.template.spec.containers[0].name"),
        ({"volumes": [{"name": {"a": "b"}}]}, "spec.template.spec.volumes[0].name"),
        ({"containers": [{"name": "engine", "env": ["A=1"]}]}, "spec.template.spec.containers[0].env[0]"),
        ({"affinity": "none"}, "spec.template.spec.affinity"),
    ],
)
def test_an_impossible_merge_is_refused_with_its_path(spec, field):
    with pytest.raises(BadInput) as refused:
        merged(**spec)
    assert refused.value.field == field


def test_neither_side_is_changed():
    theirs = {"spec": {"containers": [{"name": "engine", "env": [{"name": "A", "value": "1"}]}]}}
    template = merge_template(OURS, theirs)
    template["spec"]["containers"][0]["env"].clear()
    template["spec"]["volumes"][0]["emptyDir"]["medium"] = "Memory"
    assert len(OURS["spec"]["containers"][0]["env"]) == 2
    assert OURS["spec"]["volumes"][0] == {"name": "tmp", "emptyDir": {}}
    assert len(theirs["spec"]["containers"][0]["env"]) == 1
