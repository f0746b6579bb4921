from __future__ import annotations

import json

import pytest

from uellm.extender.decide import MOST_PLANS, MOST_SENTENCES, NO_PROFILE, ONE_MORE, Judge, scores


def refusals(text, names, snapshot, refusal_on):
    return Judge(refusal_on).refusals(text, names, snapshot)


def test_a_node_that_fits_is_not_refused_and_one_that_does_not_is_with_the_planners_sentence(make):
    snapshot = make.snapshot(make.profile("big"), make.profile("small", product="small"))
    refused = refusals(make.plan(2), ["big", "small"], snapshot, make.refusal_on("small"))
    assert refused == {"small": "too small: small"}


def test_a_node_without_a_profile_is_refused(make):
    assert refusals(make.plan(1), ["n"], make.snapshot(), make.refusal_on()) == {"n": NO_PROFILE}


def test_too_few_free_devices_are_counted_without_asking_the_planner(make):
    refusal_on = make.refusal_on()
    snapshot = make.snapshot(make.profile("n", 2, taken={0: "other"}))
    assert refusals(make.plan(2), ["n"], snapshot, refusal_on) == {"n": "the plan needs 2 nvidia.com/gpu, 1 free"}
    assert refusal_on.asked == []


def test_promised_devices_are_not_given_twice(make):
    snapshot = make.snapshot(make.profile("n", 4), pods=[make.pod("p", node="n", text=make.plan(3))])
    assert refusals(make.plan(2), ["n"], snapshot, make.refusal_on()) == {
        "n": "the plan needs 2 nvidia.com/gpu, 4 free, 3 of them promised to pods that start"
    }
    assert refusals(make.plan(1), ["n"], snapshot, make.refusal_on()) == {}


def test_the_planner_is_asked_once_about_identical_nodes(make):
    refusal_on = make.refusal_on("c")
    judge = Judge(refusal_on)
    snapshot = make.snapshot(
        make.profile("a"), make.profile("b"), make.profile("c", product="small"), make.profile("d", product="small")
    )
    for _ in range(3):
        assert judge.refusals(make.plan(2), "abcd", snapshot) == {"c": "too small: c", "d": "too small: c"}
    assert refusal_on.asked == ["a", "c"]
    judge.refusals(make.plan(1), "b", snapshot)
    snapshot.put_profile(make.profile("a", taken={0: "other"}))
    judge.refusals(make.plan(2), "ab", snapshot)
    assert refusal_on.asked == ["a", "c", "b", "a"]


def test_answers_about_old_plans_are_dropped(make):
    refusal_on = make.refusal_on()
    judge = Judge(refusal_on)
    snapshot = make.snapshot(make.profile("n"))
    for serial in range(2 * MOST_PLANS):
        judge.refusals(make.plan(1, service=serial), ["n"], snapshot)
    assert len(judge._verdicts) == MOST_PLANS


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "{}", '{"gpus": 2}'])
def test_a_plan_that_cannot_be_read_is_refused_everywhere_and_ranks_nothing(make, text):
    snapshot = make.snapshot(make.profile("n"))
    refused = refusals(text, ["n", "m"], snapshot, make.refusal_on())
    assert set(refused) == {"n", "m"}
    assert all("uellm.io/plan cannot be read" in sentence for sentence in refused.values())
    assert scores(text, ["n"], snapshot) == {}


@pytest.mark.parametrize("gpus", [0, -1, "2", None])
def test_a_plan_without_a_positive_number_of_gpus_cannot_be_read(make, gpus):
    text = json.dumps(json.loads(make.plan(2)) | {"gpus": gpus})
    refused = refusals(text, ["n"], make.snapshot(make.profile("n")), make.refusal_on())
    assert refused["n"].endswith(f"gpus must be a positive number, not {gpus!r}")


def test_a_plan_without_a_field_is_refused_with_its_name(make):
    text = json.dumps({name: value for name, value in json.loads(make.plan(1)).items() if name != "layerBytes"})
    refused = refusals(text, ["n"], make.snapshot(make.profile("n")), make.refusal_on())
    assert refused == {"n": "the pod's annotation uellm.io/plan cannot be read: it has no field 'layerBytes'"}


def test_a_plan_of_another_version_is_refused_in_one_line(make):
    refused = refusals(make.plan(1, version=2), ["n"], make.snapshot(make.profile("n")), make.refusal_on())
    assert refused == {
        "n": "the pod's annotation uellm.io/plan cannot be read: it has version 2, and this release reads version 1"
    }


def test_a_thousand_different_refusals_are_a_few_sentences(make):
    names = [f"n{index}" for index in range(1000)]
    snapshot = make.snapshot(*(make.profile(name, product=f"GPU of {name}") for name in names))
    refused = refusals(make.plan(2), names, snapshot, make.refusal_on(*names))
    assert len(refused) == 1000
    assert len(set(refused.values())) == MOST_SENTENCES + 1
    assert refused["n999"] == ONE_MORE


def test_the_faster_memory_ranks_first(make):
    rates = {"fast": 3_000, "nearly": 2_800, "slow": 300}
    snapshot = make.snapshot(
        *(make.profile(name, 2, measured={"memoryBytesPerSecond": rate}) for name, rate in rates.items())
    )
    ranked = scores(make.plan(2), list(rates), snapshot)
    assert ranked["fast"] == ranked["nearly"] > ranked["slow"] > 0


def test_faster_links_rank_first_where_a_plan_has_several_gpus(make):
    profiles = [make.profile(name, 2) for name in ("nvlink", "pcie")]
    for profile, rate in zip(profiles, (200_000, 20_000), strict=True):
        a, b = (device["uuid"] for device in profile["status"]["devices"])
        profile["status"]["links"] = [{"a": a, "b": b, "bytesPerSecond": rate}]
    snapshot = make.snapshot(*profiles)
    ranked = scores(make.plan(2), ["nvlink", "pcie"], snapshot)
    assert ranked["nvlink"] > ranked["pcie"]
    single = scores(make.plan(1), ["nvlink", "pcie"], snapshot)
    assert single["nvlink"] == single["pcie"]


def test_a_quarantined_gpu_is_told_where_it_is_missed(make):
    profile = make.profile("n", 2)
    profile["status"]["devices"][1]["health"] = {"state": "Quarantined"}
    refused = refusals(make.plan(2), ["n"], make.snapshot(profile), make.refusal_on())
    assert refused == {"n": "the plan needs 2 nvidia.com/gpu, 1 free, 1 quarantined or excluded"}


def test_of_equal_nodes_the_tighter_one_ranks_higher(make):
    snapshot = make.snapshot(make.profile("tight", 2), make.profile("wide", 8))
    ranked = scores(make.plan(2), ["tight", "wide"], snapshot)
    assert ranked["tight"] > ranked["wide"]


def test_scores_stay_within_what_the_scheduler_takes(make):
    snapshot = make.snapshot(make.profile("full", 1, taken={0: "x"}), make.profile("n", 1))
    ranked = scores(make.plan(4), ["n", "full", "unknown"], snapshot)
    assert all(0 <= score <= 10 for score in ranked.values())


@pytest.mark.parametrize(
    ("gpus", "best_first"),
    [(1, [1, 3, 5, 2, 7, 6, 4, 8]), (2, [2, 3, 6, 7, 4, 5, 8]), (4, [4, 5, 6, 7, 8]), (8, [8])],
)
def test_holes_of_the_size_of_a_plan_are_filled_before_larger_ones_are_broken_up_and_whole_nodes_last(
    make, gpus, best_first
):
    snapshot = make.snapshot(*(make.profile(f"n{free}", free) for free in best_first))
    ranked = scores(make.plan(gpus), [f"n{free}" for free in best_first], snapshot)
    points = [ranked[f"n{free}"] for free in best_first]
    assert points == sorted(points, reverse=True)
    assert points[0] == 10
    assert (len(best_first) == 1) or points[-1] == 1


def test_of_nodes_with_equal_holes_the_fuller_one_ranks_higher(make):
    snapshot = make.snapshot(make.profile("five", 5), make.profile("three", 3), make.profile("eight", 8))
    ranked = scores(make.plan(1), ["five", "three", "eight"], snapshot)
    assert ranked["three"] > ranked["five"] > ranked["eight"]


def test_a_much_slower_node_is_not_preferred_because_it_has_a_hole_that_fits(make):
    rates = {"fast": 3_000, "slow": 300}
    snapshot = make.snapshot(
        make.profile("fast", 3, measured={"memoryBytesPerSecond": rates["fast"]}),
        make.profile("slow", 1, measured={"memoryBytesPerSecond": rates["slow"]}),
    )
    ranked = scores(make.plan(1), ["fast", "slow"], snapshot)
    assert ranked["fast"] > ranked["slow"]
