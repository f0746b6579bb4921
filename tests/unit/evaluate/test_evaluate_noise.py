"""Overheads and noise of `uellm evaluate queue`: drawn by the seed, with mean 1."""

from __future__ import annotations

from statistics import fmean

import pytest

from uellm.evaluate.queue import Noise
from uellm.step_time import StepTime

STEP = StepTime(5.5e-3, 45e-6, 44e-9, 15e-6, 0.5e-3)


def delays(seed: int, sigma: float = 0.2, count: int = 2000) -> list[float]:
    delay_s = Noise(sigma, seed).of_delays(0.001, 0.01)
    return [delay_s() for _ in range(count)]


def test_the_same_seed_draws_the_same_noise_and_another_one_does_not() -> None:
    assert delays(1) == delays(1)
    assert delays(1) != delays(2)


def test_noise_changes_no_mean() -> None:
    assert fmean(delays(1)) == pytest.approx(0.011, rel=0.02)
    step_s = Noise(0.2, 1).of_steps(STEP)
    assert fmean(step_s(300, 1e4, 20) for _ in range(2000)) == pytest.approx(STEP.step_s(300, 1e4, 20), rel=0.02)


def test_without_jitter_every_request_and_every_step_takes_its_time() -> None:
    assert set(delays(1, sigma=0.0)) == {0.011}
    assert Noise(0.0, 1).of_steps(STEP)(300, 1e4, 20) == STEP.step_s(300, 1e4, 20)


def test_delays_do_not_depend_on_how_many_steps_there_were() -> None:
    noise = Noise(0.2, 1)
    step_s = noise.of_steps(STEP)
    step_s(0, 0, 1)
    assert noise.of_delays(0.001, 0.01)() == delays(1)[0]
