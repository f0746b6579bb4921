"""What pods' step times say about a plan, and what is kept of them."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta

import pytest

from uellm.api.attainment_report import AttainmentReport, StepMeasurement
from uellm.reconcile.status.predictions import measured_entry, predictions_hold
from uellm.reconcile.step_times.steps import ServiceSteps
from uellm.reconcile.step_times.store import MOST_ENTRIES, StepStore, read_entries
from uellm.step_basis import Correction, StepBasis
from uellm.step_time import StepFactors

NOW = datetime(2026, 1, 1, tzinfo=UTC)
BASIS = StepBasis("digest", "L4", 24 << 30, 1e14, 3e11, 1, 1)
REPORT = {"observed": 900, "prefillFactor": 2.0, "decodeFactor": 3.0, "meanSeconds": 0.03, "expectedSeconds": 0.01}


def correction(decode: float = 3.0, steps: int = 1000, model: str = "digest") -> Correction:
    basis = StepBasis(model, "L4", 24 << 30, 1e14, 3e11, 1, 1)
    return Correction(basis, StepFactors(2.0, decode), steps)


def seen(mean_s: float = 0.03, expected_s: float = 0.01, **fields) -> ServiceSteps:
    known = {"steps": 1234, "enough": True, "factors": StepFactors(2.0, 3.0), "spread": 1.0}
    return ServiceSteps(mean_s=mean_s, expected_s=expected_s, **{**known, **fields})


def test_a_sidecars_step_times_are_read_back():
    report = AttainmentReport((), 300, StepMeasurement(900, StepFactors(2.0, 3.0), 0.03, 0.01))
    assert report.to_dict()["steps"] == REPORT
    assert AttainmentReport.from_dict(report.to_dict()) == report


@pytest.mark.parametrize(
    "bad",
    [
        {"observed": 0},
        {"observed": -1},
        {"observed": "9"},
        {"decodeFactor": 0.0},
        {"decodeFactor": 10.1},
        {"prefillFactor": 0.09},
        {"prefillFactor": float("nan")},
        {"meanSeconds": 0},
        {"meanSeconds": None},
        {"expectedSeconds": -1.0},
        {"expectedSeconds": True},
    ],
)
def test_step_times_out_of_bounds_are_ignored(bad):
    assert AttainmentReport.from_dict({"classes": [], "steps": {**REPORT, **bad}}).steps is None


@pytest.mark.parametrize("steps", [None, 3, [], "junk"])
def test_step_times_that_are_no_object_are_ignored(steps):
    assert AttainmentReport.from_dict({"classes": [], "steps": steps}).steps is None


def test_the_condition_names_both_figures_and_what_happens_next():
    assert predictions_hold(seen()) == (
        "PredictionsHold",
        "False",
        "MeasuredOtherwise",
        "a step of the engine takes 30 ms, and 10 ms was predicted for the same load; the pods keep their plan, and "
        "the next plan for this model on these GPUs is made with what was measured",
    )
    good = predictions_hold(seen(0.0112))
    assert good[1:] == (
        "True",
        "AsPredicted",
        "a step of the engine takes 11 ms, and 10 ms was predicted for the same load: within 15%",
    )
    assert predictions_hold(seen(0.0088)).holds
    assert not predictions_hold(seen(0.0084)).holds


def test_few_steps_and_pods_that_differ_decide_nothing():
    assert predictions_hold(seen(enough=False))[1:3] == ("Unknown", "FewSteps")
    assert predictions_hold(seen(spread=1.3))[1:3] == ("Unknown", "PodsDiffer")


def test_small_changes_do_not_show_in_the_status():
    first = {
        "steps": 1000,
        "tpotMicroseconds": 30000,
        "predictedTpotMicroseconds": 10000,
        "errorPercent": 200,
        "prefillFactor": "2.0",
        "decodeFactor": "3.0",
    }
    assert measured_entry(seen()) == first
    assert measured_entry(seen(0.0301, 0.01001, steps=1999, factors=StepFactors(2.02, 2.97))) == first


def test_what_is_kept_survives_a_restart():
    store, restarted = StepStore(), StepStore()
    store.put(correction(), NOW)
    text = store.text()
    store.written(text)
    assert store.is_written
    restarted.adopt(text)
    assert restarted.corrections() == store.corrections() == (correction(),)
    assert restarted.is_written


def test_only_news_is_written():
    store = StepStore()
    store.put(correction(), NOW)
    store.written(store.text())
    store.put(correction(3.1, steps=1500), NOW)
    assert store.is_written
    store.put(correction(3.3), NOW)
    assert not store.is_written
    assert store.corrections() == (correction(3.3),)


def test_what_comes_while_it_is_written_is_written_next():
    store = StepStore()
    store.put(correction(), NOW)
    text = store.text()
    store.put(correction(4.0), NOW)
    store.written(text)
    assert not store.is_written
    assert store.corrections() == (correction(4.0),)


def test_the_oldest_entries_go():
    store = StepStore()
    for index in range(MOST_ENTRIES + 5):
        store.put(correction(model=f"model-{index}"), NOW + timedelta(seconds=index))
    store.written(store.text())
    kept = {each.basis.model for each in store.corrections()}
    assert len(kept) == MOST_ENTRIES
    assert "model-4" not in kept
    assert f"model-{MOST_ENTRIES + 4}" in kept
    assert store.is_written


def test_what_a_person_deletes_is_forgotten():
    store = StepStore()
    store.put(correction(), NOW)
    store.written(store.text())
    store.adopt("")
    assert store.corrections() == ()


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "null", '{"version": 2, "entries": []}', '{"entries": 7}', "[" * 100_000, '{"entries": [1]}'],
)
def test_junk_in_the_configmap_is_no_entry(text):
    assert read_entries(text) == []


@pytest.mark.parametrize(
    "bad",
    [
        {"decodeFactor": 11},
        {"prefillFactor": "2"},
        {"steps": 0},
        {"steps": 1e400},
        {"measuredAt": "yesterday"},
        {"measuredAt": 5},
        {"tensor": 1e9},
        {"model": None},
    ],
)
def test_an_entry_that_cannot_be_read_is_skipped_and_the_others_stay(bad):
    store = StepStore()
    store.put(correction(), NOW)
    document = json.loads(store.text())
    document["entries"].append({**document["entries"][0], "model": "other", **bad})
    found = read_entries(json.dumps(document))
    assert [each.correction for each in found] == [correction()]
