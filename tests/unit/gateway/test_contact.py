"""When the gateway knows all that it can know, and for how long it has heard nothing."""

from __future__ import annotations

import math

import pytest

from uellm.gateway.contact import LOST_S, Contact
from uellm.kube import ENDPOINTSLICE, LLMSERVICE

KINDS = (LLMSERVICE, ENDPOINTSLICE)


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


def read(contact: Contact, *namespaces: str | None) -> None:
    for namespace in namespaces:
        for kind in KINDS:
            contact.heard(kind, namespace)
            contact.synced(kind, namespace)


def test_a_namespace_that_is_refused_keeps_nothing_from_the_others(clock) -> None:
    contact = Contact(KINDS, ["a", "gone"], clock)
    read(contact, "a")
    assert not contact.complete, "the other one has not answered yet"
    assert [contact.refuse(kind, "gone") for kind in (*KINDS, *KINDS)] == [True, False, False, False]
    assert contact.complete
    assert contact.refused == {"gone"}


@pytest.mark.parametrize("namespaces", [[None], ["only"], ["one", "two"]])
def test_a_gateway_that_can_read_nothing_at_all_is_not_complete(clock, namespaces) -> None:
    contact = Contact(KINDS, namespaces, clock)
    for namespace in namespaces:
        for kind in KINDS:
            contact.refuse(kind, namespace)
    assert not contact.complete
    assert math.isinf(contact.age_s())


@pytest.mark.parametrize("kind", KINDS)
def test_a_namespace_of_which_one_kind_cannot_be_read_is_refused(clock, kind) -> None:
    contact = Contact(KINDS, ["only"], clock)
    (other,) = set(KINDS) - {kind}
    contact.heard(other, "only")
    contact.synced(other, "only")
    contact.refuse(kind, "only")
    assert contact.refused == {"only"}
    assert not contact.complete


def test_a_namespace_that_is_refused_later_does_not_make_the_view_old(clock) -> None:
    contact = Contact(KINDS, ["a", "gone"], clock)
    read(contact, "a", "gone")
    clock.now_s = 400.0
    contact.refuse(LLMSERVICE, "gone")
    read(contact, "a")
    assert contact.age_s() == 0.0
    clock.now_s = 500.0
    assert contact.age_s() == 100.0
    assert contact.complete


@pytest.mark.parametrize("namespaces", [[None], ["only"], ["one", "two"]])
def test_where_everything_is_refused_the_view_grows_old(clock, namespaces) -> None:
    contact = Contact(KINDS, namespaces, clock)
    read(contact, *namespaces)
    clock.now_s = 400.0
    for namespace in namespaces:
        contact.refuse(LLMSERVICE, namespace)
    assert contact.complete, "the last state stays in force"
    assert contact.age_s() == 400.0


def test_a_namespace_that_can_be_read_again_is_refused_no_more_and_may_be_news_once_more(clock) -> None:
    contact = Contact(KINDS, ["a", "b"], clock)
    read(contact, "a")
    for kind in KINDS:
        contact.refuse(kind, "b")
    assert not contact.heard(LLMSERVICE, "b")
    assert contact.refused == {"b"}
    assert contact.heard(ENDPOINTSLICE, "b"), "news"
    assert not contact.heard(ENDPOINTSLICE, "b")
    assert contact.refused == set()
    assert contact.complete, "its lists may have many pages, and meanwhile the others go on"
    assert contact.refuse(LLMSERVICE, "b")


@pytest.mark.parametrize(("namespaces", "lost"), [([None], False), (["gone"], False), (["gone", "a"], True)])
def test_a_namespace_that_stays_refused_is_lost_if_there_is_another_one(clock, namespaces, lost) -> None:
    contact = Contact(KINDS, namespaces, clock)
    read(contact, *namespaces)
    contact.refuse(LLMSERVICE, namespaces[0])
    clock.now_s = LOST_S - 1
    contact.refuse(LLMSERVICE, namespaces[0])
    assert not contact.lost(LLMSERVICE, namespaces[0])
    clock.now_s = LOST_S
    assert contact.lost(LLMSERVICE, namespaces[0]) == lost
    contact.heard(LLMSERVICE, namespaces[0])
    assert not contact.lost(LLMSERVICE, namespaces[0])


def test_namespaces_that_come_back_in_turn_lose_nothing(clock) -> None:
    contact = Contact(KINDS, ["a", "b"], clock)
    read(contact, "a", "b")
    for namespace in ("a", "b"):
        for kind in KINDS:
            contact.refuse(kind, namespace)
    clock.now_s = LOST_S + 100
    read(contact, "a")
    contact.refuse(LLMSERVICE, "b")
    assert not contact.lost(LLMSERVICE, "b"), "nothing could be read until now"
    clock.now_s += LOST_S - 1
    read(contact, "a")
    assert not contact.lost(LLMSERVICE, "b")
    read(contact, "b")
    assert not contact.lost(LLMSERVICE, "b")
    contact.refuse(LLMSERVICE, "b")
    clock.now_s += LOST_S
    assert contact.lost(LLMSERVICE, "b")


def test_a_third_namespace_that_comes_and_goes_keeps_no_lost_one_in_force(clock) -> None:
    contact = Contact(KINDS, ["a", "gone", "c"], clock)
    read(contact, "a", "gone", "c")
    contact.refuse(LLMSERVICE, "gone")
    clock.now_s = LOST_S - 1
    contact.refuse(LLMSERVICE, "c")
    read(contact, "c")
    clock.now_s = LOST_S
    assert contact.lost(LLMSERVICE, "gone")


def test_a_namespace_that_was_never_heard_of_makes_no_other_one_lost(clock) -> None:
    contact = Contact(KINDS, ["silent", "b"], clock)
    contact.refuse(LLMSERVICE, "b")
    clock.now_s = LOST_S
    assert not contact.lost(LLMSERVICE, "b")
