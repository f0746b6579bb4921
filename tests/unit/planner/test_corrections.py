"""Predictions that are corrected by measured step times."""

from __future__ import annotations

from dataclasses import astuple, replace

import pytest

from helpers.models import LLAMA_8B
from uellm.models.weights import RecentCache
from uellm.planner import plan
from uellm.planner.correction import model_digest, step_basis
from uellm.planner.handover.sidecar_prior import step_prior, step_time
from uellm.planner.request import EngineRequest, Overrides
from uellm.planner.shape import Shape
from uellm.sidecar.scheduling import StepEstimate
from uellm.step_basis import Correction, StepBasis
from uellm.step_time import MOST_FACTOR, StepFactors, StepTime

SLOWER = StepFactors(prefill=2.0, decode=3.0)
ONE = Shape(1, 1)


@pytest.fixture
def request_(build):
    return build.request(build.all_links(build.node("a", "H100 H100 H100 H100")), workload=build.workload)


def corrected(request, factors: StepFactors, shape: Shape = ONE, **changes):
    devices = request.nodes[0].node.devices[: shape.gpus]
    basis = step_basis(request, devices, shape)
    assert basis is not None
    return replace(request, corrections=(Correction(replace(basis, **changes), factors, 4000),))


def on_one(request):
    return replace(request, overrides=Overrides(tensor=1, pipeline=1))


def told(made) -> str:
    return next((each for each in made.assumptions if "measured steps" in each), "")


def test_a_prediction_is_multiplied_by_what_was_measured(request_):
    alone = replace(on_one(request_), workload=replace(request_.workload, requests_per_s=None))
    plain, slower = plan(alone), plan(corrected(alone, SLOWER))
    assert slower.predicted.tpot_ms > 2.5 * plain.predicted.tpot_ms
    assert slower.predicted.tpot_ms == pytest.approx(3 * plain.predicted.tpot_ms, rel=0.1)
    assert slower.predicted.ttft_ms > 1.5 * plain.predicted.ttft_ms
    assert slower.predicted.kv_cache_tokens == plain.predicted.kv_cache_tokens


def test_the_plan_says_by_what_it_was_corrected(request_):
    said = told(plan(corrected(on_one(request_), SLOWER)))
    assert said == (
        "predictions are corrected by 4000 measured steps of this model on H100: steps take 3.00 times as long as "
        "predicted from the rates, and prompts in them 2.00 times"
    )
    assert told(plan(on_one(request_))) == ""


def test_factors_of_one_change_nothing_but_the_statement(request_):
    plain, same = plan(request_), plan(corrected(request_, StepFactors()))
    assert replace(same, assumptions=()) == replace(plain, assumptions=())


def test_another_shape_is_corrected_by_the_nearest_that_was_measured(request_):
    two = replace(request_, overrides=Overrides(tensor=2, pipeline=1))
    plain, slower = plan(two), plan(corrected(two, SLOWER))
    assert slower.predicted.tpot_ms > 2 * plain.predicted.tpot_ms
    assert "(tensor 1 × pipeline 1, the nearest shape that was measured)" in told(slower)
    own = corrected(two, StepFactors(1.0, 1.5), Shape(2, 1))
    both = replace(own, corrections=(*own.corrections, *corrected(two, SLOWER).corrections))
    assert "nearest" not in told(plan(both))
    assert plan(both).predicted == plan(own).predicted


@pytest.mark.parametrize(
    "changes",
    [{"model": "other"}, {"product": "L4"}, {"memory_bytes": 1}, {"memory_bytes_per_s": 2e12}, {"flops_per_s": 9e14}],
)
def test_measurements_of_another_model_gpu_or_rate_are_not_used(request_, changes):
    alone = on_one(request_)
    assert plan(corrected(alone, SLOWER, **changes)) == plan(alone)


def test_gpus_that_are_not_alike_are_not_corrected(build):
    mixed = build.request(build.all_links(build.node("a", "L4 A10")), overrides=Overrides(tensor=1, pipeline=2))
    alike = build.request(build.all_links(build.node("a", "L4 L4")), overrides=Overrides(tensor=1, pipeline=2))
    known = corrected(alike, SLOWER, Shape(1, 2)).corrections
    assert told(plan(replace(alike, corrections=known)))
    assert told(plan(replace(mixed, corrections=known))) == ""
    assert step_basis(mixed, mixed.nodes[0].node.devices, Shape(1, 2)) is None


def test_the_digest_changes_with_model_arguments_and_calibration(build, request_):
    others = [
        replace(request_, engine=EngineRequest(args=("--enforce-eager",))),
        replace(request_, efficiency=replace(request_.efficiency, compute=0.4)),
        build.request(build.node("a", "H100"), config={**LLAMA_8B, "num_hidden_layers": 12}),
    ]
    assert len({model_digest(each) for each in (request_, *others)}) == 4
    assert model_digest(replace(request_, service="other/name")) == model_digest(request_)


def test_a_model_with_other_caches_of_the_last_tokens_is_another_one(request_):
    model = request_.architecture

    def digest(tokens: int) -> str:
        recent = ((RecentCache(584, tokens),),) * model.layers
        return model_digest(replace(request_, architecture=replace(model, layer_recent=recent)))

    assert len({digest(128), digest(256), model_digest(request_)}) == 3


def test_the_sidecar_starts_from_uncorrected_times_and_the_factors(request_):
    alone = on_one(request_)
    made = plan(corrected(alone, SLOWER))
    prior = step_prior(made, corrected(alone, SLOWER))
    assert prior is not None
    assert prior.factors == SLOWER
    assert prior.step == step_time(made, alone)
    assert prior.basis is not None
    assert StepBasis.from_dict(prior.basis.to_dict()) == prior.basis


@pytest.mark.parametrize(
    "junk",
    [
        {},
        {"model": ""},
        {"tensor": 0},
        {"pipeline": True},
        {"flopsPerSecond": float("nan")},
        {"memoryBytes": "8"},
        {"product": "x" * 129},
    ],
)
def test_a_basis_that_is_not_one_is_refused(request_, junk):
    basis = step_basis(request_, request_.nodes[0].node.devices[:1], Shape(1, 1))
    data = {**basis.to_dict(), **junk} if junk else {}
    with pytest.raises((KeyError, ValueError)):
        StepBasis.from_dict(data)


def scaled(step: StepTime, times: float) -> StepTime:
    return StepTime(*(value * times for value in astuple(step)))


def measured(prior, truth: StepTime) -> StepEstimate:
    """What a sidecar has learned after some hundred steps of an engine whose steps take the true time."""
    estimate = StepEstimate(prior.step, prior.factors)
    for index in range(1500):
        prompt, sequences = (1500.0 if index % 5 == 0 else 0.0), 1.0 + index % 20
        kv_tokens = sequences * 700
        estimate.observe(truth.step_s(prompt, kv_tokens, sequences), prompt, kv_tokens, sequences)
    return estimate


@pytest.mark.parametrize("times", [1 / 3, 3.0])
@pytest.mark.parametrize("tensor", [1, 2])
def test_rates_that_are_wrong_by_three_are_corrected_once_and_stay_corrected(request_, times, tensor):
    request = replace(request_, overrides=Overrides(tensor=tensor, pipeline=1))
    truth = scaled(step_time(plan(request), request), times)
    errors = []
    for _ in range(4):
        prior = step_prior(plan(request), request)
        seen = measured(prior, truth).measured
        errors.append(seen.mean_s / seen.expected_s - 1)
        request = replace(request, corrections=(Correction(prior.basis, seen.factors, seen.observed),))
        assert seen.factors.decode == pytest.approx(times, rel=0.1)
    assert abs(errors[0]) > 0.6
    assert all(abs(error) < 0.15 for error in errors[1:])


def test_the_reported_factors_are_bounded():
    estimate = StepEstimate(StepTime(1e-3, 1e-5, 0, 0, 0))
    for _ in range(2000):
        estimate.observe(0.5, 0.0, 0.0, 1.0)
    assert estimate.measured.factors.bounded().decode == MOST_FACTOR
