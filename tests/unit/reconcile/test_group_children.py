"""The children of a service whose replicas span nodes."""

from __future__ import annotations

import copy
import json

import pytest

from helpers.children import containers, environment, mebibytes, pod_template
from uellm.reconcile.children.leader_worker_set import as_deployment, as_new, kept_size, trial_deployments
from uellm.reconcile.children.revision import read_revision

PIPELINE = {"parallelism": {"tensor": 1, "pipeline": 2}}


def member(group, index, *, ready=True, **metadata):
    """A pod of a group as the API server has it."""
    labels = {"name": "llama-engine", "group-index": str(group), "worker-index": str(index)}
    named = {f"leaderworkerset.sigs.k8s.io/{label}": value for label, value in labels.items()}
    condition = {"type": "Ready", "status": str(ready)}
    return {
        "metadata": {"name": f"llama-engine-{group}-{index}", "labels": named, **metadata},
        "status": {"conditions": [condition]},
    }


@pytest.fixture
def group(made):
    """`group(**spec)`: the children of a service whose two stages are on two nodes, and its LeaderWorkerSet's spec."""

    def build(**spec):
        children = made(span=2, **PIPELINE, **spec)
        return children, children["LeaderWorkerSet"]["spec"]

    return build


def parts(template):
    spec = template["spec"]
    return {each["name"]: each for each in (*spec["initContainers"], *spec["containers"])}


def templates(spec):
    both = spec["leaderWorkerTemplate"]
    return both["leaderTemplate"], both["workerTemplate"]


def test_a_replica_is_a_group_that_starts_and_is_replaced_whole(group):
    children, spec = group(replicas=3)
    assert "Deployment" not in children
    assert spec["replicas"] == 3
    assert spec["leaderWorkerTemplate"]["size"] == 2
    assert spec["leaderWorkerTemplate"]["restartPolicy"] == "RecreateGroupOnPodRestart"
    # Were the workers made only once the leader is ready, it would wait for them for ever.
    assert spec["startupPolicy"] == "LeaderCreated"
    update = spec["rolloutStrategy"]["rollingUpdateConfiguration"]
    assert update == {"maxSurge": 0, "maxUnavailable": 1}


def test_groups_are_rolled_out_as_the_user_says(group):
    _, spec = group(rollout={"maxSurge": 2, "maxUnavailable": 0})
    assert spec["rolloutStrategy"]["rollingUpdateConfiguration"] == {"maxSurge": 2, "maxUnavailable": 0}


def test_the_leader_has_a_sidecar_and_the_worker_an_engine_alone(group):
    _, spec = group()
    leader, worker = templates(spec)
    assert set(parts(leader)) == {"launcher", "sidecar", "engine"}
    assert set(parts(worker)) == {"launcher", "engine"}
    engine = parts(worker)["engine"]
    assert not {"readinessProbe", "livenessProbe", "startupProbe", "lifecycle", "ports"} & engine.keys()
    assert not any(part.startswith(("--probe-port", "--sidecar")) for part in engine["command"])
    assert {volume["name"] for volume in worker["spec"]["volumes"]} & {"config", "state", "api-keys"} == set()


def test_both_launchers_wait_as_long_for_each_other_and_leave_the_engine_its_time(group):
    _, spec = group(engine={"startupTimeout": "10m"})
    for template in templates(spec):
        assert "--group-timeout=300" in parts(template)["engine"]["command"]


def test_kueue_keeps_the_size_of_the_groups_that_it_has_queued_and_nobody_else_does(group):
    children, _ = group()
    live = children["LeaderWorkerSet"]
    wanted = copy.deepcopy(live)
    wanted["spec"]["leaderWorkerTemplate"]["size"] = 3
    assert kept_size(wanted, live) == ""
    live["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] = "team"
    assert kept_size(live, live) == ""
    assert kept_size(wanted, live) == "Kueue has queued groups of 2 pods, and they are to be of 3"


def test_whether_it_could_be_made_anew_is_tried_under_another_name(group):
    live = group()[0]["LeaderWorkerSet"]
    tried = as_new(live)
    assert tried["metadata"]["name"] != live["metadata"]["name"]
    assert {**tried, "metadata": live["metadata"]} == live


def test_each_pod_has_its_share_of_the_gpus_and_knows_its_address(group):
    _, spec = group()
    for template in templates(spec):
        engine = parts(template)["engine"]
        assert engine["resources"]["limits"]["nvidia.com/gpu"] == "1"
        assert environment(engine)["POD_IP"] == {"fieldRef": {"fieldPath": "status.podIP"}}


def test_each_pod_asks_for_its_share_of_memory_and_more_of_it_to_share(group, made):
    _, spec = group()
    whole = mebibytes(containers(made(**PIPELINE))["engine"]["resources"]["requests"]["memory"])
    for template in templates(spec):
        assert mebibytes(parts(template)["engine"]["resources"]["requests"]["memory"]) < whole
        shm = next(volume for volume in template["spec"]["volumes"] if volume["name"] == "shm")
        assert shm["emptyDir"]["sizeLimit"] == "15Gi"


def test_both_kinds_of_pods_are_of_one_revision_and_read_the_same_plan(group):
    children, spec = group()
    revision = read_revision(children["Revision"])
    assert revision is not None
    assert revision.nodes == 2
    for template in templates(spec):
        assert template["metadata"]["labels"]["uellm.io/revision"] == revision.name
        mounted = next(volume for volume in template["spec"]["volumes"] if volume["name"] == "revision")
        assert mounted["configMap"]["name"] == f"llama-{revision.name}"
    assert json.loads(children["files"]["plan.json"])["plan"]["nodes"] == 2


def test_the_service_leads_to_leaders_alone(group, made):
    children, _ = group()
    assert children["Service"]["spec"]["selector"]["leaderworkerset.sigs.k8s.io/worker-index"] == "0"
    assert set(made(**PIPELINE)["Service"]["spec"]["selector"]) == {"uellm.io/service"}


def test_the_annotation_tells_the_extender_of_the_parts(group):
    _, spec = group()
    for template in templates(spec):
        annotation = json.loads(template["metadata"]["annotations"]["uellm.io/plan"])
        assert (annotation["gpus"], annotation["nodes"], annotation["pipeline"]) == (1, 2, 2)
        assert len(annotation["layers"]) == 2


def test_the_users_template_reaches_both_and_the_sidecars_part_the_leader_alone(group):
    theirs = {
        "spec": {
            "priorityClassName": "high",
            "initContainers": [{"name": "sidecar", "env": [{"name": "A", "value": "1"}]}],
        }
    }
    _, spec = group(template=theirs)
    leader, worker = templates(spec)
    assert leader["spec"]["priorityClassName"] == worker["spec"]["priorityClassName"] == "high"
    assert environment(parts(leader)["sidecar"])["A"] == "1"
    assert "sidecar" not in parts(worker)


def test_a_replica_on_one_node_has_nothing_of_a_group(made):
    children = made(**PIPELINE)
    assert "LeaderWorkerSet" not in children
    assert "group.json" not in children["files"]
    engine = containers(children)["engine"]
    assert "POD_IP" not in environment(engine)
    assert not any(part.startswith("--group") for part in engine["command"])
    assert "nodes" not in json.loads(pod_template(children)["metadata"]["annotations"]["uellm.io/plan"])


def test_a_live_set_reads_as_a_deployment_of_leaders(group):
    children, spec = group(replicas=2)
    live = {**children["LeaderWorkerSet"], "status": {"replicas": 2, "updatedReplicas": 2, "readyReplicas": 1}}
    live["metadata"]["generation"] = 4
    read = as_deployment(live, [member(group, index) for group in (0, 1) for index in (0, 1)])
    assert read["spec"] == {"replicas": 2, "template": templates(spec)[0]}
    assert (read["status"]["readyReplicas"], read["status"]["observedGeneration"]) == (1, 4)


@pytest.mark.parametrize("lost", [[], [member(0, 0, ready=False)], [member(0, 0, deletionTimestamp="now")]])
def test_a_set_that_counts_a_group_as_ready_which_has_lost_a_pod_is_not_believed(group, lost):
    children, _ = group(replicas=2)
    live = {**children["LeaderWorkerSet"], "status": {"replicas": 2, "updatedReplicas": 2, "readyReplicas": 2}}
    rest = [member(0, 1), member(1, 0), member(1, 1)]
    assert as_deployment(live, [*rest, *lost])["status"]["readyReplicas"] == 1
    assert as_deployment(live, [*rest, member(0, 0)])["status"]["readyReplicas"] == 2


def test_both_templates_are_tried_as_deployments(group):
    children, spec = group()
    tried = list(trial_deployments(children["LeaderWorkerSet"]))
    assert [each["spec"]["template"] for each in tried] == list(templates(spec))
    assert len({each["metadata"]["name"] for each in (*tried, children["LeaderWorkerSet"])}) == 3
