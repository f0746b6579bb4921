"""Each name works while a replica serves it, and goes to such replicas alone: served names and adapters change."""

from __future__ import annotations

import asyncio
import json
from functools import partial
from typing import Any

import pytest
from aiohttp import web

from helpers.fake_engine import FakeEngine, Received, eventually
from uellm.gateway.catalog import Catalog, Service, ServiceKey
from uellm.gateway.replicas import ReplicaAddress
from uellm.gateway.static_view import StaticView
from uellm.proxying.outcome import Refusal
from uellm.sidecar.process import Sidecar

LONG = "word " * 5000


class Vllm:
    """Answers to its names alone, and loads adapters, as vLLM does."""

    def __init__(self, model: str) -> None:
        self.model = model
        self.adapters: dict[str, str] = {}
        self.asked: list[str] = []
        """The names of requests, also of those that it did not know."""

    async def __call__(self, request: web.Request, received: Received) -> web.StreamResponse:
        body = json.loads(received.body or b"{}")
        if request.path == "/v1/models":
            cards = [{"id": name, "root": path, "parent": self.model} for name, path in self.adapters.items()]
            return web.json_response({"data": [{"id": self.model, "root": "/", "parent": None}, *cards]})
        if request.path == "/v1/load_lora_adapter":
            self.adapters[body["lora_name"]] = body["lora_path"]
            return web.Response(text="Success")
        if request.path == "/v1/unload_lora_adapter":
            del self.adapters[body["lora_name"]]
            return web.Response(text="Success")
        self.asked.append(body["model"])
        known = body["model"] in (self.model, *self.adapters)
        return web.json_response({"model": body["model"]}, status=200 if known else 404)


@pytest.fixture
def replica(engines: Any, sidecars: Any) -> Any:
    """Starts an engine and its sidecar."""

    async def start(model: str, *adapters: str, tells: bool = True) -> tuple[Vllm, Sidecar]:
        engine: FakeEngine = await engines()
        engine.script = vllm = Vllm(model)
        return vllm, await sidecars(engine.address, model=model if tells else "", adapters=adapters)

    return start


async def listed(harness: Any) -> list[str]:
    async with harness.client.get(harness.url("/v1/models")) as response:
        return [each["id"] for each in (await response.json())["data"]]


async def until_listed(harness: Any, *names: str) -> None:
    await eventually(lambda: sorted(m["id"] for m in harness.gateway.fleet.catalog.listed()) == sorted(names))
    assert sorted(await listed(harness)) == sorted(names)


async def statuses(harness: Any, name: str, times: int = 6) -> set[int]:
    return {(await harness.ask(name))[0] for _ in range(times)}


async def test_a_rename_is_no_outage_for_either_name(harness, replica) -> None:
    old, old_sidecar = await replica("old")
    service = harness.serve("llama", names=("old",))
    harness.place_sidecars(service, old_sidecar)
    await eventually(lambda: harness.gateway.fleet.replicas(service.key).told == {("old",)})
    harness.gateway.fleet.put(Service(service.key, ("new",)))
    await until_listed(harness, "old")
    assert await statuses(harness, "old") == {200}
    async with harness.post("new") as response:
        assert response.status == 503
        assert 5 <= int(response.headers["Retry-After"]) <= 15
        message = (await response.json())["error"]["message"]
    assert message == "no replica of llama serves `new` yet; the status of llama says why; retry later"
    new, new_sidecar = await replica("new")
    harness.place_sidecars(service, old_sidecar, new_sidecar)
    await until_listed(harness, "new", "old")
    assert await statuses(harness, "old") == await statuses(harness, "new") == {200}
    assert (set(old.asked), set(new.asked)) == ({"old"}, {"new"})
    harness.place_sidecars(service, new_sidecar)
    await until_listed(harness, "new")
    assert await statuses(harness, "old") == {404}
    assert await statuses(harness, "default/new") == {200}


async def test_a_new_adapter_is_asked_only_of_replicas_that_have_loaded_it(harness, replica) -> None:
    (one, first), (other, second) = await replica("llama"), await replica("llama", "sql")
    service = harness.serve("llama", names=("llama", "sql"))
    harness.place_sidecars(service, first)
    await until_listed(harness, "llama")
    assert await statuses(harness, "sql", 1) == {503}
    harness.place_sidecars(service, first, second)
    replicas = harness.gateway.fleet.replicas(service.key)
    await eventually(lambda: replicas.told == {("llama",), ("llama", "sql")})
    assert await listed(harness) == ["llama", "sql"]
    assert await statuses(harness, "sql") == {200}
    assert "sql" not in one.asked
    assert set(other.asked) == {"sql"}
    assert await statuses(harness, "llama") == {200}


@pytest.mark.parametrize(("loaded", "expected"), [(["sql"], 200), ([], 503)])
async def test_a_request_that_waited_for_an_adapter_goes_to_no_replica_that_could_not_load_it(
    harness, replica, loaded, expected
) -> None:
    """The replica is there before it has told its names."""
    vllm, sidecar = await replica("llama", *loaded)
    service = harness.serve("llama", names=("llama", "sql"), wakes=True, replicas=0)
    asking = [harness.ask(name) for name in ("sql", "default/sql", "llama")]
    await eventually(lambda: harness.gateway.holding.requests[service.key] == 3)
    harness.place_sidecars(service, sidecar)
    answers = [status for status, _ in await asyncio.gather(*asking)]
    assert answers == [expected, expected, 200]
    assert vllm.asked.count("sql") == 2 * len(loaded)
    assert harness.outcomes() == {"completed": answers.count(200)} | ({} if loaded else {"engine_unavailable": 2})


async def test_a_new_replica_is_asked_for_an_adapter_only_once_it_has_told_its_names(harness, replica) -> None:
    (one, first), (other, second) = await replica("llama"), await replica("llama", "sql")
    service = harness.serve("llama", names=("llama", "sql"))
    harness.place_sidecars(service, second)
    await until_listed(harness, "llama", "sql")
    harness.place_sidecars(service, first, second)
    assert await statuses(harness, "sql") == {200}
    assert "sql" not in one.asked
    assert len(other.asked) == 6


async def test_the_models_own_name_does_not_wait_for_names_and_an_adapter_not_for_ever(
    harness, engines, monkeypatch
) -> None:
    """A replica whose load cannot be read, for example because of a NetworkPolicy."""
    engine = await engines()
    service = harness.serve("llama", names=("llama", "sql"))
    place = partial(harness.gateway.fleet.place, service.key, [ReplicaAddress("127.0.0.1", engine.port, 1)])
    monkeypatch.setattr("uellm.gateway.replicas.TELL_S", 3600.0)
    place()
    waiting = harness.ask("sql")
    assert (await harness.ask("llama"))[0] == 200
    assert not waiting.done()
    harness.place(service)
    assert (await waiting)[0] == 503
    monkeypatch.setattr("uellm.gateway.replicas.TELL_S", 0.05)
    place()
    assert (await harness.ask("sql"))[0] == 200


async def test_an_adapter_that_is_taken_away_works_until_no_engine_has_it(harness, replica) -> None:
    _, sidecar = await replica("llama", "sql")
    service = harness.serve("llama", names=("llama", "sql"))
    harness.place_sidecars(service, sidecar)
    await eventually(lambda: harness.gateway.fleet.replicas(service.key).told == {("llama", "sql")})
    harness.gateway.fleet.put(Service(service.key, ("llama",)))
    assert await statuses(harness, "sql", 1) == {200}
    path = sidecar._options.config
    path.write_text(path.read_text().replace("name: sql", "name: law"))
    sidecar.reload()
    await until_listed(harness, "llama", "law")
    assert await statuses(harness, "sql", 1) == {404}
    assert await statuses(harness, "law", 1) == {200}


async def test_a_sidecar_that_tells_no_names_counts_as_serving_those_of_the_spec(harness, replica) -> None:
    (_, silent), (_, old) = await replica("llama", tells=False), await replica("old")
    service = harness.serve("llama", names=("llama",))
    harness.place_sidecars(service, silent, old)
    await until_listed(harness, "llama", "old")
    assert await statuses(harness, "llama") == await statuses(harness, "old") == {200}


async def test_the_names_of_a_file_hold_whatever_its_replicas_tell(harness, replica, tmp_path) -> None:
    vllm, sidecar = await replica("llama")
    file = tmp_path / "services.yaml"
    file.write_text(
        f"services: [{{name: x, servedName: llama, aliases: [fast], replicas: ['127.0.0.1:{sidecar.port}'], "
        f"metricsPort: {sidecar.metrics_port}}}]"
    )
    StaticView(file, harness.gateway.fleet)
    replicas = harness.gateway.fleet.replicas(ServiceKey("default", "x"))
    await eventually(lambda: replicas.told == {("llama",)})
    assert await listed(harness) == ["fast", "llama"]
    await harness.ask("fast")
    assert vllm.asked == ["fast"]


async def test_what_cannot_be_answered_is_not_listed(harness) -> None:
    harness.serve("asleep", wakes=True, replicas=0)
    harness.serve("suspended", wakes=True, suspended=True)
    assert await listed(harness) == ["asleep"]


@pytest.mark.parametrize("adapter", ["", "sql"])
async def test_prefixes_are_known_by_the_hashes_that_the_sidecars_tell(harness, replica, adapter) -> None:
    """An adapter's KV cache is not that of its model."""
    (_, first), (_, second) = await replica("llama", "sql"), await replica("llama", "sql")
    service = harness.serve("llama", names=("llama", "sql"))
    harness.place_sidecars(service, first, second)
    replicas = harness.gateway.fleet.replicas(service.key)
    await eventually(lambda: replicas.told == {("llama", "sql")})
    body = json.dumps({"model": adapter or "llama", "messages": [{"role": "user", "content": LONG}]}).encode()
    assert (await harness.ask(body))[0] == 200
    books = [replicas._router.replica(f"127.0.0.1:{sidecar.port}") for sidecar in (first, second)]
    await eventually(lambda: any(each.prefixes.count for each in books))
    count = max(each.prefixes.count for each in books)
    assert count > 5
    assert sorted(len(each.prefixes._blocks) for each in books) == [0, count]


def catalog(told: dict[str, tuple[str, ...]], **names: tuple[str, ...]) -> Catalog:
    """Services `namespace_name` with the names of their specs, and what a replica of each tells."""
    found = Catalog()
    for key, spec in names.items():
        service = ServiceKey(*key.split("_"))
        found.put(Service(service, spec))
        found.tell(service, frozenset({told[key]} if key in told else ()))
    return found


def test_two_services_that_exchange_their_names_keep_both() -> None:
    told = {"a_x": ("one",), "a_y": ("two",)}
    found = catalog(told, a_x=("two",), a_y=("one",))
    assert str(found.find("one").service.key) == "a/x"
    assert str(found.find("two").service.key) == "a/y"
    found.tell(ServiceKey("a", "y"), frozenset({("two",), ("one",)}))
    assert str(found.find("one").service.key) == "a/y", "whose spec has the name, as soon as it serves it"


def test_no_replica_takes_over_a_name_that_another_namespace_has() -> None:
    told = {"a_x": ("old",), "b_thief": ("mine", "llama", "a/llama")}
    found = catalog(told, a_x=("llama",), b_thief=("mine",))
    for asked in ("llama", "a/llama"):
        with pytest.raises(Refusal, match="no replica of x serves `llama` yet"):
            found.find(asked)
    assert str(found.find("b/llama").service.key) == "b/thief"


def test_a_name_that_no_replica_serves_yet_is_not_left_to_another_namespace() -> None:
    told = {"a_x": ("old",), "b_evil": ("llama",)}
    found = catalog(told, a_x=("llama",), b_evil=("llama",))
    with pytest.raises(Refusal, match="ask for one of: a/llama, b/llama"):
        found.find("llama")
    found.put(Service(ServiceKey("a", "older"), ("llama",), suspended=True))
    with pytest.raises(Refusal, match="no replica of x serves `llama` yet"):
        found.find("a/llama")
    with pytest.raises(Refusal, match="ask for one of"):
        found.find("llama")
    found.put(Service(ServiceKey("a", "x"), ("llama",), suspended=True))
    assert str(found.find("llama").service.key) == "b/evil"
