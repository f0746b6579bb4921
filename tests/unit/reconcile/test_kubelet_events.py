from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from uellm.reconcile.names import Key
from uellm.reconcile.pods.engine_readiness import engine_readiness
from uellm.reconcile.pods.kubelet_events import ASK_EVERY_S, PATIENCE_S, KubeletEvents, image_pull, last_warning

BOUND = datetime(2026, 5, 1, 12, tzinfo=UTC)
KEY = Key("ns", "llama")
MOUNT = 'MountVolume.SetUp failed for volume "model" : configmap "llama-config" not found'


def bound(make, name="a", **status):
    condition = {"type": "PodScheduled", "status": "True", "lastTransitionTime": "2026-05-01T12:00:00Z"}
    return make.pod(name, phase="Pending", conditions=[condition], **status)


def event(reason, message="because", at="2026-05-01T12:00:30Z", kind="Warning"):
    return {"type": kind, "reason": reason, "message": message, "lastTimestamp": at}


@pytest.fixture
def asked():
    """(the KubeletEvents, what the API server will answer, the pods that were asked about)."""
    answers: list[dict] = []
    pods: list[str] = []

    async def fetch(pod):
        pods.append(pod["metadata"]["name"])
        return list(answers)

    return KubeletEvents(fetch), answers, pods


async def test_a_pod_that_has_just_been_bound_is_given_time(make, asked):
    events, _, pods = asked
    assert await events.refresh(KEY, [bound(make)], lambda: BOUND + timedelta(seconds=5)) == PATIENCE_S - 5
    assert pods == []


async def test_a_pod_that_does_not_start_reports_the_kubelets_message(make, asked):
    events, answers, _ = asked
    answers.append(event("FailedMount", MOUNT))
    pod, now = bound(make), BOUND + timedelta(seconds=PATIENCE_S)
    assert await events.refresh(KEY, [pod], lambda: now) == ASK_EVERY_S
    state = engine_readiness(make.deployment(), [pod], 1, None, events.of(KEY))
    assert (state.reason, state.stalled) == ("PodNotStarting", False)
    assert state.message == f"pod a cannot be started on node node-1: FailedMount: {MOUNT}"


async def test_its_events_are_read_from_time_to_time_and_kept_after_they_expire(make, asked):
    events, answers, pods = asked
    answers.append(event("FailedMount", MOUNT))
    now = BOUND + timedelta(seconds=PATIENCE_S)
    await events.refresh(KEY, [bound(make)], lambda: now)
    await events.refresh(KEY, [bound(make)], lambda: now + timedelta(seconds=ASK_EVERY_S - 1))
    assert pods == ["a"]
    answers.clear()
    await events.refresh(KEY, [bound(make)], lambda: now + timedelta(seconds=ASK_EVERY_S))
    assert pods == ["a", "a"]
    assert events.of(KEY) == {"uid-a": f"FailedMount: {MOUNT}"}


async def test_the_events_of_a_started_pod_are_neither_read_nor_kept(make, asked):
    events, answers, pods = asked
    answers.append(event("FailedMount", MOUNT))
    now = BOUND + timedelta(seconds=PATIENCE_S)
    await events.refresh(KEY, [bound(make)], lambda: now)
    started = bound(make, initContainerStatuses=[{"name": "launcher", "state": {"running": {}}}])
    assert await events.refresh(KEY, [started], lambda: now + timedelta(seconds=60)) is None
    assert (events.of(KEY), pods) == ({}, ["a"])


def test_the_newest_warning_that_no_status_contains_counts():
    events = [
        event("FailedMount", "old", at="2026-05-01T12:00:10Z"),
        event("FailedCreatePodSandBox", "plugin  type=bridge\nfailed", at="2026-05-01T12:00:20Z"),
        event("FailedScheduling", "0/2 nodes", at="2026-05-01T12:00:40Z"),
        event("Pulled", "ok", at="2026-05-01T12:00:50Z", kind="Normal"),
    ]
    assert last_warning(events) == "FailedCreatePodSandBox: plugin type=bridge failed"
    assert last_warning([]) == ""


def engine_waits(make, reason="PodInitializing"):
    """A pod whose sidecar runs and whose engine is not started."""
    sidecar = {"name": "sidecar", "state": {"running": {}}}
    engine = {"name": "engine", "state": {"waiting": {"reason": reason}}, "restartCount": 0}
    return bound(make, initContainerStatuses=[sidecar], containerStatuses=[engine])


async def test_the_pull_of_the_engines_image_is_told_while_it_lasts(make, asked):
    events, answers, _ = asked
    answers.append(event("FailedMount", MOUNT))
    now = BOUND + timedelta(seconds=PATIENCE_S)
    await events.refresh(KEY, [bound(make)], lambda: now)
    pulling = event("Pulling", 'Pulling image "vllm/vllm-openai:v0.32.0"', at="2026-05-01T12:00:40Z", kind="Normal")
    answers.append(pulling)
    pod = engine_waits(make)
    assert await events.refresh(KEY, [pod], lambda: now + timedelta(seconds=ASK_EVERY_S)) == ASK_EVERY_S
    state = engine_readiness(make.deployment(), [pod], 1, None, events.of(KEY), events.pulls_of(KEY))
    assert (state.reason, state.message) == (
        "EngineStarting",
        "0 of 1 replicas serve; pod a is being started on node-1, which pulls image vllm/vllm-openai:v0.32.0 since "
        "2026-05-01T12:00:40Z",
    )
    pulled = 'Successfully pulled image "vllm/vllm-openai:v0.32.0" in 3m20s'
    answers.append(event("Pulled", pulled, at="2026-05-01T12:04:00Z", kind="Normal"))
    await events.refresh(KEY, [pod], lambda: now + timedelta(seconds=2 * ASK_EVERY_S))
    assert events.pulls_of(KEY) == {}


@pytest.mark.parametrize("reason", ["ImagePullBackOff", "CreateContainerConfigError"])
async def test_a_container_whose_status_says_why_it_waits_needs_no_events(make, asked, reason):
    events, _, pods = asked
    assert await events.refresh(KEY, [engine_waits(make, reason)], lambda: BOUND + timedelta(seconds=60)) is None
    assert pods == []


def test_an_image_that_is_pulled_again_or_in_vain_counts_by_its_newest_event():
    def pull(reason, at, image="r:5000/m@sha256:00"):
        return event(reason, f'some words image "{image}" and more', at=f"2026-05-01T12:00:{at}Z", kind="Normal")

    assert image_pull([]) is None
    assert image_pull([pull("Pulling", "10"), pull("Failed", "10")]) == ""
    assert image_pull([pull("Pulled", "05"), pull("Pulling", "10")]) == (
        "image r:5000/m@sha256:00 since 2026-05-01T12:00:10Z"
    )
    both = [pull("Pulling", "10"), pull("Pulling", "20", "b"), pull("Pulled", "30", "b")]
    assert image_pull(both) == "image r:5000/m@sha256:00 since 2026-05-01T12:00:10Z"
