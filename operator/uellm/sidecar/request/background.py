"""Responses in the background: the engine has answered and works on, so they stay in flight until it says they ended.

Their tickets keep their places at the engine, and a drain waits for them.
"""

from __future__ import annotations

import asyncio
import json
from contextlib import suppress
from typing import Any

from uellm.http import EngineLost, EngineUnreachable, Headers, Pairs
from uellm.proxying.drain import Drain
from uellm.proxying.response_id import RESPONSES
from uellm.sidecar.engine.connection import EngineConnection, EngineHealth
from uellm.sidecar.request.exchange import Exchange
from uellm.sidecar.wire.events import Usage, usage_of

POLL_S = 1.0
MOST_POLLS_PER_S = 20
"""Of all responses together, for each costs the engine's server as much as a small request."""
POLL_TIMEOUT_S = 10.0
MOST_S = 3600.0
"""After that a response counts as ended: vLLM never ends the state of a stream in the background that failed."""
FETCH_S = 5.0
"""How long a drain waits after the end of a response, so that its client, which polls, can fetch it."""
_UNENDED = frozenset(("queued", "in_progress"))


class Background:
    """Follows the responses that go on after their answers."""

    def __init__(
        self,
        engine: EngineConnection,
        drain: Drain,
        *,
        poll_s: float = POLL_S,
        most_s: float = MOST_S,
        fetch_s: float = FETCH_S,
    ) -> None:
        self._engine = engine
        self._drain = drain
        self.poll_s = poll_s
        self.most_s = most_s
        self.fetch_s = fetch_s
        self._following: set[asyncio.Task[None]] = set()

    def __len__(self) -> int:
        return len(self._following)

    def take(self, exchange: Exchange, headers: Headers) -> bool:
        """Take over an exchange whose response goes on; False: it does not, and the caller ends it.

        `headers`: the request's, for engines that want its API key.
        """
        response_id = exchange.goes_on_as()
        if not response_id:
            return False
        self._drain.enter()
        task = asyncio.create_task(self._follow(exchange, response_id, _key_of(headers)))
        self._following.add(task)
        task.add_done_callback(self._following.discard)
        return True

    def close(self) -> None:
        """Follow none any more."""
        for task in self._following:
            task.cancel()

    async def _follow(self, exchange: Exchange, response_id: str, key: Pairs) -> None:
        usage: Usage | None = None
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(self.most_s):
                    usage = await self._usage_at_end(response_id, key)
        finally:
            exchange.end_later(usage)
            try:
                if usage is not None and self._drain.draining:
                    await asyncio.sleep(self.fetch_s)
            finally:
                self._drain.leave()

    async def _usage_at_end(self, response_id: str, key: Pairs) -> Usage | None:
        """Wait until it has ended. None: it has no usage, or the engine does not know it any more."""
        while self._engine.health is not EngineHealth.GONE:
            await asyncio.sleep(max(self.poll_s, len(self) / MOST_POLLS_PER_S))
            found: dict[str, Any] | None = None
            with suppress(EngineUnreachable, EngineLost, TimeoutError):
                found = await self._ask(response_id, key)
            if found is not None and found.get("status") not in _UNENDED:
                return usage_of(found.get("usage"))
        return None

    async def _ask(self, response_id: str, key: Pairs) -> dict[str, Any] | None:
        """The response as it is now; empty: the engine does not have it. None: it did not say."""
        target = f"{RESPONSES}/{response_id}".encode()
        async with asyncio.timeout(POLL_TIMEOUT_S):
            upstream = await self._engine.pool.send("GET", target, key, b"")
            try:
                if upstream.status >= 500:
                    return None
                document = json.loads(await upstream.read()) if upstream.status == 200 else {}
            except ValueError:
                return {}
            finally:
                upstream.abort()
        return document if isinstance(document, dict) else {}


def _key_of(headers: Headers) -> Pairs:
    key = headers.get("authorization")
    return () if key is None else ((b"Authorization", key.encode("utf-8", "surrogateescape")),)
