"""What pods' step times say about a plan, and what is kept of them."""

from __future__ import annotations

import dataclasses
import json
from datetime import UTC, datetime, timedelta

import pytest
import yaml

from uellm.api.attainment_report import AttainmentReport, StepMeasurement
from uellm.kube.kinds import DEPLOYMENT
from uellm.reconcile.children import Revision
from uellm.reconcile.observe import Observed
from uellm.reconcile.pods.placements import ReportedPlacement
from uellm.reconcile.profiled_node import profiled_node
from uellm.reconcile.status.predictions import measured_entry, predictions_hold
from uellm.reconcile.step_times.steps import ServiceSteps, service_steps
from uellm.reconcile.step_times.steps import correction as found_in
from uellm.reconcile.step_times.store import MOST_ENTRIES, StepStore, read_entries
from uellm.step_basis import Correction, StepBasis
from uellm.step_time import StepFactors

NOW = datetime(2026, 1, 1, tzinfo=UTC)
RATES = {"bf16GigaflopsPerSecond": 100_000, "memoryBytesPerSecond": 300_000_000_000}
REVISION = "0123456789"
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


@pytest.fixture
def measured(make):
    """A service with a pod for each report; `device` changes the GPU of every pod."""

    def build(*reports: StepMeasurement, revision: str = REVISION, basis: StepBasis = BASIS, **device) -> Observed:
        frozen = Revision(REVISION, {"engine.yaml": yaml.safe_dump({"stepBasis": basis.to_dict()})}, "", "")
        facts = {"product": "L4", "memoryBytes": 24 << 30, "measured": RATES, **device}
        pods, placed, nodes = [], {}, []
        for index, _ in enumerate(reports):
            pod = make.pod(f"pod-{index}", node=f"node-{index}")
            pod["metadata"]["labels"]["uellm.io/revision"] = revision
            pods.append(pod)
            placed[f"uid-pod-{index}"] = ReportedPlacement("0", uuids=(f"node-{index}-g0",))
            nodes.append(profiled_node(make.profile(f"node-{index}", (None,), **facts)))
        return Observed(
            make.service(),
            None,
            children={DEPLOYMENT: make.deployment()},
            revisions={REVISION: frozen},
            pods=tuple(pods),
            nodes=tuple(nodes),
            reports=placed,
            step_times={f"uid-pod-{index}": report for index, report in enumerate(reports)},
        )

    return build


def report(decode: float = 3.0, observed: int = 900) -> StepMeasurement:
    return StepMeasurement(observed, StepFactors(2.0, decode), 0.01 * decode, 0.01)


def test_pods_that_agree_teach_the_median_of_their_factors(measured):
    service = measured(report(2.9), report(3.0), report(3.3))
    assert found_in(service) == Correction(BASIS, StepFactors(2.0, 3.0), 2700)
    assert service_steps(service).error == pytest.approx(2.0667, rel=1e-3)


def test_pods_that_differ_teach_nothing(measured):
    service = measured(report(2.0), report(3.0))
    assert found_in(service) is None
    assert predictions_hold(service_steps(service)).reason == "PodsDiffer"


def test_a_pod_with_few_steps_does_not_count_beside_one_with_many(measured):
    service = measured(report(9.0, observed=199), report(3.0, observed=200))
    assert found_in(service).factors.decode == 3.0
    assert service_steps(service).factors.decode == 3.0
    few = measured(report(9.0, observed=199))
    assert found_in(few) is None
    assert predictions_hold(service_steps(few)).reason == "FewSteps"


def test_pods_of_another_revision_tell_nothing(measured):
    service = measured(report(), revision="ffffffffff")
    assert (found_in(service), service_steps(service)) == (None, None)


@pytest.mark.parametrize(
    "device",
    [
        {"health": {"state": "Quarantined", "reason": "Slow"}},
        {"product": "A10"},
        {"measured": {**RATES, "memoryBytesPerSecond": 200_000_000_000}},
        {"uuid": "GPU-other"},
    ],
)
def test_gpus_that_are_degraded_or_not_those_of_the_plan_teach_nothing(measured, device):
    service = measured(report(), **device)
    assert found_in(service) is None
    assert service_steps(service) is not None


def test_a_revision_that_does_not_say_what_was_predicted_teaches_nothing(measured):
    service = measured(report())
    bare = dataclasses.replace(service, revisions={REVISION: Revision(REVISION, {"engine.yaml": "{}"}, "", "")})
    assert found_in(bare) is None


async def test_new_measurements_call_for_no_plan_and_the_next_one_has_them(world, measured):
    world.node("a", None, None)
    world.service("one")
    first = await world.plan("one")
    world.planning.measured(measured(report()), world.now)
    world.now += timedelta(hours=1)
    assert await world.plan("one") == first
    assert len(world.requests) == 1
    world.node("b", None, None)
    await world.plan("one")
    assert [request.corrections for request in world.requests] == [(), (correction(3.0, 900),)]
