"""When a replica at which requests failed is avoided, and for how long."""

from __future__ import annotations

import pytest

from uellm.routing.books import AVOIDED_S, ReplicaBooks
from uellm.routing.request import RoutedRequest


@pytest.fixture
def books() -> ReplicaBooks:
    return ReplicaBooks("a", 0.0)


def sent(books: ReplicaBooks, now_s: float) -> RoutedRequest:
    request = RoutedRequest(now_s, 100)
    books.on_sent(request, now_s)
    return request


def avoided_s(books: ReplicaBooks, now_s: float) -> float:
    return next(step / 10 for step in range(10_000) if books.available(now_s + step / 10))


@pytest.mark.parametrize("number", [1, 2, 8])
def test_requests_that_fail_together_are_one_failure(books: ReplicaBooks, number: int) -> None:
    for request in [sent(books, 0.0) for _ in range(number)]:
        books.on_ended(request, 1.0, failed=True)
    assert avoided_s(books, 1.0) == AVOIDED_S


def test_each_failure_of_a_request_that_was_sent_after_the_last_one_doubles_the_time(books: ReplicaBooks) -> None:
    times = []
    for number in range(4):
        now_s = 100.0 * number
        books.on_ended(sent(books, now_s), now_s + 1.0, failed=True)
        times.append(avoided_s(books, now_s + 1.0))
    assert times == [AVOIDED_S, 2 * AVOIDED_S, 4 * AVOIDED_S, 8 * AVOIDED_S]


def test_an_answer_to_a_request_that_was_sent_after_the_failure_ends_the_time(books: ReplicaBooks) -> None:
    before, failing = sent(books, 0.0), sent(books, 0.0)
    books.on_ended(failing, 1.0, failed=True)
    books.on_ended(before, 1.1, failed=False)
    assert not books.available(1.2)
    books.on_ended(sent(books, 1.3), 1.4, failed=False)
    assert books.available(1.4)


def test_a_failure_that_is_taken_back_counts_for_nothing(books: ReplicaBooks) -> None:
    books.on_ended(sent(books, 0.0), 1.0, failed=True)
    books.forgive()
    assert books.available(1.0)
    books.on_ended(sent(books, 2.0), 3.0, failed=True)
    assert avoided_s(books, 3.0) == AVOIDED_S


def test_requests_that_failed_together_are_taken_back_one_by_one(books: ReplicaBooks) -> None:
    for burst in range(3):
        now_s = 100.0 * burst
        for request in [sent(books, now_s), sent(books, now_s)]:
            books.on_ended(request, now_s + 1.0, failed=True)
        books.forgive()
        assert not books.available(now_s + 1.0), "the other one failed by the replica's fault, as far as is known"
        books.forgive()
        assert books.available(now_s + 1.0)
    books.on_ended(sent(books, 900.0), 901.0, failed=True)
    assert avoided_s(books, 901.0) == AVOIDED_S


def test_a_late_failure_of_a_request_from_before_is_avoided_for_as_long_again(books: ReplicaBooks) -> None:
    early, late = sent(books, 0.0), sent(books, 0.0)
    books.on_ended(early, 1.0, failed=True)
    books.on_ended(late, 30.0, failed=True)
    assert avoided_s(books, 30.0) == AVOIDED_S
