"""A listening port and its connections."""

from __future__ import annotations

import asyncio
import ssl
from contextlib import suppress

from uellm.http.listener import Listener
from uellm.http.message import Budget, RequestLimits
from uellm.http.request import Handler, Refuse
from uellm.http.server_connection import ServerConnection, ServerContext


class Server:
    """A listening port and its connections."""

    def __init__(
        self,
        handler: Handler,
        refuse: Refuse,
        *,
        limits: RequestLimits | None = None,
        budget: Budget | None = None,
        tls: ssl.SSLContext | None = None,
    ):
        """`tls`: connections are HTTPS."""
        self._tls = tls
        self._service = ServerContext(handler, refuse, limits or RequestLimits(), budget or Budget())
        self._listener: Listener | None = None
        self.port = 0

    @property
    def limits(self) -> RequestLimits:
        """The limits in force."""
        return self._service.limits

    @limits.setter
    def limits(self, limits: RequestLimits) -> None:
        """Those of bodies and idle connections are in force at once, the others for new connections."""
        self._service.limits = limits

    @property
    def connections(self) -> set[ServerConnection]:
        """The open connections."""
        return self._service.connections

    async def listen(self, host: str, port: int) -> None:
        """Accept connections; `port` 0: any free one. Raises OSError."""
        self._listener = Listener(lambda: ServerConnection(self._service), self._tls)
        self.port = await self._listener.open(host, port)

    async def close(self, flush_s: float) -> None:
        """Stop accepting, end requests in progress, and allow `flush_s` for sending finished answers.

        Handlers are cancelled, and may still send an answer where none has begun.
        """
        if self._listener is None:
            return
        self._listener.close()
        for connection in tuple(self.connections):
            if connection.busy:
                connection.end()
            else:
                connection.close()
        if not await self._emptied(flush_s):
            for connection in tuple(self.connections):
                connection.drop()
            await self._emptied(flush_s)

    async def _emptied(self, within_s: float) -> bool:
        if self.connections:
            self._service.empty.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(within_s):
                    await self._service.empty.wait()
        return not self.connections
