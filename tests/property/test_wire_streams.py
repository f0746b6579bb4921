"""Streams that are split anywhere: tokens are counted, chunks stripped and reassembled in the same way."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from uellm.sidecar.wire.aggregate import Aggregator
from uellm.sidecar.wire.events import TokenCounter, Usage
from uellm.sidecar.wire.shape import AnswerShapes
from uellm.sidecar.wire.strip import UsageStrip
from uellm.vllm_routes import RouteKind

TRAPS = [
    '"usage":{"prompt_tokens":9}',
    '"choices":[]',
    '"finish_reason":"stop"',
    "\n\ndata: {",
    "data: [DONE]\n\n",
    "}\n",
    "字",
    '"}',
]
TEXTS = st.one_of(st.text(max_size=8), st.sampled_from(TRAPS))
FINGERPRINTS = st.sampled_from([None, "vllm-0.32.0-d9a4", 'a"b\\字'])


def event(document: Any) -> bytes:
    return b"data: " + json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"


class Stream:
    """A chat's answer in vLLM's format, with the requested usage and without it."""

    def __init__(self, texts: list[list[str]], fingerprint: str | None, comments: bool) -> None:
        head = {"id": "x", "object": "chat.completion.chunk", "created": 7, "model": "tiny"}
        self.texts = ["".join(pieces) for pieces in texts]
        self.with_usage, self.without = [], []
        for index in range(len(texts)):
            self._both(event({**head, "choices": [{"index": index, "delta": {"role": "assistant", "content": ""}}]}))
        longest = max(map(len, texts))
        for step in range(longest):
            for index, pieces in enumerate(texts):
                if step < len(pieces):
                    self._piece(head, index, pieces[step], fingerprint, last=step == len(pieces) - 1)
            if comments:
                self._both(b": keep-alive\n\n")
        tokens = sum(map(len, texts))
        usage = {"prompt_tokens": 5, "total_tokens": 5 + tokens, "completion_tokens": tokens}
        told = {} if fingerprint is None else {"system_fingerprint": fingerprint}
        self.usage = Usage(5, tokens)
        self.with_usage.append(event({**head, "choices": [], "usage": usage, **told}))
        self._both(b"data: [DONE]\n\n")

    def _piece(self, head: dict[str, Any], index: int, text: str, fingerprint: str | None, *, last: bool) -> None:
        reason = "length" if last else None
        chunk = {**head, "choices": [{"index": index, "delta": {"content": text}, "finish_reason": reason}]}
        self.with_usage.append(event(chunk))
        if last and fingerprint is not None:
            chunk["system_fingerprint"] = fingerprint
        self.without.append(event(chunk))

    def _both(self, data: bytes) -> None:
        self.with_usage.append(data)
        self.without.append(data)


def streams(choices: int) -> st.SearchStrategy[Stream]:
    texts = st.lists(st.lists(TEXTS, min_size=1, max_size=6), min_size=choices, max_size=choices)
    return st.builds(Stream, texts, FINGERPRINTS, st.booleans())


@st.composite
def cut(draw: st.DrawFn, choices: int = 1) -> tuple[Stream, list[bytes]]:
    """A stream and its bytes in pieces."""
    stream = draw(streams(choices))
    whole = b"".join(stream.with_usage)
    if draw(st.booleans()):  # as the engine writes it: whole events
        return stream, stream.with_usage
    borders = sorted(draw(st.lists(st.integers(0, len(whole)), max_size=12)))
    pieces = [whole[start:end] for start, end in zip([0, *borders], [*borders, len(whole)], strict=True)]
    return stream, pieces


@given(cut())
def test_the_client_gets_the_stream_that_it_would_have_got(found):
    stream, pieces = found
    strip = UsageStrip()
    sent = b"".join(strip.feed(piece) for piece in pieces) + strip.finish()
    assert sent == b"".join(stream.without)


@given(cut(), st.integers(0, 10_000))
def test_a_stream_that_breaks_off_loses_nothing_that_came(found, at):
    stream, _ = found
    broken = b"".join(stream.with_usage)[:at]
    strip = UsageStrip()
    sent = strip.feed(broken) + strip.finish()
    usage = stream.with_usage[-2]
    if usage not in broken:
        assert sent == broken
    else:
        assert b"".join(stream.without).startswith(sent)


@given(st.binary(max_size=300), st.lists(st.integers(0, 300), max_size=8))
def test_bytes_that_are_not_a_stream_pass_unchanged(data, borders):
    borders = sorted(min(border, len(data)) for border in borders)
    pieces = [data[start:end] for start, end in zip([0, *borders], [*borders, len(data)], strict=True)]
    strip = UsageStrip()
    if b'"usage":' not in data:
        assert b"".join(strip.feed(piece) for piece in pieces) + strip.finish() == data


@given(cut())
def test_tokens_are_counted_however_the_stream_is_cut(found):
    stream, pieces = found
    counter = TokenCounter(RouteKind.CHAT)
    events = sum(counter.feed(piece) for piece in pieces)
    assert counter.usage() == stream.usage
    # One chunk for each token, the role's and the usage's, but not the comments or [DONE].
    assert events == stream.usage.output_tokens + 2
    assert counter.tokens == stream.usage.output_tokens + 1


@given(cut(choices=3))
def test_the_parts_of_each_choice_are_put_together(found):
    stream, pieces = found
    shapes = AnswerShapes()
    message = {"role": "assistant", "content": "a", "refusal": None}
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": "stop", "token_ids": None}
    usage = {"prompt_tokens": 1, "total_tokens": 2, "completion_tokens": 1, "prompt_tokens_details": None}
    answer = {"id": "", "object": "chat.completion", "created": 0, "model": "", "choices": [choice], "usage": usage}
    shapes.learn(RouteKind.CHAT, answer | {"system_fingerprint": None, "metrics": None})
    shape = shapes.get(RouteKind.CHAT)
    assert shape is not None
    aggregator = Aggregator(RouteKind.CHAT, shape)
    for piece in pieces:
        aggregator.feed(piece)
    status, body = aggregator.answer()
    document = json.loads(body)
    assert status == 200
    assert [each["message"]["content"] for each in document["choices"]] == stream.texts
    assert {each["finish_reason"] for each in document["choices"]} == {"length"}
    assert list(document) == [*answer, "system_fingerprint", "metrics"]
    assert document["usage"] == {**usage, "prompt_tokens": 5} | {
        "total_tokens": 5 + stream.usage.output_tokens,
        "completion_tokens": stream.usage.output_tokens,
    }
