"""The engine's chunk size, from its step times and the tightest target."""

from __future__ import annotations

from dataclasses import replace

import pytest

from uellm.planner import constants as c
from uellm.planner.cost.chunk import Chunk, Load, best_chunk, saturation
from uellm.planner.request import SloClass
from uellm.step_time import StepTime

H100_8B = StepTime(5.5e-3, 45e-6, 44e-9, 15e-6, 0.5e-3)
CPU_TINY = StepTime(30e-3, 0.6e-3, 2e-6, 1e-3, 5e-3)
TP4_70B = StepTime(15e-3, 110e-6, 25e-9, 20e-6, 1.5e-3)
CONVERSATION = {"prompt_tokens": 1155, "output_tokens": 211, "sequences": 256, "kv_tokens": 384_000}
REASONING = {"prompt_tokens": 860, "output_tokens": 1800, "sequences": 256, "kv_tokens": 384_000}


def chosen(
    step: StepTime, tpot_s: float | None, load: dict[str, int] = CONVERSATION, ttft_s: float | None = 1.0
) -> Chunk:
    return best_chunk(step, classes=[SloClass("chat", ttft_s, tpot_s)], **load)


MIXED = (SloClass("chat", 1.0, 0.060), SloClass("task", e2e_s=10.0), SloClass("batch", e2e_s=120.0))


def mixed(step: StepTime, classes: tuple[SloClass, ...] = MIXED, load: dict[str, int] = CONVERSATION) -> int:
    return best_chunk(step, classes=classes, **load).tokens


def test_a_60_ms_target_on_an_h100_gives_a_chunk_of_some_hundred_tokens_instead_of_vllms_8192() -> None:
    assert 512 <= chosen(H100_8B, 0.060).tokens <= 1024


@pytest.mark.parametrize("step", [H100_8B, TP4_70B, CPU_TINY])
@pytest.mark.parametrize("load", [CONVERSATION, REASONING])
@pytest.mark.parametrize("tpot_s", [0.03, 0.06, 0.12, 0.5, 2.0])
def test_a_saturated_engine_keeps_the_target_wherever_a_useful_chunk_can(
    step: StepTime, load: dict[str, int], tpot_s: float
) -> None:
    chunk = chosen(step, tpot_s, load)
    if "would leave the engine idle" not in chunk.reason:
        assert saturation(step, Load(**load), chunk.tokens).tpot_s <= tpot_s


@pytest.mark.parametrize("step", [H100_8B, TP4_70B, CPU_TINY])
@pytest.mark.parametrize("load", [CONVERSATION, REASONING])
def test_throughput_stays_within_a_tenth_of_the_largest_chunks(step: StepTime, load: dict[str, int]) -> None:
    rates = [saturation(step, Load(**load), tokens).requests_per_s for tokens in c.CHUNKS]
    for tpot_s in (0.05, 0.1, 0.5):
        chunk = chosen(step, tpot_s, load)
        useful = saturation(step, Load(**load), chunk.tokens).requests_per_s
        assert useful >= 0.7 * max(rates)


def test_a_looser_target_never_gets_a_smaller_chunk() -> None:
    chunks = [chosen(H100_8B, tpot / 1000).tokens for tpot in range(10, 500, 10)]
    assert chunks == sorted(chunks)


def test_the_chunk_is_never_smaller_than_the_tokens_that_the_floor_hides() -> None:
    chunk = chosen(H100_8B, 0.001)
    assert chunk.tokens >= H100_8B.floor_tokens
    assert "a smaller chunk would leave the engine idle" in chunk.reason


def test_a_slow_engine_gets_a_small_chunk_rather_than_a_missed_target() -> None:
    assert chosen(CPU_TINY, 0.3).tokens < chosen(H100_8B, 0.3).tokens


def test_end_to_end_targets_ask_for_smaller_steps_than_a_loose_tpot() -> None:
    assert mixed(H100_8B) == 256
    assert mixed(H100_8B) < mixed(H100_8B, MIXED[:1])
    assert mixed(H100_8B, MIXED[2:]) > 2 * mixed(H100_8B, MIXED[1:])


def test_a_longer_end_to_end_target_never_gets_a_smaller_chunk() -> None:
    chunks = [mixed(H100_8B, (MIXED[0], SloClass("task", e2e_s=seconds))) for seconds in range(1, 120, 4)]
    assert chunks == sorted(chunks)


@pytest.mark.parametrize(
    ("step", "load", "best"),
    [
        (H100_8B, {**REASONING, "prompt_tokens": 579, "output_tokens": 673}, {256}),
        (replace(H100_8B, floor_s=13.5e-3), CONVERSATION, {384}),
        (TP4_70B, CONVERSATION, {192}),
        (StepTime(13.75e-3, 112e-6, 110e-9, 37e-6, 1.25e-3), CONVERSATION, {192, 256}),
        (StepTime(6e-3, 29.1e-6, 56.5e-9, 43.3e-6, 2.47e-3), CONVERSATION, {384, 512}),
        (H100_8B, {**CONVERSATION, "prompt_tokens": 136, "output_tokens": 256}, {320, 384}),
    ],
    ids=["long answers", "large floor", "70B", "slow", "large overhead", "short prompts"],
)
def test_it_is_the_chunk_with_which_replays_attained_most(step: StepTime, load: dict[str, int], best: set[int]) -> None:
    assert mixed(step, load=load) in best


def test_a_class_with_both_targets_keeps_both() -> None:
    assert mixed(H100_8B, (SloClass("both", 1.0, 0.020, 1000.0),)) == chosen(H100_8B, 0.020).tokens
    assert mixed(H100_8B, (SloClass("both", 1.0, 1.0, 10.0),)) == mixed(H100_8B, (SloClass("both", 1.0, None, 10.0),))


def test_without_a_pace_the_chunk_is_the_engines_large_one() -> None:
    assert chosen(H100_8B, None).tokens == 8192
    assert mixed(H100_8B, ()) == 8192


def test_the_reason_says_if_prompts_cannot_meet_the_ttft() -> None:
    assert "longer than the tightest TTFT" in chosen(CPU_TINY, 0.3, ttft_s=0.1).reason
    assert "TTFT" not in chosen(H100_8B, 0.06, ttft_s=1.0).reason


def test_an_engine_whose_prefill_costs_nothing_takes_the_largest_chunk() -> None:
    assert chosen(replace(H100_8B, per_prefill_token_s=0.0), 0.06).tokens == c.CHUNKS[-1]
