from __future__ import annotations

import json

import pytest

from uellm.extender.protocol import BadRequest, filter_answer, prioritize_answer, read_args


def body(**fields: object) -> bytes:
    return json.dumps({"Pod": {"metadata": {"name": "p"}}, **fields}).encode()


def node(name: str) -> dict:
    return {"metadata": {"name": name}, "status": {"capacity": {"cpu": "1"}}}


def test_a_scheduler_with_a_node_cache_gets_names_for_names():
    question = read_args(body(Nodes=None, NodeNames=["a", "b"]))
    answer = filter_answer(question, {"a": "too small"})
    assert (answer["NodeNames"], answer["Nodes"], answer["FailedNodes"]) == (["b"], None, {"a": "too small"})


def test_a_scheduler_without_one_gets_nodes_for_nodes():
    question = read_args(body(Nodes={"metadata": {}, "items": [node("a"), node("b")]}, NodeNames=None))
    answer = filter_answer(question, {"a": "too small"})
    assert (answer["NodeNames"], answer["Nodes"]) == (None, {"items": [node("b")]})


def test_no_node_is_an_empty_list_and_never_null():
    assert filter_answer(read_args(body(NodeNames=["a"])), {"a": "no"})["NodeNames"] == []
    assert filter_answer(read_args(body(NodeNames=[])), {})["NodeNames"] == []
    assert filter_answer(read_args(body(Nodes={"items": None})), {})["Nodes"] == {"items": []}


def test_an_answer_names_only_nodes_that_were_asked_about_and_each_once():
    answer = filter_answer(read_args(body(NodeNames=["a", "b", "c"])), {"b": "no"})
    assert sorted([*answer["NodeNames"], *answer["FailedNodes"]]) == ["a", "b", "c"]


def test_priorities_are_a_bare_array_with_a_score_for_every_node():
    assert prioritize_answer(["a", "b"], {"a": 7}) == [{"Host": "a", "Score": 7}, {"Host": "b", "Score": 0}]


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{",
        b"\xff",
        b"null",
        b"[]",
        b"[" * 100_000,
        b'{"NodeNames": []}',
        b'{"Pod": 1, "NodeNames": []}',
        b'{"Pod": {}}',
        b'{"Pod": {}, "NodeNames": "a"}',
        b'{"Pod": {}, "NodeNames": [1]}',
        b'{"Pod": {}, "Nodes": 3}',
        b'{"Pod": {}, "Nodes": {}}',
        b'{"Pod": {}, "Nodes": {"items": [{}]}}',
        b'{"Pod": {}, "Nodes": {"items": [3]}}',
        b'{"Pod": {}, "Nodes": {"items": 3}}',
    ],
)
def test_an_invalid_call_is_a_bad_request(text):
    with pytest.raises(BadRequest):
        read_args(text)


@pytest.mark.parametrize("metadata", [None, {}, {"annotations": None}, {"annotations": {"uellm.io/plan": 3}}])
def test_a_pod_without_a_plan_is_not_ours(metadata):
    question = read_args(json.dumps({"Pod": {"metadata": metadata}, "NodeNames": ["a"]}).encode())
    assert question.plan is None
