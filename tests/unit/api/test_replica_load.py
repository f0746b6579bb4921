"""The report of a replica's load: whole through JSON, and harmless whatever a pod answers."""

from __future__ import annotations

import json
from dataclasses import fields
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from uellm.api.replica_load import SPANS, PrefixNews, ReplicaLoad, WaitingLoad
from uellm.documents import UnreadableDocument
from uellm.step_time import StepTime

LOAD = ReplicaLoad(
    incarnation="a-1",
    ready=False,
    draining=True,
    names=("llama", "sql"),
    step=StepTime(5e-3, 4e-5, 4e-8, 1e-5, 5e-4),
    measured=True,
    chunk_tokens=2048,
    gap_s=0.02,
    sequences=9,
    max_sequences=256,
    decoding=7,
    remaining_tokens=812.5,
    unfilled_tokens=100.0,
    kv_tokens=5000,
    kv_capacity_tokens=384_000,
    paced_tokens_per_second=9000.0,
    waiting=tuple(WaitingLoad(index, 100 * index) for index in range(SPANS)),
    late=WaitingLoad(3, 900),
    prefixes=PrefixNews(12, (1, 2**32 - 1)),
)

json_values = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


def test_every_field_survives_json() -> None:
    assert all(getattr(LOAD, field.name) != getattr(ReplicaLoad(), field.name) for field in fields(ReplicaLoad))
    assert ReplicaLoad.from_dict(json.loads(json.dumps(LOAD.to_dict()))) == LOAD


def test_a_typical_report_is_smaller_than_4_kib() -> None:
    news = PrefixNews(10**6, tuple(range(2**32 - 200, 2**32)))
    document = {**LOAD.to_dict(), "prefixes": {"count": news.count, "hashes": list(news.hashes)}}
    assert len(json.dumps(document)) < 4096


@given(st.fixed_dictionaries({name: json_values for name in LOAD.to_dict() if name != "version"}))
def test_a_field_without_meaning_counts_as_absent(document: dict[str, Any]) -> None:
    load = ReplicaLoad.from_dict(document)

    assert len(load.waiting) == SPANS
    assert 0.0 <= load.unfilled_tokens <= 1e12
    assert ReplicaLoad.from_dict(load.to_dict()) == load


@pytest.mark.parametrize("huge", [10**4000, -(10**4000), float("inf"), float("nan"), 1e308], ids=range(5))
def test_numbers_beyond_all_reason_neither_raise_nor_count(huge: float) -> None:
    document = LOAD.to_dict()
    for name in document.keys() - {"version"}:
        load = ReplicaLoad.from_dict({**document, name: huge})
        assert 0.0 <= load.unfilled_tokens <= 1e12
    for name in document["stepSeconds"]:
        step = ReplicaLoad.from_dict({**document, "stepSeconds": {**document["stepSeconds"], name: huge}}).step
        assert step is None


@pytest.mark.parametrize("block", [-1, 2**32, 10**4000, True, 1.5], ids=range(5))
def test_what_is_no_hash_of_a_block_is_not_kept(block: float) -> None:
    document = {**LOAD.to_dict(), "prefixes": {"count": 1, "hashes": [block]}}
    assert ReplicaLoad.from_dict(document).prefixes == PrefixNews()


@pytest.mark.parametrize("document", [None, [], "load", {"version": 2}])
def test_a_document_of_another_kind_is_refused(document: Any) -> None:
    with pytest.raises(UnreadableDocument, match="the report of a replica's load cannot be read"):
        ReplicaLoad.from_dict(document)


@pytest.mark.parametrize(("known", "new"), [(0, (7, 8, 9)), (3, (7, 8, 9)), (4, (8, 9)), (6, ()), (9, ())])
def test_news_are_what_the_reader_does_not_know(known: int, new: tuple[int, ...]) -> None:
    assert PrefixNews(6, (7, 8, 9)).since(known) == PrefixNews(6, new)
