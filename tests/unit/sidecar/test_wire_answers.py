"""Recorded streams and whole answers of vLLM 0.32.0, and answers of engines that differ."""

from __future__ import annotations

import json
from typing import Any

import pytest

from uellm.sidecar.wire.aggregate import Aggregator
from uellm.sidecar.wire.events import TokenCounter, Usage
from uellm.sidecar.wire.shape import AnswerShapes
from uellm.sidecar.wire.strip import MAX_EVENT_BYTES, UsageStrip
from uellm.vllm_routes import ADMINISTRATIVE, OPEN, SCHEDULED, RouteKind, administrative

WHOLE: dict[str, Any] = {
    "id": "chatcmpl-1",
    "object": "chat.completion",
    "created": 1,
    "model": "tiny",
    "choices": [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "a", "refusal": None, "tool_calls": [], "reasoning": None},
            "logprobs": None,
            "finish_reason": "length",
            "stop_reason": None,
        }
    ],
    "usage": {
        "prompt_tokens": 21,
        "total_tokens": 26,
        "completion_tokens": 5,
        "prompt_tokens_details": None,
        "completion_tokens_details": None,
    },
    "prompt_logprobs": None,
}
RESPONSES = (
    b'event: response.created\ndata: {"response":{"usage":null},"type":"response.created"}\n\n'
    b'event: response.output_text.delta\ndata: {"delta":"a","type":"response.output_text.delta"}\n\n'
    b'event: response.output_text.delta\ndata: {"delta":"b","type":"response.output_text.delta"}\n\n'
    b'event: response.output_text.done\ndata: {"text":"ab","type":"response.output_text.done"}\n\n'
    b'event: response.completed\ndata: {"response":{"usage":{"input_tokens":14,"input_tokens_details":'
    b'{"cached_tokens":3},"output_tokens":4,"total_tokens":18},"user":null},"type":"response.completed"}\n\n'
)
MESSAGES = (
    b'event: message_start\ndata: {"type":"message_start",'
    b'"message":{"usage":{"input_tokens":21,"output_tokens":0}}}\n\n'
    b'event: content_block_delta\ndata: {"type":"content_block_delta","delta":{"text":" a"},"index":0}\n\n'
    b'event: content_block_delta\ndata: {"type":"content_block_delta","delta":{"text":" b"},"index":0}\n\n'
    b'event: message_delta\ndata: {"type":"message_delta","delta":{},"usage":{"input_tokens":21,"output_tokens":4}}\n\n'
    b'event: message_stop\ndata: {"type":"message_stop"}\n\n'
)


@pytest.mark.parametrize(
    ("kind", "stream", "tokens", "usage"),
    [(RouteKind.RESPONSES, RESPONSES, 2, Usage(14, 4, 3)), (RouteKind.MESSAGES, MESSAGES, 2, Usage(21, 4))],
)
def test_other_apis_streams_are_counted_by_their_own_events(kind, stream, tokens, usage):
    for size in (1, 7, len(stream)):
        counter = TokenCounter(kind)
        for start in range(0, len(stream), size):
            counter.feed(stream[start : start + size])
        assert (counter.tokens, counter.usage()) == (tokens, usage)


def test_a_whole_answer_has_its_usage_at_its_end():
    counter = TokenCounter(RouteKind.CHAT)
    counter.feed(json.dumps(WHOLE | {"choices": ["x" * 100_000]}).encode())
    assert (counter.tokens, counter.usage()) == (0, Usage(21, 5))


@pytest.mark.parametrize(
    ("usage", "found"),
    [
        ('{"prompt_tokens":9,"total_tokens":12,"completion_tokens":3}', Usage(9, 3)),
        ('{"prompt_tokens":9,"total_tokens":12,"completion_tokens":3,"prompt_tokens_details":null}', Usage(9, 3)),
        ('{"prompt_tokens":9,"completion_tokens":3,"total_tokens":12}', Usage(9, 3)),
        (
            '{"prompt_tokens":9,"total_tokens":12,"completion_tokens":3,"prompt_tokens_details":{"cached_tokens":8}}',
            Usage(9, 3, 8),
        ),
        ('{"prompt_tokens":9,"total_tokens":12,"completion_tokens":3,"prompt_tokens":7}', Usage(7, 3)),
        ('{"prompt_tokens":9,"total_tokens":9,"completion_tokens":null}', Usage(9, 0)),
        ('{"prompt_tokens":09,"total_tokens":12,"completion_tokens":3}', None),
        ('{"prompt_tokens":9,"total_tokens":012,"completion_tokens":3}', None),
        ('{"prompt_tokens":9,"total_tokens":12,"completion_tokens":3', None),
    ],
)
def test_usage_is_read_in_every_form(usage, found):
    counter = TokenCounter(RouteKind.CHAT)
    counter.feed(f'data: {{"choices":[],"usage":{usage}}}\n\n'.encode() if found else f'"usage":{usage}'.encode())
    assert counter.usage() == found


@pytest.mark.parametrize(
    "tail", [b"", b'"usage":', b'"usage":{"prompt', b'"usage":null', b'"usage":[1]', b'"usage":{}']
)
def test_without_a_usage_there_is_none(tail):
    counter = TokenCounter(RouteKind.CHAT)
    counter.feed(b'data: {"a":1}\n\n' + tail)
    assert counter.usage() is None


def altered(**fields: Any) -> dict[str, Any]:
    message = WHOLE["choices"][0]["message"] | fields.pop("message", {})
    choice = WHOLE["choices"][0] | {"message": message} | fields.pop("choice", {})
    return WHOLE | {"choices": [choice], "usage": WHOLE["usage"] | fields.pop("usage", {})} | fields


@pytest.mark.parametrize(
    "document",
    [
        altered(message={"reasoning": "because"}),
        altered(message={"reasoning_content": "because"}),
        altered(message={"tool_calls": [{"id": "1"}]}),
        altered(usage={"completion_tokens_details": {"reasoning_tokens": 0}}),
        altered(kv_transfer_params={"a": 1}),
        altered(choice={"routed_experts": "AAAA"}),
        altered(something_new=1),
    ],
)
def test_an_engine_that_reports_more_than_a_stream_does_answers_by_itself(document):
    shapes = AnswerShapes()
    shapes.learn(RouteKind.CHAT, document)
    assert (shapes.get(RouteKind.CHAT), shapes.wanted(RouteKind.CHAT)) == (None, False)


@pytest.mark.parametrize("document", [None, [], {}, {"choices": []}, {"error": {}}, {**WHOLE, "choices": [1]}])
def test_anything_but_an_answer_is_not_learned_from(document):
    shapes = AnswerShapes()
    shapes.learn(RouteKind.CHAT, document)
    assert shapes.wanted(RouteKind.CHAT)


def aggregator(document: dict[str, Any] = WHOLE) -> Aggregator:
    shapes = AnswerShapes()
    shapes.learn(RouteKind.CHAT, document)
    shape = shapes.get(RouteKind.CHAT)
    assert shape is not None
    return Aggregator(RouteKind.CHAT, shape)


def event(document: Any) -> bytes:
    return b"data: " + json.dumps(document).encode() + b"\n\n"


def part(text: str, **fields: Any) -> bytes:
    choice = {"index": 0, "delta": {"content": text}, "finish_reason": None, **fields}
    return event({"id": "chatcmpl-1", "created": 1, "model": "tiny", "choices": [choice]})


END = event({"choices": [], "usage": {"prompt_tokens": 21, "total_tokens": 26, "completion_tokens": 5}})
DONE = b"data: [DONE]\n\n"


def test_fields_are_those_of_the_engines_own_answer_in_its_order():
    together = aggregator()
    together.feed(part("") + part("a", finish_reason="length") + END + DONE)
    assert together.answer() == (200, json.dumps(WHOLE, separators=(",", ":")).encode())


def test_details_that_a_stream_leaves_out_where_they_are_null_are_there():
    details = {"cached_tokens": 0, "created_cache_tokens": None, "multimodal_tokens": None}
    together = aggregator(altered(usage={"prompt_tokens_details": details}))
    usage = {"prompt_tokens": 21, "completion_tokens": 5, "prompt_tokens_details": {"cached_tokens": 16}}
    together.feed(part("a") + event({"choices": [], "usage": usage}) + DONE)
    found = json.loads(together.answer()[1])["usage"]
    assert found["prompt_tokens_details"] == details | {"cached_tokens": 16}
    assert found["completion_tokens_details"] is None


def test_what_the_engine_writes_into_its_answers_is_no_format():
    document = altered(object="100%s", **{"50%": None}, choice={"%(index)s": None})
    together = aggregator(document)
    together.feed(part("") + part("a", finish_reason="length") + END + DONE)
    assert together.answer() == (200, json.dumps(document, separators=(",", ":")).encode())


def test_usage_that_the_engines_own_answer_did_not_have_comes_last():
    together = aggregator()
    usage = {"cost": 1.5, "prompt_tokens": 21, "total_tokens": 26, "completion_tokens": 5}
    together.feed(part("a") + event({"choices": [], "usage": usage}) + DONE)
    found = json.loads(together.answer()[1])["usage"]
    assert list(found) == [*WHOLE["usage"], "cost"]
    assert found["cost"] == 1.5


def test_a_value_that_cannot_be_written_does_no_harm_in_a_field_that_is_left_out():
    together = aggregator()
    odd = {"metrics": float("nan"), "system_fingerprint": float("inf")}
    usage = {"prompt_tokens": 21, "total_tokens": 26, "completion_tokens": 5}
    together.feed(part("") + part("a", finish_reason="length") + event({"choices": [], "usage": usage, **odd}) + DONE)
    assert together.answer() == (200, json.dumps(WHOLE, separators=(",", ":")).encode())


def test_log_probabilities_get_the_defaults_that_a_stream_leaves_out():
    together = aggregator()
    together.feed(part("a", logprobs={"content": [{"token": "a", "bytes": [97]}]}) + END + DONE)
    entry = json.loads(together.answer()[1])["choices"][0]["logprobs"]["content"][0]
    assert entry == {"token": "a", "logprob": -9999.0, "bytes": [97], "top_logprobs": []}


def test_unexpected_reasoning_is_reported_and_not_lost():
    together = aggregator()
    assert not together.reasons
    thoughts = event({"choices": [{"index": 0, "delta": {"reasoning": "hm"}}]})
    together.feed(part("") + thoughts + thoughts + part("a") + END + DONE)
    message = json.loads(together.answer()[1])["choices"][0]["message"]
    assert (message["content"], message["reasoning"], together.reasons) == ("a", "hmhm", True)


def chunk(*events: bytes) -> bytes:
    content = b"".join(events)
    return b"%x\r\n%b\r\n" % (len(content), content)


@pytest.mark.parametrize("words", [3, 500], ids=["read at the end", "read in between"])
def test_chunks_and_pieces_in_turn_make_the_same_answer_as_pieces(words):
    parts = [part(f" Zeit {number} \u00fc\n\n") for number in range(words)]
    pieces, mixed = aggregator(), aggregator()
    pieces.feed(b"".join(parts) + END + DONE)
    mixed.feed(parts[0])
    for each in parts[1:-1]:
        mixed.take_chunk(chunk(each))
    mixed.feed(parts[-1])
    mixed.take_chunk(chunk(b": still there\n\n", END))
    mixed.feed(DONE)
    assert mixed.answer() == pieces.answer()


def test_a_chunk_that_is_not_json_is_no_answer():
    together = aggregator()
    together.take_chunk(chunk(b'data: {"choices": [}\n\n'))
    with pytest.raises(ValueError, match="Expecting"):
        together.answer()


@pytest.mark.parametrize("stream", [b"", part("a"), part("a") + DONE, part("a") + END, END + DONE, b": ping\n\n"])
def test_a_truncated_stream_is_not_an_answer(stream):
    together = aggregator()
    together.feed(stream)
    with pytest.raises(ValueError, match="before its usage"):
        together.answer()


@pytest.mark.parametrize(("code", "status"), [(503, 503), (400, 400), (200, 500), ("x", 500), (None, 500)])
def test_an_error_in_the_stream_is_the_answer(code, status):
    error = {"error": {"message": "no", "type": "T", "param": None, "code": code}}
    together = aggregator()
    together.feed(part("a") + event(error) + DONE)
    assert together.answer() == (status, json.dumps(error, separators=(",", ":")).encode())


def test_an_engine_that_counts_along_for_everybody_is_passed_on_as_it_is():
    stream = part("a").replace(b'"choices"', b'"usage":{"prompt_tokens":1},"choices"') + END.replace(b" ", b"") + DONE
    strip = UsageStrip()
    assert strip.feed(stream) + strip.finish() == stream


def test_an_event_without_an_end_is_passed_on_and_not_kept():
    strip = UsageStrip()
    piece = b"x" * 65536
    sent = sum(len(strip.feed(piece)) for _ in range(2 * MAX_EVENT_BYTES // len(piece)))
    assert sent == 2 * MAX_EVENT_BYTES
    assert strip.finish() == b""


def test_no_route_is_both_work_and_administration():
    assert not ADMINISTRATIVE & (SCHEDULED.keys() | OPEN)
    for path in ("/fault_tolerance", "/fault_tolerance/apply", "/fault_tolerance/anything/else", "/sleep"):
        assert administrative(path)
    for path in ("/", "/v1/models", "/fault_toleranceX", "/sleepy", "/v1/responses/resp_1/cancel"):
        assert not administrative(path)
