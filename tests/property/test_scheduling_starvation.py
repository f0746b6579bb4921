"""Under an overload that does not end, requests that no policy prefers are still served, and within a known time."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.scheduling import STEP_MODEL, scheduler_before
from uellm.sidecar.scheduling import EngineState, Lengths, Options, StepEstimate, Targets, Ticket
from uellm.sidecar.scheduling.best_effort import AGED_S, AGED_SHARE
from uellm.sidecar.scheduling.types import FAR_DEADLINE_S

READY = EngineState(ready=True, kv_tokens=384_000, max_num_batched_tokens=2048)
PREFERRED = Targets("chat", priority=5, ttft_s=1.0)
OTHERS = (Targets("chat", ttft_s=1.0), Targets("task", e2e_s=10.0), Targets("any"))
PROMPT_TOKENS, GAP_S, BACKLOG = 2000, 0.05, 8
STEP_S = PROMPT_TOKENS * STEP_MODEL.per_prefill_token_s

victims_of = st.lists(
    st.tuples(st.sampled_from(OTHERS), st.integers(2500, 8000), st.integers(1, 400)), min_size=1, max_size=4
)


def served(options: Options, victims: list[Ticket], until_s: float) -> None:
    """An engine that takes one prompt after the other, and nearly twice as many preferred prompts as it can take."""
    core = scheduler_before(READY, options, STEP_MODEL)
    for _ in range(BACKLOG):
        core.submit(Ticket(PREFERRED, 0.0, PROMPT_TOKENS, Lengths(1, 1)), 0.0)
    for ticket in victims:
        core.submit(ticket, 0.0)
    now_s, next_s = 0.0, 0.0
    while now_s < until_s and any(ticket.first_token_s is None for ticket in victims):
        while next_s <= now_s:
            core.submit(Ticket(PREFERRED, next_s, PROMPT_TOKENS, Lengths(1, 1)), now_s)
            next_s += GAP_S
        core.expire(now_s)
        sent = core.dispatchable(now_s)
        now_s += max(STEP_S, sum(ticket.prompt_tokens for ticket in sent) * STEP_MODEL.per_prefill_token_s)
        for ticket in sent:
            core.on_first_token(ticket, now_s)
            core.on_finish(ticket, now_s, 1)


def shared_s(victims: list[Ticket]) -> float:
    """SLO-ODBS: requests that have waited long get their share of the engine, oldest first."""
    step = StepEstimate(STEP_MODEL)
    work_s = [
        STEP_MODEL.per_prefill_token_s * each.prompt_tokens + step.answer_s(each.prompt_tokens, each.length.p50)
        for each in victims
    ]
    return AGED_S + 1.1 * (sum(work_s) + BACKLOG * STEP_S) / AGED_SHARE + 2.0


def passed_s(victims: list[Ticket]) -> float:
    """EDF and FCFS: a request with a later deadline goes later."""
    return 1.1 * (FAR_DEADLINE_S / GAP_S + BACKLOG) * STEP_S + 2.0


@pytest.mark.parametrize(("policy", "bound_s"), [("SLO-ODBS", shared_s), ("EDF", passed_s), ("FCFS", passed_s)])
@settings(max_examples=8, deadline=None)
@given(wanted=victims_of)
def test_a_request_that_always_gives_way_is_served_within_a_known_time(policy, bound_s, wanted):
    victims = [Ticket(targets, 0.0, prompt, Lengths(output, 2 * output)) for targets, prompt, output in wanted]
    served(Options(policy, max_queued=10**6, shedding=False), victims, bound_s(victims))
    assert [ticket for ticket in victims if ticket.first_token_s is None] == []


def test_without_ageing_there_is_no_such_time():
    victims = [Ticket(OTHERS[0], 0.0, 8000, Lengths(400, 800))]
    served(Options(max_queued=10**6, shedding=False, ageing=False), victims, 1.5 * shared_s(victims))
    assert victims[0].first_token_s is None
