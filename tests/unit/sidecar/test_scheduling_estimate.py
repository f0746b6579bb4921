"""What the scheduler learns about the engine from the times of tokens."""

from __future__ import annotations

from dataclasses import astuple, replace
from random import Random

import pytest

from uellm.sidecar.scheduling import Scheduler, StepEstimate
from uellm.step_time import StepTime

TRUTH = StepTime(5.5e-3, 45e-6, 44e-9, 15e-6, 0.5e-3)


def step_s(prefill: float, kv: float, sequences: float) -> float:
    floor = max(TRUTH.floor_s, TRUTH.per_prefill_token_s * prefill)
    return floor + TRUTH.per_kv_token_s * kv + TRUTH.per_sequence_s * sequences + TRUTH.overhead_s


def observed(estimate: StepEstimate, steps: int = 500, noise: float = 0.0, times: float = 1.0) -> StepEstimate:
    random = Random(1)
    for _ in range(steps):
        loads = (random.choice((0, 100, 300, 512)), random.uniform(1e3, 2e5), random.uniform(1, 200))
        estimate.observe(times * step_s(*loads) * random.lognormvariate(0, noise), *loads)
    return estimate


@pytest.mark.parametrize("error", [0.2, 0.5, 1.0, 1.5, 5.0])
def test_a_model_that_is_wrong_by_a_factor_is_put_right(error):
    wrong = StepTime(*(value * error for value in astuple(TRUTH)))
    estimate = observed(StepEstimate(wrong))
    for loads in ((0, 5e4, 40), (512, 1e5, 100)):
        assert estimate.step_s(*loads) == pytest.approx(step_s(*loads), rel=0.03)


def test_it_works_without_a_model_and_with_noise():
    estimate = observed(StepEstimate(), noise=0.3)
    assert estimate.step_s(512, 1e5, 100) == pytest.approx(step_s(512, 1e5, 100), rel=0.2)


def test_an_engine_that_becomes_slower_is_followed():
    estimate = observed(observed(StepEstimate(TRUTH)), times=3.0)
    assert estimate.step_s(512, 1e5, 100) == pytest.approx(3 * step_s(512, 1e5, 100), rel=0.1)


def test_the_models_error_is_reported_and_vanishes_as_it_learns():
    assert observed(StepEstimate(TRUTH)).error_share == pytest.approx(0.0, abs=1e-6)
    wrong = StepEstimate(StepTime(*(value / 2 for value in astuple(TRUTH))))
    wrong.observe(step_s(0, 1e5, 100), 0, 1e5, 100)
    assert wrong.error_share == pytest.approx(0.5, rel=0.05)
    assert observed(wrong, 1000).error_share < 0.02
    core = Scheduler(step=wrong)
    assert core.figures()["step_error_share"] == wrong.error_share


def test_a_pause_is_not_a_step():
    estimate = observed(StepEstimate(TRUTH))
    estimate.observe(60.0, 0, 1e5, 100)
    assert estimate.step_s(0, 1e5, 100) < 1.5 * step_s(0, 1e5, 100)


def test_identical_steps_leave_the_other_figures_unchanged():
    estimate = StepEstimate(TRUTH)
    for _ in range(5000):
        estimate.observe(2 * step_s(0, 1e5, 100), 0, 1e5, 100)
    assert estimate.decode_s(1e5, 100) == pytest.approx(2 * step_s(0, 1e5, 100), rel=0.02)
    assert estimate.prefill_token_s == pytest.approx(TRUTH.per_prefill_token_s)


def test_another_model_is_learnt_from_anew_and_the_same_one_is_not():
    core = Scheduler(step=observed(StepEstimate(TRUTH), times=2.0))
    learned = core.figures()
    assert learned["decode_factor"] > 1.5
    core.reset_step_model(replace(TRUTH))
    assert core.figures() == learned
    twice = StepTime(*(2.0 * value for value in astuple(TRUTH)))
    core.reset_step_model(twice)
    assert core.figures() == Scheduler(step=StepEstimate(twice)).figures()


def alone(estimate: StepEstimate, prompts: list[int], late_s: float, times: int, noise: float = 0.0) -> list[float]:
    """Lone prompts whose first tokens arrive this much later than a step takes; the prompt factor after each."""
    random, factors = Random(1), []
    for _ in range(times):
        prompt = random.choice(prompts)
        wait_s = (step_s(prompt, 0, 1) + late_s) * random.lognormvariate(0, noise)
        estimate.observe_alone(wait_s, prompt, 1)
        factors.append(estimate.prefill_factor)
    return factors


@pytest.mark.parametrize("prompt", [126, 140, 200])
@pytest.mark.parametrize("times", [1, 1000])
def test_first_tokens_that_are_late_by_a_constant_do_not_make_prompts_slow(prompt, times):
    estimate = StepEstimate(TRUTH)
    assert max(alone(estimate, [prompt], 0.01, times)) < 1.1
    assert estimate.request_s == pytest.approx(0.01, rel=0.3)


def test_prompts_of_different_lengths_separate_the_constant_from_the_time_per_token():
    slow = StepEstimate(StepTime(*(value / 5 for value in astuple(TRUTH))))
    alone(slow, [100, 200, 400, 800, 1500], 0.01, 300, noise=0.1)
    assert slow.prefill_token_s == pytest.approx(TRUTH.per_prefill_token_s, rel=0.1)


def test_similar_lengths_say_little_under_noise():
    assert max(alone(StepEstimate(TRUTH), [126, 140, 200], 0.1, 1000, noise=0.3)) < 4


def test_one_late_first_token_of_a_paused_engine_changes_no_factor():
    estimate = StepEstimate(TRUTH)
    estimate.observe_alone(60.0, 500, 1)
    assert (estimate.prefill_factor, estimate.decode_factor) == (1.0, 1.0)
    assert estimate.request_s < 0.1


def test_figures_without_new_measurements_return_to_the_model():
    estimate = observed(StepEstimate(TRUTH), times=4.0)
    assert estimate.prefill_factor > 3
    for _ in range(5000):
        estimate.observe(step_s(0, 1e5, 100), 0, 1e5, 100)
    assert estimate.prefill_factor == pytest.approx(1.0, abs=0.2)
    assert estimate.decode_factor == pytest.approx(1.0, abs=0.02)


def test_gaps_of_next_to_no_time_leave_a_mean_gap_to_divide_by() -> None:
    step = StepEstimate()
    step.observe(5e-324, 0.0, 0.0, 1.0)
    assert step.gap_s > 0.0
    step.discard_recent_gaps(0.0)
    assert step.gap_s > 0.0
    assert step.recent_gap_s > 0.0
