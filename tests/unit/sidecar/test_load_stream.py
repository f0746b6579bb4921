"""GET /uellm/load: gateways are told the load when it changes, and at least now and then."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from typing import Any

import pytest

from uellm.api.replica_load import PrefixNews, ReplicaLoad
from uellm.http import Server
from uellm.sidecar import load_stream
from uellm.sidecar.load_stream import LoadStream

LONG = json.dumps({"messages": [{"role": "user", "content": "word " * 5000}]}).encode()


async def lines(harness: Any, query: str = "") -> tuple[Any, Any]:
    response = await harness.client.get(harness.management(f"/uellm/load{query}"))
    return response, response.content


async def next_load(content: Any) -> ReplicaLoad:
    return ReplicaLoad.from_dict(json.loads(await asyncio.wait_for(content.readline(), 5)))


async def test_it_tells_what_is_in_the_engine_and_that_it_drains(launch, engine) -> None:
    # An engine that needs hours for the prompt: none of it counts as done by the time that the stream tells of it.
    steps = {"floor": 1e-3, "perPrefillToken": 1.0, "perKvToken": 0.0, "perSequence": 0.0, "overhead": 1e-3}
    harness = await launch({"classes": [], "model": "tiny", "engine": {"stepSeconds": steps}})
    engine.script = engine.on_word
    response, content = await lines(harness)
    first = await next_load(content)
    assert (first.ready, first.draining, first.sequences) == (True, False, 0)
    asking = harness.ask(LONG)
    received = await engine.arrivals.get()
    while (load := await next_load(content)).sequences == 0:
        pass
    assert load.unfilled_tokens > 1000
    assert load.incarnation == first.incarnation
    harness.sidecar.proxy.drain.begin(final=True)
    while not (load := await next_load(content)).draining:
        pass
    received.go_on.set()
    await asking
    response.close()


async def test_a_restarted_sidecar_has_another_name(launch) -> None:
    names = set()
    for _ in range(2):
        harness = await launch()
        response, content = await lines(harness)
        names.add((await next_load(content)).incarnation)
        response.close()
    assert len(names) == 2


async def test_prefixes_are_told_once(harness, engine) -> None:
    response, content = await lines(harness)
    await next_load(content)
    await harness.ask(LONG)
    told: list[int] = []
    while not told:
        load = await next_load(content)
        told += load.prefixes.hashes
    count = load.prefixes.count
    assert len(told) == count > 5
    await harness.ask(json.dumps({"messages": [{"role": "user", "content": "other " * 5000}]}).encode())
    while (load := await next_load(content)).prefixes.count == count:
        assert load.prefixes.hashes == ()
    assert len(load.prefixes.hashes) == load.prefixes.count - count
    response.close()
    again, content = await lines(harness, f"?prefixes={count}")
    assert (await next_load(content)).prefixes.hashes == load.prefixes.hashes
    again.close()


@pytest.mark.parametrize("query", ["", "?prefixes=", "?prefixes=-1", "?prefixes=x", f"?prefixes={'9' * 99}"])
async def test_a_reader_that_says_nothing_of_use_is_told_everything(harness, query) -> None:
    response, content = await lines(harness, query)
    assert response.status == 200
    await next_load(content)
    response.close()


async def test_a_line_comes_when_something_changed_or_after_a_while(monkeypatch) -> None:
    monkeypatch.setattr(load_stream, "INTERVAL_S", 0.001)
    asked = 0
    current = ReplicaLoad(prefixes=PrefixNews(3, (1, 2, 3)))

    def load(known: int) -> ReplicaLoad:
        nonlocal asked
        asked += 1
        return replace(current, prefixes=current.prefixes.since(known))

    server = Server(LoadStream(load).serve, lambda fault: ([], b""))
    await server.listen("127.0.0.1", 0)
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(b"GET /uellm/load HTTP/1.1\r\nHost: h\r\n\r\n")
    await reader.readuntil(b"\r\n\r\n")

    async def line() -> ReplicaLoad:
        size = int(await reader.readline(), 16)
        return ReplicaLoad.from_dict(json.loads((await reader.readexactly(size + 2))[:size]))

    assert (await line()).prefixes.hashes == (1, 2, 3)
    assert (await line()).prefixes.hashes == ()  # that there is nothing new is a change as well
    seen, asked = asked, 0
    changed_s = asyncio.get_running_loop().time()
    current = replace(current, sequences=1)
    assert (await line()).sequences == 1
    assert (await line()).sequences == 1
    assert asyncio.get_running_loop().time() - changed_s > 0.5
    assert asked > 10 > seen
    writer.close()
    await server.close(1.0)
