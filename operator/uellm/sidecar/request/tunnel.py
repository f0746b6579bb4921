"""A WebSocket between client and engine: after the engine's 101 the bytes of both pass as they are."""

from __future__ import annotations

from uellm.http import EngineLost, Headers, Pairs, Reply, Upstream
from uellm.proxying.outcome import RequestOutcome, of_engine_status
from uellm.proxying.routes import end_to_end
from uellm.sidecar.telemetry.access_log import Record

SWITCHING = 101
UPGRADE: Pairs = ((b"Connection", b"Upgrade"), (b"Upgrade", b"websocket"))


def asks_for_websocket(method: str, headers: Headers) -> bool:
    """Whether a request wants to become a WebSocket (RFC 6455, 4.2.1)."""
    return method == "GET" and any(value.lower() == "websocket" for value in headers.get_all("upgrade"))


class Tunnel:
    """Passes the bytes of one WebSocket. Each side is read only as fast as the other one reads."""

    def __init__(self, reply: Reply, upstream: Upstream, record: Record) -> None:
        self._reply, self._upstream, self._record = reply, upstream, record
        self._bytes_out = 0

    async def run(self, own: Pairs) -> None:
        """Pass the engine's 101 on, with the additional headers `own`; then all bytes until one side closes."""
        reply, upstream, record = self._reply, self._upstream, self._record
        record.status = upstream.status
        fields = (*UPGRADE, *own)
        reply.switch([*end_to_end(upstream.headers, fields), *fields], upstream.reason, upstream.write)
        reply.on_pause, reply.on_resume = upstream.hold, upstream.go_on
        upstream.on_pause, upstream.on_resume = reply.link.pause_tunnel, reply.link.resume_tunnel
        try:
            await upstream.pipe(self._send)
            record.outcome = of_engine_status(upstream.status)
            reply.finish()
        except EngineLost:
            record.outcome = RequestOutcome.ENGINE_LOST
            reply.abort()
        finally:
            reply.on_pause = reply.on_resume = upstream.on_pause = upstream.on_resume = None
            record.bytes_out = self._bytes_out

    def _send(self, piece: bytes) -> None:
        self._bytes_out += len(piece)
        self._reply.write(piece)
