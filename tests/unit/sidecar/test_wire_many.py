"""Bodies of many conversations, and of token ids: read for what they are, and sent as they came."""

from __future__ import annotations

import json

import pytest

from uellm.prompt import MEDIA_TOKENS
from uellm.sidecar.scheduling import Targets
from uellm.sidecar.wire.call import Call, Mode
from uellm.sidecar.wire.read import MAX_SEQUENCES, Terms, read

CONVERSATIONS, TOKEN_IDS = "/v1/chat/completions/batch", "/inference/v1/generate"
TEXT = "x" * 380  # 95 tokens at the first ratio, and 5 for the message
ONE = [{"role": "user", "content": TEXT}]


def call_of(path: str, document: object, *, accepts_priority: bool = False) -> Call:
    raw = json.dumps(document).encode()
    call = read(path, {}, raw, Targets("default"), Terms(), accepts_priority=accepts_priority)
    assert call.mode in (Mode.AS_IS, Mode.STREAM_AS_IS)
    if not accepts_priority:
        assert call.upstream_body() == raw
    return call


def test_all_conversations_of_a_body_count() -> None:
    call = call_of(CONVERSATIONS, {"model": "m", "messages": [ONE] * 200, "max_tokens": 500})
    assert (call.prompt_tokens, call.sequences, call.max_tokens, call.model) == (20_000, 200, 500, "m")


def test_conversations_of_several_turns_and_with_media_count_whole() -> None:
    picture = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://a/b.png"}}]}]
    call = call_of(CONVERSATIONS, {"messages": [ONE * 3, picture], "max_completion_tokens": 7})
    assert (call.prompt_tokens, call.sequences, call.max_tokens) == (300 + 5 + MEDIA_TOKENS, 2, 7)


def test_programs_whose_conversations_begin_alike_share_a_template() -> None:
    system = [{"role": "system", "content": "You sort tickets."}]
    some, more = (call_of(CONVERSATIONS, {"messages": [system + ONE] * count}) for count in (2, 9))
    alone = call_of("/v1/chat/completions", {"messages": system + ONE, "tools": []})
    assert some.prompt.template == more.prompt.template == alone.prompt.template


def test_token_ids_are_counted_exactly_for_each_sample() -> None:
    sampling = {"max_tokens": 500, "n": 8}
    body = {"model": "sql", "token_ids": list(range(1000)), "sampling_params": sampling}
    call = call_of(TOKEN_IDS, body)
    assert (call.prompt_tokens, call.sequences, call.max_tokens, call.model) == (1000, 8, 500, "sql")
    assert call.prompt.prefix
    assert call_of(TOKEN_IDS, body | {"stream": True}).mode is Mode.STREAM_AS_IS
    assert call_of(TOKEN_IDS, body | {"content_parts": [{}, {}]}).prompt_tokens == 1000 + 2 * MEDIA_TOKENS


@pytest.mark.parametrize("path", [CONVERSATIONS, TOKEN_IDS])
def test_the_engines_priority_is_set_where_it_orders_by_one(path) -> None:
    body = {"messages": [ONE], "token_ids": [1], "priority": 3}
    sent = json.loads(call_of(path, body, accepts_priority=True).upstream_body(7))
    assert sent == body | {"priority": 7}


@pytest.mark.parametrize("odd", [None, {}, "a", 3, [], [3], ["a"], [[]], [{"role": "user"}], {"n": "x"}])
def test_a_body_that_the_engine_will_refuse_is_sent_as_it_is(odd) -> None:
    for path in (CONVERSATIONS, TOKEN_IDS):
        call = call_of(path, {"messages": odd, "token_ids": odd, "sampling_params": odd, "content_parts": odd})
        assert call.prompt_tokens >= 1
        assert 1 <= call.sequences <= MAX_SEQUENCES
