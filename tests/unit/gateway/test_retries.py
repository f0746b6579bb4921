"""A request goes to a second replica only if the first one surely or most likely did not serve it."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator

import pytest
from aiohttp import web

from helpers.fake_engine import FakeEngine, Received, eventually
from uellm.gateway.retry_budget import RetryBudget
from uellm.routing import books


@pytest.fixture
def dead_ports() -> Iterator[list[int]]:
    """Two ports that nobody listens on: bound, so that nobody else gets them."""
    with socket.socket() as one, socket.socket() as other:
        for each in (one, other):
            each.bind(("127.0.0.1", 0))
        yield [each.getsockname()[1] for each in (one, other)]


def refusing(outcome: str, status: int = 503):
    async def script(request: web.Request, received: Received) -> web.StreamResponse:
        return web.json_response({"who": received.path}, status=status, headers={"x-uellm-outcome": outcome})

    return script


async def dying(request: web.Request, received: Received) -> web.StreamResponse:
    request.transport.abort()
    return web.Response()


async def ask_until_both_were_first(harness, times: int = 2) -> None:
    """Replicas without requests take turns, so each of two is the first one once."""
    for _ in range(times):
        status, _ = await harness.ask()
        assert status == 200


async def test_requests_go_to_the_replica_with_the_fewest(harness, engines) -> None:
    one, other = await engines(), await engines()
    harness.serve("llama", one.port, other.port)
    for engine in (one, other):
        engine.script = FakeEngine.on_word
    asking = [harness.ask() for _ in range(6)]
    await eventually(lambda: len(one.received) + len(other.received) == 6)
    assert (len(one.received), len(other.received)) == (3, 3)
    for received in one.received:
        received.go_on.set()
    await eventually(lambda: sum(each.done() for each in asking) == 3)
    asking += [harness.ask() for _ in range(3)]
    await eventually(lambda: len(one.received) == 6)
    for received in (*one.received, *other.received):
        received.go_on.set()
    assert {status for status, _ in await asyncio.gather(*asking)} == {200}


async def test_a_replica_that_cannot_be_reached_is_passed_over(harness, engines, dead_ports) -> None:
    engine = await engines()
    harness.serve("llama", dead_ports[0], engine.port)
    await ask_until_both_were_first(harness, 6)
    assert len(engine.received) == 6
    retries = harness.gateway.figures.retries
    assert retries.value("default", "llama", "unreachable") == 1  # then it is avoided for a while


@pytest.mark.parametrize("outcome", ["draining", "engine_unavailable", "queue_full", "shed"])
async def test_a_request_that_a_sidecar_refused_unserved_goes_to_another_replica(harness, engines, outcome) -> None:
    engine, other = await engines(), await engines()
    engine.script = refusing(outcome, 429 if outcome in ("queue_full", "shed") else 503)
    harness.serve("llama", engine.port, other.port)
    await ask_until_both_were_first(harness, 4)
    assert len(other.received) == 4
    assert len(engine.received) == 1  # then it is avoided for a while
    assert harness.gateway.figures.retries.value("default", "llama", outcome) == 1


@pytest.mark.parametrize(("status", "outcome"), [(503, "engine_lost"), (504, "deadline_passed"), (500, ""), (503, "")])
async def test_other_failures_are_the_clients_to_see(harness, engines, status, outcome) -> None:
    engine, other = await engines(), await engines()
    for each in (engine, other):
        each.script = refusing(outcome, status)
    harness.serve("llama", engine.port, other.port)
    assert (await harness.ask())[0] == status
    assert len(engine.received) + len(other.received) == 1


@pytest.mark.parametrize("status", [500, 502, 503])
async def test_a_replica_that_fails_at_once_and_so_seems_idle_does_not_get_all_requests(
    harness, engines, status
) -> None:
    broken, good = await engines(), await engines()
    broken.script, good.script = refusing("", status), FakeEngine.on_word
    harness.serve("llama", broken.port, good.port)
    asking = []
    for sent in range(1, 9):
        asking.append(harness.ask())
        await eventually(lambda sent=sent: len(broken.received) + len(good.received) == sent)
        await eventually(lambda: harness.gateway.drain.active == len(good.received))
    assert len(broken.received) == 1
    for received in good.received:
        received.go_on.set()
    statuses = [each[0] for each in await asyncio.gather(*asking)]
    assert sorted(statuses) == [200] * 7 + [status]


@pytest.mark.parametrize(("status", "outcome"), [(501, ""), (504, "deadline_passed")])
async def test_an_answer_that_tells_of_the_request_is_not_held_against_the_replica(
    harness, engines, status, outcome
) -> None:
    engine, other = await engines(), await engines()
    engine.script = refusing(outcome, status)
    harness.serve("llama", engine.port, other.port)
    for _ in range(6):
        await harness.ask()
    assert (len(engine.received), len(other.received)) == (3, 3)


@pytest.mark.parametrize(("status", "reason"), [(401, "unauthorized"), (404, "not_found")])
async def test_what_one_replica_does_not_know_yet_is_asked_of_another_one(harness, engines, status, reason) -> None:
    """A new key or adapter reaches one pod earlier than the other."""
    late, good = await engines(), await engines()
    late.script = refusing("", status)
    harness.serve("llama", late.port, good.port)
    await ask_until_both_were_first(harness, 6)
    assert len(late.received) == 1  # then it is avoided for a while
    assert len(good.received) == 6
    assert harness.gateway.figures.retries.value("default", "llama", reason) == 1


@pytest.mark.parametrize("status", [401, 404])
async def test_what_no_replica_knows_is_the_clients_mistake_and_no_replica_is_avoided_for_it(
    harness, engines, status
) -> None:
    two = [await engines(), await engines()]
    for engine in two:
        engine.script = refusing("", status)
    harness.serve("llama", *(engine.port for engine in two))
    for _ in range(40):
        assert (await harness.ask())[0] == status
    sent = sum(len(engine.received) for engine in two)
    assert 50 <= sent <= 59  # 40 requests, a burst of 10, a fifth of 40
    for engine in two:
        engine.script, engine.received = FakeEngine.echo, []
    await ask_until_both_were_first(harness, 4)
    assert [len(engine.received) for engine in two] == [2, 2]
    two[0].script = refusing("draining")
    await ask_until_both_were_first(harness)  # mistakes have used up none of the retries


@pytest.mark.parametrize(
    ("second", "status", "avoided"),
    [
        (dying, 404, "second"),
        (refusing("draining"), 503, "second"),
        (refusing("", 500), 500, "second"),
        (refusing("", 400), 400, "first"),
    ],
    ids=["lost", "draining", "failed", "answered"],
)
async def test_what_the_other_replica_answers_is_the_clients_unless_it_does_not_know_it_either(
    harness, engines, second, status, avoided
) -> None:
    """The first request goes to the first one by name."""
    two = sorted([await engines(), await engines()], key=lambda engine: f"127.0.0.1:{engine.port}")
    two[0].script, two[1].script = refusing("", 404), second
    service = harness.serve("llama", *(engine.port for engine in two))
    async with asyncio.timeout(5):
        assert (await harness.ask())[0] == status
    assert [len(engine.received) for engine in two] == [1, 1]
    for engine in two:
        engine.script = FakeEngine.echo
    await ask_until_both_were_first(harness)
    assert [len(engine.received) for engine in two] == ([3, 1] if avoided == "second" else [1, 3])
    router = harness.gateway.fleet.replicas(service.key)._router
    assert not any(router.replica(name).outstanding for name in router.replicas)


async def test_where_every_replica_refuses_the_last_refusal_is_the_answer(harness, engines) -> None:
    two = [await engines(), await engines()]
    for engine in two:
        engine.script = refusing("queue_full", 429)
    harness.serve("llama", *(engine.port for engine in two))
    async with harness.post() as response:
        assert response.status == 429
        assert response.headers["x-uellm-outcome"] == "queue_full"
        assert await response.json() == {"who": "/v1/chat/completions"}
    assert [len(engine.received) for engine in two] == [1, 1]


async def test_a_request_whose_connection_broke_before_an_answer_is_sent_once_more_and_not_again(
    harness, engines
) -> None:
    bad, good = await engines(), await engines()
    bad.script = dying
    harness.serve("llama", bad.port, good.port)
    await ask_until_both_were_first(harness)
    assert len(good.received) == 2


async def test_a_request_that_broke_two_connections_breaks_no_third_one(harness, engines) -> None:
    three = [await engines() for _ in range(3)]
    for engine in three:
        engine.script = dying
    harness.serve("llama", *(engine.port for engine in three))
    status, body = await harness.ask()
    assert status == 503
    assert b"engine_lost" in body
    assert sum(len(engine.received) for engine in three) == 2


async def test_where_no_replica_can_be_reached_the_client_is_told(harness, dead_ports) -> None:
    harness.serve("llama", *dead_ports)
    async with harness.post() as response:
        assert response.status == 503
        error = (await response.json())["error"]
        assert response.headers["Retry-After"] == "1"
    assert error["message"] == "no replica of the service could be reached; retry later"


async def test_retries_stop_when_nearly_everything_fails(harness, engines) -> None:
    two = [await engines(), await engines()]
    for engine in two:
        engine.script = refusing("queue_full", 429)
    harness.serve("llama", *(engine.port for engine in two))
    for _ in range(50):
        assert (await harness.ask())[0] == 429
    sent = sum(len(engine.received) for engine in two)
    assert 60 <= sent <= 71  # 50 requests, a burst of 10, a fifth of 50


async def test_a_refusal_whose_end_never_comes_does_not_hold_up_the_retry(harness, engines) -> None:
    async def halted(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 503 No\r\nx-uellm-outcome: draining\r\nContent-Length: 99\r\n\r\n{")
        await reader.read()
        writer.close()

    engine = await engines()
    listening = await asyncio.start_server(halted, "127.0.0.1", 0)
    harness.serve("llama", listening.sockets[0].getsockname()[1], engine.port)
    async with asyncio.timeout(5):
        await ask_until_both_were_first(harness)
    assert len(engine.received) == 2
    listening.close()


async def test_a_replica_that_never_answers_keeps_no_share_of_the_requests(harness, engines, monkeypatch) -> None:
    monkeypatch.setattr(books, "SILENT_S", 0.01)
    monkeypatch.setattr(books, "AVOIDED_S", 100.0)
    hanging, good = await engines(), await engines()
    hanging.script = FakeEngine.on_word
    harness.serve("llama", hanging.port, good.port)

    async def ask_once() -> None:
        hung, asking = len(hanging.received), harness.ask()
        await eventually(lambda: asking.done() or len(hanging.received) > hung)
        if not asking.done():
            await asyncio.sleep(10 * books.SILENT_S)
            asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        await eventually(lambda: not harness.gateway.drain.active)

    for _ in range(20):
        await ask_once()
    assert len(hanging.received) == 1
    assert len(good.received) == 19


def test_a_budget_is_a_share_and_a_burst() -> None:
    budget = RetryBudget(share=0.2, burst=2)
    assert [budget.take() for _ in range(3)] == [True, True, False]
    for _ in range(5):
        budget.request()
    assert [budget.take(), budget.take()] == [True, False]


async def test_a_replica_that_dies_in_a_burst_costs_only_the_streams_past_their_first_byte(harness, engines) -> None:
    dying_one, other = await engines(), await engines()
    begun = asyncio.Event()

    async def half(request: web.Request, received: Received) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        if len(dying_one.received) % 2:
            await response.prepare(request)
            await response.write(b"data: 1\n\n")
        if len(dying_one.received) == 10:
            begun.set()
        await received.go_on.wait()
        return response

    dying_one.script = half
    other.script = FakeEngine.stream(b"data: 2\n\n", b"data: [DONE]\n\n")
    service = harness.serve("llama", dying_one.port)
    asking = [harness.ask() for _ in range(10)]
    await asyncio.wait_for(begun.wait(), 5)
    harness.place(service, dying_one.port, other.port)
    await dying_one.stop()
    answers = [body for _, body in await asyncio.gather(*asking)]
    assert sum(b"engine_lost" in body for body in answers) == 5
    assert sum(body.endswith(b"[DONE]\n\n") for body in answers) == 5
