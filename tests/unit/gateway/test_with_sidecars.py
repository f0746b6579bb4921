"""The gateway in front of real sidecars: two hops, one reading of every request, and loads that choose the replica."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import anthropic
import openai
import pytest

from helpers.fake_engine import FakeEngine, eventually
from helpers.smuggling import CORPUS, REWRITTEN, Recorder
from uellm.gateway.catalog import Service, ServiceKey
from uellm.gateway.replicas import ReplicaAddress
from uellm.http import EngineAddress, RequestLimits
from uellm.proxying.routes import MEANT_FOR, WAITED_MS, waited_s
from uellm.sidecar.process import Sidecar


def serve(harness: Any, name: str, *sidecars: Sidecar, namespace: str = "default") -> Service:
    service = Service(ServiceKey(namespace, name), (name,))
    harness.gateway.fleet.put(service)
    addresses = [ReplicaAddress("127.0.0.1", sidecar.port, sidecar.metrics_port) for sidecar in sidecars]
    harness.gateway.fleet.place(service.key, addresses)
    return service


@pytest.fixture
async def recorder() -> AsyncIterator[Recorder]:
    server = Recorder()
    listening = await asyncio.start_server(server.serve, "127.0.0.1", 0)
    server.address = EngineAddress("127.0.0.1", listening.sockets[0].getsockname()[1])
    yield server
    listening.close()


async def test_a_pod_of_another_service_that_has_got_the_address_of_one_that_is_gone_serves_nothing(
    launch, engines, sidecars
) -> None:
    other, right = await engines(), await engines()
    there = await sidecars(EngineAddress("127.0.0.1", other.port), service="team-b/llama")
    here = await sidecars(EngineAddress("127.0.0.1", right.port), service="team-a/llama")
    harness = await launch()
    service = harness.serve("llama", namespace="team-a", uid="of the cluster")
    for port in (there.port, here.port):
        harness.place(service, there.port, port)
        async with harness.post(X_Uellm_Service="team-b/llama") as response:
            assert response.status == (503 if port == there.port else 200)
    assert not [each for each in other.received if each.method == "POST"]
    (served,) = [each for each in right.received if each.method == "POST"]
    assert "X-Uellm-Service" not in served.headers
    harness.serve("own", there.port)
    assert (await harness.ask("own"))[0] == 200, "a service of a file may have any name"


async def test_the_time_that_a_request_waited_at_the_gateway_counts_in_its_targets(harness, engines, sidecars) -> None:
    engine = await engines()
    sidecar = await sidecars(EngineAddress("127.0.0.1", engine.port), service="default/llama")
    service = harness.serve("llama", uid="of the cluster", wakes=True, replicas=0)
    met = sidecar.figures.attainment
    asking = harness.ask(X_Llm_D_Slo_Ttft_Ms="50", X_Uellm_Waited_Ms="99999999")
    await eventually(lambda: harness.gateway.holding.requests[service.key] == 1)
    await asyncio.sleep(0.1)
    harness.place(service, sidecar.port)
    assert (await asking)[0] == 200
    async with harness.post(X_Llm_D_Slo_Ttft_Ms="50000", X_Uellm_Waited_Ms="99999999") as response:
        assert response.status == 200
        assert int(response.headers["x-uellm-queue-ms"]) < 10_000
    report = met.report(asyncio.get_running_loop().time(), ("interactive",))
    (found,) = report.classes
    assert (found.requests, found.met) == (2, 1)
    (line,) = [line for line in (await sidecar.proxy.metrics()).splitlines() if "uellm_e2e_seconds_sum" in line]
    assert 0.09 <= float(line.split()[-1]) < 50.0
    assert not [name for each in engine.received for name in each.headers if name.lower().startswith("x-uellm")]


@pytest.mark.parametrize(
    ("waited", "meant", "service", "seconds"),
    [
        ("1500", "a/x", "a/x", 1.5),
        ("1500", None, "a/x", 0.0),
        ("1500", "a/y", "a/x", 0.0),
        ("1500", "", "", 0.0),
        ("-1", "a/x", "a/x", 0.0),
        ("1e3", "a/x", "a/x", 0.0),
        ("9" * 9, "a/x", "a/x", 0.0),
        (None, "a/x", "a/x", 0.0),
    ],
)
def test_only_the_gateways_word_counts_for_how_long_it_waited(waited, meant, service, seconds) -> None:
    headers = {WAITED_MS: waited, MEANT_FOR: meant}
    assert waited_s(headers, service) == seconds


@pytest.mark.parametrize("sent", CORPUS.values(), ids=CORPUS)
async def test_no_byte_of_an_ambiguous_request_reaches_an_engine(recorder, launch, sidecars, sent) -> None:
    harness = await launch(limits=RequestLimits(body_deadline_s=0.2))
    serve(harness, "llama", await sidecars(recorder.address))
    sent = sent.replace(b"{}", b'{"model":"llama"}')
    answer = await harness.raw(sent)
    assert answer.startswith(b"HTTP/1.1 4")
    assert b"sleep" not in answer
    assert recorder.received == []


MODEL = b'{"model":"llama"}'


@pytest.mark.parametrize("name", [name for name in REWRITTEN if name != "a request hidden in a body"])
async def test_what_may_pass_reaches_the_engine_as_one_request_with_one_reading(
    recorder, launch, sidecars, name: str
) -> None:
    harness = await launch()
    serve(harness, "llama", await sidecars(recorder.address))
    sent = REWRITTEN[name].replace(b"Content-Length: 2", b"Content-Length: 17")
    chunks = b"1;a=b\r\n{\r\n1\r\n}\r\n", b"2\r\n{}\r\n"
    named = b"1;a=b\r\n{\r\n10\r\n" + MODEL[1:] + b"\r\n", b"11\r\n" + MODEL + b"\r\n"
    for old, new in zip(chunks, named, strict=True):
        sent = sent.replace(old, new)
    sent = sent if MODEL[1:] in sent else sent.replace(b"{}", MODEL)
    answer = await harness.raw(sent)
    assert answer.startswith(b"HTTP/1.1 200")
    assert answer.count(b"HTTP/1.1") == 1
    head, _, body = b"".join(recorder.received).partition(b"\r\n\r\n")
    line, *fields = head.split(b"\r\n")
    assert line == b"POST /v1/completions HTTP/1.1"
    names = [field.partition(b":")[0].lower() for field in fields]
    assert sorted(names) == [b"content-length", b"host", b"x-request-id"]
    assert body == MODEL


async def test_a_request_hidden_in_a_body_names_no_model(recorder, launch, sidecars) -> None:
    harness = await launch()
    serve(harness, "llama", await sidecars(recorder.address))
    assert b" 400 " in await harness.raw(REWRITTEN["a request hidden in a body"])
    assert recorder.received == []


async def test_keys_are_checked_by_the_sidecars_and_open_no_other_service(harness, engines, sidecars) -> None:
    one, other = await engines(), await engines()
    serve(harness, "one", await sidecars(one.address, keys="key-one"), namespace="team-a")
    serve(harness, "other", await sidecars(other.address, keys="key-other"), namespace="team-b")
    for model, key, status in (
        ("one", "key-one", 200),
        ("other", "key-one", 401),
        ("team-b/other", "key-one", 401),
        ("other", "key-other", 200),
        ("one", "", 401),
    ):
        async with harness.post(model, **({"Authorization": f"Bearer {key}"} if key else {})) as response:
            assert response.status == status
    assert (len(one.received), len(other.received)) == (1, 1)


async def test_a_draining_sidecar_costs_no_request(harness, engines, sidecars) -> None:
    two = [await engines(), await engines()]
    draining, other = [await sidecars(engine.address) for engine in two]
    serve(harness, "llama", draining, other)
    draining.proxy.drain.begin(final=True)
    assert {status for status, _ in await asyncio.gather(*(harness.ask() for _ in range(20)))} == {200}
    assert two[0].received == []


async def test_loads_tell_which_replica_has_a_long_queue(harness, engines, sidecars) -> None:
    two = [await engines(), await engines()]
    busy, idle = [await sidecars(engine.address) for engine in two]
    for engine in two:
        engine.script = FakeEngine.on_word
    long = json.dumps({"model": "llama", "messages": [{"role": "user", "content": "word " * 20_000}]}).encode()
    others = serve(harness, "others", busy)
    waiting = [harness.ask(long.replace(b"llama", b"others")) for _ in range(4)]  # work that this service cannot see
    await eventually(lambda: two[0].received)
    service = serve(harness, "llama", busy, idle)
    router = harness.gateway.fleet.replicas(service.key)._router
    books = router._replicas[f"127.0.0.1:{busy.port}"]
    await eventually(lambda: books.load is not None and books.load.unfilled_tokens > 1000)
    before = len(two[0].received)
    asking = [harness.ask() for _ in range(3)]
    await eventually(lambda: len(two[1].received) == 3)
    assert len(two[0].received) == before
    for engine in two:
        engine.script = FakeEngine.echo
        for received in engine.received:
            received.go_on.set()
    assert {status for status, _ in await asyncio.gather(*asking, *waiting)} == {200}
    assert others.key in harness.gateway.fleet.catalog.services


async def test_the_official_clients_work_through_both_hops(harness, engines, sidecars) -> None:
    engine, other = await engines(), await engines()
    chunk = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "llama"}
    events = [
        json.dumps({**chunk, "choices": [{"index": 0, "delta": {"content": text}, "finish_reason": None}]})
        for text in ("Hello", " world")
    ]
    for each in (engine, other):
        each.script = FakeEngine.stream(*(f"data: {event}\n\n".encode() for event in events), b"data: [DONE]\n\n")
    serve(harness, "llama", await sidecars(engine.address), await sidecars(other.address))
    serve(harness, "qwen", await sidecars((await engines()).address))
    url = f"http://127.0.0.1:{harness.gateway.port}"
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        assert [model.id async for model in await client.models.list()] == ["llama", "qwen"]
        assert (await client.models.retrieve("qwen")).owned_by == "default"
        for _ in range(4):
            stream = await client.chat.completions.create(
                model="llama", messages=[{"role": "user", "content": "Hi"}], stream=True
            )
            assert "".join([event.choices[0].delta.content or "" async for event in stream]) == "Hello world"
        with pytest.raises(openai.NotFoundError, match=r"The model `gpt-4` does not exist\. There are: llama, qwen\."):
            await client.chat.completions.create(model="gpt-4", messages=[])
    async with anthropic.AsyncAnthropic(base_url=url, api_key="none", max_retries=0) as anthropic_client:
        with pytest.raises(anthropic.NotFoundError, match="There are: llama, qwen"):
            await anthropic_client.messages.create(model="claude", max_tokens=1, messages=[])
    assert len(engine.received) + len(other.received) == 4
