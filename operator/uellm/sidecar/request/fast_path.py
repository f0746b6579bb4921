"""The fast path of a stream's events: count an event, and pass it on in the chunk that it came in."""

from __future__ import annotations

from collections.abc import Callable

from uellm.http import Reply
from uellm.sidecar.request.dispatch import MAX_TOKEN_UPDATES, Dispatcher
from uellm.sidecar.scheduling import Ticket
from uellm.sidecar.wire.events import NO_USAGE, USAGE, TokenCounter, has_usage
from uellm.sidecar.wire.failure import ERROR, ERROR_EVENT
from uellm.sidecar.wire.strip import FINISHED


class FastPath:
    """The fast path of one stream. It uses few objects and calls, because each event finds the CPU caches cold."""

    __slots__ = (
        "_closing",
        "_counter",
        "_dispatcher",
        "_mark",
        "_news",
        "_strips",
        "_ticket",
        "_time",
        "_write",
        "last_s",
        "passed_bytes",
    )

    def __init__(
        self,
        reply: Reply,
        counter: TokenCounter,
        dispatcher: Dispatcher,
        ticket: Ticket,
        *,
        strips: bool,
        write: Callable[[bytes], None] | None = None,
    ) -> None:
        """`strips`: events with usage need the normal path. `write` takes the chunks instead of the client."""
        self._closing = reply.link.transport.is_closing
        self._write = write or reply.link.transport.write
        self._counter = counter
        self._mark = counter.mark
        self._dispatcher = dispatcher
        self._news = dispatcher.token_updates
        self._ticket = ticket
        self._strips = strips
        self._time = reply.link.loop.time
        self.last_s: float | None = None
        """When the last event with a token passed."""
        self.passed_bytes = 0
        """Bytes of the events that were passed on, without chunk framing."""

    def take(self, chunk: bytes) -> bool:
        """Pass on a chunk of whole events, including its framing. False: the chunk needs the normal path."""
        found, start = chunk.count(self._mark), chunk.index(b"\r") + 2
        # Nearly every chunk is one event, and checking its start is cheaper than a search.
        # `find`, because `in` takes half as long again.
        failed = chunk.startswith(ERROR_EVENT, start) if found == 1 else not found or ERROR in chunk
        if failed or chunk.find(FINISHED) >= 0:
            return False
        counter = self._counter
        if chunk.find(USAGE) >= 0 and (NO_USAGE not in chunk if found == 1 else has_usage(chunk)):
            if self._strips:
                return False
            counter.take_usage(chunk)
        counter.events = events = counter.events + found
        self.last_s = now_s = self._time()
        self._news.append((self._ticket, events, now_s))
        if len(self._news) > MAX_TOKEN_UPDATES:
            self._dispatcher.catch_up()
        self.passed_bytes += len(chunk) - len(b"\r\n") - start
        if not self._closing():
            self._write(chunk)
        return True
