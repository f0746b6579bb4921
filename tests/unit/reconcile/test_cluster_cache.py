from __future__ import annotations

import weakref

import pytest

from uellm.api.names import DOWNLOAD_LABEL, INSPECTION_LABEL, SERVICE_LABEL
from uellm.hardware import GPU_RESOURCE
from uellm.kube.kinds import DEPLOYMENT, GPUNODEPROFILE, LLMSERVICE, POD
from uellm.planner.assignment.assign import Task
from uellm.planner.cost.rates import Costs
from uellm.planner.handover.annotation import PlanAnnotation
from uellm.reconcile.cache import Cache
from uellm.reconcile.names import Key

KEY = Key("ns", "llama")


def versioned(obj, version, **metadata):
    return {**obj, "metadata": {**obj["metadata"], "resourceVersion": str(version), **metadata}}


def test_an_older_version_does_not_replace_a_newer_one(make):
    cache = Cache()
    cache.put(LLMSERVICE, versioned(make.service(replicas=2), 10))
    assert not cache.put(LLMSERVICE, versioned(make.service(replicas=1), 9))
    assert cache.service(KEY)["spec"]["replicas"] == 2


def test_the_deletion_of_a_former_object_leaves_its_namesake(make):
    cache = Cache()
    cache.put(LLMSERVICE, versioned(make.service(), 10, uid="new"))
    cache.remove(LLMSERVICE, versioned(make.service(), 9, uid="old"))
    assert cache.service(KEY) is not None
    cache.remove(LLMSERVICE, versioned(make.service(), 11, uid="new"))
    assert cache.service(KEY) is None


def test_an_object_that_is_looked_at_is_read_from_its_text_once(make):
    cache = Cache()
    cache.put(DEPLOYMENT, make.deployment())
    seen = cache.get(DEPLOYMENT, "llama-engine", "ns")
    assert seen == make.deployment()
    assert cache.get(DEPLOYMENT, "llama-engine", "ns") is seen


def test_an_object_that_nobody_looks_at_takes_the_memory_of_its_text(make):
    cache = Cache()
    cache.put(DEPLOYMENT, make.deployment())
    seen = weakref.ref(cache.get(DEPLOYMENT, "llama-engine", "ns"))
    assert seen() is None


def test_pods_are_found_by_their_service_in_the_order_of_their_names(make):
    cache = Cache()
    for name in ("b", "a"):
        cache.put(POD, make.pod(name))
    assert [pod["metadata"]["name"] for pod in cache.pods(KEY)] == ["a", "b"]
    cache.remove(POD, make.pod("a"))
    assert [pod["metadata"]["name"] for pod in cache.pods(KEY)] == ["b"]


@pytest.mark.parametrize(("label", "kind"), [(INSPECTION_LABEL, "inspection_pods"), (DOWNLOAD_LABEL, "download_pods")])
def test_a_pod_that_helps_a_service_is_none_of_its_engine(make, label, kind):
    cache, helper = Cache(), make.pod("helper")
    helper["metadata"]["labels"] = {SERVICE_LABEL: "", label: "llama"}
    before = cache.room_version
    cache.put(POD, helper)
    assert [pod["metadata"]["name"] for pod in getattr(cache, kind)(KEY)] == ["helper"]
    assert (cache.pods(KEY), cache.room_version) == ([], before)
    cache.remove(POD, helper)
    assert getattr(cache, kind)(KEY) == []


def test_a_pod_that_lost_its_label_is_no_longer_found(make):
    cache = Cache()
    cache.put(POD, make.pod("a"))
    cache.put(POD, versioned(make.pod("a"), 2, labels={}))
    assert cache.pods(KEY) == []


def test_a_pod_knows_for_how_many_gpus_it_was_made(make):
    task = Task((1,), (0,), 0, 0, fixed_bytes=0, margin="0", tensor=3, costs=Costs())
    annotation = PlanAnnotation(3, GPU_RESOURCE, 1, task, "default/llama")
    cache = Cache()
    cache.put(POD, versioned(make.pod("a"), 2, annotations={"uellm.io/plan": annotation.to_json()}))
    cache.put(POD, versioned(make.pod("b"), 2, annotations={"uellm.io/plan": "garbage"}))
    assert [pod["gpus"] for pod in cache.pods(KEY)] == [3, None]


def test_a_full_list_drops_what_vanished_unseen(make):
    cache = Cache()
    cache.put(POD, make.pod("gone"))
    before = cache.snapshot(POD)
    cache.replace(POD, [make.pod("there")], before=before)
    assert [pod["metadata"]["name"] for pod in cache.pods(KEY)] == ["there"]


def test_a_full_list_keeps_what_appeared_while_it_was_under_way(make):
    cache = Cache()
    before = cache.snapshot(POD)
    cache.put(POD, make.pod("new"))
    cache.replace(POD, [], before=before)
    assert [pod["metadata"]["name"] for pod in cache.pods(KEY)] == ["new"]


def test_a_full_list_does_not_bring_back_what_was_deleted_while_it_was_under_way(make):
    cache = Cache()
    cache.put(POD, make.pod("gone"))
    before = cache.snapshot(POD)
    cache.remove(POD, make.pod("gone"))
    cache.replace(POD, [make.pod("gone")], before=before)
    assert cache.pods(KEY) == []


def test_the_profiled_nodes_follow_the_profiles(make):
    cache = Cache()
    cache.put(GPUNODEPROFILE, make.profile("b", (None,)))
    cache.put(GPUNODEPROFILE, make.profile("a", (None,)))
    assert [machine.facts.name for machine in cache.profiled_nodes()] == ["a", "b"]
    cache.put(GPUNODEPROFILE, make.profile("a", ("uid",), version="2"))
    assert cache.profiled_nodes()[0].holders == {"a-g0": "uid"}


def test_a_changed_profile_leaves_what_is_known_of_the_other_nodes(make):
    cache = Cache()
    for name in ("a", "b"):
        cache.put(GPUNODEPROFILE, make.profile(name, (None,)))
    a, b = cache.profiled_nodes()
    cache.put(GPUNODEPROFILE, make.profile("a", ("uid",), version="2"))
    assert cache.profiled_node("b") is b
    assert cache.profiled_node("a") is not a
    assert cache.profiled_node("gone") is None
    cache.remove(GPUNODEPROFILE, make.profile("b", ()))
    assert [machine.facts.name for machine in cache.profiled_nodes()] == ["a"]


def test_managed_fields_are_not_kept(make):
    cache = Cache()
    cache.put(DEPLOYMENT, versioned(make.deployment(), 7, managedFields=[{"manager": "uellm"}]))
    assert "managedFields" not in cache.get(DEPLOYMENT, "llama-engine", "ns")["metadata"]


def versions(cache, do):
    before = cache.hardware_version, cache.room_version
    do()
    return cache.hardware_version - before[0], cache.room_version - before[1]


def test_what_a_plan_depends_on_is_counted_apart_from_what_makes_room(make):
    cache = Cache()
    cache.put(GPUNODEPROFILE, make.profile("a", (None,)))
    cache.profiled_nodes()
    taken = make.profile("a", ("uid",), version="2")
    assert versions(cache, lambda: cache.put(GPUNODEPROFILE, taken)) == (0, 1)
    again = versioned(taken, 3)
    assert versions(cache, lambda: cache.put(GPUNODEPROFILE, again)) == (0, 0)
    hardware, room = versions(cache, lambda: cache.remove(GPUNODEPROFILE, again))
    assert hardware
    assert room


def test_a_measurement_of_the_network_is_seen_by_the_next_plan_and_calls_for_none(make):
    def measured(version, bytes_per_s):
        profile = make.profile("a", (None,), version=version)
        profile["status"]["network"] = [{"node": "b", "bytesPerSecond": bytes_per_s, "roundTripNanoseconds": 60_000}]
        return profile

    cache = Cache()
    cache.put(GPUNODEPROFILE, measured("1", 10**9))
    cache.profiled_nodes()
    cache.take_changes()
    assert versions(cache, lambda: cache.put(GPUNODEPROFILE, measured("2", 10**8))) == (0, 0)
    assert cache.take_changes().nodes == {"a"}
    (node,) = cache.profiled_nodes()
    assert node.facts.network[0].bytes_per_s == 10**8


def test_a_pod_counts_when_it_gets_or_leaves_its_place_and_not_when_it_becomes_ready(make):
    cache = Cache()
    pod = make.pod("a")
    assert versions(cache, lambda: cache.put(POD, versioned(pod, 10))) == (0, 1)
    ready = {**pod, "status": {**pod["status"], "conditions": [{"type": "Ready", "status": "True"}]}}
    assert versions(cache, lambda: cache.put(POD, versioned(ready, 11))) == (0, 0)
    assert versions(cache, lambda: cache.remove(POD, versioned(ready, 11))) == (0, 1)


def test_a_number_of_replicas_that_the_operator_chose_takes_room_and_the_rest_of_the_status_does_not(make):
    cache = Cache()
    service = make.service(autoscaling={"maxReplicas": 5})
    cache.put(LLMSERVICE, versioned(service, 10))
    cache.take_changes()

    chosen = {**service, "status": {"autoscaling": {"replicas": 5}}}
    assert versions(cache, lambda: cache.put(LLMSERVICE, versioned(chosen, 11))) == (0, 1)
    assert list(cache.take_changes().services) == [KEY]
    measured = {**service, "status": {"autoscaling": {"replicas": 5, "startupSeconds": 60}}}
    assert versions(cache, lambda: cache.put(LLMSERVICE, versioned(measured, 12))) == (0, 0)


def test_a_pod_that_measures_makes_and_takes_no_room_and_is_found_by_its_node(make):
    cache = Cache()
    labels = {"uellm.io/service": "", "uellm.io/measuring": "mark"}
    pod = versioned(make.pod("measure-n1", node="n1"), 1, labels=labels)
    assert versions(cache, lambda: cache.put(POD, pod)) == (0, 0)
    assert [each["metadata"]["name"] for each in cache.measuring_pods()["n1"]] == ["measure-n1"]
    assert cache.pods(KEY) == []
    assert versions(cache, lambda: cache.remove(POD, pod)) == (0, 0)
    assert cache.measuring_pods() == {}
