"""A response that a replica keeps is found again, by whichever gateway, and by nobody who may not have it."""

from __future__ import annotations

import asyncio
import json

import pytest
from aiohttp import web

from helpers.fake_engine import FakeEngine, eventually
from uellm.gateway.catalog import ServiceKey
from uellm.gateway.stored import Holder, StoredResponses
from uellm.http import EngineAddress
from uellm.proxying.response_id import OPENING_BYTES, OpeningId, kept_id, previous_id

RESPONSES = "/v1/responses"
KEY = "Bearer sk-of-a-client"


class Keeping:
    """Keeps responses as vLLM does: in its own memory."""

    def __init__(self, engine: FakeEngine, name: str) -> None:
        self.engine, self.name, self.kept = engine, name, 0
        engine.script = self.script

    @property
    def port(self) -> int:
        return self.engine.port

    def asked(self, method: str) -> list[str]:
        return [each.path for each in self.engine.received if each.method == method]

    def knows(self, response_id: str) -> bool:
        name, _, number = response_id.removeprefix("resp_").partition("-")
        return name == self.name and int(number) < self.kept

    async def script(self, request: web.Request, received) -> web.StreamResponse:
        if request.path != RESPONSES:
            response_id = request.path.split("/")[3]
            if not self.knows(response_id):
                return web.json_response({"error": {"message": f"engine: no {response_id}"}}, status=404)
            done = "cancelled" if request.path.endswith("/cancel") else "completed"
            return web.json_response({"id": response_id, "status": done, "served_by": self.name})
        asked = json.loads(received.body)
        previous = asked.get("previous_response_id")
        if previous and not self.knows(previous):
            return web.json_response({"error": {"message": f"engine: no {previous}"}}, status=404)
        self.kept += 1
        response_id = f"resp_{self.name}-{self.kept - 1}"
        if not asked.get("stream"):
            return web.json_response({"id": response_id, "status": "completed", "served_by": self.name})
        created = json.dumps({"response": {"id": response_id}, "type": "response.created"})
        events = [f"event: response.created\ndata: {created}\n\n", 'event: response.completed\ndata: {"type": 1}\n\n']
        return await FakeEngine.stream(*(event.encode() for event in events))(request, received)


@pytest.fixture
async def four(engines) -> list[Keeping]:
    return [Keeping(await engines(), f"r{number}") for number in range(4)]


async def create(harness, model: str = "llama", **fields) -> tuple[int, dict]:
    body = json.dumps({"model": model, "input": "hello", **fields}).encode()
    async with harness.post(body, path=RESPONSES, Authorization=KEY) as response:
        return response.status, await response.json()


async def about(harness, method: str, path: str, **headers: str) -> tuple[int, dict]:
    url = harness.url(f"{RESPONSES}/{path}")
    async with harness.client.request(method, url, headers={"Authorization": KEY, **headers}) as response:
        return response.status, await response.json()


async def test_the_next_turn_goes_to_the_replica_that_keeps_the_last_one(harness, four) -> None:
    harness.serve("llama", *(each.port for each in four))
    firsts = [await create(harness) for _ in range(20)]
    assert len({first["served_by"] for _, first in firsts}) > 1
    for _, first in firsts:
        status, turn = await create(harness, previous_response_id=first["id"])
        assert (status, turn["served_by"]) == (200, first["served_by"])
        status, turn = await create(harness, previous_response_id=turn["id"])
        assert (status, turn["served_by"]) == (200, first["served_by"])
    assert not any(each.asked("GET") for each in four), "the gateway knows who has what it passed on"


async def test_a_response_is_retrieved_and_cancelled_where_it_is(harness, four) -> None:
    harness.serve("llama", *(each.port for each in four))
    for _ in range(8):
        _, first = await create(harness)
        status, found = await about(harness, "GET", first["id"] + "?stream=false")
        assert (status, found["served_by"], found["status"]) == (200, first["served_by"], "completed")
        assert (await about(harness, "POST", f"{first['id']}/cancel"))[1]["status"] == "cancelled"
        assert (await about(harness, "DELETE", first["id"]))[0] == 200
    assert sum(len(each.asked("GET")) for each in four) == 8
    assert harness.outcomes() == {"completed": 32}


async def test_the_id_of_a_stream_is_known_from_its_first_event(harness, four) -> None:
    harness.serve("llama", *(each.port for each in four))
    for _ in range(8):
        body = json.dumps({"model": "llama", "input": "hello", "stream": True}).encode()
        async with harness.post(body, path=RESPONSES) as response:
            events = (await response.read()).decode()
        assert events.endswith('data: {"type": 1}\n\n')
        response_id = json.loads(events.partition("data: ")[2].partition("\n")[0])["response"]["id"]
        assert (await about(harness, "GET", response_id))[1]["id"] == response_id
    assert sum(len(each.asked("GET")) for each in four) == 8


async def test_another_gateway_asks_all_replicas_once(launch, four) -> None:
    one, other = await launch(), await launch()
    for harness in (one, other):
        harness.serve("llama", *(each.port for each in four))
    made = [(await create(one))[1] for _ in range(8)]
    for first in made[:4]:
        assert (await about(other, "GET", first["id"]))[1]["served_by"] == first["served_by"]
    for first in made[4:]:
        status, turn = await create(other, previous_response_id=first["id"])
        assert (status, turn["served_by"]) == (200, first["served_by"])
    asked = sum(len(each.asked("GET")) for each in four)
    assert (await about(other, "GET", made[0]["id"]))[0] == 200
    assert sum(len(each.asked("GET")) for each in four) == asked + 1


async def test_one_that_nobody_keeps_is_answered_in_openais_form(harness, four) -> None:
    harness.serve("llama", *(each.port for each in four))
    status, answer = await about(harness, "GET", "resp_gone")
    assert status == 404
    assert (
        answer["error"]["message"] == "Response with id 'resp_gone' not found: it ends with the replica that made it."
    )
    assert {"message", "type", "param", "code"} == set(answer["error"])
    status, answer = await create(harness, previous_response_id="resp_gone")
    assert (status, answer["error"]["message"]) == (404, "engine: no resp_gone")
    assert (await create(harness))[0] == 200


async def test_a_response_of_a_replica_that_is_gone_is_not_found(harness, four) -> None:
    service = harness.serve("llama", *(each.port for each in four))
    _, first = await create(harness)
    left = [each for each in four if each.name != first["served_by"]]
    (gone,) = (each for each in four if each.name == first["served_by"])
    await gone.engine.stop()
    harness.place(service, *(each.port for each in left))
    assert (await about(harness, "GET", first["id"]))[0] == 404


async def test_a_replica_that_stops_to_be_ready_still_gives_what_it_keeps(harness, four) -> None:
    service = harness.serve("llama", *(each.port for each in four))
    _, first = await create(harness)
    harness.place(service, *(each.port for each in four if each.name != first["served_by"]))
    assert (await about(harness, "GET", first["id"]))[1]["served_by"] == first["served_by"]


async def test_a_refusal_of_the_replica_that_keeps_it_is_the_answer(harness, four) -> None:
    harness.serve("llama", *(each.port for each in four))
    _, first = await create(harness)
    (holder,) = (each for each in four if each.name == first["served_by"])

    async def full(request, received) -> web.Response:
        return web.json_response({}, status=429, headers={"x-uellm-outcome": "shed", "Retry-After": "3"})

    holder.engine.script = full
    before = [len(each.engine.received) for each in four if each is not holder]
    assert (await create(harness, previous_response_id=first["id"]))[0] == 429
    assert [len(each.engine.received) for each in four if each is not holder] == before


async def test_a_key_is_sent_only_to_a_service_that_the_request_names(launch, four) -> None:
    one, other = await launch(), await launch()
    mine, theirs, keyless, _ = four
    for harness in (one, other):
        harness.serve("mine", mine.port, uid="1", keys_secret="keys")
        harness.serve("theirs", theirs.port, uid="2", keys_secret="keys")
        harness.serve("keyless", keyless.port, uid="3")
    _, first = await create(one, "mine")
    status, answer = await about(other, "GET", first["id"])
    assert status == 404
    assert answer["error"]["message"].endswith("send the request with ?model=NAME")
    assert not theirs.engine.received
    assert not mine.asked("GET")
    (received,) = keyless.engine.received
    assert "Authorization" not in received.headers
    assert (await about(other, "GET", f"{first['id']}?model=mine"))[1]["served_by"] == mine.name
    assert mine.engine.received[-1].headers["Authorization"] == KEY
    assert not theirs.engine.received
    assert (await about(other, "GET", "resp_unknown?model=none"))[1]["error"]["code"] == "model_not_found"
    _, public = await create(one, "keyless")
    assert (await about(other, "GET", public["id"]))[1]["served_by"] == keyless.name


async def test_a_service_that_claims_every_response_gets_no_key_of_those_who_did_not_name_it(launch, four) -> None:
    one, other = await launch(), await launch()
    mine, claiming, _, _ = four

    async def claims(request, received) -> web.Response:
        return web.json_response({"id": request.path.split("/")[-1], "served_by": "claiming"})

    claiming.engine.script = claims
    for harness in (one, other):
        harness.serve("mine", mine.port, uid="1", keys_secret="keys")
        harness.serve("claiming", claiming.port, uid="2")
    _, first = await create(one, "mine")
    for _ in range(2):  # found by a search, and then remembered
        assert (await about(other, "GET", first["id"]))[1]["served_by"] == "claiming"
    assert len(claiming.engine.received) == 3
    assert not any("Authorization" in each.headers for each in claiming.engine.received)
    assert (await about(other, "GET", f"{first['id']}?model=mine"))[1]["served_by"] == mine.name
    assert (await about(other, "GET", first["id"]))[1]["served_by"] == mine.name, "a request has named it"
    assert len(claiming.engine.received) == 3


async def test_the_id_of_another_service_moves_no_request_there(harness, four) -> None:
    mine, also, theirs, _ = four
    harness.serve("mine", mine.port, also.port)
    harness.serve("theirs", theirs.port)
    _, first = await create(harness, "theirs")
    status, answer = await create(harness, "mine", previous_response_id=first["id"])
    assert (status, answer["error"]["message"]) == (404, f"engine: no {first['id']}")
    assert len(theirs.engine.received) == 1


@pytest.mark.parametrize(
    ("method", "path"), [("POST", "resp_1"), ("POST", "a/b/cancel"), ("GET", ""), ("PUT", "resp_1"), ("GET", "a%20b")]
)
async def test_other_routes_are_not_served(harness, method, path) -> None:
    async with harness.client.request(method, harness.url(f"{RESPONSES}/{path}")) as response:
        assert response.status in (400, 404)


async def test_a_response_in_the_background_is_polled_through_gateway_and_sidecar(harness, engines, sidecars) -> None:
    keeping = [Keeping(await engines(), f"r{number}") for number in range(3)]
    started = [await sidecars(EngineAddress("127.0.0.1", each.port)) for each in keeping]
    service = harness.serve("llama", *(each.port for each in started))
    harness.place_sidecars(service, *started)
    made = await asyncio.gather(*(create(harness, background=True) for _ in range(9)))
    for _, first in made:
        assert (await about(harness, "GET", first["id"]))[1]["served_by"] == first["served_by"]
        assert (await create(harness, previous_response_id=first["id"]))[0] == 200
    await eventually(lambda: not sum(sidecar.drain.active for sidecar in started))


async def test_the_gateways_own_search_is_no_use_of_a_service_and_a_client_cannot_pass_for_it(
    launch, engines, sidecars
) -> None:
    one, other = await launch(), await launch()
    engine = await engines()
    keeping = Keeping(engine, "r0")
    sidecar = await sidecars(engine.address)
    for harness in (one, other):
        harness.serve("llama", sidecar.port, uid="of the cluster")

    def uses() -> int:
        return sidecar.proxy.attainment().load.passed

    assert (await about(other, "GET", "resp_gone"))[0] == 404
    assert (await create(one))[0] == 200
    assert (await about(other, "GET", "resp_r0-0"))[0] == 200
    assert keeping.asked("GET").count(f"{RESPONSES}/resp_r0-0") == 2, "the search, and then the request"
    await eventually(lambda: uses() == 1)
    assert (await about(other, "GET", "resp_r0-0", **{"X-Uellm-Search": "1"}))[0] == 200
    await eventually(lambda: uses() == 2)
    assert not [name for each in engine.received for name in each.headers if name.lower().startswith("x-uellm")]


def test_only_so_many_are_remembered_the_last_used_ones() -> None:
    stored = StoredResponses(most=3)
    holders = [Holder(ServiceKey("default", "llama"), str(number)) for number in range(4)]
    for number in range(3):
        stored.remember(str(number), holders[number])
    assert stored.holder("0") == holders[0]
    stored.remember("3", holders[3])
    assert (len(stored), stored.holder("1"), stored.holder("0"), stored.holder("3")) == (
        3,
        None,
        holders[0],
        holders[3],
    )


@pytest.mark.parametrize("size", [1, 7, 4096])
def test_an_id_is_found_in_pieces_of_any_size_and_only_near_the_beginning(size) -> None:
    for before, expected in ((b"", "resp_1"), (b" " * (OPENING_BYTES - 10), "")):
        data = before + b'{"id":"resp_1","object":"response"}' + b" " * OPENING_BYTES
        opening = OpeningId()
        for at in range(0, len(data), size):
            opening.feed(data[at : at + size])
        assert (opening.found, opening.looking) == (expected, False)


@pytest.mark.parametrize(
    ("document", "expected"),
    [
        ({"previous_response_id": "resp_1"}, "resp_1"),
        ({"previous_response_id": None}, ""),
        ({"previous_response_id": "a b"}, ""),
        ({"input": 'say "previous_response_id": "resp_2"'}, ""),
        ({"input": 'say "previous_response_id": "resp_2"', "previous_response_id": "resp_1"}, "resp_1"),
        ({}, ""),
    ],
)
def test_the_previous_response_is_a_field_and_no_text(document, expected) -> None:
    for separators in ((",", ":"), (", ", ": ")):
        assert previous_id(json.dumps(document, separators=separators).encode()) == expected


def test_paths_about_one_response() -> None:
    assert kept_id("GET", "/v1/responses/resp_1") == kept_id("POST", "/v1/responses/resp_1/cancel") == "resp_1"
    assert kept_id("GET", "/v1/responses/resp_1/input_items") == "resp_1"
    for method, path in (("GET", "/v1/responses"), ("POST", "/v1/responses/compact"), ("GET", "/v1/responsesx/a")):
        assert not kept_id(method, path)
