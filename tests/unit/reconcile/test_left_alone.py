"""What is kept while a spec cannot be carried out, or a model is being downloaded."""

from __future__ import annotations

import copy

import pytest

from uellm.api import parse_service
from uellm.kube.kinds import DEPLOYMENT, LEADERWORKERSET
from uellm.reconcile.children import read_revision
from uellm.reconcile.children.rollout import NO_SURGE, RollingUpdate, Surge
from uellm.reconcile.desired import left_alone
from uellm.reconcile.observe import Observed
from uellm.reconcile.pods.pod_failures import NodeState

SERVING = [{"type": "Ready", "status": "True"}]
SQL = {"name": "sql", "uri": "hf://org/sql"}


@pytest.fixture
def running(made, make):
    """A service of one replica that was made once and serves on node-1."""

    def build(*, note="", configmaps=True, pods=None, leaving=False, parsed=True, span=1, **model):
        children = made(span=span, parallelism={"pipeline": span})
        kind = LEADERWORKERSET if span > 1 else DEPLOYMENT
        workload = copy.deepcopy(children[kind.kind])
        workload["metadata"] |= {"uid": "workload-uid", "generation": 1}
        workload["status"] = {"replicas": 1, "updatedReplicas": 1, "observedGeneration": 1}
        if note:
            workload["metadata"]["annotations"]["uellm.io/stand-in"] = note
            workload["spec"]["replicas"] = 2
        revision = read_revision(children["Revision"])
        document = make.service()
        document["spec"]["model"] |= model
        kept = {each["metadata"]["name"]: each for each in (children["ConfigMap"], children["Revision"])}
        return Observed(
            document,
            parse_service(document) if parsed else None,
            children={kind: workload},
            configmaps=kept if configmaps else {},
            revisions={revision.name: revision},
            pods=tuple(pods if pods is not None else [make.pod(conditions=SERVING)]),
            node_states={"node-1": NodeState.LEAVING if leaving else NodeState.THERE},
        )

    return build


def by_kind(manifests):
    return {("Revision" if each.get("immutable") else each["kind"]): each for each in manifests}


def test_pods_that_run_keep_their_service_and_a_budget_that_lets_nodes_be_emptied(running, made):
    kept = by_kind(left_alone(running(), NO_SURGE))
    whole = made()
    assert list(kept) == ["ConfigMap", "Revision", "Service", "PodDisruptionBudget", "Deployment"]
    assert kept["Service"] == whole["Service"]
    assert kept["PodDisruptionBudget"] == whole["PodDisruptionBudget"]
    assert kept["PodDisruptionBudget"]["spec"]["maxUnavailable"] == 1
    assert kept["Deployment"]["spec"] == whole["Deployment"]["spec"]


def test_a_spec_that_nobody_can_read_keeps_them_too(running):
    kept = by_kind(left_alone(running(parsed=False), NO_SURGE))
    assert list(kept) == ["Revision", "Service", "PodDisruptionBudget", "Deployment"]


def test_the_service_of_groups_still_selects_their_leaders(running):
    kept = by_kind(left_alone(running(span=2), NO_SURGE))
    assert kept["Service"]["spec"]["selector"]["leaderworkerset.sigs.k8s.io/worker-index"] == "0"


def test_nothing_is_made_for_a_service_that_was_never_made(make):
    document = make.service()
    assert left_alone(Observed(document, parse_service(document)), NO_SURGE) == []


def test_what_pods_read_is_made_again_unless_a_part_of_it_was_kept_only_there(running):
    assert {"ConfigMap", "Revision"} <= by_kind(left_alone(running(configmaps=False), NO_SURGE)).keys()
    with_adapters = left_alone(running(configmaps=False, adapters=[SQL]), NO_SURGE)
    assert "ConfigMap" not in by_kind(with_adapters)
    assert "ConfigMap" in by_kind(left_alone(running(adapters=[SQL]), NO_SURGE))


@pytest.mark.parametrize(
    ("serves", "surge", "replicas", "budget", "note"),
    [
        (False, NO_SURGE, 2, 0, "for node-1"),
        (True, NO_SURGE, 2, 1, "for node-1"),
        (False, Surge(hopeless="it hangs"), 1, 1, "given up for node-1: it hangs"),
    ],
    ids=["starting", "serving", "hanging"],
)
def test_a_stand_in_that_is_under_way_is_not_taken_away(running, make, serves, surge, replicas, budget, note):
    other = make.pod("b", node="node-2", conditions=SERVING if serves else [])
    observed = running(note="for node-1", leaving=True, pods=[make.pod(conditions=SERVING), other])
    kept = by_kind(left_alone(observed, surge))
    assert kept["Deployment"]["spec"]["replicas"] == replicas
    assert kept["Deployment"]["metadata"]["annotations"]["uellm.io/stand-in"] == note
    assert kept["PodDisruptionBudget"]["spec"]["maxUnavailable"] == budget


def test_no_stand_in_is_started_meanwhile_and_the_eviction_is_allowed(running):
    kept = by_kind(left_alone(running(leaving=True), Surge(2, "node-2")))
    assert kept["Deployment"]["spec"]["replicas"] == 1
    assert kept["PodDisruptionBudget"]["spec"]["maxUnavailable"] == 1


@pytest.mark.parametrize(
    ("rolling", "surge", "told", "unavailable"),
    [
        (True, NO_SURGE, "surge: node node-2 has the 1 free GPU for one more replica meanwhile", 0),
        (True, Surge(stuck="the API server refuses it"), "in place: the API server refuses it", 1),
        (False, Surge(stuck="the API server refuses it"), "surge: node node-2 has the 1 free GPU for one more", 0),
    ],
    ids=["may still start", "cannot start", "nothing is rolling"],
)
def test_a_rollout_under_way_goes_on_in_place_where_its_additional_pod_cannot_start(
    running, rolling, surge, told, unavailable
):
    observed = running()
    deployment = observed.children[DEPLOYMENT]
    under_way = RollingUpdate(1, 0, "surge: node node-2 has the 1 free GPU for one more replica meanwhile")
    deployment["spec"]["strategy"] = under_way.strategy()
    deployment["metadata"]["annotations"]["uellm.io/rollout"] = under_way.why
    if rolling:
        deployment["status"] |= {"replicas": 2, "updatedReplicas": 1}
    kept = by_kind(left_alone(observed, surge))["Deployment"]
    assert kept["metadata"]["annotations"]["uellm.io/rollout"].startswith(told)
    assert kept["spec"]["strategy"]["rollingUpdate"]["maxUnavailable"] == unavailable
    # What was decided is written, so it is the same at the next look.
    observed.children[DEPLOYMENT] = deployment | {
        "spec": kept["spec"],
        "metadata": deployment["metadata"] | {"annotations": kept["metadata"]["annotations"]},
    }
    assert by_kind(left_alone(observed, surge))["Deployment"] == kept


def test_a_strategy_of_the_users_own_is_never_changed(running):
    observed = running()
    deployment = observed.children[DEPLOYMENT]
    deployment["metadata"]["annotations"].pop("uellm.io/rollout", None)
    deployment["spec"]["strategy"] = RollingUpdate(1, 0).strategy()
    deployment["status"] |= {"replicas": 2, "updatedReplicas": 1}
    kept = by_kind(left_alone(observed, Surge(stuck="it cannot start")))["Deployment"]
    assert kept["spec"]["strategy"] == RollingUpdate(1, 0).strategy()
