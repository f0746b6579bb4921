"""Requests go to the service whose model they name, and to nothing else."""

from __future__ import annotations

import json

import pytest

from helpers.fake_engine import FakeEngine, eventually

BODY = b'{ "messages" : [],\n"model":  "%b", "x": 1.50 }'


async def test_a_request_goes_to_the_service_whose_model_it_names(harness, engines) -> None:
    llama, qwen = await engines(), await engines()
    harness.serve("llama", llama.port)
    harness.serve("qwen", qwen.port, names=("Qwen/Qwen3", "fast"))
    for name, engine, other in (("llama", llama, qwen), ("Qwen/Qwen3", qwen, llama), ("fast", qwen, llama)):
        engine.received.clear()
        other.received.clear()
        sent = BODY % name.encode()
        async with harness.post(sent, Authorization="Bearer k", X_Slo_Class="batch") as response:
            assert (response.status, await response.read()) == (200, sent)
        (received,) = engine.received
        assert received.headers["Authorization"] == "Bearer k"
        assert received.headers["X-Slo-Class"] == "batch"
        assert other.received == []


async def test_a_name_with_its_namespace_is_rewritten_and_nothing_else(harness, engines) -> None:
    engine = await engines()
    harness.serve("llama", engine.port, namespace="team-a", names=("meta/llama",))
    async with harness.post(BODY % b"team-a/meta/llama") as response:
        assert await response.read() == BODY % b"meta/llama"


async def test_a_form_is_routed_by_its_part(harness, engines) -> None:
    engine = await engines()
    harness.serve("whisper", engine.port, namespace="team-a")
    head = b'--b\r\nContent-Disposition: form-data; name="'
    form = head + b'file"; filename="a.wav"\r\n\r\n\x00\xff\r\n' + head + b'model"\r\n\r\n%b\r\n--b--\r\n'
    headers = {"Content-Type": "multipart/form-data; boundary=b"}
    url = harness.url("/v1/audio/transcriptions")
    async with harness.client.post(url, data=form % b"team-a/whisper", headers=headers) as response:
        assert await response.read() == form % b"whisper"


async def test_a_name_of_two_namespaces_needs_one_of_them(harness, engines) -> None:
    one, other = await engines(), await engines()
    harness.serve("llama", one.port, namespace="team-a")
    harness.serve("llama", other.port, namespace="team-b")
    async with harness.post("llama") as response:
        assert response.status == 400
        error = (await response.json())["error"]
    message = "The model `llama` exists in several namespaces; ask for one of: team-a/llama, team-b/llama."
    assert (error["message"], error["code"]) == (message, "model_ambiguous")
    async with harness.post("team-b/llama") as response:
        assert response.status == 200
    assert one.received == []
    assert len(other.received) == 1


async def test_an_unknown_name_gets_openais_error_and_the_names_that_there_are(harness, engines) -> None:
    harness.serve("llama", (await engines()).port, names=("llama", "adapter"))
    async with harness.post("gpt-4") as response:
        assert response.status == 404
        error = (await response.json())["error"]
    assert error == {
        "message": "The model `gpt-4` does not exist. There are: adapter, llama.",
        "type": "invalid_request_error",
        "param": None,
        "code": "model_not_found",
    }
    assert harness.outcomes() == {"model_not_found": 1}


async def test_the_older_of_two_services_of_one_namespace_keeps_their_name(harness, engines) -> None:
    older, younger = await engines(), await engines()
    harness.serve("one", younger.port, names=("llama",), created_s=2)
    harness.serve("two", older.port, names=("llama",), created_s=1)
    for name in ("llama", "default/llama"):
        assert (await harness.ask(name))[0] == 200
    assert len(older.received) == 2
    assert younger.received == []


STARTS = [{"replicas": 1}, {"wakes": True, "replicas": 0}]
CANNOT_ANSWER = [{"suspended": True}, {"replicas": 0}]


async def served_names(harness) -> list[str]:
    async with harness.client.get(harness.url("/v1/models")) as response:
        return [each["id"] for each in (await response.json())["data"]]


@pytest.mark.parametrize(
    ("namespace", "facts"),
    [*(("default", facts) for facts in (*STARTS, *CANNOT_ANSWER)), *(("a-first", facts) for facts in CANNOT_ANSWER)],
)
async def test_a_service_that_cannot_answer_now_takes_no_name_of_its_namespace_and_one_that_never_can_none_at_all(
    harness, engines, namespace, facts
) -> None:
    engine = await engines()
    harness.serve("llama", engine.port, created_s=2)
    harness.serve("other", namespace=namespace, names=("llama",), created_s=1, **facts)
    for name in ("llama", "default/llama"):
        assert (await harness.ask(name))[0] == 200
    assert len(engine.received) == 2
    assert await served_names(harness) == ["llama"]


@pytest.mark.parametrize("facts", STARTS, ids=["starting", "zero"])
async def test_a_name_moves_to_no_other_namespace_while_its_own_service_has_no_replica(harness, engines, facts) -> None:
    mine, theirs = await engines(), await engines()
    service = harness.serve("llama", mine.port, namespace="team-a", **facts)
    harness.serve("evil", theirs.port, namespace="team-b", names=("llama",))
    for ports in ([mine.port], []):
        harness.place(service, *ports)
        async with harness.post("llama", Authorization="Bearer k") as response:
            assert (await response.json())["error"]["code"] == "model_ambiguous"
        assert await served_names(harness) == ["team-a/llama", "team-b/llama"]
    assert theirs.received == []


async def test_a_name_goes_to_the_service_that_can_start_a_replica_where_none_has_one(harness, engines) -> None:
    harness.serve("llama", namespace="a", suspended=True)
    service = harness.serve("llama", namespace="b", wakes=True, replicas=0)
    asking = harness.ask("llama")
    await eventually(lambda: harness.gateway.holding.requests[service.key] == 1)
    harness.place(service, (await engines()).port)
    assert (await asking)[0] == 200


async def test_nobody_takes_over_a_name_of_another_namespace_by_a_slash_in_a_served_name(harness, engines) -> None:
    right, wrong = await engines(), await engines()
    harness.serve("llama", right.port, namespace="team-a")
    harness.serve("thief", wrong.port, namespace="team-b", names=("team-a/llama",))
    async with harness.post("team-a/llama") as response:
        assert response.status == 200
    assert len(right.received) == 1
    assert wrong.received == []
    async with harness.post("team-b/team-a/llama") as response:
        assert response.status == 200
    assert len(wrong.received) == 1


async def test_all_names_are_listed_with_a_namespace_where_they_need_one(harness) -> None:
    harness.serve("llama", namespace="team-a", names=("llama", "adapter"), created_s=7)
    harness.serve("llama", namespace="team-b", created_s=8)
    async with harness.client.get(harness.url("/v1/models")) as response:
        document = await response.json()
    assert document == {
        "object": "list",
        "data": [
            {"id": "adapter", "object": "model", "created": 7, "owned_by": "team-a", "root": "llama"},
            {"id": "team-a/llama", "object": "model", "created": 7, "owned_by": "team-a"},
            {"id": "team-b/llama", "object": "model", "created": 8, "owned_by": "team-b"},
        ],
    }
    for name in ("adapter", "team-a/llama", "team-b%2Fllama", "/adapter"):
        async with harness.client.get(harness.url(f"/v1/models/{name}")) as response:
            assert (await response.json())["id"] == name.replace("%2F", "/").removeprefix("/")
    async with harness.client.get(harness.url("/v1/models/llama")) as response:
        assert response.status == 400
    async with harness.client.get(harness.url("/v1/models/none")) as response:
        assert response.status == 404


@pytest.mark.parametrize("path", ["/v1/chat/completions", "http://127.0.0.1:1/v1/chat/completions", "/team-b/v1/x"])
async def test_neither_headers_nor_the_target_choose_the_replica(harness, engines, path: str) -> None:
    right, wrong = await engines(), await engines()
    harness.serve("right", right.port, namespace="team-a")
    harness.serve("wrong", wrong.port, namespace="team-b")
    there = f"127.0.0.1:{wrong.port}"
    body = json.dumps({"model": "right", "other": {"model": "wrong"}})
    tricks = ("Host", "X-Forwarded-Host", "Forwarded", "X-Gateway-Destination-Endpoint", "X-Original-Url", "Model")
    head = [f"POST {path} HTTP/1.1", *(f"{name}: {there}" for name in tricks), "X-Model: wrong", "Connection: close"]
    answer = await harness.raw("\r\n".join([*head, f"Content-Length: {len(body)}", "", body]).encode())
    assert answer.startswith(b"HTTP/1.1 200")
    assert len(right.received) == 1
    assert wrong.received == []


@pytest.mark.parametrize(
    ("method", "path"), [("GET", "/metrics"), ("GET", "/v1/files"), ("DELETE", "/v1/models/llama")]
)
async def test_what_names_no_model_is_not_served(harness, method: str, path: str) -> None:
    async with harness.client.request(method, harness.url(path)) as response:
        assert response.status == 404
        assert "is not served here" in (await response.json())["error"]["message"]


async def test_the_series_of_services_that_are_gone_make_room_for_new_ones(harness, engines, monkeypatch) -> None:
    monkeypatch.setattr("uellm.proxying.metrics.MAX_SERIES", 3)
    engine = await engines()
    for number in range(9):
        service = harness.serve(f"llama-{number}", engine.port)
        assert (await harness.ask(f"llama-{number}"))[0] == 200
        await eventually(lambda n=number: f'service="llama-{n}"' in "".join(harness.gateway.figures.requests.lines()))
        harness.gateway.fleet.drop(service.key)
    assert "llama-" not in await harness.figures()
    engine.script = FakeEngine.on_word
    service = harness.serve("llama", engine.port)
    asking = harness.ask()
    await eventually(lambda: len(engine.received) == 10)
    harness.gateway.fleet.drop(service.key)
    engine.received[-1].go_on.set()
    assert (await asking)[0] == 200
    await eventually(lambda: harness.gateway.figures.requests.value("-", "-", "completed") == 1)
    assert 'service="llama"' not in await harness.figures()


async def test_beyond_the_bound_on_series_the_outcome_is_kept(harness, engines, monkeypatch) -> None:
    monkeypatch.setattr("uellm.proxying.metrics.MAX_SERIES", 1)
    engine = await engines()
    for name in ("one", "other"):
        harness.serve(name, engine.port)
        assert (await harness.ask(name))[0] == 200
    await eventually(lambda: harness.gateway.figures.requests.value("other", "other", "completed") == 1)
    await harness.ask("none")
    await eventually(lambda: harness.gateway.figures.requests.value("other", "other", "model_not_found") == 1)


async def test_health_needs_no_service(harness) -> None:
    async with harness.client.get(harness.url("/health")) as response:
        assert response.status == 200


async def test_before_the_services_are_known_clients_are_asked_to_come_back(harness) -> None:
    harness.view.complete = False
    async with harness.post() as response:
        assert response.status == 503
        assert response.headers["Retry-After"] == "1"
    async with harness.client.get(harness.management("/readyz")) as response:
        assert response.status == 503
    harness.view.complete = True
    async with harness.client.get(harness.management("/readyz")) as response:
        assert response.status == 200


async def test_before_all_services_are_known_nobody_is_told_that_there_are_none(harness) -> None:
    harness.view.complete = False
    for path in ("/v1/models", "/v1/models/llama"):
        async with harness.client.get(harness.url(path)) as response:
            assert response.status == 503
            assert int(response.headers["Retry-After"]) >= 1
            assert "does not know the services yet" in (await response.json())["error"]["message"]
