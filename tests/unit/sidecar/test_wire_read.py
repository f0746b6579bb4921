"""What the sidecar reads from a request, and which parts of it reach the engine."""

from __future__ import annotations

import json
from typing import Any

import pytest
from multidict import CIMultiDict

from uellm.prompt import BLOCK_TOKENS, MEDIA_TOKENS
from uellm.prompt.found import MAX_VALUES
from uellm.proxying.outcome import Refusal, RequestOutcome
from uellm.sidecar.scheduling import Targets
from uellm.sidecar.wire.call import Call, Mode
from uellm.sidecar.wire.read import MAX_COMMAS, MAX_NESTED, MOST_TOKENS, UNREAD_TOKENS, Terms, read
from uellm.sidecar.wire.slo import targets_of
from uellm.vllm_routes import SCHEDULED, RouteKind

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
MESSAGES = [{"role": "user", "content": "How does the import statement work?"}]
CLASSES = {
    "chat": Targets("chat", 10, ttft_s=0.5, tpot_s=0.05, reject_late=True),
    "batch": Targets("batch", 0, e2e_s=60.0),
}
ANSWER = {
    "id": "x",
    "object": "chat.completion",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "a"}}],
    "usage": {"prompt_tokens": 1},
}


@pytest.fixture
def terms() -> Terms:
    """An engine whose answers are known."""
    terms = Terms()
    terms.shapes.learn(RouteKind.CHAT, ANSWER)
    terms.shapes.learn(RouteKind.COMPLETIONS, {**ANSWER, "choices": [{"index": 0, "text": "a"}]})
    return terms


def call(terms: Terms, body: Any, path: str = CHAT, *, accepts_priority: bool = False, **headers: str) -> Call:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    named = CIMultiDict({name.replace("_", "-"): value for name, value in headers.items()})
    return read(path, named, raw, targets_of(named, CLASSES), terms, accepts_priority=accepts_priority)


def chat(**fields: Any) -> dict[str, Any]:
    return {"model": "tiny", "messages": MESSAGES, **fields}


def test_a_plain_request_goes_upstream_as_a_stream_with_its_usage(terms):
    read = call(terms, chat(max_tokens=7))
    assert read.mode is Mode.AGGREGATE
    options = {"stream": True, "stream_options": {"include_usage": True}}
    assert json.loads(read.upstream_body()) == chat(max_tokens=7) | options
    assert (read.max_tokens, read.sequences, read.targets) == (7, 1, CLASSES["chat"])


def test_a_stream_is_asked_for_its_usage_though_the_client_did_not(terms):
    read = call(terms, chat(stream=True))
    assert read.mode is Mode.STREAM_STRIP_USAGE
    assert json.loads(read.upstream_body()) == chat(stream=True, stream_options={"include_usage": True})


def test_a_client_that_wants_the_usage_gets_its_own_bytes_upstream(terms):
    body = b'{ "messages" : [], "stream":true, "stream_options": {"include_usage": true, "continuous_usage_stats":1} }'
    read = call(terms, body)
    assert (read.mode, read.upstream_body()) == (Mode.STREAM_AS_IS, body)


@pytest.mark.parametrize("options", [None, {}, {"include_usage": False}, {"continuous_usage_stats": True}])
def test_stream_options_that_ask_for_no_usage_are_replaced(terms, options):
    sent = json.loads(call(terms, chat(stream=True, stream_options=options)).upstream_body())
    assert sent["stream_options"] == {"include_usage": True}


@pytest.mark.parametrize("given", [{"stream": False}, {"stream": None, "stream_options": None}])
def test_a_field_is_never_there_twice(terms, given):
    names: list[str] = []
    body = call(terms, chat(**given)).upstream_body()
    json.loads(body, object_pairs_hook=lambda found: names.extend(name for name, _ in found))
    assert names.count("stream") == names.count("stream_options") == 1


@pytest.mark.parametrize(
    "fields",
    [
        {"tools": [{"type": "function", "function": {"name": "f"}}]},
        {"tool_choice": "required"},
        {"echo": True},
        {"use_beam_search": True, "n": 2},
        {"prompt_logprobs": 1},
        {"return_token_ids": True},
        {"kv_transfer_params": {"do_remote_decode": True}},
        {"response_format": {"type": "json_object"}},
        {"structured_outputs": {"regex": "a+"}},
        {"logprobs": True, "stop": ["."]},
        {"n": 2.0},
        {"n": True},
        {"stream": 0},
        {"stream": "no"},
        {"some_field_of_tomorrow": 1},
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,"}}]}]},
    ],
)
def test_requests_whose_stream_may_differ_are_passed_on_unchanged(terms, fields):
    raw = json.dumps(chat(**fields)).encode()
    read = call(terms, raw)
    assert (read.mode, read.upstream_body()) == (Mode.AS_IS, raw)


def test_no_answer_is_assembled_before_the_engine_has_sent_one(terms):
    terms.shapes.forget()
    plain = call(terms, chat())
    assert (plain.mode, plain.teaches) == (Mode.AS_IS, True)
    assert not call(terms, chat(tools=[])).teaches
    terms.shapes.learn(RouteKind.CHAT, ANSWER)
    assert call(terms, chat()).mode is Mode.AGGREGATE


def test_whole_answers_with_a_load_report_in_their_headers_are_the_engines_own(terms):
    assert call(terms, chat(), endpoint_load_metrics_format="TEXT").mode is Mode.AS_IS


def test_several_choices_are_streamed_unchanged(terms):
    assert call(terms, chat(stream=True, n=2)).mode is Mode.STREAM_AS_IS
    assert call(terms, {"prompt": ["a", "b"], "stream": True}, COMPLETIONS).mode is Mode.STREAM_AS_IS
    assert call(terms, chat(n=3)).sequences == 3
    assert call(terms, {"prompt": ["a", "b"], "n": 2}, COMPLETIONS).sequences == 4


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'"x"',
        b"\xff{}",
        b"\xef\xbb\xbf{}",
        '{"messages": []}'.encode("utf-16"),
        b"[" * 100_000,
        b'{"n": ' + b"9" * 5000 + b"}",
    ],
)
@pytest.mark.parametrize("path", sorted(SCHEDULED))
def test_an_unreadable_body_is_passed_on_unchanged(terms, body, path):
    read = call(terms, body, path, accepts_priority=True)
    assert (read.mode, read.upstream_body(5), read.prompt_tokens >= 1) == (Mode.AS_IS, body, True)


@pytest.mark.parametrize(
    "value", [None, 1, "text", [], {}, [None], [[]], [{}], {"a": {"b": [1, "c"]}}, True, -1, 1e300]
)
@pytest.mark.parametrize("path", sorted(SCHEDULED))
def test_values_of_the_wrong_type_are_the_engines_to_refuse(terms, value, path):
    names = ("messages", "prompt", "input", "n", "max_tokens", "stream_options", "tools", "system", "response_format")
    for name in names:
        for stream in (True, False):
            read = call(terms, {name: value, "stream": stream}, path)
            assert read.sequences >= 1
            assert json.loads(read.upstream_body()).get(name, value) == value or name == "stream_options"


@pytest.mark.parametrize("text", ["字äö", "\\ud83d", "\\ud83d\\ude00", "\\u0000", '\\"', "1e999"])
def test_a_rewritten_body_has_the_same_meaning(terms, text):
    body = f'{{"stream": false, "seed": 12345678901234567890, "user": "{text}", "top_p": 0.1}}'.encode()
    sent = call(terms, body)
    assert sent.mode is Mode.AGGREGATE
    assert json.loads(sent.upstream_body()) == json.loads(body) | json.loads(call(terms, b"{}").upstream_body())
    assert len(sent.body) <= len(body)


def test_an_empty_object_stays_json(terms):
    assert json.loads(call(terms, b" { } ").upstream_body()) == {
        "stream": True,
        "stream_options": {"include_usage": True},
    }


def test_priority_is_set_if_the_engine_uses_it_and_removed_from_clients_requests(terms):
    assert "priority" not in json.loads(call(terms, chat()).upstream_body(5))
    assert json.loads(call(terms, chat(priority=-9)).upstream_body(5))["priority"] == -9
    for fields in ({}, {"priority": -9}, {"stream": True}, {"tools": []}):
        sent = call(terms, chat(**fields), accepts_priority=True)
        assert json.loads(sent.upstream_body(5))["priority"] == 5
    pooled = call(terms, {"input": "x"}, "/v1/embeddings", accepts_priority=True)
    assert json.loads(pooled.upstream_body(5))["priority"] == 5
    scored = call(terms, {"query": "x", "items": ["y"]}, "/generative_scoring", accepts_priority=True)
    assert "priority" not in json.loads(scored.upstream_body(5)), "vLLM's request of this route has no such field"


@pytest.mark.parametrize(
    ("path", "fields", "limit"),
    [
        (CHAT, {"max_tokens": 5, "max_completion_tokens": 7}, 7),
        (CHAT, {}, None),
        (CHAT, {"max_tokens": "many"}, None),
        (COMPLETIONS, {"prompt": "a"}, 16),
        (COMPLETIONS, {"prompt": "a", "max_tokens": None}, None),
        ("/v1/responses", {"input": "a", "max_output_tokens": 9}, 9),
        ("/v1/messages", {"max_tokens": 3}, 3),
        ("/v1/embeddings", {"input": "a"}, 1),
    ],
)
def test_the_limit_of_the_answer_is_found_under_each_routes_name_for_it(terms, path, fields, limit):
    assert call(terms, fields, path).max_tokens == limit


def test_any_number_is_a_limit_of_the_answer(terms):
    for name in ("max_tokens", "max_completion_tokens"):
        read = call(terms, chat(**{name: 10**400}))
        assert read.max_tokens == MOST_TOKENS
        assert json.loads(read.upstream_body())[name] == 10**400


def test_token_ids_are_counted_and_texts_estimated(terms):
    assert call(terms, {"prompt": list(range(700))}, COMPLETIONS).prompt_tokens == 700
    assert call(terms, {"prompt": [[1, 2], [3]]}, COMPLETIONS).prompt_tokens == 3
    assert 90 <= call(terms, {"prompt": "word " * 80}, COMPLETIONS).prompt_tokens <= 110
    image = {
        "role": "user",
        "content": [{"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 9999}}],
    }
    assert MEDIA_TOKENS <= call(terms, chat(messages=[image])).prompt_tokens <= MEDIA_TOKENS + 10


def test_the_estimate_learns_from_what_the_engine_counts(terms):
    body = chat(messages=[{"role": "user", "content": "字" * 1000}])
    for _ in range(400):
        terms.ratio.learn(call(terms, body).prompt, 1005)
    assert 900 <= call(terms, body).prompt_tokens <= 1100


def test_requests_of_one_program_have_one_template_and_others_another(terms):
    def template(system: str, text: str) -> int:
        turns = [{"role": "system", "content": system}, {"role": "user", "content": text}]
        return call(terms, chat(messages=turns)).prompt.template

    opening = "Summarise the text below in a single sentence, please: "
    assert template("You are terse.", opening + "one") == template("You are terse.", opening + "another")
    assert template("You are terse.", opening) != template("You are verbose.", opening)
    assert template("You are terse.", opening) != template("You are terse.", "Translate into French: ")


def test_prompts_that_begin_alike_share_the_hashes_of_their_beginning(terms):
    def prefix(given: Any) -> tuple[int, ...]:
        return call(terms, {"prompt": given}, COMPLETIONS).prompt.prefix

    block = BLOCK_TOKENS * 4
    one, other = prefix("a" * 3 * block), prefix("a" * 2 * block + "b" * block)
    assert (len(one), one[:2] == other[:2], one[2] == other[2]) == (3, True, False)
    ids = list(range(3 * BLOCK_TOKENS))
    assert prefix(ids)[:2] == prefix([*ids[: 2 * BLOCK_TOKENS], 1, 2, 3])
    assert prefix("short") == ()


def test_a_class_is_named_by_its_header_else_it_is_the_default(terms):
    assert call(terms, chat()).targets.name == "chat"
    assert call(terms, chat(), x_slo_class="batch").targets is CLASSES["batch"]
    assert call(terms, chat(), x_llm_d_inference_objective="batch").targets is CLASSES["batch"]
    assert call(terms, chat(), x_llm_d_inference_objective="unheard-of").targets is CLASSES["chat"]
    with pytest.raises(Refusal, match="it has: chat, batch") as refused:
        call(terms, chat(), x_slo_class="gold")
    assert (refused.value.outcome, refused.value.status) == (RequestOutcome.BAD_REQUEST, 400)


def test_targets_in_milliseconds_are_the_requests_own(terms):
    own = call(terms, chat(), x_llm_d_slo_ttft_ms="250").targets
    assert own == Targets("chat", 10, ttft_s=0.25, reject_late=True)
    named = call(terms, chat(), x_slo_class="batch", x_llm_d_slo_tpot_ms="40.5").targets
    assert named == Targets("batch", 0, tpot_s=0.0405, e2e_s=60.0)


@pytest.mark.parametrize("value", ["0", "-1", "nan", "inf", "fast", "", "1e99"])
@pytest.mark.parametrize("header", ["x_llm_d_slo_ttft_ms", "x_llm_d_slo_tpot_ms"])
def test_invalid_targets_are_refused_in_one_line(terms, header, value):
    with pytest.raises(Refusal) as refused:
        call(terms, chat(), **{header: value})
    assert refused.value.status == 400
    assert header.replace("_", "-") in refused.value.message
    assert "\n" not in refused.value.message


def test_the_tenant_is_the_fairness_id_else_the_keys_hash_else_none(terms):
    assert call(terms, chat()).tenant == ""
    keyed = call(terms, chat(), authorization="Bearer sk-planted-1234").tenant
    assert keyed
    assert "planted" not in keyed
    assert keyed == call(terms, chat(), x_api_key="sk-planted-1234").tenant
    assert keyed != call(terms, chat(), authorization="Bearer sk-other").tenant
    assert call(terms, chat(), authorization="Bearer a", x_llm_d_inference_fairness_id="team-a").tenant == "team-a"
    assert len(call(terms, chat(), x_llm_d_inference_fairness_id="t" * 5000).tenant) < 100


@pytest.mark.parametrize("value", ["{}", "[]", '{"role":"user"}'])
def test_a_body_of_very_many_objects_is_sent_unread(terms, value):
    body = b'{"messages":[' + ",".join([value] * (MAX_NESTED + 1)).encode() + b"]}"
    read = call(terms, body)
    assert (read.mode, read.prompt_tokens, read.upstream_body()) == (Mode.AS_IS, UNREAD_TOKENS, body)


def test_a_body_of_very_many_numbers_is_sent_unread(terms):
    body = b'{"prompt":[' + b",".join([b"1"] * (MAX_COMMAS + 2)) + b"]}"
    read = call(terms, body, COMPLETIONS)
    assert (read.mode, read.prompt_tokens, read.upstream_body()) == (Mode.AS_IS, MAX_COMMAS + 1, body)


def test_a_long_text_with_very_many_commas_and_quotes_is_read(terms):
    text = "a, 'b', " * 200_000
    assert call(terms, chat(messages=[{"role": "user", "content": text}])).prompt.characters >= len(text)


def test_of_very_many_texts_only_the_first_are_looked_at(terms):
    read = call(terms, {"prompt": ["ab"] * (3 * MAX_VALUES)}, COMPLETIONS)
    assert 2 * MAX_VALUES - 2 <= read.prompt.characters <= 2 * MAX_VALUES


@pytest.mark.parametrize("odd", [["x"], {"a": 1}, 7])
def test_a_role_or_type_of_another_kind_is_no_fault_of_ours(terms, odd):
    messages = [{"role": odd, "content": [{"type": odd, "text": "abc"}]}]
    assert call(terms, chat(messages=messages)).prompt.characters >= 3
