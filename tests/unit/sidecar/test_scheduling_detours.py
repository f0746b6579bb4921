"""Prompts that cannot run, and requests that need much of the cache: neither holds up the others."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from helpers.scheduling import BATCH, CHAT, STEP_MODEL, scheduler_before, submitted
from uellm.sidecar.request import dispatch
from uellm.sidecar.scheduling import EngineState, Lengths, Options, Scheduler, State, Ticket
from uellm.sidecar.scheduling.detours import LARGE_SHARE, PASSED_S
from uellm.sidecar.scheduling.kv_admission import use_of

READY = EngineState(ready=True, kv_tokens=100_000, max_model_len=32_768, max_num_batched_tokens=512)
SHORT = Lengths(50, 90)


def scheduler(state: EngineState = READY, **options: object) -> Scheduler:
    return scheduler_before(state, Options(**options), STEP_MODEL)


def prompt(tokens: int, at_s: float = 0.0) -> Ticket:
    return Ticket(BATCH, at_s, tokens, SHORT, longest_prompt_tokens=tokens)


@pytest.mark.parametrize("policy", ["SLO-ODBS", "EDF", "SJF", "FCFS"])
def test_a_prompt_that_cannot_run_is_sent_past_all_that_wait_and_counts_as_nothing(policy):
    core = scheduler(policy=policy, max_in_flight=1)
    first, second, too_long = submitted(core, prompt(600), prompt(600), prompt(40_000))
    assert core.dispatchable(0.0) == [too_long, first]
    assert (core.figures()["unfilled_tokens"], core.queued) == (600, 1)
    core.on_abort(too_long, 0.02)
    core.on_abort(first, 0.02)
    assert core.dispatchable(0.02) == [second]


def test_prompts_that_cannot_run_are_tried_one_at_a_time():
    core = scheduler(max_in_flight=1)
    first, second = submitted(core, prompt(40_000), prompt(40_000))
    assert core.dispatchable(0.0) == [first]
    assert core.dispatchable(0.01) == []
    core.on_abort(first, 0.02)
    assert core.dispatchable(0.02) == [second]


def test_a_prompt_that_runs_after_all_counts_from_its_first_token():
    core = scheduler()
    (ticket,) = submitted(core, prompt(40_000))
    assert core.dispatchable(0.0) == [ticket]
    core.on_first_token(ticket, 1.0)
    assert ticket.prompt_tokens == READY.max_model_len
    core.on_prompt_tokens(ticket, 20_000)
    assert core._view.kv_tokens == 20_001
    core.on_finish(ticket, 2.0)
    assert (core._view.kv_tokens, core._view.prompt_tokens, core.in_flight) == (0, 0, 0)


def test_a_prompt_that_did_not_reach_the_engine_is_tried_again():
    core = scheduler(max_in_flight=1)
    ticket, other = submitted(core, prompt(40_000), prompt(40_000))
    assert core.dispatchable(0.0) == [ticket]
    core.submit(ticket, 0.1)
    assert core.dispatchable(0.1) == [other]
    core.on_abort(other, 0.2)
    assert core.dispatchable(0.2) == [ticket]


@pytest.mark.parametrize(
    ("state", "tokens", "sent"),
    [
        (replace(READY, max_model_len=None), 40_000, False),
        (replace(READY, max_model_len=None), 120_000, True),
        (replace(READY, max_model_len=None, kv_tokens=None), 120_000, False),
        (replace(READY, max_model_len=200_000), 120_000, False),
    ],
)
def test_only_what_is_known_to_be_too_long_is_sent_past_the_gate(state, tokens, sent):
    core = scheduler(state, max_in_flight=1)
    first, ticket = submitted(core, prompt(10), prompt(tokens, 0.001))
    assert first in core.dispatchable(0.001)
    assert (ticket.state is State.RUNNING) is sent


def test_of_several_prompts_together_only_the_longest_counts():
    core = scheduler(max_in_flight=1)
    first = prompt(10)
    many = Ticket(BATCH, 0.0, 50_000, SHORT, sequences=100, longest_prompt_tokens=500)
    submitted(core, first, many)
    assert len(core.dispatchable(0.0)) == 1


def test_prompts_that_cannot_run_leave_with_their_clients_and_on_a_new_order():
    core = scheduler(max_in_flight=1)
    first, second = submitted(core, prompt(40_000), prompt(40_000))
    core.on_abort(first, 0.0)
    core.reconfigure(Options("FCFS", max_in_flight=1), 0.0)
    assert core.dispatchable(0.0) == [second]
    assert core.queued == 0


def running_half(policy: str = "FCFS") -> tuple[Scheduler, Ticket]:
    """A scheduler whose engine holds a request of half of the cache."""
    core = scheduler(replace(READY, max_model_len=100_000), policy=policy, gate=False, tpot_guard=False)
    (held,) = submitted(core, prompt(50_000))
    assert core.dispatchable(0.0) == [held]
    core.on_first_token(held, 0.1)
    return core, held


@pytest.mark.parametrize("policy", ["SLO-ODBS", "EDF", "SJF", "FCFS"])
def test_small_requests_pass_a_large_one_that_does_not_fit_yet(policy):
    core, held = running_half(policy)
    large, small = submitted(core, prompt(60_000, 0.2), prompt(100, 0.3))
    assert core.dispatchable(0.3) == [small]
    core.on_finish(small, 1.0)
    core.on_finish(held, 1.0)
    assert core.dispatchable(1.0) == [large]
    assert (core.queued, core.in_flight) == (0, 1)


def test_the_line_waits_for_a_large_request_that_was_passed_for_long_enough():
    core, held = running_half()
    large, small = submitted(core, prompt(60_000, 0.2), prompt(100, 0.3))
    assert core.dispatchable(0.3) == [small]
    at_s = 0.3 + PASSED_S
    (late,) = submitted(core, prompt(100, at_s))
    assert core.dispatchable(at_s) == []
    core.on_finish(held, at_s + 1)
    assert core.dispatchable(at_s + 1) == [large, late]


def test_a_large_request_with_a_near_deadline_is_passed_for_half_of_the_time_to_it():
    core, _ = running_half("EDF")
    large = Ticket(CHAT, 0.2, 60_000, SHORT)
    submitted(core, large, prompt(100, 0.2))
    assert len(core.dispatchable(0.2)) == 1
    submitted(core, prompt(100, 0.69))
    assert len(core.dispatchable(0.69)) == 1
    submitted(core, prompt(100, 0.71))
    assert core.dispatchable(0.71) == []


def test_requests_that_need_little_of_the_cache_keep_their_order():
    core, _ = running_half()
    submitted(core, prompt(44_000, 0.1))
    core.dispatchable(0.1)
    submitted(core, prompt(round(LARGE_SHARE * 100_000) - 100, 0.2), prompt(10, 0.3))
    assert core.dispatchable(0.3) == []


def test_a_large_request_that_is_passed_takes_a_better_prediction_and_leaves_with_its_client():
    core, _ = running_half()
    large, small = submitted(core, prompt(60_000, 0.2), prompt(100, 0.3))
    assert core.dispatchable(0.3) == [small]
    assert core.on_lengths(large, Lengths(5, 9), 0.4)
    core.on_abort(large, 0.5)
    assert core.queued == 0
    assert core.dispatchable(0.5) == []


@pytest.mark.parametrize(
    ("used", "estimated", "use"),
    [
        (0.5, 50_000, 1.0),
        (0.45, 50_000, 1.0),
        (0.2, 50_000, 0.5),
        (1e-4, 50_000, 1 / 16),
        (0.0, 50_000, 1.0),
        (None, 50_000, 1.0),
        (0.001, 4_000, 1.0),
    ],
)
def test_a_cache_that_is_far_emptier_than_estimated_is_believed(used, estimated, use):
    assert use_of(replace(READY, kv_used_share=used), estimated) == pytest.approx(use)
    assert use_of(replace(READY, kv_used_share=used, stale=True), estimated) == 1.0


def test_prompts_that_are_shorter_than_estimated_do_not_keep_the_cache_empty():
    core = scheduler(replace(READY, max_model_len=None), gate=False, tpot_guard=False)
    first, second = submitted(core, prompt(90_000), prompt(20_000))
    assert core.dispatchable(0.0) == [first]
    core.on_first_token(first, 0.1)
    assert core.dispatchable(0.1) == []
    core.on_engine_state(replace(READY, kv_used_share=0.1), 1.0)
    assert core.dispatchable(1.0) == [second]


@pytest.mark.parametrize("policy", ["SLO-ODBS", "FCFS", "EDF"])
async def test_a_held_prompt_that_was_sent_during_a_pause_and_comes_back_is_sent_again(policy, monkeypatch):
    monkeypatch.setattr(dispatch, "PAUSE_S", 0.01)
    dispatcher = dispatch.Dispatcher(Options(policy))
    dispatcher.on_engine_state(replace(READY, max_model_len=2_000))
    now = asyncio.get_running_loop().time
    tried, held = prompt(3_000, now()), prompt(3_000, now())
    await dispatcher.turn(tried)
    waiting = asyncio.create_task(dispatcher.turn(held))
    await asyncio.sleep(0)
    assert held.detour
    with monkeypatch.context() as broken:
        broken.setattr(Scheduler, "on_lengths", lambda *args: 1 / 0)
        for _ in range(2):  # the second fault pauses the scheduler
            dispatcher.update_lengths(held, SHORT)
    await waiting
    dispatcher.on_engine_state(READY)
    async with asyncio.timeout(10.0):
        probe = held
        while probe.state is not State.RUNNING:  # a request that comes during the pause is not scheduled
            probe = prompt(10, now())
            await dispatcher.turn(probe)
            await asyncio.sleep(0)
        await dispatcher.turn(held)
    assert held.state is State.RUNNING
