"""Kueue's labels, its gates, and what its Workloads say."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from uellm.reconcile.kueue import (
    GROUP_LABEL,
    QUEUE_LABEL,
    gates,
    may_displace,
    queue_labels,
    words_about,
    workload_selector,
)
from uellm.reconcile.names import Key
from uellm.reconcile.pods.engine_readiness import engine_readiness
from uellm.reconcile.pods.pod_failures import failed_pods
from uellm.reconcile.pods.queue_words import ASK_EVERY_S, QueueWords
from uellm.reconcile.scaling.load import startup_s

KEY = Key("ns", "llama")
NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)
GATES = [{"name": "kueue.x-k8s.io/admission"}]
NO_QUOTA = "couldn't assign flavors to pod set main: insufficient unused quota for nvidia.com/gpu, 2 more needed"


def gated(make, name="llama-engine-a", *, queue="team", names=GATES):
    pod = make.pod(name, node=None)
    pod["spec"]["schedulingGates"] = names
    if queue:
        pod["metadata"]["labels"] = {**pod["metadata"]["labels"], QUEUE_LABEL: queue}
    return pod


def ended(pod, type_, reason, message):
    pod["metadata"]["deletionTimestamp"] = "2026-01-01T12:00:30Z"
    pod["status"]["conditions"] = [{"type": type_, "status": "True", "reason": reason, "message": message}]
    return pod


def workload(active=True, **conditions):
    entries = [{"type": type_, "status": status, "message": said} for type_, (status, said) in conditions.items()]
    return {"spec": {"active": active}, "status": {"conditions": entries}}


def test_a_pod_that_is_held_back_is_queued_with_kueues_words_and_nothing_is_wrong_with_it(make):
    pod = gated(make)
    pod["status"]["conditions"] = [{"type": "PodScheduled", "status": "False", "reason": "SchedulingGated"}]
    words = {pod["metadata"]["uid"]: NO_QUOTA}
    state = engine_readiness(make.deployment(), [pod], 1, queue_words=words)
    message = f"0 of 1 replicas serve; pod llama-engine-a waits in the queue team: {NO_QUOTA}"
    assert state == (False, "Queued", message, False)
    assert failed_pods([pod], {}, NOW) == ()


def test_a_gate_of_somebody_else_is_named(make):
    pod = gated(make, queue="", names=[{"name": "example.com/approval"}])
    state = engine_readiness(make.deployment(), [pod], 1)
    assert state.message.endswith("pod llama-engine-a is held back by the scheduling gate example.com/approval")


def test_an_unschedulable_pod_is_worse_than_a_queued_one(make):
    state = engine_readiness(make.deployment(2), [gated(make), make.unschedulable("b")], 2)
    assert state.reason == "Unschedulable"


@pytest.mark.parametrize(
    "condition",
    [
        (
            "DisruptionTarget",
            "PreemptionByScheduler",
            "default-scheduler: preempting to accommodate a higher priority pod",
        ),
        ("TerminationTarget", "WorkloadEvictedDueToPreempted", "Preempted to accommodate a workload (UID: 1)"),
    ],
)
def test_a_pod_that_was_preempted_explains_what_follows_and_is_no_failure(make, condition):
    victim = ended(make.pod("a", phase="Failed"), *condition)
    state = engine_readiness(make.deployment(), [victim, make.unschedulable("b")], 1)
    assert state == (False, "Preempted", f"pod a on node node-1 has to give up its GPUs: {condition[2]}", False)
    assert failed_pods([victim], {}, NOW) == ()


def test_a_pod_that_failed_by_itself_counts_also_while_it_is_deleted(make):
    pod = make.pod("a", phase="Failed", reason="Evicted")
    pod["metadata"]["deletionTimestamp"] = "2026-01-01T12:00:30Z"
    assert [each.reason for each in failed_pods([pod], {}, NOW)] == ["Evicted"]


@pytest.mark.parametrize(
    ("workloads", "words"),
    [
        ([], ""),
        ([workload()], ""),
        ([workload(QuotaReserved=("False", NO_QUOTA))], NO_QUOTA),
        (
            [workload(QuotaReserved=("True", "reserved"), Admitted=("False", "waits for the\ncheck"))],
            "waits for the check",
        ),
        ([workload(QuotaReserved=("True", "reserved"), Admitted=("True", "admitted"))], ""),
        ([workload(active=False)], "its Workload is deactivated: set its spec.active to true"),
    ],
)
def test_a_workload_says_why_its_pod_waits(workloads, words):
    assert words_about(workloads) == words


def test_the_workload_of_a_pod_is_found_by_its_uid_and_that_of_a_group_by_the_name_on_its_pods(make):
    alone, member = gated(make, "a"), gated(make, "b")
    member["metadata"]["labels"][GROUP_LABEL] = "leaderworkerset-llama-engine-0-3f2a1"
    assert workload_selector(alone) == {"label_selector": "kueue.x-k8s.io/job-uid=uid-a"}
    assert workload_selector(member) == {"field_selector": "metadata.name=leaderworkerset-llama-engine-0-3f2a1"}


def test_of_a_group_that_waits_the_leader_is_told(make):
    worker, leader = gated(make, "llama-engine-0-1"), gated(make, "llama-engine-0")
    worker["metadata"]["labels"]["leaderworkerset.sigs.k8s.io/worker-index"] = "1"
    state = engine_readiness(make.deployment(), [worker, leader], 1)
    assert state.message == "0 of 1 replicas serve; pod llama-engine-0 waits in the queue team"


def test_a_pod_with_a_node_or_one_that_is_deleted_is_not_held_back(make):
    bound, deleted = gated(make), gated(make)
    bound["spec"]["nodeName"] = "a"
    deleted["metadata"]["deletionTimestamp"] = "2026-01-01T12:00:00Z"
    assert (gates(bound), gates(deleted)) == ((), ())


def test_labels_of_the_queue_are_passed_on_and_no_others(make):
    service = make.service()
    service["metadata"]["labels"] = {QUEUE_LABEL: "team", "kueue.x-k8s.io/priority-class": "high", "app": "x"}
    assert queue_labels(service) == {QUEUE_LABEL: "team", "kueue.x-k8s.io/priority-class": "high"}


def test_pods_displace_others_by_a_queue_or_by_a_priority(make):
    plain, labelled = make.service(), make.service()
    labelled["metadata"]["labels"] = {QUEUE_LABEL: "team"}
    on_pods = make.service(template={"metadata": {"labels": {QUEUE_LABEL: "team"}}})
    important = make.service(template={"spec": {"priorityClassName": "high"}})
    assert [may_displace(each) for each in (plain, labelled, on_pods, important)] == [False, True, True, True]


async def test_workloads_are_read_for_pods_that_kueue_holds_back_now_and_then(make):
    asked = []

    async def fetch(pod):
        asked.append(pod["metadata"]["name"])
        return [workload(QuotaReserved=("False", NO_QUOTA))]

    words = QueueWords(fetch)
    mine, other, bound = gated(make, "a"), gated(make, "b", names=[{"name": "example.com/approval"}]), make.pod("c")
    assert await words.refresh(KEY, [mine, other, bound], lambda: NOW) == ASK_EVERY_S
    assert await words.refresh(KEY, [mine, other, bound], lambda: NOW + timedelta(seconds=5)) == ASK_EVERY_S - 5
    assert asked == ["a"]
    assert words.of(KEY) == {"uid-a": NO_QUOTA}
    await words.refresh(KEY, [mine], lambda: NOW + timedelta(seconds=ASK_EVERY_S))
    assert asked == ["a", "a"]
    del mine["spec"]["schedulingGates"]
    assert await words.refresh(KEY, [mine], lambda: NOW) is None
    assert words.of(KEY) == {}


async def test_what_kueue_said_stays_where_it_cannot_be_read_again(make):
    answers = [[workload(QuotaReserved=("False", NO_QUOTA))], None]

    async def fetch(_):
        return answers.pop(0)

    words, pod = QueueWords(fetch), gated(make, "a")
    await words.refresh(KEY, [pod], lambda: NOW)
    await words.refresh(KEY, [pod], lambda: NOW + timedelta(seconds=ASK_EVERY_S))
    assert (answers, words.of(KEY)) == ([], {"uid-a": NO_QUOTA})


async def test_the_next_question_counts_from_the_answer(make):
    times = [NOW, NOW + timedelta(seconds=9)]

    async def fetch(_):
        return []

    assert await QueueWords(fetch).refresh(KEY, [gated(make, "a")], lambda: times.pop(0)) == ASK_EVERY_S


def test_the_time_in_a_queue_is_no_part_of_the_time_to_start(make):
    conditions = [
        {"type": "PodScheduled", "status": "True", "lastTransitionTime": "2026-01-01T11:58:00Z"},
        {"type": "Ready", "status": "True", "lastTransitionTime": "2026-01-01T11:59:00Z"},
    ]
    pod = make.pod("a", conditions=conditions)
    pod["metadata"]["creationTimestamp"] = "2026-01-01T11:50:00Z"
    assert startup_s([pod], NOW, 3600) == 540
    pod["metadata"]["labels"] = {QUEUE_LABEL: "team"}
    assert startup_s([pod], NOW, 3600) == 60


@pytest.mark.parametrize(
    "template", [5, {"metadata": 5}, {"metadata": {"labels": 5}}, {"metadata": {"labels": []}, "spec": []}]
)
def test_a_template_of_the_wrong_form_asks_for_no_queue(template):
    assert not may_displace({"metadata": {}, "spec": {"template": template}})
