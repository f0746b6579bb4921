from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from uellm.api.attainment_report import AttainmentReport, LoadMeasurement
from uellm.reconcile.scaling.load import interval, startup_s
from uellm.reconcile.scaling.scaling import Scaling, wanted_replicas

NOW = datetime(2026, 11, 29, 12, 0, tzinfo=UTC)


def load(ended: int, *, missed: int = 0, running: int = 0, queued: int = 0, cached: float = 0.0) -> LoadMeasurement:
    return LoadMeasurement(ended, missed, 100 * ended, 10 * ended, running, queued, cached)


def service(replicas: int = 1, chosen: int | None = None, **spec: object) -> dict[str, object]:
    status = {} if chosen is None else {"autoscaling": {"replicas": chosen}}
    return {"spec": {"replicas": replicas, **spec}, "status": status}


def pod(created_s: float, ready_s: float, restarts: int = 0) -> dict[str, object]:
    def at(seconds: float) -> str:
        return (NOW - timedelta(seconds=seconds)).strftime("%Y-%m-%dT%H:%M:%SZ")

    return {
        "metadata": {"creationTimestamp": at(created_s)},
        "status": {
            "conditions": [{"type": "Ready", "status": "True", "lastTransitionTime": at(ready_s)}],
            "containerStatuses": [{"name": "engine", "restartCount": restarts}],
        },
    }


def test_what_arrived_is_what_ended_and_what_is_more_in_flight() -> None:
    before = {"a": load(10, running=2), "b": load(5)}
    now = {"a": load(30, missed=3, running=5, queued=1), "b": load(5)}

    found = interval(before, now, end_s=60.0, seconds=15.0, ready=2)

    assert (found.arrived, found.ended, found.met) == (24, 20, 17)
    assert (found.running, found.queued, found.ready) == (5, 1, 2)
    assert (found.answers, found.output_tokens) == (20, 200)
    assert (found.prompts, found.prompt_tokens) == (20, 2000)


def test_replicas_that_do_not_report_count_as_the_others() -> None:
    before, now = {"a": load(10, running=2)}, {"a": load(30, missed=4, running=5, queued=1)}

    found = interval(before, now, end_s=60.0, seconds=15.0, ready=2)

    assert (found.arrived, found.ended, found.met, found.running, found.queued) == (48, 40, 32, 10, 2)
    assert (found.answers, found.output_tokens, found.prompts, found.prompt_tokens) == (40, 400, 40, 4000)


def test_tokens_are_those_of_the_requests_that_the_sidecar_knows_them_of() -> None:
    before = LoadMeasurement(10, 0, 1000, 100, 0, 0, prompts=10, answers=10)
    # 20 more: 2 were refused before their bodies were read, and 13 thereafter.
    now = LoadMeasurement(30, 15, 2800, 150, 0, 0, prompts=28, answers=15)

    found = interval({"a": before}, {"a": now}, end_s=60.0, seconds=15.0, ready=1)

    assert (found.arrived, found.ended, found.met) == (20, 20, 5)
    assert (found.prompts, found.prompt_tokens, found.answers, found.output_tokens) == (18, 1800, 5, 50)


def test_sidecars_of_two_releases_are_added_up() -> None:
    new = LoadMeasurement(10, 5, 1000, 50, 0, 0, prompts=10, answers=5)

    found = interval({}, {"old": load(10), "new": new}, end_s=60.0, seconds=15.0, ready=2)

    assert (found.ended, found.prompts, found.prompt_tokens) == (20, 20, 2000)
    assert (found.answers, found.output_tokens) == (15, 150)


def test_prompts_from_the_prefix_cache_do_not_count() -> None:
    found = interval({"a": load(0)}, {"a": load(10, cached=0.25)}, end_s=60.0, seconds=15.0, ready=1)

    assert found.prompt_tokens == pytest.approx(750)


def test_a_restarted_sidecar_counts_from_0() -> None:
    found = interval({"a": load(1000)}, {"a": load(4)}, end_s=60.0, seconds=15.0, ready=1)

    assert found.ended == 4


def test_a_sidecar_that_was_restarted_is_known_by_its_tokens_too() -> None:
    long_prompts = LoadMeasurement(10, 0, 10_000, 5_000, 0, 0)
    found = interval({"a": long_prompts}, {"a": load(12)}, end_s=60.0, seconds=15.0, ready=1)

    assert (found.ended, found.prompt_tokens, found.output_tokens) == (12, 1200.0, 120.0)


def test_the_longest_start_of_pods_that_have_just_become_ready_counts() -> None:
    pods = [pod(400, 100), pod(250, 20), pod(90_000, 80_000), pod(700, 10, restarts=1)]

    assert startup_s(pods, NOW, 3600.0) == 300.0


def test_a_pod_that_is_ready_again_does_not_count_as_one_that_started() -> None:
    assert startup_s([pod(90_000, 10)], NOW, 3600.0) is None


@pytest.mark.parametrize(
    ("document", "wanted"),
    [
        (service(3), 3),
        (service(3, suspend=True), 0),
        (service(3, autoscaling={"minReplicas": 1, "maxReplicas": 5}), 1),
        (service(3, autoscaling={"minReplicas": 0, "maxReplicas": 5}), 1),
        (service(3, chosen=4, autoscaling={"minReplicas": 1, "maxReplicas": 5}), 4),
        (service(3, chosen=0, autoscaling={"minReplicas": 0, "maxReplicas": 5}), 0),
        (service(3, chosen=9, autoscaling={"minReplicas": 1, "maxReplicas": 5}), 5),
        (service(3, chosen=4, autoscaling={"minReplicas": 1, "maxReplicas": 5}, suspend=True), 0),
        (service(3, chosen=4), 3),
    ],
)
def test_the_wanted_number_is_the_chosen_one_within_its_bounds(document: dict[str, object], wanted: int) -> None:
    assert wanted_replicas(document) == wanted


def test_the_condition_says_that_replicas_is_not_looked_at() -> None:
    for reason, status in (("AsNeeded", "True"), ("ScalingLimited", "False"), ("NotReported", "Unknown")):
        condition = Scaling(2, reason, "2 replicas", 61.0).condition

        assert condition == ("Scaling", status, reason, "2 replicas; spec.replicas is not looked at")


def test_a_report_with_a_load_is_read_back_and_a_damaged_one_is_left_out() -> None:
    report = AttainmentReport((), 300, load=load(7, missed=1, running=2, queued=3, cached=0.5))
    document = report.to_dict()

    assert AttainmentReport.from_dict(document) == report
    for damage in ({"ended": -1}, {"cachedShare": 2}, {"queued": "3"}):
        assert AttainmentReport.from_dict({**document, "load": {**document["load"], **damage}}).load is None
    assert AttainmentReport.from_dict({**document, "load": 3}).load is None


def test_a_load_of_an_earlier_release_is_read_without_the_counts_that_it_lacks() -> None:
    known = load(7)._replace(prompts=7, answers=5, passed=3)
    document = AttainmentReport((), 300, load=known).to_dict()
    assert AttainmentReport.from_dict(document).load == known
    for name in ("prompts", "answers", "passed"):
        del document["load"][name]

    assert AttainmentReport.from_dict(document).load == load(7)


def test_a_session_of_a_route_that_is_not_scheduled_is_in_flight_and_no_arrival():
    idle, talking = load(ended=3), load(ended=3)._replace(passing=2)
    taken = interval({"a": idle}, {"a": talking}, end_s=9.0, seconds=9.0, ready=1)
    assert (taken.arrived, taken.running, taken.ended) == (0, 2, 0)
