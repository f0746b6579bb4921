from __future__ import annotations

import dataclasses

import pytest

from uellm.api import parse_service
from uellm.planner.result import Predicted, SloVerdict
from uellm.reconcile.status.slo_feasible import feasible


@pytest.fixture
def condition(make):
    def look(predicted=None, verdict=None, recommended=None, **spec):
        predicted = predicted or Predicted(100, 400.0, 40.0, 2.0)
        plan = dataclasses.replace(make.plan(), predicted=predicted, slo=verdict, recommended_replicas=recommended)
        return feasible(plan, parse_service(make.service(**spec)))

    return look


def chat(**targets):
    return {"classes": [{"name": "chat", **targets}]}


def test_targets_that_are_met_are_feasible(condition):
    assert condition(slo=chat(ttft="500ms", tpot="50ms"))[1:3] == ("True", "Predicted")


@pytest.mark.parametrize(
    ("targets", "best"),
    [
        ({"ttft": "300ms"}, "TTFT 400 ms, class chat asks for 300 ms"),
        ({"tpot": "10ms"}, "TPOT 40 ms, class chat asks for 10 ms"),
        ({"e2e": "4s"}, "end to end 4400 ms, class chat asks for 4000 ms"),
    ],
)
def test_a_missed_target_is_reported_with_the_best_possible_value(condition, targets, best):
    found = condition(slo=chat(**targets), workload={"outputTokens": {"mean": 100}})
    assert found[1:3] == ("False", "TargetsTooTight")
    assert best in found.message


def test_a_load_that_needs_more_replicas_reports_how_many(condition):
    found = condition(workload={"requestsPerSecond": "5"})
    assert found[1:3] == ("False", "TooFewReplicas")
    assert "--replicas=3" in found.message
    assert condition(workload={"requestsPerSecond": "5"}, replicas=3)[1] == "True"


def test_replicas_short_of_what_the_targets_need_under_load_are_too_few_even_if_they_could_serve_the_rate(condition):
    load = {"requestsPerSecond": "3"}  # 2 a second each: two replicas would keep up, but not within the targets
    found = condition(slo=chat(ttft="500ms"), workload=load, recommended=3, replicas=2)
    assert found[1:3] == ("False", "TooFewReplicas")
    assert found.message == (
        "3 requests a second need 3 replicas within the targets, and spec.replicas is 2: "
        "kubectl scale llmservice/llama --replicas=3"
    )
    assert condition(slo=chat(ttft="500ms"), workload=load, recommended=3, replicas=3)[1] == "True"


@pytest.mark.parametrize("spec", [{"replicas": 0}, {"replicas": 1, "suspend": True}])
def test_a_service_without_pods_is_not_short_of_replicas(condition, spec):
    assert condition(workload={"requestsPerSecond": "3"}, recommended=3, **spec)[1] == "True"


def test_where_nothing_can_be_predicted_the_condition_is_unknown_and_says_why(make, condition):
    unmeasured = condition(Predicted(100), slo=chat(ttft="1ms"))
    assert unmeasured[1:3] == ("Unknown", "NotMeasured")
    assert "GPUNodeProfile" in unmeasured.message
    asked = condition()
    assert asked[1:3] == ("Unknown", "NothingAsked")
    assert "spec.slo.classes or spec.workload.requestsPerSecond" in asked.message
    unplanned = feasible(None, parse_service(make.service()), no_plan="no node has a GPUNodeProfile")
    assert unplanned[1:] == (
        "Unknown",
        "NoPlan",
        "there is no plan to predict from: no node has a GPUNodeProfile",
    )


def test_the_planners_verdict_is_reported_with_the_smallest_change(condition):
    verdict = SloVerdict(False, "TTFT 300 ms of class chat: the best is 400 ms", "a target of TTFT 400 ms for chat")
    found = condition(verdict=verdict, slo=chat(ttft="300ms"))
    assert found[1:3] == ("False", "TargetsTooTight")
    assert found.message == f"{verdict.constraint}; it takes {verdict.change}"


def test_targets_that_the_planner_found_met_are_not_judged_again_by_rounded_figures(condition):
    assert condition(verdict=SloVerdict(True), slo=chat(ttft="399ms"))[1] == "True"
