from __future__ import annotations

import pytest

from uellm.reconcile.choose import Evaluation, Failure, choose

NO_FIT = Failure("NoFit", "nothing fits")


@pytest.fixture
def incumbent(make):
    return make.plan()


@pytest.fixture
def other(make):
    return make.plan(layers=(4, 4), nodes=("node-2",))


@pytest.fixture
def smaller(make):
    return make.plan(layers=(8,))


def chosen(incumbent, evaluation, *, spec_changed=False, stranded=False):
    return choose(incumbent, evaluation, spec_changed=spec_changed, stranded=stranded)


def test_the_first_plan_is_the_fresh_one(other):
    assert chosen(None, Evaluation(other)).plan is other


def test_without_any_plan_the_failure_is_told():
    assert chosen(None, Evaluation(None, NO_FIT)) == (None, NO_FIT, "")


def test_an_incumbent_that_holds_is_kept(incumbent, other):
    assert chosen(incumbent, Evaluation(other)).plan is incumbent


def test_a_changed_spec_takes_the_fresh_plan_or_its_failure(incumbent, other):
    assert chosen(incumbent, Evaluation(other), spec_changed=True).plan is other
    assert chosen(incumbent, Evaluation(None, NO_FIT), spec_changed=True).failure is NO_FIT


def test_fewer_gpus_are_worth_a_rollout(incumbent, smaller):
    choice = chosen(incumbent, Evaluation(smaller))
    assert choice.plan is smaller
    assert "2 GPUs" in choice.why


def test_hardware_that_holds_the_incumbent_no_longer_replaces_it(incumbent, other):
    choice = chosen(incumbent, Evaluation(other, None, "g1 is quarantined", "g1 is quarantined"))
    assert choice.plan is other
    assert "g1 is quarantined" in choice.why
    assert chosen(incumbent, Evaluation(None, NO_FIT, "x", "x")).failure is NO_FIT


def test_devices_that_others_took_break_no_plan_whose_pods_run(incumbent, other):
    assert chosen(incumbent, Evaluation(other, None, "taken", None)).plan is incumbent


def test_a_replica_without_a_place_takes_the_fresh_plan_where_there_is_one(incumbent, other):
    assert chosen(incumbent, Evaluation(other, None, "taken", None), stranded=True).plan is other
    assert chosen(incumbent, Evaluation(None, NO_FIT, "taken", None), stranded=True).plan is incumbent


def test_a_replica_without_a_place_for_another_reason_changes_no_plan(incumbent, other):
    assert chosen(incumbent, Evaluation(other), stranded=True).plan is incumbent
