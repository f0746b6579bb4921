"""The official client gets the same answers from the sidecar and from vLLM: one real engine behind both addresses."""

from __future__ import annotations

import json
import re
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import openai
import pytest
import yaml

from helpers.real_engine import end, start, wait_for
from uellm_devcluster import tinymodel
from uellm_devcluster.local import free_port

PLANTED_PROMPT, PLANTED_KEY = "zanzibarprompt", "sk-zanzibarkey"
CHAT, COMPLETIONS, RESPONSES, MESSAGES = "/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages"
ASKED = [{"role": "user", "content": f"How does the import statement work? äöü 字 {PLANTED_PROMPT}"}]
GREEDY = {"model": "tiny", "temperature": 0, "max_tokens": 12}
DRAWN = GREEDY | {"temperature": 0.9, "seed": 7}
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {"type": "object", "properties": {"rain": {"type": "boolean"}}, "required": ["rain"]},
    },
}


@dataclass
class Both:
    """The two addresses, and the sidecar's metrics."""

    engine: str
    sidecar: str
    metrics: str
    log: Path
    vocabulary: dict[str, int]
    numbers: Iterator[int] = field(default_factory=count)
    first: dict[str, float] = field(default_factory=dict)
    """Counts after the first answers, each of one token and passed on unchanged."""

    def ask(self, path: str, body: dict[str, Any] | bytes) -> tuple[Answer, Answer]:
        """The engine's own answer and the sidecar's answer to the same request with the same id."""
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        headers = {"Content-Type": "application/json", "X-Request-Id": f"both-{next(self.numbers)}"}
        headers["Authorization"] = f"Bearer {PLANTED_KEY}"
        return tuple(fetch(urllib.request.Request(base + path, raw, headers)) for base in (self.engine, self.sidecar))

    def counted(self) -> dict[str, float]:
        """Numbers of requests by outcome, and in progress."""
        text = fetch(urllib.request.Request(f"{self.metrics}/metrics")).body.decode()
        found: dict[str, float] = {}
        for name, _, value in (line.rpartition(" ") for line in text.splitlines()):
            if name.startswith("uellm_requests_total{"):
                outcome = name.partition('outcome="')[2].partition('"')[0]
                found[outcome] = found.get(outcome, 0.0) + float(value)
            elif name == "uellm_requests_in_flight" or name.startswith("uellm_faults_total"):
                found[name] = float(value)
        return found

    def clients(self) -> tuple[openai.OpenAI, openai.OpenAI]:
        return tuple(
            openai.OpenAI(base_url=f"{base}/v1", api_key=PLANTED_KEY, max_retries=0)
            for base in (self.engine, self.sidecar)
        )

    def same(self, call: Callable[[openai.OpenAI], Any]) -> Any:
        """The official client's result for both, which must be equal except for ids and times."""
        direct, through = (timeless(call(client)) for client in self.clients())
        assert through == direct
        return direct


@dataclass
class Answer:
    status: int
    content_type: str
    body: bytes

    def timeless(self) -> tuple[int, str, bytes]:
        body = re.sub(rb'"(created|created_at)":\d+', rb'"\1":0', self.body)
        return self.status, self.content_type, re.sub(rb'"((?:[a-z]+_)?id)":"[^"]*"', rb'"\1":""', body)


def fetch(request: urllib.request.Request) -> Answer:
    try:
        with urllib.request.urlopen(request, timeout=120) as response:
            return Answer(response.status, response.headers["Content-Type"], response.read())
    except urllib.error.HTTPError as error:
        return Answer(error.code, error.headers["Content-Type"], error.read())


def timeless(value: Any) -> Any:
    """The fields of the client's objects, errors and lists of them, without those that are new in every answer."""
    if isinstance(value, openai.APIStatusError):
        return value.status_code, type(value).__name__, value.body
    if isinstance(value, list):
        return [timeless(each) for each in value]
    if hasattr(value, "model_dump"):
        return timeless(value.model_dump())
    if isinstance(value, dict):
        new = ("id", "created", "created_at", "completed_at", "item_id")
        return {name: timeless(each) for name, each in value.items() if name not in new}
    return value


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Both]:
    scratch = tmp_path_factory.mktemp("exact")
    tinymodel.make(scratch / "model")
    vocabulary = json.loads((scratch / "model" / "tokenizer.json").read_text())["model"]["vocab"]
    engine, sidecar, metrics = (f"127.0.0.1:{free_port()}" for _ in range(3))
    config = scratch / "sidecar.yaml"
    config.write_text(yaml.safe_dump({"model": "tiny", "classes": [{"name": "chat", "ttft": "10s", "tpot": "1s"}]}))
    programs = Path(sys.executable).parent
    serve = [programs / "vllm", "serve", scratch / "model", "--served-model-name", "tiny", "--host", "127.0.0.1"]
    serve += ["--port", engine.rpartition(":")[2], "--dtype", "float32", "-cc.mode=2", "-cc.backend=eager"]
    serve += ["--kv-cache-memory-bytes", "128M", "--max-model-len", "1024", "--max-num-seqs", "16"]
    serve += ["--enable-auto-tool-choice", "--tool-call-parser", "hermes"]
    front = [programs / "uellm", "sidecar", "--listen", sidecar, "--engine", f"http://{engine}"]
    front += ["--config", config, "--metrics-listen", metrics]
    processes = []
    try:
        for name, command in (("engine", serve), ("sidecar", front)):
            processes.append(start(command, scratch / f"{name}.log"))
        wait_for(f"http://{engine}/health", processes[0], scratch / "engine.log")
        wait_for(f"http://{metrics}/readyz", processes[1], scratch / "sidecar.log")
        found = Both(f"http://{engine}", f"http://{sidecar}", f"http://{metrics}", scratch / "sidecar.log", vocabulary)
        # The first answers show the sidecar the format of the engine's answers.
        for path, body in ((CHAT, {"messages": ASKED}), (COMPLETIONS, {"prompt": "a"})):
            found.ask(path, GREEDY | body | {"max_tokens": 1})
        found.first = found.counted()
        yield found
    finally:
        for process in processes[::-1]:
            end(process)


WHOLE = [
    *({}, {"max_tokens": 1}, {"stop": ["the", "width"]}, {"stop": ["wid"], "include_stop_str_in_output": True}),
    *({"logit_bias": {"100": 50}}, {"min_tokens": 3, "stop_token_ids": [5], "allowed_token_ids": [100, 200, 300]}),
    *(DRAWN, DRAWN | {"n": 3}, DRAWN | {"temperature": 1.5, "max_tokens": 64}, DRAWN | {"top_p": 0.5, "top_k": 3}),
    *({"stream": False, "response_format": {"type": "text"}}, {"bad_words": ["width"]}, {"user": "me"}),
    # Requests that the engine refuses before or after its answer begins.
    *({"n": 2}, {"max_tokens": 5000}, {"model": "nope"}, {"temperature": -1}, {"allowed_token_ids": [99999999]}),
    *({"logit_bias": {"99999999": 1}}, {"allowed_token_ids": []}, {"max_tokens": 0}, {"n": 0}, {"seed": "x"}),
    # Answers that are passed on unchanged.
    *({"echo": True}, {"prompt_logprobs": 1}, {"return_token_ids": True}, {"use_beam_search": True, "n": 2}),
]
IN_CHATS = [
    *({"logprobs": True}, {"logprobs": True, "top_logprobs": 3}, DRAWN | {"n": 2, "logprobs": True, "top_logprobs": 2}),
    *({"messages": []}, {"messages": "x"}, {"top_logprobs": 9999, "logprobs": True}),
    *({"tools": [WEATHER]}, {"tools": [WEATHER], "tool_choice": "required", "max_tokens": 40}),
    *({"logprobs": True, "stop": ["the"]}, {"response_format": {"type": "json_object"}}),
]
IN_COMPLETIONS = [
    *({"logprobs": 2}, {"logprobs": 0}, {"prompt": ["a b", "c", "äö"], "logprobs": 1}, {"prompt": [1, 5, 6, 7]}),
    *(DRAWN | {"prompt": ["a b", "c"], "n": 2}, {"prompt": [[1, 5, 6, 7], [8]]}, {"prompt": ""}, {"prompt": []}),
    *(
        {"prompt": "a " * 2000},
        {"prompt": [99999999]},
        {"logprobs": 99},
        {"echo": True, "max_tokens": 0},
        {"suffix": "b"},
    ),
]


def cases() -> list[Any]:
    found = [(CHAT, GREEDY | {"messages": ASKED} | fields) for fields in WHOLE + IN_CHATS]
    found += [(COMPLETIONS, GREEDY | {"prompt": "a b"} | fields) for fields in WHOLE + IN_COMPLETIONS]
    return [
        pytest.param(path, body, id=f"{path.rsplit('/', 2)[-2]}-{number}") for number, (path, body) in enumerate(found)
    ]


@pytest.mark.parametrize(("path", "body"), cases())
def test_a_whole_answer_is_the_engines_own_to_the_byte(both, path, body):
    direct, through = both.ask(path, body)
    if b"chatcmpl-tool-" in direct.body:
        direct.body, through.body = (re.sub(rb"chatcmpl-tool-\w+", b"", each.body) for each in (direct, through))
    assert through.timeless() == direct.timeless()


ONE_TOKEN = {
    "tools": (CHAT, {"messages": ASKED, "tools": [WEATHER]}),
    "JSON": (CHAT, {"messages": ASKED, "response_format": {"type": "json_object"}}),
    "echo": (COMPLETIONS, {"prompt": "a b", "echo": True}),
    "messages": (MESSAGES, {"messages": ASKED}),
    "responses": (RESPONSES, {"input": "a b", "max_output_tokens": 1}),
}


def test_the_first_answers_were_of_one_token_and_gave_their_places_back(both):
    assert both.first == {"completed": 2.0, "uellm_requests_in_flight": 0.0}


@pytest.mark.parametrize(("path", "body"), ONE_TOKEN.values(), ids=ONE_TOKEN)
def test_a_whole_answer_of_one_token_completes_and_gives_its_place_back(both, path, body):
    asked = {"model": "tiny", "temperature": 0, "max_tokens": 1} | body
    if path == RESPONSES:
        del asked["max_tokens"]
    before = both.counted()
    direct, through = both.ask(path, asked)
    assert (through.status, direct.status) == (200, 200)
    after = both.counted()
    assert after["completed"] == before["completed"] + 1
    assert after["uellm_requests_in_flight"] == 0
    assert "internal_error" not in after
    assert not [name for name in after if name.startswith("uellm_faults_total")]


@pytest.mark.parametrize("fields", [{"logit_bias": {"99999999": 1}}, {"allowed_token_ids": [99999999]}])
@pytest.mark.parametrize(("path", "body"), [(CHAT, {"messages": ASKED}), (COMPLETIONS, {"prompt": "a b"})])
def test_an_error_inside_a_stream_is_not_a_completion(both, path, body, fields):
    before = both.counted()
    direct, through = both.ask(path, GREEDY | body | fields | {"stream": True})
    assert (through.status, through.content_type) == (direct.status, direct.content_type)
    assert b'"error"' in direct.body
    assert b'"error"' in through.body
    after = both.counted()
    assert after["completed"] == before["completed"]
    refused = [after.get(name, 0.0) - before.get(name, 0.0) for name in ("rejected_by_engine", "failed_by_engine")]
    assert sum(refused) == 1
    assert after["uellm_requests_in_flight"] == 0


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'{"messages": 5, "n": "x"}', b"\xff", b'{"stream": 1}'])
@pytest.mark.parametrize("path", [CHAT, COMPLETIONS, RESPONSES, MESSAGES, "/v1/embeddings", "/tokenize", "/v1/nothing"])
def test_an_unreadable_request_gets_the_engines_own_error(both, path, body):
    direct, through = both.ask(path, body)
    assert direct.status >= 400
    assert through.timeless() == direct.timeless()


def events(body: bytes) -> list[Any]:
    found = [part.removeprefix(b"data: ") for part in body.split(b"\n\n") if part]
    assert found[-1] == b"[DONE]"
    return [json.loads(part) for part in found[:-1]]


def merged(body: bytes) -> Any:
    """A stream without the borders of its events, because a busy engine may put two tokens into one event."""
    texts: dict[int, list[str]] = {}
    rest = []
    for event in events(body):
        for choice in event.get("choices", ()):
            delta = choice.pop("delta", choice)
            texts.setdefault(choice["index"], []).append(delta.pop("content", None) or delta.pop("text", None) or "")
            if choice.get("finish_reason"):
                rest.append((event, choice["index"]))
        if not event.get("choices"):
            rest.append((event, None))
    keys = [sorted(event) for event in events(body)]
    first, last = keys[0], keys[-1]
    return {index: "".join(parts) for index, parts in texts.items()}, timeless([each for each, _ in rest]), first, last


@pytest.mark.parametrize(
    "options", [None, {"include_usage": True}, {"include_usage": True, "continuous_usage_stats": True}]
)
@pytest.mark.parametrize(
    "fields", [{}, {"n": 2, "temperature": 0.9, "seed": 7}, {"stop": ["width"]}, {"max_tokens": 1}]
)
@pytest.mark.parametrize(("path", "body"), [(CHAT, {"messages": ASKED}), (COMPLETIONS, {"prompt": "a b"})])
def test_a_stream_is_the_engines_own(both, path, body, fields, options):
    direct, through = both.ask(path, GREEDY | body | fields | {"stream": True, "stream_options": options})
    assert (through.status, through.content_type) == (direct.status, direct.content_type) == (200, direct.content_type)
    assert merged(through.body) == merged(direct.body)


def test_the_official_clients_streams_are_the_same(both):
    def stream(client: openai.OpenAI) -> tuple[str, Any]:
        chunks = list(client.chat.completions.create(messages=ASKED, stream=True, **GREEDY))
        return "".join(chunk.choices[0].delta.content or "" for chunk in chunks), chunks[-1].system_fingerprint

    text, fingerprint = both.same(stream)
    assert text
    assert fingerprint


def test_the_official_clients_log_probabilities_are_the_same(both):
    options = GREEDY | {"logprobs": True, "top_logprobs": 2}
    found = both.same(lambda client: client.chat.completions.create(messages=ASKED, **options))
    assert len(found["choices"][0]["logprobs"]["content"]) == 12


def test_the_official_clients_two_choices_are_the_same(both):
    options = DRAWN | {"n": 2}
    found = both.same(lambda client: client.chat.completions.create(messages=ASKED, **options))
    assert len({choice["message"]["content"] for choice in found["choices"]}) == 2


@pytest.mark.parametrize("stream", [False, True])
def test_the_official_clients_tool_calls_are_the_same(both, stream):
    # A model with random weights would never finish a tool call by itself.
    closing = {str(both.vocabulary['"']): 100, str(both.vocabulary["}"]): 50}

    def call(client: openai.OpenAI) -> Any:
        wanted = {"type": "function", "function": {"name": "weather"}}
        options: Any = GREEDY | {"tools": [WEATHER], "tool_choice": wanted, "max_tokens": 60, "logit_bias": closing}
        answer = client.chat.completions.create(messages=ASKED, stream=stream, **options)
        parts = [chunk.choices[0].delta for chunk in answer] if stream else [answer.choices[0].message]
        calls = [call.function for part in parts for call in part.tool_calls or []]
        names, arguments = ("".join(getattr(call, name) or "" for call in calls) for name in ("name", "arguments"))
        return [names, arguments, "".join(part.content or "" for part in parts)]

    assert both.same(call)[0] == "weather"


def test_the_official_clients_responses_are_the_same(both):
    options = {"model": "tiny", "temperature": 0, "max_output_tokens": 12}
    whole = both.same(lambda client: client.responses.create(input=PLANTED_PROMPT, **options))
    assert whole["usage"]["output_tokens"] == 12

    def stream(client: openai.OpenAI) -> Any:
        found = list(client.responses.create(input="Hello", stream=True, **options))
        text = "".join(event.delta for event in found if event.type == "response.output_text.delta")
        return [text, found[0].type, found[-1].response]

    assert both.same(stream)[0]


def test_the_official_clients_errors_are_the_same(both):
    def failing(call: Callable[[openai.OpenAI], Any]) -> Callable[[openai.OpenAI], Any]:
        def run(client: openai.OpenAI) -> Any:
            with pytest.raises(openai.APIStatusError) as failed:
                call(client)
            return failed.value

        return run

    assert both.same(failing(lambda client: client.embeddings.create(model="tiny", input="x")))[0] == 404
    assert both.same(failing(lambda client: client.models.retrieve("nope")))[0] == 404
    unknown: Any = GREEDY | {"model": "nope"}
    assert both.same(failing(lambda client: client.chat.completions.create(messages=ASKED, **unknown)))[0] == 404


def test_models_and_messages_are_the_same(both):
    assert both.same(lambda client: client.models.list().data)
    for stream in (False, True):
        direct, through = both.ask(MESSAGES, GREEDY | {"messages": ASKED, "stream": stream})
        assert direct.status == 200
        assert len(through.body) == len(direct.body) or stream
        assert json.loads(direct.body)["content"] == json.loads(through.body)["content"] if not stream else True


def test_most_whole_answers_were_streams_to_the_engine_and_all_tokens_are_counted(both):
    def scraped() -> dict[str, float]:
        text = fetch(urllib.request.Request(f"{both.metrics}/metrics")).body.decode()
        lines = [line.rpartition(" ") for line in text.splitlines() if not line.startswith("#")]
        return {name: float(value) for name, _, value in lines}

    def tokens(figures: dict[str, float], name: str) -> float:
        return sum(value for key, value in figures.items() if key.startswith(name + "{"))

    before = scraped()
    request = urllib.request.Request(
        both.sidecar + CHAT,
        json.dumps(GREEDY | {"messages": ASKED, "max_tokens": 40}).encode(),
        {"Content-Type": "application/json"},
    )
    assert fetch(request).status == 200
    after = scraped()
    for name, engines in (("output", "generation"), ("prompt", "prompt")):
        ours = tokens(after, f"uellm_{name}_tokens_total") - tokens(before, f"uellm_{name}_tokens_total")
        theirs = tokens(after, f"vllm:{engines}_tokens_total") - tokens(before, f"vllm:{engines}_tokens_total")
        assert ours == theirs > 0
    assert tokens(after, "uellm_ttft_seconds_count") - tokens(before, "uellm_ttft_seconds_count") == 1


def test_neither_prompt_nor_key_is_in_a_log_or_a_metric(both):
    both.ask(CHAT, GREEDY | {"messages": ASKED})
    both.ask(CHAT, GREEDY | {"messages": ASKED, "temperature": -1})
    told = both.log.read_text()
    assert '"outcome": "completed"' in told
    for path in ("/metrics", "/uellm/slo"):
        told += fetch(urllib.request.Request(both.metrics + path)).body.decode()
    assert "zanzibar" not in told
