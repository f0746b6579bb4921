"""Which requests met their targets, which did not, and which are not judged."""

from __future__ import annotations

from typing import Any

import pytest

from uellm.proxying.outcome import RequestOutcome
from uellm.sidecar.scheduling import Targets
from uellm.sidecar.telemetry.access_log import Record
from uellm.sidecar.telemetry.attainment import SLOT_S, WINDOW_S, Attainment, missed

ALL = Targets("chat", ttft_s=1.0, tpot_s=0.05, e2e_s=10.0)


def record(outcome: RequestOutcome = RequestOutcome.COMPLETED, targets: Targets | None = ALL, **fields: Any) -> Record:
    """A request that arrived at 100 and met every target, except for what `fields` change."""
    met: dict[str, Any] = {"first_token_s": 100.5, "last_token_s": 104.0, "end_s": 104.0, "output_tokens": 101}
    return Record("POST", "/v1/chat/completions", 100.0, targets=targets, outcome=outcome, **met | fields)


def test_a_request_that_met_every_target_has_missed_none():
    assert missed(record()) == ()


@pytest.mark.parametrize(
    ("fields", "late"),
    [
        ({"first_token_s": 101.5}, ("ttft",)),
        ({"output_tokens": 11}, ("tpot",)),
        ({"end_s": 111.0}, ("e2e",)),
        ({"first_token_s": 109.0, "last_token_s": 120.0, "end_s": 120.0, "output_tokens": 3}, ("ttft", "tpot", "e2e")),
        ({"output_tokens": 1, "last_token_s": 109.0}, ()),  # it has only one token
        ({"output_tokens": 202, "sequences": 2}, ()),
        ({"first_token_s": None}, ("ttft",)),  # no token was observed, although each would have been
    ],
)
def test_each_target_is_judged_by_itself(fields, late):
    assert missed(record(**fields)) == late


WHOLE = {"blind": True, "first_token_s": None, "last_token_s": None}


@pytest.mark.parametrize(
    ("fields", "late"),
    [
        ({"end_s": 100.9, "output_tokens": 100}, ()),  # its first token came at its end at the latest
        ({"end_s": 100.9, "output_tokens": 5}, None),  # 0.9 s over 4 tokens: too slow in the worst case
        ({"end_s": 100.9, "output_tokens": 5, "queue_s": 0.8}, ()),  # 0.1 s over 4 tokens: on time in every case
        ({"end_s": 100.9, "output_tokens": 1}, ()),
        ({"end_s": 104.0, "output_tokens": 1, "queue_s": 0.5}, None),  # its token came between 0.5 and 4 s
        ({"end_s": 104.0, "output_tokens": 1, "queue_s": 1.5}, ("ttft",)),  # it waited here for longer than that
        ({"end_s": 111.0, "output_tokens": 1, "queue_s": 0.5}, ("e2e",)),
        ({"end_s": 100.9, "output_tokens": None}, None),
        ({"end_s": 100.9, "output_tokens": None, "targets": Targets("chat", ttft_s=1.0)}, ()),
        ({"end_s": 104.0, "queue_s": 0.5, "targets": Targets("chat", e2e_s=10.0)}, ()),
    ],
)
def test_a_whole_answer_is_judged_only_where_its_targets_are_certainly_met_or_missed(fields, late):
    assert missed(record(**WHOLE | {"queue_s": 0.0} | fields)) == late


def test_a_client_that_left_before_a_whole_answer_proves_nothing_once_it_was_sent():
    assert missed(record(RequestOutcome.CLIENT_LEFT, **WHOLE, queue_s=0.5, end_s=104.0)) is None
    assert missed(record(RequestOutcome.CLIENT_LEFT, **WHOLE, queue_s=None, end_s=104.0)) == ("ttft",)


@pytest.mark.parametrize(
    "outcome",
    [
        *(
            RequestOutcome.QUEUE_FULL,
            RequestOutcome.SHED,
            RequestOutcome.DEADLINE_PASSED,
            RequestOutcome.ENGINE_LOST,
            RequestOutcome.ENGINE_UNAVAILABLE,
        ),
        *(RequestOutcome.FAILED_BY_ENGINE, RequestOutcome.DRAINING, RequestOutcome.INTERNAL_ERROR),
    ],
)
def test_a_dropped_request_counts_as_missed(outcome):
    assert missed(record(outcome)) == ("dropped",)


@pytest.mark.parametrize(
    "outcome",
    [
        *(
            RequestOutcome.REJECTED_BY_ENGINE,
            RequestOutcome.BAD_REQUEST,
            RequestOutcome.UNAUTHORIZED,
            RequestOutcome.FORBIDDEN,
        ),
        *(RequestOutcome.TOO_LARGE, RequestOutcome.CLIENT_SLOW),
    ],
)
def test_requests_that_the_client_made_impossible_are_not_judged(outcome):
    assert missed(record(outcome)) is None


def test_unscheduled_requests_are_not_judged():
    assert missed(record(targets=None)) is None


def test_a_client_that_left_counts_only_if_it_had_waited_too_long_already():
    assert missed(record(RequestOutcome.CLIENT_LEFT)) is None
    waiting = {"first_token_s": None, "last_token_s": None, "output_tokens": None}
    assert missed(record(RequestOutcome.CLIENT_LEFT, **waiting, end_s=100.9)) is None
    assert missed(record(RequestOutcome.CLIENT_LEFT, **waiting, end_s=101.1)) == ("ttft",)


def test_every_outcome_is_judged_in_one_way():
    for outcome in RequestOutcome:
        assert missed(record(outcome)) in ((), ("dropped",), None)


def test_only_the_last_minutes_count():
    attainment = Attainment()
    for end_s in (100.0, 200.0, 399.0):
        attainment.add(record(end_s=end_s), ())
    (chat,) = attainment.report(100.0 + WINDOW_S + SLOT_S).classes
    assert chat.requests == 2
    (chat,) = attainment.report(399.0 + WINDOW_S + SLOT_S).classes
    assert (chat.requests, chat.p99_ttft_s) == (0, None)


def test_a_class_without_requests_is_reported_too():
    report = Attainment().report(0.0, ["chat"]).to_dict()
    assert report == {"version": 1, "windowSeconds": 300, "classes": [{"name": "chat", "requests": 0, "met": 0}]}


def test_the_99th_percentile_is_exact_to_five_percent():
    attainment = Attainment()
    for number in range(1000):
        attainment.add(record(first_token_s=100.0 + number / 1000), ())
    (chat,) = attainment.report(104.0).classes
    assert 0.99 <= chat.p99_ttft_s <= 0.99 * 1.06


def test_the_window_is_small_however_many_requests_there_are():
    attainment = Attainment()
    for number in range(50_000):
        attainment.add(record(end_s=100.0 + number / 100, first_token_s=100.0 + (number % 997) / 100), ())
    slots = attainment._classes["chat"]
    assert len(slots) <= WINDOW_S / SLOT_S + 2
    assert max(len(slot.ttft) for slot in slots) < 250
