"""Whether the gateway knows the keys of a service, also while the API server gives no answer."""

from __future__ import annotations

import asyncio
import base64
import json
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from uellm.gateway import secret_keys
from uellm.gateway.secret_keys import FAILED_FOR_S, KEYS_FOR_S, KeySecret, SecretKeys
from uellm.kube import Forbidden, Kind, Kube, Unavailable
from uellm.proxying.keys import Keys
from uellm.proxying.outcome import Refusal, RequestOutcome

KEYS = KeySecret("team-a", "keys")


def secret(key: str) -> dict[str, Any]:
    return {"data": {"a": base64.b64encode(key.encode()).decode()}}


class World:
    """An API server with one answer, and a clock."""

    def __init__(self) -> None:
        self.answer: dict[str, Any] | Exception | None = None
        self.reads = 0
        self.now_s = 0.0
        self.keys = SecretKeys(self, lambda: self.now_s)  # type: ignore[arg-type]

    async def get(self, kind: Kind, name: str, namespace: str) -> dict[str, Any] | None:
        self.reads += 1
        await asyncio.sleep(0)
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


AWAY = Unavailable(503, "ServiceUnavailable", "no etcd")
FORBIDDEN = Forbidden(403, "Forbidden", "no")


def opens(keys: Keys | None, key: str) -> bool:
    assert keys is not None
    try:
        keys.check("POST", "/v1/x", key)
    except Refusal:
        return False
    return True


async def test_nobody_wakes_a_service_while_its_keys_cannot_be_read() -> None:
    world = World()
    world.answer = AWAY
    for _ in range(3):
        with pytest.raises(Refusal, match="cannot be read from its Secret now; retry later") as caught:
            await world.keys.of(KEYS)
        assert caught.value.outcome is RequestOutcome.ENGINE_UNAVAILABLE
        assert caught.value.retry_after_s > 0
    assert world.reads == 1
    world.answer = secret("one")
    world.now_s = FAILED_FOR_S
    assert opens(await world.keys.of(KEYS), "one")


@pytest.mark.parametrize("last", [secret("one"), FORBIDDEN])
async def test_the_last_answer_stays_in_force_while_the_api_server_is_away(last) -> None:
    world = World()
    world.answer = last
    before = await world.keys.of(KEYS)
    world.answer = AWAY
    world.now_s = KEYS_FOR_S
    assert await world.keys.of(KEYS) is before
    world.answer = secret("two")
    world.now_s += FAILED_FOR_S
    assert opens(await world.keys.of(KEYS), "two")


@pytest.mark.parametrize("known", [True, False], ids=["read before", "never read"])
async def test_no_request_waits_long_for_an_api_server_that_is_silent(known, monkeypatch, caplog, tmp_path) -> None:
    monkeypatch.setattr(secret_keys, "READ_AGAIN_S" if known else "READ_S", 0.1)
    answering, now_s = asyncio.Event(), 0.0

    async def answer(_: web.Request) -> web.Response:
        await answering.wait()
        return web.json_response(secret("one"))

    app = web.Application()
    app.router.add_get("/{path:.*}", answer)
    async with TestServer(app) as server, await Kube.connect(kubeconfig=kubeconfig(tmp_path, server)) as kube:
        keys = SecretKeys(kube, lambda: now_s)
        if known:
            answering.set()
            assert opens(await keys.of(KEYS), "one")
            answering.clear()
            now_s = KEYS_FOR_S
        async with asyncio.timeout(5):
            if known:
                assert all(opens(each, "one") for each in await asyncio.gather(*(keys.of(KEYS) for _ in range(3))))
            else:
                with pytest.raises(Refusal, match="cannot be read from its Secret now; retry later"):
                    await keys.of(KEYS)
        assert caplog.messages == [
            "the API keys of Secret team-a/keys cannot be read: the API server gave no answer within 0.1 s"
        ]
        answering.set()


def kubeconfig(folder: Path, server: TestServer) -> str:
    name = {"name": "c"}
    document = {
        "clusters": [{**name, "cluster": {"server": f"http://127.0.0.1:{server.port}"}}],
        "users": [{**name, "user": {"token": "t"}}],
        "contexts": [{**name, "context": {"cluster": "c", "user": "c"}}],
        "current-context": "c",
    }
    (folder / "kubeconfig").write_text(json.dumps(document))
    return str(folder / "kubeconfig")


async def test_a_refusal_to_read_is_asked_for_again_after_a_while() -> None:
    world = World()
    world.answer = FORBIDDEN
    assert await world.keys.of(KEYS) is None
    world.answer = secret("one")
    assert await world.keys.of(KEYS) is None
    world.now_s = KEYS_FOR_S
    assert opens(await world.keys.of(KEYS), "one")


async def test_a_secret_that_does_not_exist_opens_nothing() -> None:
    assert not opens(await World().keys.of(KEYS), "any")


async def test_each_secret_has_its_own_keys_and_a_burst_reads_it_once() -> None:
    world = World()
    world.answer = secret("one")
    assert len(set(await asyncio.gather(*(world.keys.of(KEYS) for _ in range(5))))) == 1
    world.answer = secret("two")
    assert opens(await world.keys.of(KeySecret("team-a", "others")), "two")
    assert opens(await world.keys.of(KEYS), "one")
    assert world.reads == 2
