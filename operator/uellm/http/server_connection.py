"""Connections of clients: one request at a time on each, a deadline on every wait, disconnects seen at once."""

from __future__ import annotations

import asyncio
import logging
from asyncio import TimerHandle
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import cast

from uellm.http.body import Body
from uellm.http.head import Head, HeadFinder, HeadParser, begins_well, without_blank_lines
from uellm.http.message import Budget, Fault, RequestLimits
from uellm.http.plain_head import plain_head
from uellm.http.reply import Reply
from uellm.http.request import Handler, Refuse, Request

LOG = logging.getLogger("uellm.http")

WRITE_BUFFER_BYTES = 64 * 1024

PROBES_S = (0.02, 0.1, 0.5, 2.0, 5.0)
"""Times after a client closed its side at which it is probed again."""

_IDLE_TOO_LONG = b"HTTP/1.1 408 Request Timeout\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"


@dataclass
class ServerContext:
    """What all connections of one port share."""

    handler: Handler
    refuse: Refuse
    limits: RequestLimits
    budget: Budget
    connections: set[ServerConnection] = field(default_factory=set)
    empty: asyncio.Event = field(default_factory=asyncio.Event)


class ServerConnection(asyncio.Protocol):
    """One client's connection.

    idle --bytes--> head --complete--> handler --finished--> idle, or flushing and lingering, then closed
    """

    transport: asyncio.Transport

    def __init__(self, service: ServerContext) -> None:
        self._service = service
        self.loop = asyncio.get_running_loop()
        self._finder = HeadFinder(service.limits)
        self._buffer: bytes | bytearray = b""
        """Of the next request. A bytearray while it is a long head, to which most bytes are added without a copy."""
        self._body: Body | None = None
        self._reply: Reply | None = None
        self._task: asyncio.Task[None] | None = None
        self._tunnel: Callable[[bytes], None] | None = None
        self._alarm: TimerHandle | None = None
        self._idle_alarm: TimerHandle | None = None
        """Kept during requests, because most of them end long before it: it then looks how long it is idle."""
        self._idle_since_s = self._idle_alarm_s = 0.0
        self._body_alarm: TimerHandle | None = None
        self._head_bytes = 0
        """Bytes of the buffer that count in the budget."""
        self._dropped_bytes = 0
        """Bytes of a request that came after its answer."""
        self._started = self._reading_paused = self._ending = self._half_closed = False
        self.writing_paused = self.closed = False

    @property
    def busy(self) -> bool:
        """A request is in progress."""
        return self._task is not None

    @property
    def unread(self) -> bool:
        """Nothing can follow an answer to the request in progress: its body is incomplete, or lost bytes follow it."""
        return self._body is not None and (not self._body.complete or self._body.surplus)

    # What the event loop calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A client connected. It may send its first request later, as those of load balancers do."""
        self.transport = cast(asyncio.Transport, transport)
        self.transport.set_write_buffer_limits(high=WRITE_BUFFER_BYTES)
        self._service.connections.add(self)
        if len(self._service.connections) > self._service.limits.connections:
            self._refuse(Fault(503, "too many connections; retry later"))
        else:
            self._idles()

    def data_received(self, data: bytes) -> None:
        """Bytes of a head, of a body, of the next request, or of a request that was refused."""
        if self._ending:
            self._dropped_bytes += len(data)
            return
        if self._tunnel is not None:
            self._tunnel(data)
            return
        if self._body is not None and not self._body.complete:
            data = self._body.feed(data)
            if not data:
                return
        if self._task is not None:
            self._buffer += data
            if len(self._buffer) > self._service.limits.ahead_bytes:
                self._reading_paused = True
                self.transport.pause_reading()
            return
        if self._buffer:
            self._buffer += data
            self._next()
        elif (plain := plain_head(data, self._service.limits)) is not None:
            head, end = plain
            self._begin(head, None, data[end:])
        else:
            self._buffer = data
            self._next()
            if self._buffer and self._task is None and not self._ending:  # nearly every head arrives in one piece
                self._set_alarm(self._service.limits.header_deadline_s, self.abort)

    def eof_received(self) -> bool:
        """The client closed its side: it left, or it only has nothing more to send. Probes tell which.

        Both look the same until something is sent: a client that left answers with a reset.
        """
        encrypted = self.transport.get_extra_info("sslcontext") is not None  # TLS has no half-closed connections here
        if (
            not self.busy
            or encrypted
            or self._tunnel is not None
            or (self._body is not None and not self._body.complete)
        ):
            if self.busy:
                self.drop()
            return False
        self._half_closed = True
        self._probe(PROBES_S)
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is closed. A running handler is cancelled."""
        self._service.connections.discard(self)
        if not self._service.connections:
            self._service.empty.set()
        self._stop_alarms()
        if self._idle_alarm is not None:
            self._idle_alarm.cancel()
        self._forget_buffer()
        if not self.closed:
            self._leave()

    def pause_writing(self) -> None:
        """The write buffer is full."""
        self.writing_paused = True
        if self._reply is not None:
            self._reply.pause()

    def resume_writing(self) -> None:
        """The write buffer has drained."""
        self.writing_paused = False
        if self._reply is not None:
            self._reply.resume()

    # One request after the other.

    def _next(self) -> None:
        if self._buffer[:1] == b"\r":
            self._buffer = without_blank_lines(self._buffer)
            if not self._buffer:
                self._goes_on_idling()
                return
            if self._buffer == b"\r":  # half of a blank line
                return
        try:
            if not begins_well(self._buffer):
                raise Fault(400, "the request cannot be read as HTTP/1.1")
            end = self._finder.find(self._buffer)
            if end:
                parser, received = HeadParser(), bytes(self._buffer)
                head = parser.parse(received[:end])
                self._begin(head, parser if head.length < 0 else None, received[end:])
            else:
                self._hold_head()
        except Fault as fault:
            self._refuse(fault)

    def _begin(self, head: Head, chunks: HeadParser | None, rest: bytes) -> None:
        """`chunks`: the parser of the body, if it comes in chunks; `rest`: what followed the head."""
        service, limits = self._service, self._service.limits
        if self._alarm is not None:
            self._stop_alarms()
        if self._head_bytes:
            self._forget_buffer()
        body = self._body = Body(
            head.length, chunks, limits.body_bytes_of.get(head.path, limits.body_bytes), service.budget
        )
        self._buffer = body.feed(rest) if rest and not body.complete else rest
        if not body.complete:
            self._body_alarm = self.loop.call_later(limits.body_deadline_s, self._body_late, body, self.loop.time())
        reply = self._reply = Reply(
            self, http_10=head.http_10, head_only=head.method == "HEAD", close=not head.keep_alive
        )
        self._started = False
        self._task = self.loop.create_task(self._serve(Request(head, body, self._continue), reply, body))

    async def _serve(self, request: Request, reply: Reply, body: Body) -> None:
        self._started = True
        try:
            if self.closed and self._task is not None:
                self._task.cancel()
            await self._service.handler(request, reply)
        except Exception as error:
            # The class alone: the text may quote the request.
            LOG.error("a request's handler failed by %s", type(error).__name__)
        finally:
            request.release()
            self._task = self._reply = self._body = self._tunnel = None
            if self._body_alarm is not None:
                self._body_alarm.cancel()
                self._body_alarm = None
            self._after(reply, body)

    def _after(self, reply: Reply, body: Body) -> None:
        if self.closed:
            return
        if not reply.finished:
            self.abort()
        elif not body.complete or body.surplus or body.failed:
            self._linger()
        elif reply.close or (self._half_closed and not self._buffer):
            self._flush()
        else:
            self._idles()
            if self._reading_paused:
                self._reading_paused = False
                self.transport.resume_reading()
            if self._buffer:
                self._set_alarm(self._service.limits.header_deadline_s, self.abort)
                self._next()

    def _hold_head(self) -> None:
        """Count a long head that is not complete yet in the budget. Raises Fault."""
        over_bytes = len(self._buffer) - self._service.limits.ahead_bytes - self._head_bytes
        if over_bytes > 0:
            if not self._service.budget.take(over_bytes):
                raise Fault(429, "waiting requests use all memory; retry later")
            self._head_bytes += over_bytes
            if isinstance(self._buffer, bytes):
                self._buffer = bytearray(self._buffer)

    def _forget_buffer(self) -> None:
        self._buffer = b""
        if self._head_bytes:
            self._service.budget.give_back(self._head_bytes)
            self._head_bytes = 0

    def _probe(self, times_s: tuple[float, ...]) -> None:
        if self.closed or self._reply is None:
            return
        self._reply.probe()
        if times_s:
            self.loop.call_later(times_s[0], self._probe, times_s[1:])

    # Tunnels.

    def tunnel(self, take: Callable[[bytes], None]) -> None:
        """From now on the client's bytes go to `take`, until the handler ends."""
        self._tunnel = take
        data, self._buffer = bytes(self._buffer), b""
        if self._reading_paused:
            self._reading_paused = False
            self.transport.resume_reading()
        if data:
            take(data)

    def pause_tunnel(self) -> None:
        """Stop reading from the client."""
        if not self.closed:
            self.transport.pause_reading()

    def resume_tunnel(self) -> None:
        """Resume reading from the client."""
        if not self.closed:
            self.transport.resume_reading()

    # Ends.

    def _idles(self) -> None:
        """No request is in progress from now on."""
        self._idle_since_s = now_s = self.loop.time()
        idle_s = self._service.limits.idle_s
        if self._idle_alarm is None or now_s + idle_s < self._idle_alarm_s:
            self._set_idle_alarm(idle_s)

    def _goes_on_idling(self) -> None:
        """Only blank lines came. They do not keep a connection open any longer."""
        self._stop_alarms()
        if self._half_closed:
            self._flush()
        elif self._idle_alarm is None:
            left_s = self._idle_since_s + self._service.limits.idle_s - self.loop.time()
            self._set_idle_alarm(max(left_s, 0.0))

    def _set_idle_alarm(self, seconds: float) -> None:
        if self._idle_alarm is not None:
            self._idle_alarm.cancel()
        self._idle_alarm_s = self.loop.time() + seconds
        self._idle_alarm = self.loop.call_later(seconds, self._idle_too_long)

    def _idle_too_long(self) -> None:
        """Say so before the end: a request that is just on its way gets an answer after which it can be sent again."""
        self._idle_alarm = None
        if self.busy or self._buffer or self._ending:
            return
        left_s = self._idle_since_s + self._service.limits.idle_s - self.loop.time()
        if left_s > 0.0:
            self._set_idle_alarm(left_s)
            return
        self.transport.write(_IDLE_TOO_LONG)
        self._linger()

    def abort(self) -> None:
        """Cut the connection; a running handler continues."""
        self.closed = True
        self.transport.abort()

    def end(self) -> None:
        """Cancel the handler. It may still answer where it has not begun to; an answer in progress is cut."""
        if self._task is None or self._reply is None or self._reply.started or not self._started or self.closed:
            self.drop()
        else:
            self._task.cancel()

    def drop(self) -> None:
        """Cut the connection and cancel its handler."""
        if not self.closed:
            self._leave()
        self.transport.abort()

    def _leave(self) -> None:
        self.closed = True
        if self._reply is not None:
            self._reply.resume()
        if self._task is not None and self._started:  # a task that has not started would never run its `finally`
            self._task.cancel()

    def close(self) -> None:
        """Close the connection if no request is in progress; written data is still sent."""
        if not self.busy and not self.closed:
            self._flush()

    def _refuse(self, fault: Fault) -> None:
        headers, body = self._service.refuse(fault)
        reply = Reply(self, http_10=False, head_only=False, close=True)
        reply.send(fault.status, headers, body)
        self._linger()

    def _linger(self) -> None:
        """Close after the client has the answer: closing a socket with unread bytes would discard the answer."""
        self._ending = True
        self._forget_buffer()
        self._stop_alarms()
        if self.transport.can_write_eof():
            self.transport.write_eof()
        if self._reading_paused:
            self._reading_paused = False
            self.transport.resume_reading()
        self._linger_on(self.loop.time(), 0)

    def _linger_on(self, since_s: float, seen_bytes: int) -> None:
        """Look again whether a client still sends its body: it reads the answer after the last byte."""
        limits, came_bytes, taken_s = self._service.limits, self._dropped_bytes, self.loop.time() - since_s
        began = seen_bytes == 0 and taken_s == 0.0
        slow = taken_s > limits.body_deadline_s and came_bytes < taken_s * limits.body_bytes_per_s
        if not began and (came_bytes == seen_bytes or slow or came_bytes > limits.linger_bytes):
            self._flush()
        else:
            self._set_alarm(limits.linger_s, partial(self._linger_on, since_s, came_bytes))

    def _flush(self) -> None:
        self._ending = True
        self._set_alarm(self._service.limits.flush_s, self.abort)
        self.transport.close()

    # Helpers.

    def _continue(self) -> None:
        if not self.closed:
            self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def _body_late(self, body: Body, started_s: float) -> None:
        limits, taken_s = self._service.limits, self.loop.time() - started_s
        if body.held_bytes >= taken_s * limits.body_bytes_per_s:
            self._body_alarm = self.loop.call_later(limits.body_deadline_s, self._body_late, body, started_s)
        else:
            body.fail(Fault(408, f"the body did not arrive within {taken_s:.3g} s"))

    def _set_alarm(self, seconds: float, call: Callable[[], None]) -> None:
        if self._alarm is not None:
            self._alarm.cancel()
        self._alarm = self.loop.call_later(seconds, call)

    def _stop_alarms(self) -> None:
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None
        if self._body_alarm is not None:
            self._body_alarm.cancel()
            self._body_alarm = None
