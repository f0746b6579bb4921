"""Loads on an engine, step by step, against what can be reckoned by hand."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from uellm.planner.cost.open_loop import OpenLoop, open_loop
from uellm.planner.cost.replay import ClosedLoop, Limits, Served, replay

LIMITS = Limits(chunk=1000, sequences=64)


def step_s(prompt_tokens: float, sequences: float) -> float:
    return 0.010 + 0.0001 * prompt_tokens + 0.001 * sequences


def closed(clients: int, prompts: int, prompt_tokens: int, output_tokens: int, limits: Limits = LIMITS) -> Served:
    return replay(ClosedLoop(clients, prompts, prompt_tokens, output_tokens), limits).served(step_s)


def test_a_lone_request_waits_for_its_prompt_and_then_decodes() -> None:
    found = closed(1, 1, 500, 10)
    assert found.ttft_s == pytest.approx(0.010 + 0.050)
    assert found.tpot_s == pytest.approx(0.011)


def test_a_prompt_longer_than_the_chunk_takes_several_steps() -> None:
    assert closed(1, 1, 2500, 10).ttft_s == pytest.approx(3 * 0.010 + 0.250)


def test_the_first_wave_waits_for_itself() -> None:
    """Four prompts of a whole chunk each: the n-th waits for n steps."""
    found = closed(4, 4, 1000, 1)
    assert found.ttft_s == pytest.approx((1 + 2 + 3 + 4) * 0.110 / 4)


def test_a_request_without_a_place_waits_for_one() -> None:
    scarce, plenty = closed(8, 8, 10, 50, Limits(1000, 2)), closed(8, 8, 10, 50)
    assert scarce.ttft_s > 10 * plenty.ttft_s
    assert scarce.tpot_s < plenty.tpot_s


def test_what_a_request_takes_before_the_engine_is_in_its_ttft_and_in_the_whole_time() -> None:
    loop = replay(ClosedLoop(2, 20, 100, 10), LIMITS)
    before, after = loop.served(step_s), loop.served(step_s, 0.5)
    assert after.ttft_s == pytest.approx(before.ttft_s + 0.5)
    assert after.tpot_s == before.tpot_s
    assert after.seconds == pytest.approx(before.seconds + 10 * 0.5)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 20), st.integers(1, 60), st.integers(1, 2500), st.integers(1, 80), st.integers(1, 32))
def test_every_token_of_every_request_is_computed_once(
    clients: int, prompts: int, prompt_tokens: int, output_tokens: int, sequences: int
) -> None:
    found = replay(ClosedLoop(clients, prompts, prompt_tokens, output_tokens), Limits(1000, sequences))
    assert sum(tokens * counts.steps for (tokens, _), counts in found.sizes.items()) == prompts * prompt_tokens
    decoded = sum(counts.decoding for counts in found.sizes.values())
    assert decoded == pytest.approx(prompts * (output_tokens - 1), rel=0.12, abs=prompts)
    assert all(size <= sequences for _, size in found.sizes)


def test_requests_at_a_rate_that_the_engine_has_time_for_hardly_wait() -> None:
    slow = open_loop(OpenLoop(0.5, 50, 500, 10), LIMITS, step_s)
    assert slow.ttft_s == pytest.approx(0.060, rel=0.2)
    assert slow.requests / slow.seconds == pytest.approx(0.5, rel=0.3)


def test_a_queue_grows_at_a_rate_beyond_the_engines() -> None:
    fast = open_loop(OpenLoop(1e6, 100, 1000, 10), LIMITS, step_s)
    assert fast.ttft_s == pytest.approx(closed(100, 100, 1000, 10).ttft_s, rel=0.05)
