"""A plan that is kept is predicted anew for other targets, and keeps what its pods are built from."""

from __future__ import annotations

from dataclasses import replace

import pytest

from uellm.planner import plan
from uellm.planner.request import SloClass, Workload
from uellm.planner.revised import revised

LOOSE, TIGHT = SloClass("chat", tpot_s=1.0), SloClass("chat", tpot_s=1e-3)
ROLLED = (
    "tensor",
    "pipeline",
    "layers",
    "max_num_batched_tokens",
    "max_num_seqs",
    "kv_cache_bytes",
    "kv_cache_tokens_required",
    "stages",
)


@pytest.fixture
def request_for(build):
    def make(*classes, rate=None, nodes=("L4",)):
        workload = Workload(requests_per_s=rate)
        return build.request(build.node("n1", nodes), classes=classes, workload=workload)

    return make


def test_nothing_that_pods_are_built_from_changes(request_for):
    made = plan(request_for(LOOSE, rate=1.0))
    again = revised(made, request_for(TIGHT, rate=5.0), None)
    assert [getattr(again, name) for name in ROLLED] == [getattr(made, name) for name in ROLLED]


def test_the_same_request_gives_the_same_prediction(request_for):
    wanted = request_for(LOOSE, rate=1.0)
    made = plan(wanted)
    assert revised(made, wanted, made) == made


def test_targets_that_the_running_plan_misses_and_another_would_meet_are_told_as_its_own_fault(request_for):
    made = plan(request_for(LOOSE))
    other = replace(made, slo=made.slo and replace(made.slo, feasible=True))
    verdict = revised(made, request_for(TIGHT), other).slo
    assert not verdict.feasible
    assert verdict.constraint.startswith("TPOT 1.0 ms of class chat: ")
    assert verdict.constraint.endswith(" is predicted of the running plan")
    assert verdict.change == "another plan, see BetterPlan"


def test_targets_that_no_plan_meets_are_told_in_the_fresh_plans_words(request_for):
    made, wanted = plan(request_for(LOOSE)), request_for(TIGHT)
    fresh = plan(wanted)
    assert not fresh.slo.feasible
    assert revised(made, wanted, fresh).slo == fresh.slo


def test_a_plan_whose_targets_were_loosened_meets_them_again(request_for):
    made = plan(request_for(TIGHT))
    assert not made.slo.feasible
    assert revised(made, request_for(LOOSE), None).slo.feasible


def test_a_larger_load_needs_more_replicas(request_for):
    made = plan(request_for(LOOSE, rate=0.01))
    assert made.recommended_replicas == 1
    assert revised(made, request_for(LOOSE, rate=1000.0), None).recommended_replicas > 1
    assert revised(made, request_for(LOOSE), None).recommended_replicas is None
