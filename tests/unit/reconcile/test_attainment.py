from __future__ import annotations

import pytest

from uellm.api import parse_service
from uellm.api.attainment_report import AttainmentReport, ClassMeasurement
from uellm.reconcile.pods.attainment import percent, read_measurements, slo_met, status_entry, together

CHAT = ClassMeasurement("chat", 200, 197, 0.4123, 0.0311)
BATCH = ClassMeasurement("batch", 100, 100, None, None)


@pytest.fixture
def service(make):
    def build(attainment="99%"):
        classes = [{"name": "chat", "ttft": "1s"}, {"name": "batch", "e2e": "60s"}]
        return parse_service(make.service(slo={"attainment": attainment, "classes": classes}))

    return build


def entry(**fields):
    return {"name": "chat", "requests": 3, "met": 2, "p99TtftSeconds": 0.5, "p99TpotSeconds": None, **fields}


def test_a_pods_figures_are_read():
    assert read_measurements({"windowSeconds": 300, "classes": [entry()]}) == (
        ClassMeasurement("chat", 3, 2, 0.5, None),
    )


@pytest.mark.parametrize(
    "bad",
    [
        {"name": 1},
        {"name": "x" * 64},
        {"name": "A\n"},
        {"requests": -1},
        {"requests": True},
        {"requests": "3"},
        {"met": 4},
        {"met": 1.5},
    ],
)
def test_an_invalid_entry_is_ignored(bad):
    assert read_measurements({"classes": [entry(**bad), entry(name="batch")]}) == (
        ClassMeasurement("batch", 3, 2, 0.5, None),
    )


@pytest.mark.parametrize("seconds", [float("nan"), float("inf"), -1.0, "1", True, 1e300])
def test_an_invalid_time_is_left_out(seconds):
    assert read_measurements({"classes": [entry(p99TtftSeconds=seconds)]})[0].p99_ttft_s is None


@pytest.mark.parametrize("document", [{}, {"classes": 1}, {"classes": [1, None, []]}])
def test_a_document_without_classes_has_no_figures(document):
    assert read_measurements(document) == ()


def test_no_pod_can_report_more_classes_than_a_service_has():
    assert len(read_measurements({"classes": [entry(name=f"c{index}") for index in range(1000)]})) == 16


@pytest.mark.parametrize("times", [(), (0.5, None), (0.5, 0.03)])
def test_a_report_is_read_as_it_was_written(times):
    report = AttainmentReport((ClassMeasurement("chat", 3, 2, *times), BATCH), 300)
    assert AttainmentReport.from_dict(report.to_dict()) == report


def test_a_report_of_another_version_has_no_figures():
    assert read_measurements({"version": 2, "classes": [entry()]}) == ()


def test_pods_are_summed_and_the_slowest_one_is_reported():
    other = ClassMeasurement("chat", 50, 40, 0.9, None)
    assert together([(CHAT,), (BATCH, other)], ["batch", "chat"]) == (
        BATCH,
        ClassMeasurement("chat", 250, 237, 0.9, 0.0311),
    )


def test_a_removed_class_is_left_out():
    assert together([(CHAT, BATCH)], ["batch"]) == (BATCH,)


def test_an_entry_of_the_status_is_rounded():
    assert status_entry(CHAT) == {
        "name": "chat",
        "requests": 200,
        "attainment": "98.5%",
        "p99TtftMilliseconds": 410,
        "p99TpotMilliseconds": 31,
    }
    assert status_entry(ClassMeasurement("chat", 12345, 12345))["requests"] == 12000


def test_a_class_without_requests_has_no_attainment():
    assert status_entry(ClassMeasurement("chat", 0, 0)) == {"name": "chat", "requests": 0}


@pytest.mark.parametrize(("met", "text"), [(1000, "100%"), (999, "99.9%"), (0, "0.0%"), (9999, "100%")])
def test_a_share_is_rounded_down_so_that_100_means_all(met, text):
    assert percent(met, 1000 if met <= 1000 else 9999) == text


@pytest.mark.parametrize(
    ("attainment", "status", "reason"), [("99%", "True", "TargetsMet"), ("99.1%", "False", "TargetsMissed")]
)
def test_all_requests_together_are_compared_with_the_required_attainment(service, attainment, status, reason):
    condition = slo_met((CHAT, BATCH), service(attainment))
    assert (condition.status, condition.reason) == (status, reason)
    assert condition.message == (
        "99.0% of the last minutes' requests met their targets (chat 98.5%, batch 100%); asked for: " + attainment
    )


def test_without_a_request_nothing_is_known(service):
    condition = slo_met((ClassMeasurement("chat", 0, 0, None, None),), service())
    assert (condition.status, condition.reason) == ("Unknown", "NoTraffic")


def test_a_service_without_targets_has_nothing_to_meet(make):
    assert slo_met((ClassMeasurement("default", 5, 5, None, None),), parse_service(make.service())) is None
