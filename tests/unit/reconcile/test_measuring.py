"""What is measured on a node, by which pod, and when."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from uellm.errors import BadInput
from uellm.reconcile.measuring.images import full_reference, images_on
from uellm.reconcile.measuring.needs import MeasuringNeed, need_of
from uellm.reconcile.measuring.pod import measuring_pod, pod_name
from uellm.reconcile.measuring.settings import MeasuringSettings
from uellm.reconcile.measuring.steps import (
    AFTER_END_S,
    AFTER_PREEMPTION_S,
    FAILURE_FIRST_S,
    FAILURE_LONGEST_S,
    MeasuringAttempt,
    MeasuringInputs,
    after_measuring_failure,
    image_for,
    next_measuring_step,
)

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
NODE = {"metadata": {"name": "node-1", "uid": "uid-n", "labels": {"pool": "gpu"}}, "spec": {}}
NEED = MeasuringNeed("GPU", "nvidia.com/gpu", 2, "", "mark")
SETTINGS = MeasuringSettings(
    namespace="uellm-system-profiler",
    image="vllm/vllm-openai:v0.32.0",
    launcher_image="launcher:1",
    directory="/var/lib/uellm/measurements",
    priority_class="uellm-measuring",
)
MEASURED = {"bf16GigaflopsPerSecond": 5, "measuredAt": "2026-01-01T00:00:00Z"}


def profile(*devices: dict[str, Any], annotations: dict[str, str] | None = None, **status: Any) -> dict[str, Any]:
    listed = [{"uuid": f"GPU-{index}", "index": index, "memoryBytes": 1, **each} for index, each in enumerate(devices)]
    return {
        "metadata": {"name": "node-1", "uid": "uid-p", "annotations": annotations or {}},
        "status": {"source": "NVML", "driverVersion": "580.1", "devices": listed, **status},
    }


def linked(*pairs: tuple[int, int]) -> list[dict[str, Any]]:
    return [{"a": f"GPU-{a}", "b": f"GPU-{b}", "bytesPerSecond": 7} for a, b in pairs]


def test_all_free_gpus_are_asked_for_so_that_links_and_groups_are_measured_too():
    need = need_of(profile({}, {}, {"allocatedTo": {"podUID": "x"}}))
    assert need is not None
    assert (need.on, need.resource, need.gpus) == ("GPU", "nvidia.com/gpu", 2)


@pytest.mark.parametrize(
    "device",
    [
        {"allocatedTo": {"podUID": "x"}},
        {"health": {"state": "Quarantined"}},
        {"mig": True},
        {"shares": 4},
        {"memoryHeldBytes": 1},
        {"measured": MEASURED},
    ],
)
def test_a_gpu_that_is_taken_faulty_shared_in_other_use_or_measured_is_no_reason_to_measure(device):
    assert need_of(profile(device)) is None


def test_a_link_without_figures_between_free_gpus_is_a_reason_to_measure():
    devices = ({"measured": MEASURED}, {"measured": MEASURED})
    assert need_of(profile(*devices, links=linked((0, 1)))) is not None
    assert need_of(profile(*devices, links=linked((0, 1), (1, 0)))) is None


def test_what_a_pod_has_finished_is_not_measured_again_even_where_figures_are_missing():
    need = need_of(profile({}, {}))
    assert need is not None
    assert need_of(profile({}, {}, measurement={"on": "GPU", "finished": need.mark})) is None


@pytest.mark.parametrize(
    "other",
    [
        profile({}, {}, driverVersion="590.1"),
        profile({"powerLimitWatts": 300}, {}),
        profile({"uuid": "GPU-new"}, {}),
        profile({}, {}, {}),
        profile({}, {}, annotations={"uellm.io/measure": "today"}),
    ],
    ids=["driver", "power limit", "another GPU", "one more GPU", "a request"],
)
def test_another_driver_power_limit_gpu_or_request_is_measured_again(other):
    first = need_of(profile({}, {}))
    assert first is not None
    other["status"]["measurement"] = {"on": "GPU", "finished": first.mark}
    again = need_of(other)
    assert again is not None
    assert again.mark != first.mark


def test_a_request_measures_what_is_measured_already_until_it_is_answered():
    asked = {"uellm.io/measure": "today"}
    need = need_of(profile({"measured": MEASURED}, annotations=asked))
    assert need is not None
    assert need.request == "today"
    answered = {"on": "GPU", "request": "today"}
    assert need_of(profile({"measured": MEASURED}, annotations=asked, measurement=answered)) is None


def test_simulated_gpus_are_measured_only_where_their_description_asks_for_the_cpu():
    assert need_of(profile({}, source="Simulated")) is None
    need = need_of(profile({}, source="Simulated", measurement={"on": "CPU"}))
    assert need is not None
    assert need.on == "CPU"


def test_gpus_of_two_resources_are_measured_one_resource_after_the_other():
    both = profile({"resourceName": "nvidia.com/b"}, {"resourceName": "nvidia.com/a"}, {"resourceName": "nvidia.com/a"})
    need = need_of(both)
    assert need is not None
    assert (need.resource, need.gpus) == ("nvidia.com/a", 2)


def pod(phase: str = "Running", **options: Any) -> dict[str, Any]:
    metadata = {"name": "measure-node-1", "namespace": "p", "uid": "uid-m", **options.pop("metadata", {})}
    return {"metadata": metadata, "spec": {"nodeName": "node-1"}, "status": {"phase": phase, **options}}


def step(need=NEED, node=NODE, pods=(), attempt=None, engines_come=False, settings=SETTINGS, now=NOON):
    return next_measuring_step(MeasuringInputs(need, node, pods, attempt, engines_come), settings, now)


def test_a_pod_is_made_where_something_is_to_be_measured_and_left_alone_while_it_runs():
    assert step().create == NEED
    for need in (NEED, None):
        running = step(need=need, pods=[pod()])
        assert (running.create, running.remove) == (None, ())


@pytest.mark.parametrize(
    "reason",
    [
        {"need": None},
        {"node": None},
        {"engines_come": True},
        {"attempt": MeasuringAttempt(NOON + timedelta(seconds=1))},
        {"node": {**NODE, "spec": {"unschedulable": True}}},
        {"node": {**NODE, "spec": {"taints": [{"key": "node.kubernetes.io/unreachable"}]}}},
    ],
)
def test_no_pod_is_made_where_there_is_a_reason_against_it(reason):
    assert step(**reason).create is None


def test_a_node_that_the_chart_does_not_select_has_no_pod_and_loses_the_one_it_has():
    other = replace(SETTINGS, node_selector={"pool": "other"})
    assert step(settings=other).create is None
    assert len(step(settings=other, pods=[pod()]).remove) == 1
    assert step(settings=replace(SETTINGS, node_selector={"pool": "gpu"})).create == NEED


def test_a_pod_that_is_done_is_deleted_and_the_profiler_has_time_to_read():
    done = step(pods=[pod("Succeeded")])
    assert len(done.remove) == 1
    assert done.attempt == MeasuringAttempt(NOON + timedelta(seconds=AFTER_END_S))
    assert step(attempt=done.attempt).create is None
    assert step(attempt=done.attempt, now=NOON + timedelta(seconds=AFTER_END_S)).create == NEED


def test_a_pod_that_is_preempted_is_not_followed_at_once_by_another():
    leaving = step(pods=[pod(metadata={"deletionTimestamp": "2026-01-01T12:00:00Z"})])
    assert (leaving.create, leaving.remove) == (None, ())
    assert leaving.attempt == MeasuringAttempt(NOON + timedelta(seconds=AFTER_PREEMPTION_S))
    assert leaving.tell == ""


@pytest.mark.parametrize("reason", ["OutOfnvidia.com/gpu", "UnexpectedAdmissionError"])
def test_a_pod_to_which_the_kubelet_could_not_give_the_gpus_any_more_is_no_failure(reason):
    lost = step(pods=[pod("Failed", reason=reason)])
    assert (len(lost.remove), lost.tell) == (1, "")
    assert lost.attempt == MeasuringAttempt(NOON + timedelta(seconds=AFTER_PREEMPTION_S))


def failed_pod(message: str) -> dict[str, Any]:
    state = {"terminated": {"exitCode": 1, "message": message}}
    return pod("Failed", containerStatuses=[{"name": "measure", "state": state}])


def test_a_failure_is_told_once_in_one_line_and_tried_again_later_each_time():
    first = step(pods=[failed_pod("measuring: torch is not installed")])
    assert first.tell == (
        "the GPUs are not measured, so plans assume the rates of their product: pod measure-node-1 failed: "
        "exit status 1: measuring: torch is not installed"
    )
    second = step(pods=[failed_pod("measuring: torch is not installed")], attempt=first.attempt)
    assert second.tell == ""
    other = step(pods=[failed_pod("measuring: CUDA is out of memory")], attempt=second.attempt)
    assert "out of memory" in other.tell
    assert [(each.attempt.due - NOON).total_seconds() for each in (first, second, other) if each.attempt] == [
        FAILURE_FIRST_S,
        2 * FAILURE_FIRST_S,
        4 * FAILURE_FIRST_S,
    ]


@given(st.integers(1, 200))
def test_waits_grow_to_a_limit(times):
    attempt, waits = None, []
    for _ in range(times):
        attempt = after_measuring_failure(attempt, "why", NOON).attempt
        assert attempt is not None
        waits.append((attempt.due - NOON).total_seconds())
    assert waits == sorted(waits)
    assert waits[-1] <= FAILURE_LONGEST_S


@given(
    st.booleans(),
    st.lists(st.sampled_from(["Pending", "Running", "Succeeded", "Failed", "leaving"]), max_size=1),
    st.none() | st.integers(-100, 100),
    st.booleans(),
)
def test_there_is_never_a_second_pod_and_never_one_before_its_time(wanted, phases, due_s, engines_come):
    pods = [
        pod(metadata={"deletionTimestamp": "2026-01-01T12:00:00Z"}) if phase == "leaving" else pod(phase)
        for phase in phases
    ]
    attempt = None if due_s is None else MeasuringAttempt(NOON + timedelta(seconds=due_s))
    found = step(need=NEED if wanted else None, pods=pods, attempt=attempt, engines_come=engines_come)
    may = wanted and not pods and not engines_come and (due_s is None or due_s <= 0)
    assert (found.create is not None) == may
    assert {each["status"]["phase"] for each in found.remove} <= {"Succeeded", "Failed"}


def test_the_image_is_one_that_is_there_or_one_that_an_engine_needs_there():
    present = images_on({"status": {"images": [{"names": ["docker.io/vllm/vllm-openai:v0.32.0"]}]}})
    assert image_for([SETTINGS.image], [], present) == SETTINGS.image
    assert image_for([SETTINGS.image, "own:1"], ["own:1"], present) == SETTINGS.image
    assert image_for([SETTINGS.image], [], frozenset()) is None
    assert image_for([SETTINGS.image], ["own:1"], frozenset()) == "own:1"
    assert image_for([], ["own:1"], frozenset({full_reference("own:1")})) == "own:1"


@pytest.mark.parametrize(
    ("image", "full"),
    [
        ("engine", "docker.io/library/engine:latest"),
        ("vllm/vllm-openai:v1", "docker.io/vllm/vllm-openai:v1"),
        ("index.docker.io/vllm/vllm-openai:v1", "docker.io/vllm/vllm-openai:v1"),
        ("uellm.local/engine-cpu:dev", "uellm.local/engine-cpu:dev"),
        ("localhost:5000/engine@sha256:00", "localhost:5000/engine@sha256:00"),
    ],
)
def test_images_have_the_names_that_kubelets_report(image, full):
    assert full_reference(image) == full


def test_the_pod_yields_to_everybody_has_no_rights_and_writes_to_one_directory_of_its_node():
    made = measuring_pod(profile({}, {}), NEED, "engine:1", SETTINGS)
    spec, (container,), (copier,) = made["spec"], made["spec"]["containers"], made["spec"]["initContainers"]
    assert spec["nodeName"] == "node-1"
    assert spec["priorityClassName"] == "uellm-measuring"
    assert spec["terminationGracePeriodSeconds"] <= 2
    assert spec["automountServiceAccountToken"] is False
    assert spec["tolerations"] == [{"operator": "Exists"}]
    assert made["metadata"]["annotations"] == {"cluster-autoscaler.kubernetes.io/safe-to-evict": "true"}
    assert made["metadata"]["labels"]["uellm.io/service"] == ""
    assert container["resources"]["limits"] == {"nvidia.com/gpu": "2"}
    assert [each["hostPath"]["path"] for each in spec["volumes"] if "hostPath" in each] == [SETTINGS.directory]
    for each in (container, copier):
        assert each["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "readOnlyRootFilesystem": True,
        }
    # `kubectl drain` takes pods with a controller.
    assert made["metadata"]["ownerReferences"][0]["controller"] is True


def test_the_name_of_the_pod_of_a_node_with_a_long_name_is_a_name_of_its_own():
    one, other = pod_name("n" * 250 + "aaa"), pod_name("n" * 250 + "bbb")
    assert len(one) == len(other) == 253
    assert one != other
    assert pod_name("node-1") == "measure-node-1"


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("{", "UELLM_MEASURING: is not what the chart writes: "),
        ("[]", "UELLM_MEASURING: is not what the chart writes: "),
        ("{}", "UELLM_MEASURING: has no field 'namespace'"),
    ],
)
def test_settings_that_the_chart_did_not_write_are_refused_in_one_line(text, line):
    with pytest.raises(BadInput) as refused:
        MeasuringSettings.from_json(text, source="UELLM_MEASURING", image="", launcher_image="")
    assert str(refused.value).startswith(line)
