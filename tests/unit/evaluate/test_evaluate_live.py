from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from uellm.cli.evaluate_live import shrunk
from uellm.cli.main import main
from uellm.errors import CannotBeDone
from uellm.evaluate.live import Endpoint, LiveOptions, prompt_ids, replay_live, served_model
from uellm.evaluate.measure import measure
from uellm.evaluate.scenario import Job, RequestClass
from uellm.evaluate.traces import Trace, TraceRequest
from uellm.sidecar.scheduling import Lengths, Targets

CHAT = RequestClass(Targets("chat", ttft_s=5.0, tpot_s=1.0), 1.0)


class Engine:
    """Streams the requested tokens. `acts[n]` changes the answer to request n."""

    def __init__(self) -> None:
        self.seen: list[tuple[dict[str, Any], dict[str, str]]] = []
        self.acts: dict[int, str] = {}
        self.preemptions = 0
        self.open = 0
        self.most_open = 0
        self.key: str | None = None

    async def completions(self, request: web.Request) -> web.StreamResponse:
        act = self.acts.get(len(self.seen), "well")
        body = await request.json()
        self.seen.append((body, {name.lower(): value for name, value in request.headers.items()}))
        if act == "refuse":
            return web.json_response({"error": {"message": "too busy"}}, status=429)
        self.open += 1
        self.most_open = max(self.most_open, self.open)
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        try:
            for event in self.events(body["max_tokens"], act):
                await response.write(event)
                await asyncio.sleep(0)
            if act == "hang":
                await asyncio.Event().wait()
        finally:
            self.open -= 1
        self.preemptions += 1
        return response

    def events(self, tokens: int, act: str) -> list[bytes]:
        pieces: list[Any] = [{"choices": [{"text": "x"}], "usage": None}] * tokens
        if act == "break":
            return [
                b"data: " + json.dumps(piece).encode() + b"\n\n" for piece in [*pieces, {"error": {"message": "gone"}}]
            ]
        pieces.append({"choices": [], "usage": {"completion_tokens": tokens}})
        lines = [b"data: " + json.dumps(piece).encode() + b"\r\n\r\n" for piece in pieces]
        return lines if act in ("hang", "cut") else [*lines, b": a comment\n\n", b"data: [DONE]\n\n"]

    async def models(self, request: web.Request) -> web.Response:
        if self.key is not None and request.headers.get("authorization") != f"Bearer {self.key}":
            raise web.HTTPUnauthorized
        return web.json_response({"data": [{"id": "toy"}]})

    async def metrics(self, _request: web.Request) -> web.Response:
        return web.Response(text=f'vllm:num_preemptions_total{{engine="0"}} {self.preemptions}.0\n')


@pytest.fixture
def engine() -> Engine:
    return Engine()


@pytest.fixture
async def url(engine: Engine) -> AsyncIterator[str]:
    app = web.Application()
    app.add_routes(
        [
            web.post("/v1/completions", engine.completions),
            web.get("/v1/models", engine.models),
            web.get("/metrics", engine.metrics),
        ]
    )
    async with TestServer(app) as server:
        yield str(server.make_url("/")).rstrip("/")


def jobs(count: int, gap_s: float = 0.01, **others: Any) -> list[Job]:
    fields: dict[str, Any] = {"client": "", "blocks": (), "lengths": Lengths(5.0, 9.0)} | others
    return [
        Job(i, gap_s * i, 20 + i, 3 + i, CHAT, fields["client"], fields["blocks"], fields["lengths"])
        for i in range(count)
    ]


async def test_every_request_is_sent_with_its_lengths_class_and_tenant(engine: Engine, url: str) -> None:
    outcome = await replay_live(jobs(5, client="acme"), Endpoint("toy", url, "toy", "secret"), LiveOptions())

    assert sorted((len(body["prompt"]), body["max_tokens"]) for body, _ in engine.seen) == [
        (20 + i, 3 + i) for i in range(5)
    ]
    assert all(body["stream_options"] == {"include_usage": True} and "priority" not in body for body, _ in engine.seen)
    headers = engine.seen[0][1]
    assert headers["x-slo-class"] == "chat"
    assert headers["x-llm-d-inference-fairness-id"] == "acme"
    assert headers["authorization"] == "Bearer secret"
    assert [fate.tokens for fate in outcome.fates] == [3 + i for i in range(5)]
    assert measure(jobs(5), outcome)["attainment"]["all"] == 1.0
    assert outcome.preempted == 5


async def test_arrivals_do_not_wait_for_answers(engine: Engine, url: str) -> None:
    engine.acts = dict.fromkeys(range(20), "hang")

    outcome = await replay_live(jobs(20), Endpoint("toy", url, "toy"), LiveOptions(speed=10.0, timeout_s=3.0))

    assert engine.most_open == 20
    assert all(fate.end_s is None and not fate.refused for fate in outcome.fates)


async def test_refused_broken_and_truncated_answers_are_misses_and_reported_once(engine: Engine, url: str) -> None:
    engine.acts = {0: "refuse", 1: "break", 2: "cut"}
    told: list[str] = []

    outcome = await replay_live(jobs(4, gap_s=0.2), Endpoint("toy", url, "toy"), LiveOptions(), told.append)

    figures = measure(jobs(4), outcome)
    assert (figures["attainment"]["all"], figures["shed"]) == (0.25, 1)
    assert told == ['toy: 3 requests failed; the first: request 0: 429 {"error": {"message": "too busy"}}']


async def test_an_endpoint_that_orders_by_priority_gets_deadlines(engine: Engine, url: str) -> None:
    await replay_live(jobs(2, gap_s=0.05), Endpoint("toy", url, "toy", priorities=True), LiveOptions())

    assert sorted(body["priority"] for body, _ in engine.seen) == [5000, 5050]


async def test_an_endpoint_without_a_model_is_an_error() -> None:
    with pytest.raises(CannotBeDone, match="check that the endpoint is up"):
        await served_model("http://127.0.0.1:1")


async def test_an_endpoint_with_keys_is_asked_for_its_model_with_one(engine: Engine, url: str) -> None:
    engine.key = "secret"

    assert await served_model(url, "secret") == "toy"
    with pytest.raises(CannotBeDone, match="lists no model"):
        await served_model(url)


async def test_the_command_replays_against_each_endpoint_in_turn(
    engine: Engine, url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "t.csv").write_text("arrival_s,input_tokens,output_tokens\n0,40,10\n0.01,400,20\n0.02,4000,20\n")
    (tmp_path / "c.yaml").write_text("classes: [{name: chat, ttft: 5s}]")
    files = ["--trace", str(tmp_path / "t.csv"), "--classes", str(tmp_path / "c.yaml")]
    options = ["--max-tokens-per-request", "100", "--shrink", "10", "-o", "json", "--api-key", "secret"]
    engine.key = "secret"

    arguments = ["evaluate", "live", "--url", f"bare={url}", f"sidecar={url}/v1", *files, *options]
    assert await asyncio.to_thread(main, arguments) == 0

    document = json.loads(capsys.readouterr().out)
    assert document["requests"] == 2
    assert [(r["policy"], r["attainment"]["all"]) for r in document["results"]] == [("bare", 1.0), ("sidecar", 1.0)]
    assert {body["model"] for body, _ in engine.seen} == {"toy"}


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--url", "x"], "--url: 'x' must be NAME=URL"),
        (["--url", "a=http://h", "--priority", "b", "--model", "m"], "--priority: no --url names the endpoint b"),
        (["--url", "a=http://h", "a=http://i", "--model", "m"], "--url: two endpoints have the same name"),
    ],
)
def test_wrong_endpoints_are_named(
    options: list[str], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "t.csv").write_text("arrival_s,input_tokens,output_tokens\n0,40,10\n")
    (tmp_path / "c.yaml").write_text("classes: [{name: chat, ttft: 5s}]")

    assert (
        main(["evaluate", "live", *options, "--trace", str(tmp_path / "t.csv"), "--classes", str(tmp_path / "c.yaml")])
        == 2
    )
    assert says in capsys.readouterr().err


def test_equal_prefix_blocks_are_equal_tokens_and_all_else_differs() -> None:
    first, second = (Job(i, 0.0, 1100, 1, CHAT, "", blocks, None) for i, blocks in ((1, (7, 8, 9)), (2, (7, 5, 9))))

    assert len(prompt_ids(first)) == 1100
    assert prompt_ids(first)[:512] == prompt_ids(second)[:512]
    assert prompt_ids(first)[512:1024] != prompt_ids(second)[512:1024]


def test_a_shrunk_trace_keeps_at_least_a_token() -> None:
    trace = Trace("t", (TraceRequest(0.0, 1000, 3, "a", (1, 2)),))

    assert shrunk(trace, 10).requests == (TraceRequest(0.0, 100, 1, "a"),)
    assert shrunk(trace, 1) is trace
