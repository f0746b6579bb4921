"""What the sidecar tells of its load: a request that was refused or given up is work as well."""

from __future__ import annotations

from typing import Any

import pytest

from uellm.proxying.outcome import RequestOutcome
from uellm.sidecar.scheduling import Targets
from uellm.sidecar.telemetry.access_log import Record
from uellm.sidecar.telemetry.sidecar_metrics import Totals

CHAT = Targets("chat", ttft_s=1.0)


def after(outcome: RequestOutcome, **fields: Any) -> Totals:
    """The totals after one request."""
    totals = Totals()
    totals.add(Record("POST", "/v1/chat/completions", 100.0, targets=CHAT, outcome=outcome, end_s=101.0, **fields))
    return totals


def test_the_tokens_of_an_answer_are_as_the_engine_counts_them() -> None:
    found = after(
        RequestOutcome.COMPLETED, queue_s=0.1, estimated_prompt_tokens=90, prompt_tokens=100, output_tokens=20
    )

    assert (found.ended, found.prompts, found.prompt_tokens, found.answers, found.output_tokens) == (1, 1, 100, 1, 20)


def test_an_answer_without_usage_has_the_prompt_that_was_estimated() -> None:
    found = after(RequestOutcome.COMPLETED, queue_s=0.1, estimated_prompt_tokens=300)

    assert (found.prompts, found.prompt_tokens, found.answers, found.output_tokens) == (1, 300, 1, 0)


@pytest.mark.parametrize(
    "outcome",
    [
        RequestOutcome.SHED,
        RequestOutcome.QUEUE_FULL,
        RequestOutcome.DEADLINE_PASSED,
        RequestOutcome.ENGINE_UNAVAILABLE,
        RequestOutcome.CLIENT_LEFT,  # it left the queue
    ],
)
def test_a_request_that_was_not_served_has_a_prompt_and_an_answer_of_unknown_length(outcome: RequestOutcome) -> None:
    found = after(outcome, estimated_prompt_tokens=90)

    assert (found.ended, found.prompts, found.prompt_tokens, found.answers) == (1, 1, 90, 0)


def test_an_answer_that_was_cut_does_not_tell_how_long_it_was_to_be() -> None:
    found = after(RequestOutcome.ENGINE_LOST, queue_s=0.1, estimated_prompt_tokens=90, output_tokens=5)

    assert (found.ended, found.prompts, found.answers, found.output_tokens) == (1, 1, 0, 0)


def test_an_answer_that_its_client_wanted_no_more_of_is_as_long_as_it_came() -> None:
    found = after(RequestOutcome.CLIENT_LEFT, queue_s=0.1, estimated_prompt_tokens=90, output_tokens=5)

    assert (found.prompts, found.prompt_tokens, found.answers, found.output_tokens) == (1, 90, 1, 5)


def test_a_refusal_before_the_body_was_read_tells_no_length() -> None:
    found = after(RequestOutcome.QUEUE_FULL)

    assert (found.ended, found.prompts, found.answers) == (1, 0, 0)


@pytest.mark.parametrize("outcome", [RequestOutcome.REJECTED_BY_ENGINE, RequestOutcome.TOO_LARGE])
def test_a_request_that_is_refused_by_its_own_fault_is_no_work(outcome: RequestOutcome) -> None:
    found = after(outcome, estimated_prompt_tokens=1_000_000)

    assert (found.ended, found.prompts, found.prompt_tokens, found.answers, found.output_tokens) == (1, 1, 0, 1, 0)
