"""A client's connection: aiohttp's, with a deadline on headers and refusals in OpenAI's form."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from aiohttp.http_exceptions import InvalidURLError, LineTooLong
from aiohttp.web import BaseRequest, RequestHandler, Response, Server, StreamResponse

from uellm.sidecar.outcome import Outcome, Refusal
from uellm.sidecar.routes import MAX_HEADER_BYTES

HEADER_DEADLINE_S = 10.0
IDLE_S = 75.0
READ_BUFFER_BYTES = 64 * 1024
LINGER_S = 2.0


class ClientConnection(RequestHandler):
    """aiohttp waits for headers as long as for the next request of an idle connection; here the two are told apart.

    The deadline runs from the connection's first moment, and on a connection that was idle from the next request's
    first byte, until the handler takes the request over by `begin`.
    """

    def __init__(
        self,
        manager: Server,
        *,
        on_unreadable: Callable[[Refusal], None],
        header_deadline_s: float = HEADER_DEADLINE_S,
    ) -> None:
        super().__init__(
            manager,
            loop=asyncio.get_running_loop(),
            keepalive_timeout=IDLE_S,
            lingering_time=LINGER_S,
            max_line_size=MAX_HEADER_BYTES,
            max_field_size=MAX_HEADER_BYTES,
            read_bufsize=READ_BUFFER_BYTES,
            auto_decompress=False,
            access_log=None,  # type: ignore[arg-type]
        )
        self._on_unreadable = on_unreadable
        self._header_deadline_s = header_deadline_s
        self._header_alarm: asyncio.TimerHandle | None = None
        self._serving = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The deadline starts."""
        super().connection_made(transport)
        self._await_headers()

    def connection_lost(self, exc: BaseException | None) -> None:
        """Nothing is awaited any more."""
        self._stop_alarm()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """The first bytes of a next request start its deadline."""
        if not self._serving and self._header_alarm is None:
            self._await_headers()
        super().data_received(data)

    def begin(self) -> None:
        """The headers are complete and the request is being served."""
        self._serving = True
        self._stop_alarm()

    def end(self) -> None:
        """The request is over."""
        self._serving = False

    def handle_error(
        self, request: BaseRequest, status: int = 500, exc: BaseException | None = None, message: str | None = None
    ) -> StreamResponse:
        """What could not be read as HTTP. Nothing of it goes to the log: it may hold anything."""
        self._stop_alarm()
        refusal = _unreadable(exc)
        self._on_unreadable(refusal)
        response = Response(status=refusal.status, body=refusal.body(), headers=refusal.headers())
        response.force_close()
        return response

    def log_exception(self, *args: Any, **kw: Any) -> None:
        """Failures of a connection's own task: the class of the error, never its text, which may quote the request."""
        error = kw.get("exc_info")
        self.logger.warning("a client's connection ended by %s", type(error).__name__)

    def _await_headers(self) -> None:
        self._header_alarm = self._loop.call_later(self._header_deadline_s, self.force_close)

    def _stop_alarm(self) -> None:
        if self._header_alarm is not None:
            self._header_alarm.cancel()
            self._header_alarm = None


def _unreadable(error: BaseException | None) -> Refusal:
    if isinstance(error, LineTooLong):
        return Refusal(Outcome.TOO_LARGE, f"a header or the request line exceeds {MAX_HEADER_BYTES} bytes", status=431)
    if isinstance(error, InvalidURLError):
        return Refusal(Outcome.BAD_REQUEST, "the request's target cannot be read")
    return Refusal(Outcome.BAD_REQUEST, "the request cannot be read as HTTP/1.1")
