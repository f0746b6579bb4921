from __future__ import annotations

from dataclasses import replace

import pytest

from uellm.planner import Outlook
from uellm.reconcile.obstacle import Obstacle
from uellm.reconcile.planning.choose import choose
from uellm.reconcile.planning.evaluate import Evaluation

NO_FIT = Obstacle("NoFit", "nothing fits")


@pytest.fixture
def incumbent(make):
    return make.plan()


@pytest.fixture
def other(make):
    return make.plan(layers=(4, 4), nodes=("node-2",))


@pytest.fixture
def smaller(make):
    return make.plan(layers=(8,))


def chosen(incumbent, evaluation, *, spec_changed=False, stranded=False, may_improve=True):
    return choose(incumbent, evaluation, spec_changed=spec_changed, stranded=stranded, may_improve=may_improve)


def is_new(choice, plan):
    """The new plan was chosen, and contains the reason."""
    return choice.plan == replace(plan, reason=choice.plan.reason) and choice.plan.reason != ""


def test_the_first_plan_is_the_fresh_one(other):
    choice = chosen(None, Evaluation(other))
    assert is_new(choice, other)
    assert (choice.plan.reason, choice.why) == ("the first plan", "")


def test_without_any_plan_the_failure_is_reported():
    assert chosen(None, Evaluation(None, NO_FIT)) == (None, NO_FIT, "", "")


def test_an_incumbent_that_holds_is_kept(incumbent, other):
    assert chosen(incumbent, Evaluation(other)).plan is incumbent


def test_a_changed_spec_takes_the_fresh_plan_or_its_failure(incumbent, other):
    choice = chosen(incumbent, Evaluation(other), spec_changed=True)
    assert is_new(choice, other)
    assert choice.plan.reason == choice.why == "the spec changed"
    assert chosen(incumbent, Evaluation(None, NO_FIT), spec_changed=True).failure is NO_FIT


def test_fewer_gpus_are_worth_a_rollout(incumbent, smaller):
    choice = chosen(incumbent, Evaluation(smaller))
    assert is_new(choice, smaller)
    assert "2 GPUs" in choice.why


def test_hardware_that_holds_the_incumbent_no_longer_replaces_it(incumbent, other):
    choice = chosen(incumbent, Evaluation(other, None, "g1 is quarantined", "g1 is quarantined"))
    assert is_new(choice, other)
    assert "g1 is quarantined" in choice.why == choice.plan.reason
    assert chosen(incumbent, Evaluation(None, NO_FIT, "x", "x")).failure is NO_FIT


def test_devices_taken_by_others_break_no_plan_with_running_pods(incumbent, other):
    assert chosen(incumbent, Evaluation(other, None, "taken", None)).plan is incumbent


def test_a_replica_without_a_place_takes_the_fresh_plan_where_there_is_one(incumbent, other):
    assert is_new(chosen(incumbent, Evaluation(other, None, "taken", None), stranded=True), other)
    assert chosen(incumbent, Evaluation(None, NO_FIT, "taken", None), stranded=True).plan is incumbent


def test_a_replica_without_a_place_for_another_reason_changes_no_plan(incumbent, other):
    assert chosen(incumbent, Evaluation(other), stranded=True).plan is incumbent


def test_the_same_plan_again_keeps_its_reason_whatever_asked_for_it(incumbent):
    kept = replace(incumbent, reason="the first plan")
    again = replace(incumbent, reason="")
    assert chosen(kept, Evaluation(again), spec_changed=True).plan is kept
    assert chosen(kept, Evaluation(again, None, "x", "x")).plan is kept


def outlook(gpus=4.0, seconds=10.0, rate=2.0, *, keeps=True):
    return Outlook(gpus, seconds, rate, keeps)


def weighed(incumbent, other, before, after, objective="Efficiency"):
    evaluation = Evaluation(other, before=before, after=after)
    return choose(incumbent, evaluation, spec_changed=False, stranded=False, may_improve=True, objective=objective)


@pytest.mark.parametrize(
    ("objective", "better", "hardly", "told"),
    [
        ("Efficiency", outlook(gpus=3.5), outlook(gpus=3.7, seconds=1), "took 4 GPUs; the new one is 12% better"),
        ("Latency", outlook(gpus=9, seconds=8.9), outlook(gpus=1, seconds=9.1), "took 10.00 s a request"),
        ("Throughput", outlook(rate=2.3), outlook(rate=2.1), "took 2.00 requests/s"),
    ],
)
def test_a_better_plan_is_taken_by_a_margin_and_not_for_noise(incumbent, other, objective, better, hardly, told):
    choice = weighed(incumbent, other, outlook(), better, objective)
    assert is_new(choice, other)
    assert told in choice.why
    assert weighed(incumbent, other, outlook(), hardly, objective).plan is incumbent


def test_fewer_gpus_per_replica_do_not_count_if_the_total_is_higher(incumbent, smaller):
    assert weighed(incumbent, smaller, outlook(gpus=4.0), outlook(gpus=5.0)).plan is incumbent


def test_regaining_targets_is_worth_a_rollout_and_losing_them_is_not(incumbent, other):
    choice = weighed(incumbent, other, outlook(keeps=False), outlook(gpus=8.0))
    assert is_new(choice, other)
    assert "the former plan misses targets" in choice.why
    assert weighed(incumbent, other, outlook(), outlook(gpus=1.0, keeps=False)).plan is incumbent


def test_two_plans_never_alternate(incumbent, other):
    """Whatever their predictions, at most one of the two plans is worth replacing the other with."""
    views = [
        outlook(g, s, r, keeps=k) for g in (3.5, 4.0) for s in (8.0, 10.0) for r in (2.0, 3.0) for k in (True, False)
    ]
    for objective in ("Efficiency", "Latency", "Throughput"):
        for one in views:
            for two in views:
                there = weighed(incumbent, other, one, two, objective).why
                back = weighed(other, incumbent, two, one, objective).why
                assert not (there and back)


def test_a_plan_that_works_is_left_where_nobody_asks_for_a_better_one_and_the_better_one_is_told(incumbent, smaller):
    choice = chosen(incumbent, Evaluation(smaller), may_improve=False)
    assert (choice.plan, choice.why) == (incumbent, "")
    assert choice.better == ("1 GPU a replica (tensor 1 × pipeline 1), layers 8: the former plan took 2 GPUs a replica")


def test_a_plan_that_is_broken_is_replaced_although_nobody_asks_for_a_better_one(incumbent, other):
    assert is_new(chosen(incumbent, Evaluation(other, None, "x", "x"), may_improve=False), other)
    assert is_new(chosen(incumbent, Evaluation(other, None, "taken", None), stranded=True, may_improve=False), other)


def test_nothing_better_is_told_where_there_is_nothing_better(incumbent, other):
    assert chosen(incumbent, Evaluation(other), may_improve=False).better == ""


def test_a_kept_plan_says_what_is_predicted_of_it_now(incumbent, other):
    revised = replace(incumbent, binding="TPOT 60 ms of class chat")
    assert chosen(incumbent, Evaluation(other, revised=revised), may_improve=False).plan is revised
