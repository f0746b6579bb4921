"""What a proxy serves on: one socket for its clients and one for its figures, from entry to exit."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Coroutine, Iterable
from types import TracebackType
from typing import Any, Self

from uellm.errors import CannotBeDone
from uellm.http import Server, ServerConnection
from uellm.proxying.drain import Drain
from uellm.proxying.process import Address

FLUSH_S = 5.0
"""How long finished answers may take to leave once the process ends."""


class ServingProxy(ABC):
    """A running proxy: an async context manager that serves from entry to exit.

    A subclass sets `_server` and `_management_server` before entry.
    """

    _server: Server
    _management_server: Server

    def __init__(self, listen: Address, metrics_listen: Address | None) -> None:
        self._listen, self._metrics_listen = listen, metrics_listen
        self.drain = Drain(self._close_idle)
        self._tasks: list[asyncio.Task[None]] = []

    @abstractmethod
    def _watches(self) -> Iterable[Coroutine[Any, Any, None]]:
        """What runs as long as it serves."""

    @abstractmethod
    async def _close(self) -> None:
        """Close everything else, after the last answer."""

    async def __aenter__(self) -> Self:
        """Raises CannotBeDone if an address cannot be listened on."""
        self._tasks = [asyncio.create_task(watch) for watch in self._watches()]
        try:
            if self._metrics_listen is not None:
                await self._management_server.listen(self._metrics_listen.host, self._metrics_listen.port)
            await self._server.listen(self._listen.host, self._listen.port)
        except OSError as error:
            await self.__aexit__(None, None, None)
            raise CannotBeDone(f"cannot listen: {error.strerror or error}") from error
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.drain.over = True
        await self._server.close(FLUSH_S)
        await self._management_server.close(FLUSH_S)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self.drain.close()
        await self._close()

    @property
    def connections(self) -> set[ServerConnection]:
        """Connections of clients."""
        return self._server.connections

    @property
    def port(self) -> int:
        """Where clients connect."""
        return self._server.port

    @property
    def metrics_port(self) -> int:
        """Where the figures are; 0: nowhere."""
        return self._management_server.port

    def _close_idle(self) -> None:
        for connection in tuple(self.connections):
            connection.close()
