"""What is done next about a service's model, and what the condition says meanwhile."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from uellm.hub import LookUpRefusal, ModelFacts
from uellm.models import Tensor
from uellm.reconcile.helper_pods.steps import after_refusal, next_step
from uellm.reconcile.inspection.model_state import GIVEN, found
from uellm.reconcile.inspection.steps import after_silence, inspection_inputs

NOW = datetime(2026, 1, 1, tzinfo=UTC)
FACTS = ModelFacts("0123456789abcdef", {}, {"a": Tensor("BF16", (1 << 29,))}, 2)


def pod(name="p", *, source="s", deleted=False, state=None, node="", **status):
    metadata = {"name": name, "uid": f"uid-{name}", "labels": {"uellm.io/source": source}}
    if deleted:
        metadata["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    containers = {"containerStatuses": [{"name": "inspect", "state": state}]} if state else {}
    spec = {"nodeName": node} if node else {}
    return {"metadata": metadata, "spec": spec, "status": {"phase": "Pending", **containers, **status}}


def running(name="p", *, since="2026-01-01T00:00:00Z", **options):
    return pod(name, state={"running": {"startedAt": since}}, phase="Running", podIP="10.0.0.1", **options)


def seen(*pods, facts=None, attempt=None, generation=1, warnings=None, pulls=None):
    return inspection_inputs("s", generation, facts, pods, attempt, warnings or {}, pulls or {})


def said(step):
    return step.state.condition.status, step.state.condition.reason, step.state.condition.message


def test_where_nothing_is_known_a_pod_is_made():
    step = next_step(seen(), NOW)
    assert step.create
    assert said(step) == ("Unknown", "Inspecting", "the model is being looked up: a pod is being created")


def test_a_pod_that_runs_is_asked():
    there = running()
    step = next_step(seen(there), NOW)
    assert (step.ask, step.create, step.remove) == (there, False, ())


def test_a_pod_for_another_source_and_a_second_one_are_deleted():
    former, first, second = pod("a", source="former"), running("b"), running("c")
    step = next_step(seen(former, first, second), NOW)
    assert (step.ask, step.remove) == (first, (former, second))


def test_a_pod_that_is_being_deleted_is_not_waited_for():
    step = next_step(seen(running(deleted=True)), NOW)
    assert (step.create, step.remove, step.ask) == (True, (), None)


def test_known_facts_end_every_pod():
    there = running()
    step = next_step(seen(there, facts=FACTS), NOW)
    assert (step.remove, step.create, step.ask, step.again_s) == ((there,), False, None, None)
    assert said(step) == ("True", "Found", "commit 0123456789ab: 1.0 GiB in 2 safetensors files")


@pytest.mark.parametrize(
    ("waits", "what"),
    [
        (pod(), "pod p is being started"),
        (pod(node="n"), "pod p is being started on n"),
        (pod(state={"waiting": {"reason": "ContainerCreating"}}, node="n"), "pod p is being started on n"),
        (
            pod(state={"waiting": {"reason": "ImagePullBackOff", "message": "Back-off pulling image"}}),
            "pod p is not started: Back-off pulling image",
        ),
        (
            pod(state={"waiting": {"reason": "CreateContainerConfigError", "message": 'secret "hub"\nnot found'}}),
            'pod p is not started: secret "hub" not found',
        ),
        (
            pod(conditions=[{"type": "PodScheduled", "status": "False", "message": "0/3 nodes are available"}]),
            "no node for pod p: 0/3 nodes are available",
        ),
    ],
)
def test_what_a_pod_waits_for_is_told_in_the_words_of_kubelet_and_scheduler(waits, what):
    step = next_step(seen(waits), NOW)
    assert said(step)[2] == f"the model is being looked up: {what}"
    assert not step.create
    assert step.ask is None


def test_a_volume_that_cannot_be_mounted_is_told_from_the_kubelet_s_events():
    step = next_step(seen(pod(node="n"), warnings={"uid-p": "FailedMount: no such claim"}), NOW)
    assert said(step)[2].endswith("pod p is not started: FailedMount: no such claim")


@pytest.mark.parametrize(
    ("how", "what"),
    [
        ({"phase": "Failed", "reason": "Evicted", "message": "low on memory"}, "failed: Evicted; low on memory"),
        ({"phase": "Failed"}, "failed: its kubelet gives no reason"),
        (
            {"phase": "Failed", "state": {"terminated": {"exitCode": 137, "reason": "OOMKilled"}}},
            "failed: exit status 137 (OOMKilled)",
        ),
        (
            {"phase": "Failed", "state": {"terminated": {"exitCode": 1, "reason": "Error", "message": "a\nboom\n"}}},
            "failed: exit status 1: boom",
        ),
        ({"phase": "Succeeded"}, "has ended before the operator could read its answer from port 8002"),
    ],
)
def test_a_pod_that_ended_is_told_and_deleted_and_another_one_is_made_later(how, what):
    there = pod(**how)
    step = next_step(seen(there), NOW)
    message = f"the model could not be looked up, which is tried again in 15 s: pod p {what}"
    assert said(step) == ("Unknown", "InspectionFailed", message)
    assert (step.remove, step.create, step.again_s) == ((there,), False, 15)
    assert not next_step(seen(attempt=step.attempt), NOW + timedelta(seconds=14)).create
    assert next_step(seen(attempt=step.attempt), NOW + timedelta(seconds=15)).create


def refusals(*reasons):
    """The waits after refusals in a row."""
    attempt, now, waits = None, NOW, []
    for reason, retry_after_s in reasons:
        step = after_refusal(seen(running(), attempt=attempt), LookUpRefusal(reason, "no", retry_after_s), now)
        attempt = step.attempt
        waits.append(step.again_s)
        now = attempt.due
    return waits


def test_a_refusal_is_asked_again_after_one_minute_growing_to_ten():
    assert refusals(*[("Gated", None)] * 6) == [60, 120, 240, 480, 600, 600]


def test_a_limited_rate_is_asked_again_when_the_hub_says():
    assert refusals(("RateLimited", 7.0), ("RateLimited", 300.0)) == [7, 300]


def test_a_refusal_stands_until_it_is_due_and_deletes_pods():
    step = after_refusal(seen(running()), LookUpRefusal("Gated", "accept its terms"), NOW)
    assert said(step) == ("False", "Gated", "accept its terms")
    assert len(step.remove) == 1
    later = next_step(seen(running(), attempt=step.attempt), NOW + timedelta(seconds=20))
    assert (said(later), len(later.remove), later.again_s) == (said(step), 1, 40)


def test_another_spec_is_looked_up_at_once_and_its_delays_begin_anew():
    attempt = after_refusal(seen(running()), LookUpRefusal("Gated", "no"), NOW).attempt
    assert next_step(seen(attempt=attempt, generation=2), NOW).create
    step = after_refusal(seen(running(), attempt=attempt, generation=2), LookUpRefusal("Gated", "no"), NOW)
    assert step.again_s == 60


@pytest.mark.parametrize(
    ("age_s", "reads", "what"),
    [
        (5, True, "reads its configuration and headers"),
        (5, False, "runs"),
        (31, False, "runs and does not answer: allow the operator to reach port 8002 of the pods"),
    ],
)
def test_a_pod_without_an_answer_says_whether_it_reads_or_is_hidden(age_s, reads, what):
    there = running()
    step = next_step(seen(there), NOW)
    silent = after_silence(step, there, NOW + timedelta(seconds=age_s), reads=reads)
    assert said(silent)[2] == f"the model is being looked up: pod p {what}"
    assert silent.again_s == 1


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        (ModelFacts("main", {}, None), "commit main: sized by its configuration: no safetensors headers"),
        (ModelFacts("", {}, {"a": Tensor("I8", (7,))}, 1), "7 B in 1 safetensors file"),
        (
            ModelFacts("", {}, None, 90),
            "90 safetensors files, sized by its configuration: their headers are too long to be kept",
        ),
    ],
)
def test_what_was_found_is_told_in_a_sentence(facts, message):
    assert found(facts).condition == ("ModelAccessible", "True", "Found", message)
    assert found(facts).obstacle is None


def test_only_what_is_found_or_given_can_be_planned():
    assert GIVEN.obstacle is None
    step = next_step(seen(), NOW)
    assert step.state.obstacle == ("Inspecting", said(step)[2])
    assert step.state.is_awaited


def test_a_pod_whose_image_is_pulled_says_so():
    step = next_step(seen(pod(node="n"), pulls={"uid-p": "image r.io/model:8b since 2026-05-01T12:00:30Z"}), NOW)
    assert step.state.condition.message == (
        "the model is being looked up: pod p is being started on n, which pulls image r.io/model:8b since "
        "2026-05-01T12:00:30Z"
    )
