"""The engine as the sidecar sees it: one HTTP server on loopback that comes, goes and comes back.

STARTING --200--> READY --refused--> GONE --200--> READY      (a new process)
                    \\--5xx, or silent 3 times--> UNHEALTHY --200--> READY
"""

from __future__ import annotations

import asyncio
import io
import socket
from collections.abc import Callable, Mapping
from contextlib import suppress
from enum import StrEnum
from types import TracebackType
from typing import Any

import aiohttp
from aiohttp import ClientResponse, ClientSession, ClientTimeout, TCPConnector
from yarl import URL

from uellm.errors import BadInput

CONNECT_TIMEOUT_S = 5.0
HEALTH_TIMEOUT_S = 5.0
METRICS_TIMEOUT_S = 2.0
SILENCES_UNTIL_UNHEALTHY = 3

IDLE_CONNECTION_S = 2.0
"""vLLM closes a connection that was idle for 5 s; a request sent into that moment would be lost."""

READ_BUFFER_BYTES = 16 * 1024
RECEIVE_BUFFER_BYTES = 64 * 1024
"""What may wait between engine and a client that reads slowly; bounds what one read of the socket brings."""

LARGE_BODY_BYTES = 512 * 1024
"""From here on a body is written in pieces, so that it does not hold up the other streams."""

_AUTOMATIC = ("User-Agent", "Accept", "Accept-Encoding", "Content-Type")


class EngineState(StrEnum):
    """Whether requests can be sent."""

    STARTING = "starting"
    READY = "ready"
    UNHEALTHY = "unhealthy"
    GONE = "gone"


class EngineUnreachable(Exception):
    """No connection: nothing of the request was sent, so it can be tried again."""


class EngineLost(Exception):
    """The connection broke after the request was sent: it may have been run, so it must not be sent again."""


def engine_url(text: str) -> URL:
    """The engine's address from the command line. Raises BadInput."""
    try:
        url = URL(text)
        good = url.scheme == "http" and bool(url.host) and url.path in ("", "/") and not url.query_string
    except ValueError:
        good = False
    if not good:
        raise BadInput("--engine", f"{text!r} is not an address such as http://127.0.0.1:8001")
    return url.origin()


class Engine:
    """Connections to the engine, and its state, which `watch` keeps up to date. Use as an async context manager."""

    def __init__(
        self,
        url: URL,
        on_change: Callable[[EngineState, EngineState], None],
        *,
        poll_interval_s: float = 1.0,
        poll_interval_away_s: float = 0.25,
    ) -> None:
        self.url = url
        self.state = EngineState.STARTING
        self._on_change = on_change
        self._intervals_s = (poll_interval_s, poll_interval_away_s)
        self._silences = 0
        self._poke = asyncio.Event()
        self._session: ClientSession | None = None

    @property
    def ready(self) -> bool:
        """Whether requests can be sent."""
        return self.state is EngineState.READY

    async def __aenter__(self) -> Engine:
        self._session = ClientSession(
            connector=TCPConnector(limit=0, keepalive_timeout=IDLE_CONNECTION_S, socket_factory=_socket),
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=ClientTimeout(total=None, sock_connect=CONNECT_TIMEOUT_S),
            auto_decompress=False,
            skip_auto_headers=_AUTOMATIC,
            read_bufsize=READ_BUFFER_BYTES,
            max_line_size=65536,
            max_field_size=65536,
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._session is not None:
            await self._session.close()

    async def send(self, method: str, path: str, query: str, headers: Mapping[str, str], body: bytes) -> ClientResponse:
        """Send a request whose path and query are encoded already; returns once the answer's headers are there.

        Raises EngineUnreachable, EngineLost. The caller closes the response.
        """
        assert self._session is not None
        url = self.url.build(
            scheme=self.url.scheme,
            host=self.url.host or "",
            port=self.url.port,
            path=path,
            query_string=query,
            encoded=True,
        )
        data: Any = (io.BytesIO(body) if len(body) > LARGE_BODY_BYTES else body) or None
        try:
            return await self._session.request(method, url, headers=headers, data=data, allow_redirects=False)
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
            self._lost()
            raise EngineUnreachable(str(error)) from error
        except (aiohttp.ClientError, OSError) as error:
            self.suspect()
            raise EngineLost(str(error)) from error

    async def metrics(self) -> str | None:
        """The engine's own metrics; None when it does not answer at once."""
        assert self._session is not None
        timeout = ClientTimeout(total=METRICS_TIMEOUT_S)
        with suppress(aiohttp.ClientError, TimeoutError, OSError):
            async with self._session.get(self.url / "metrics", timeout=timeout) as response:
                if response.status == 200:
                    return await response.text("utf-8", "replace")
        return None

    def suspect(self) -> None:
        """A connection broke: look at once whether the engine is still there."""
        self._poke.set()

    async def watch(self) -> None:
        """Keep the state up to date, until cancelled."""
        while True:
            self._poke.clear()
            self._set(await self._probe())
            with suppress(TimeoutError):
                async with asyncio.timeout(self._intervals_s[0 if self.ready else 1]):
                    await self._poke.wait()

    async def _probe(self) -> EngineState:
        assert self._session is not None
        try:
            timeout = ClientTimeout(total=HEALTH_TIMEOUT_S)
            async with self._session.get(self.url / "health", timeout=timeout) as response:
                self._silences = 0
                return EngineState.READY if response.status == 200 else self._unless_starting(EngineState.UNHEALTHY)
        except TimeoutError:
            self._silences += 1
            silent = self._silences >= SILENCES_UNTIL_UNHEALTHY
            return self._unless_starting(EngineState.UNHEALTHY) if silent else self.state
        except (aiohttp.ClientError, OSError):
            return self._unless_starting(EngineState.GONE)

    def _unless_starting(self, state: EngineState) -> EngineState:
        return EngineState.STARTING if self.state is EngineState.STARTING else state

    def _lost(self) -> None:
        if self.ready:
            self._set(EngineState.GONE)
        self.suspect()

    def _set(self, state: EngineState) -> None:
        old, self.state = self.state, state
        if state is not old:
            self._on_change(old, state)


def _socket(address: Any) -> socket.socket:
    family, kind, protocol, _, _ = address
    connection = socket.socket(family, kind, protocol)
    connection.setblocking(False)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER_BYTES)
    return connection
