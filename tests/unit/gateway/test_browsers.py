"""A page in a browser may use the gateway if its origin is allowed, and reads nothing of it otherwise."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from uellm.proxying.browsers import AllowedOrigins

CHAT = "/v1/chat/completions"
UI = "https://ui.example.com"
ALLOWED = "Access-Control-Allow-Origin"
NOT_ALLOWED = [
    (AllowedOrigins(), UI),
    (AllowedOrigins(frozenset({UI})), "https://evil.example.com"),
    (AllowedOrigins(frozenset({UI})), "null"),
]


def question(origin: str) -> dict[str, str]:
    """What a browser asks before it sends a request with a key and a body in JSON."""
    return {
        "Origin": origin,
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization,content-type",
    }


async def answers(harness: Any, origin: str) -> list[tuple[int, str | None]]:
    """Status and allowed origin of a list, a refusal, and an answer that is relayed."""
    found = []
    async with harness.client.get(harness.url("/v1/models"), headers={"Origin": origin}) as response:
        found.append((response.status, response.headers.get(ALLOWED)))
    for model in ("unknown", "llama"):
        async with harness.post(model, Origin=origin) as response:
            found.append((response.status, response.headers.get(ALLOWED)))
            assert len(response.headers.getall(ALLOWED, [])) <= 1
    return found


async def with_engine(launch: Any, engines: Any, origins: AllowedOrigins) -> tuple[Any, Any]:
    harness, engine = await launch(origins=origins), await engines()
    harness.serve("llama", engine.port)
    return harness, engine


@pytest.mark.parametrize(("origins", "origin"), NOT_ALLOWED)
async def test_a_page_of_no_allowed_origin_reads_nothing(launch, engines, origins, origin) -> None:
    harness, _ = await with_engine(launch, engines, origins)
    assert await answers(harness, origin) == [(200, None), (404, None), (200, None)]
    async with harness.client.options(harness.url(CHAT), headers=question(origin)) as response:
        assert (response.status, ALLOWED in response.headers) == (403, False)
        assert "gateway.allowedOrigins" in await response.text()


@pytest.mark.parametrize("origins", [AllowedOrigins(frozenset({UI})), AllowedOrigins(frozenset({"*"}))])
async def test_a_page_of_an_allowed_origin_asks_first_and_then_reads_every_answer(launch, engines, origins) -> None:
    harness, engine = await with_engine(launch, engines, origins)
    shown = UI if UI in origins.origins else "*"
    async with harness.client.options(harness.url(CHAT), headers=question(UI)) as response:
        assert (response.status, response.headers[ALLOWED]) == (200, shown)
        assert "POST" in response.headers["Access-Control-Allow-Methods"]
        assert response.headers["Access-Control-Allow-Headers"] == "authorization,content-type"
    assert await answers(harness, UI) == [(200, shown), (404, shown), (200, shown)]
    assert [call.method for call in engine.received] == ["POST"]
    assert not any(name.lower().startswith("access-control") for name in engine.received[0].headers)


async def test_a_question_needs_no_key_and_the_request_behind_it_does(launch, tmp_path) -> None:
    (tmp_path / "keys").write_text("secret")
    harness = await launch(origins=AllowedOrigins(frozenset({UI})), keys=tmp_path)
    async with harness.client.options(harness.url(CHAT), headers=question(UI)) as response:
        assert response.status == 200
    async with harness.post(Origin=UI) as response:
        assert (response.status, response.headers[ALLOWED]) == (401, UI)


async def test_options_that_are_no_question_of_a_browser_are_not_served(launch) -> None:
    harness = await launch(origins=AllowedOrigins(frozenset({"*"})))
    async with harness.client.options(harness.url(CHAT), headers={"Origin": UI}) as response:
        assert response.status == 404


async def test_headers_that_are_no_text_of_a_browser_are_not_repeated(launch) -> None:
    harness = await launch(origins=AllowedOrigins(frozenset({"*"}), credentials=True))
    head = b"OPTIONS /v1/models HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAccess-Control-Request-Method: GET\r\n"
    strange = await asyncio.gather(
        harness.raw(head + b"Origin: \xff\r\n\r\n"),
        harness.raw(head + b"Origin: a://b\r\nAccess-Control-Request-Headers: \xff\r\n\r\n"),
    )
    assert [answer.split(b" ")[1] for answer in strange] == [b"403", b"200"]
    assert not any(b"\xff" in answer for answer in strange)
