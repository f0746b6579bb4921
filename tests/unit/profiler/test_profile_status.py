"""GPUNodeProfile.status from an observation."""

from __future__ import annotations

from uellm.hardware.types import Node
from uellm.profiler.sample import DeviceFailure, Sample, SourceError
from uellm.profiler.status import Seen, changes, compose, facts, pod_uids_of, sample_of

A = {"index": 0, "uuid": "GPU-a", "product": "P", "memoryBytes": 1000, "memoryFreeBytes": 900}
B = {"index": 1, "uuid": "GPU-b", "product": "P", "memoryBytes": 2000}
LINK = {"a": "GPU-a", "b": "GPU-b", "kind": "PHB"}
SAMPLE = Sample("NVML", (A, B), (LINK,), "580.1", "13.0")
T0, T1 = "2026-01-01T00:00:00Z", "2026-01-01T00:01:00Z"


def status(sample: Sample = SAMPLE, before=None, now: str = T0, **seen):
    return compose(Seen(sample, **seen), before or {}, now, observed_at=now)


def devices(status) -> dict:
    return {device["uuid"]: device for device in status["devices"]}


def test_the_status_contains_everything_observed():
    told = status(
        pod_uids={"GPU-a": "uid-1"},
        resource_names={"GPU-b": "nvidia.com/mig-1g.10gb"},
        measured={"GPU-a": {"bf16GigaflopsPerSecond": 5}},
        measured_links={("GPU-a", "GPU-b"): {"bytesPerSecond": 7, "latencyNanoseconds": 8}},
    )
    assert devices(told)["GPU-a"]["allocatedTo"] == {"podUID": "uid-1"}
    assert devices(told)["GPU-a"]["measured"] == {"bf16GigaflopsPerSecond": 5}
    assert devices(told)["GPU-a"]["health"] == {"state": "Healthy", "since": T0}
    assert devices(told)["GPU-b"]["resourceName"] == "nvidia.com/mig-1g.10gb"
    assert told["links"] == [{**LINK, "bytesPerSecond": 7, "latencyNanoseconds": 8}]
    assert (told["source"], told["driverVersion"], told["observedAt"]) == ("NVML", "580.1", T0)
    assert told["conditions"][0]["status"] == "True"


def test_the_summary_counts_gpus_free_ones_and_products():
    assert status(SAMPLE, pod_uids={"GPU-a": "uid-1"})["summary"] == {"gpus": "2", "free": "1", "products": "2 x P"}
    gone = status(Sample("NVML", (A,), failed={1: DeviceFailure("GPULost", "it is gone")}), before=status())
    assert gone["summary"] == {"gpus": "2", "free": "1", "products": "2 x P"}


def test_the_planner_reads_what_is_written():
    node = Node.from_profile({"metadata": {"name": "n"}, "status": status(pod_uids={"GPU-a": "uid-1"})})
    assert [device.uuid for device in node.devices] == ["GPU-a", "GPU-b"]
    assert node.devices[0].allocated_to_pod_uid == "uid-1"
    assert node.devices[1].allocated_to_pod_uid == ""


def test_what_was_not_measured_is_left_out():
    assert all("measured" not in device for device in status()["devices"])


def test_figures_of_a_description_stay():
    described = Sample("Simulated", ({**A, "measured": {"memoryBytesPerSecond": 3}},))
    assert devices(status(described))["GPU-a"]["measured"] == {"memoryBytesPerSecond": 3}


def test_a_lost_gpu_is_quarantined_with_the_facts_it_had():
    before = status(measured={"GPU-a": {"bf16GigaflopsPerSecond": 5}}, pod_uids={"GPU-a": "uid-1"})
    lost = Sample("NVML", (B,), failed={0: DeviceFailure("GPULost", "GPU 0 is gone")})

    told = status(lost, before, T1)

    assert devices(told)["GPU-a"]["health"] == {
        "state": "Quarantined",
        "reason": "GPULost",
        "message": "GPU 0 is gone",
        "since": T1,
    }
    assert devices(told)["GPU-a"]["measured"] == {"bf16GigaflopsPerSecond": 5}
    assert "allocatedTo" not in devices(told)["GPU-a"]
    assert devices(told)["GPU-b"]["health"]["since"] == T0
    assert "GPU 0 is gone" in told["conditions"][0]["message"]
    assert list(changes(before, told)) == ["GPU-a free", "GPU-a Quarantined GPULost"]


def test_the_state_of_a_lost_gpu_dates_from_its_loss_and_ends_when_it_is_back():
    lost = Sample("NVML", (B,), failed={0: DeviceFailure("GPULost", "gone")})
    first = status(lost, status(), T1)
    second = status(lost, first, "2026-01-01T00:02:00Z")
    assert devices(second)["GPU-a"]["health"]["since"] == T1
    back = status(SAMPLE, second, "2026-01-01T00:03:00Z")
    assert devices(back)["GPU-a"]["health"] == {"state": "Healthy", "since": "2026-01-01T00:03:00Z"}


def test_a_gpu_that_was_never_observed_healthy_is_mentioned_but_not_listed():
    told = status(Sample("NVML", (B,), failed={0: DeviceFailure("GPULost", "GPU 0 is gone")}))
    assert list(devices(told)) == ["GPU-b"]
    assert "GPU 0 is gone" in told["conditions"][0]["message"]


def test_a_failure_of_the_source_keeps_the_devices_and_changes_the_condition():
    before = status()
    sample = sample_of(before)
    assert sample is not None
    told = compose(Seen(sample, trouble=SourceError("NVMLFailed", "it broke")), before, T1)
    assert told["devices"] == before["devices"]
    assert told["observedAt"] == T0
    (condition,) = told["conditions"]
    assert (condition["status"], condition["reason"], condition["lastTransitionTime"]) == ("False", "NVMLFailed", T1)
    assert "it broke" in condition["message"]


def test_a_sample_made_of_a_status_gives_that_status_again():
    before = status(pod_uids={"GPU-a": "uid-1"}, measured={"GPU-b": {"bf16GigaflopsPerSecond": 5}})
    sample = sample_of(before)
    assert sample is not None
    again = compose(Seen(sample, pod_uids=pod_uids_of(before)), before, T1)
    assert facts(again) == facts(before)
    assert sample_of({}) is None


def test_time_and_free_memory_are_not_changes():
    later = status(Sample("NVML", ({**A, "memoryFreeBytes": 1}, B), (LINK,), "580.1", "13.0"), status(), T1)
    assert facts(later) == facts(status())
    assert list(changes(status(), later)) == []


def test_each_change_is_logged_in_one_line():
    after = status(pod_uids={"GPU-b": "uid-9"}, measured={"GPU-a": {"bf16GigaflopsPerSecond": 5}})
    assert list(changes({}, after)) == ["2 devices (NVML)", "GPU-a measured", "GPU-b allocated to pod uid-9"]
    assert list(changes(after, status())) == ["GPU-a to be measured again", "GPU-b free"]
