from __future__ import annotations

import pytest

from uellm.controller.queue import FIRST
from uellm.controller.watcher import SETTLE_S, Watcher
from uellm.kube.kinds import CONFIGMAP, DEPLOYMENT, GPUNODEPROFILE, LLMSERVICE, NODE, POD
from uellm.reconcile.cache import Cache
from uellm.reconcile.names import Key

A, B = Key("ns", "a"), Key("ns", "b")


class World:
    """Two services, and the keys that are marked when something happens to them."""

    def __init__(self):
        self.cache = Cache()
        self.marked = []
        self.waiting = []
        self.watcher = Watcher(
            self.cache, lambda key, after_s: self.marked.append((key, after_s)), lambda: self.waiting
        )
        for key in (A, B):
            self.cache.put(LLMSERVICE, service(key))

    def heard(self, kind, event, obj):
        self.marked.clear()
        self.watcher.on_event(kind, event, obj)
        return self.marked


def service(key, *, generation=1, version=1):
    metadata = {
        "namespace": key.namespace,
        "name": key.name,
        "uid": f"uid-{key.name}",
        "generation": generation,
        "resourceVersion": str(version),
    }
    return {"metadata": metadata, "spec": {}}


def child(name, *, version=1, labels=None, owner=None):
    metadata = {"namespace": "ns", "name": name, "uid": f"uid-{name}", "resourceVersion": str(version)}
    if labels:
        metadata["labels"] = labels
    if owner:
        metadata["ownerReferences"] = [{"kind": "LLMService", "name": owner, "uid": f"uid-{owner}", "controller": True}]
    return {"metadata": metadata, "spec": {}, "status": {}}


def profile(*, version, holder=None, memory_bytes=9, free_bytes=5):
    device = {"index": 0, "uuid": "g0", "memoryBytes": memory_bytes, "memoryFreeBytes": free_bytes}
    if holder:
        device["allocatedTo"] = {"podUID": holder}
    metadata = {"name": "node-1", "uid": "n", "resourceVersion": str(version)}
    return {"metadata": metadata, "status": {"devices": [device], "observedAt": str(version)}}


@pytest.fixture
def world():
    return World()


def test_an_event_of_a_service_marks_it(world):
    assert world.heard(LLMSERVICE, "MODIFIED", service(A, version=2)) == [(A, 0.0)]


def test_an_event_that_is_known_from_our_own_write_marks_too(world):
    assert world.heard(LLMSERVICE, "MODIFIED", service(A)) == [(A, 0.0)]


def test_a_changed_spec_or_a_deletion_marks_those_that_wait_for_gpus(world):
    world.waiting = [B]
    assert (B, SETTLE_S) in world.heard(LLMSERVICE, "MODIFIED", service(A, generation=2, version=2))
    assert (B, SETTLE_S) in world.heard(LLMSERVICE, "DELETED", service(A, generation=2, version=3))


def test_a_service_that_somebody_changed_goes_ahead_of_all_others(world):
    assert world.heard(LLMSERVICE, "MODIFIED", service(A, generation=2, version=2))[0] == (A, FIRST)


def test_a_change_that_the_answer_to_our_own_write_told_before_its_event_goes_first_all_the_same(world):
    world.heard(LLMSERVICE, "ADDED", service(A))
    world.cache.put(LLMSERVICE, service(A, generation=2, version=3))  # the status was written, and the answer is kept
    assert world.heard(LLMSERVICE, "MODIFIED", service(A, generation=2, version=2)) == [(A, FIRST)]
    assert world.heard(LLMSERVICE, "MODIFIED", service(A, generation=2, version=3)) == [(A, 0.0)]


def test_a_service_made_anew_under_the_same_name_has_no_past(world):
    world.heard(LLMSERVICE, "MODIFIED", service(A, generation=5, version=2))
    world.heard(LLMSERVICE, "DELETED", service(A, generation=5, version=2))
    assert world.heard(LLMSERVICE, "ADDED", service(A, version=4)) == [(A, 0.0)]


def test_a_status_change_marks_no_other_service(world):
    world.waiting = [B]
    assert world.heard(LLMSERVICE, "MODIFIED", service(A, version=2)) == [(A, 0.0)]


@pytest.mark.parametrize(
    "obj",
    [
        child("a-engine"),
        child("a-config"),
        child("a"),
        child("anything", labels={"uellm.io/service": "a"}),
        child("anything", owner="a"),
    ],
)
def test_a_child_marks_its_owner_by_name_by_label_and_by_reference(world, obj):
    assert world.heard(CONFIGMAP, "ADDED", obj) == [(A, 0.0)]


def test_a_deletion_that_a_pass_has_found_already_marks_those_that_wait_for_gpus(world):
    world.waiting = [B]
    world.cache.remove(LLMSERVICE, service(A))
    assert world.heard(LLMSERVICE, "DELETED", service(A)) == [(A, FIRST), (B, SETTLE_S)]


def test_the_deletion_of_a_child_marks_its_owner(world):
    world.heard(DEPLOYMENT, None, child("a-engine"))
    assert world.heard(DEPLOYMENT, "DELETED", child("a-engine")) == [(A, 0.0)]
    assert world.cache.get(DEPLOYMENT, "a-engine", "ns") is None


def test_an_unrelated_object_marks_no_service(world):
    assert world.heard(CONFIGMAP, "ADDED", child("stranger")) == []


def test_a_pod_that_is_gone_marks_those_that_wait_for_gpus(world):
    pod = child("a-engine-x", labels={"uellm.io/service": "a"})
    world.waiting = [B]
    assert world.heard(POD, "ADDED", pod) == [(A, 0.0)]
    assert world.heard(POD, "DELETED", pod) == [(A, 0.0), (B, SETTLE_S)]


def test_a_profile_marks_all_when_it_is_new_changed_or_gone(world):
    everyone = [(A, SETTLE_S), (B, SETTLE_S)]
    assert world.heard(GPUNODEPROFILE, None, profile(version=1)) == everyone
    assert world.heard(GPUNODEPROFILE, "MODIFIED", profile(version=2, memory_bytes=8)) == everyone
    assert world.heard(GPUNODEPROFILE, "DELETED", profile(version=3)) == everyone


def test_a_gpu_that_somebody_took_marks_nobody_and_one_that_was_freed_those_who_wait(world):
    world.heard(GPUNODEPROFILE, None, profile(version=1))
    world.waiting = [B]
    assert world.heard(GPUNODEPROFILE, "MODIFIED", profile(version=2, holder="pod")) == []
    assert world.heard(GPUNODEPROFILE, "MODIFIED", profile(version=3, holder="other")) == [(B, SETTLE_S)]
    assert world.heard(GPUNODEPROFILE, "MODIFIED", profile(version=4)) == [(B, SETTLE_S)]


def test_a_profile_with_other_time_stamps_and_free_memory_marks_nobody(world):
    world.heard(GPUNODEPROFILE, None, profile(version=1))
    assert world.heard(GPUNODEPROFILE, "MODIFIED", profile(version=2, free_bytes=4)) == []


def node(*, version, labels=None, heartbeat=0):
    metadata = {"name": "node-1", "uid": "n", "resourceVersion": str(version), "labels": labels or {}}
    return {"metadata": metadata, "spec": {}, "status": {"heartbeat": heartbeat}}


def test_labels_and_cordons_of_a_node_with_gpus_concern_everyone_and_its_heartbeats_nobody(world):
    world.heard(GPUNODEPROFILE, "ADDED", profile(version=1))
    assert world.heard(NODE, "ADDED", node(version=2)) == [(A, SETTLE_S), (B, SETTLE_S)]
    assert world.heard(NODE, "MODIFIED", node(version=3, heartbeat=1)) == []
    assert world.heard(NODE, "MODIFIED", node(version=4, labels={"gpu": "h100"})) == [(A, SETTLE_S), (B, SETTLE_S)]
    assert world.heard(NODE, "DELETED", node(version=5, labels={"gpu": "h100"})) == [(A, SETTLE_S), (B, SETTLE_S)]


def test_a_node_without_gpus_concerns_nobody(world):
    assert world.heard(NODE, "ADDED", node(version=2)) == []


def test_the_age_of_a_kind_is_that_of_the_last_sign_of_life():
    now_s = 100.0
    watcher = Watcher(Cache(), lambda *_: None, list, clock=lambda: now_s)
    watcher.on_lists()
    now_s = 130.0
    watcher.on_contact(POD)
    now_s = 135.0
    ages_s = watcher.ages_s()
    assert (ages_s["pods"], ages_s["services"]) == (5.0, 35.0)
