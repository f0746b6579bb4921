"""The engine as the sidecar sees it: one HTTP server on loopback that starts, fails and restarts.

STARTING --200--> READY --refused--> GONE --200--> READY      (a new process)
                    \\--5xx, silent 3 times, or hanging--> UNHEALTHY --200 and not hanging--> READY
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from contextlib import suppress
from enum import StrEnum

from uellm.errors import BadInput
from uellm.http import EngineAddress, EngineLost, EnginePool, EngineUnreachable, Pairs
from uellm.sidecar.engine.canary import Canary

HEALTH_TIMEOUT_S = 5.0
METRICS_TIMEOUT_S = 2.0
SILENCES_UNTIL_UNHEALTHY = 3
_JSON: Pairs = ((b"Accept", b"application/json"),)


class EngineHealth(StrEnum):
    """Whether the engine can take requests, and if not, why."""

    STARTING = "starting"
    READY = "ready"
    UNHEALTHY = "unhealthy"
    GONE = "gone"


def engine_address(text: str, field: str = "--engine") -> EngineAddress:
    """The engine's address from the command line. Raises BadInput."""
    try:
        return EngineAddress.parse(text)
    except ValueError:
        raise BadInput(field, f"{text!r} is not an address such as http://127.0.0.1:8001") from None


class EngineConnection:
    """Connections to the engine, and its health, which `watch` keeps up to date."""

    def __init__(
        self,
        address: EngineAddress,
        on_change: Callable[[EngineHealth, EngineHealth], None],
        *,
        poll_interval_s: float = 1.0,
        poll_interval_away_s: float = 0.25,
        on_started: Callable[[], Awaitable[bool]] | None = None,
    ) -> None:
        """`on_started`: prepares an engine that has just started; it takes requests once that returns True."""
        self.pool = EnginePool(address)
        """Who sends a client's request there says `lost` or `suspect` when it fails."""
        self.health = EngineHealth.STARTING
        self.hanging = False
        """It makes no progress although /health is 200; set by `EngineMonitor`."""
        self.max_model_len: int | None = None
        """Tokens of the longest prompt and answer together; None: not known."""
        self._on_change = on_change
        self.on_started = on_started
        self._intervals_s = (poll_interval_s, poll_interval_away_s)
        self._silences = 0
        self._poke = asyncio.Event()

    @property
    def ready(self) -> bool:
        """Whether requests can be sent."""
        return self.health is EngineHealth.READY

    async def metrics(self) -> str | None:
        """The engine's own metrics; None if it does not answer in time."""
        with suppress(EngineUnreachable, EngineLost, TimeoutError):
            status, body = await self._get(b"/metrics", METRICS_TIMEOUT_S)
            if status == 200:
                return body.decode("utf-8", "replace")
        return None

    async def read_max_model_len(self) -> None:
        """Read it from the engine's list of models. An engine that does not tell it has none that is known."""
        self.max_model_len = None
        with suppress(EngineUnreachable, EngineLost, TimeoutError):
            status, body = await self._get(b"/v1/models", METRICS_TIMEOUT_S, _JSON)
            self.max_model_len = _max_model_len(body) if status == 200 else None

    async def canary(self, canary: Canary, timeout_s: float) -> bool:
        """Send it; whether any answer came that is not a server error."""
        headers = ((b"Content-Type", canary.content_type),)
        with suppress(EngineUnreachable, EngineLost, TimeoutError):
            async with asyncio.timeout(timeout_s):
                upstream = await self.pool.send("POST", canary.path.encode(), headers, canary.body)
                try:
                    return upstream.status < 500
                finally:
                    upstream.abort()
        return False

    def close(self) -> None:
        """Close all connections at once."""
        self.pool.close()

    def lost(self) -> None:
        """No connection could be made: the engine counts as gone, and is checked now."""
        if self.ready:
            self._set(EngineHealth.GONE)
        self.suspect()

    def suspect(self) -> None:
        """A connection broke: check the engine's health now."""
        self._poke.set()

    async def watch(self) -> None:
        """Keep `health` up to date until cancelled."""
        while True:
            self._poke.clear()
            self._set(await self._probe())
            with suppress(TimeoutError):
                async with asyncio.timeout(self._intervals_s[0 if self.ready else 1]):
                    await self._poke.wait()

    async def _probe(self) -> EngineHealth:
        try:
            status, _ = await self._get(b"/health", HEALTH_TIMEOUT_S)
        except TimeoutError:
            self._silences += 1
            silent = self._silences >= SILENCES_UNTIL_UNHEALTHY
            return self._unless_starting(EngineHealth.UNHEALTHY) if silent else self.health
        except (EngineUnreachable, EngineLost):
            return self._unless_starting(EngineHealth.GONE)
        self._silences = 0
        good = status == 200 and not self.hanging
        is_new = self.health in (EngineHealth.STARTING, EngineHealth.GONE)
        if good and is_new and self.on_started is not None and not await self.on_started():
            return self.health
        return EngineHealth.READY if good else self._unless_starting(EngineHealth.UNHEALTHY)

    async def _get(self, target: bytes, timeout_s: float, headers: Pairs = ()) -> tuple[int, bytes]:
        """Raises TimeoutError, EngineUnreachable, EngineLost."""
        async with asyncio.timeout(timeout_s):
            upstream = await self.pool.send("GET", target, headers, b"")
            try:
                return upstream.status, await upstream.read()
            finally:
                upstream.abort()

    def _unless_starting(self, health: EngineHealth) -> EngineHealth:
        return EngineHealth.STARTING if self.health is EngineHealth.STARTING else health

    def _set(self, health: EngineHealth) -> None:
        before, self.health = self.health, health
        if health is not before:
            self._on_change(before, health)


def _max_model_len(body: bytes) -> int | None:
    """The largest one in a list of models, in vLLM's form."""
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        return None
    models = document.get("data") if isinstance(document, dict) else None
    found = [each.get("max_model_len") for each in models if isinstance(each, dict)] if isinstance(models, list) else []
    return max((length for length in found if type(length) is int and length > 0), default=None)
