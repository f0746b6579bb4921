"""A client's request, and the type of its handler."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from uellm.http.body import Body
from uellm.http.head import Head
from uellm.http.message import Fault, Pairs
from uellm.http.reply import Reply


class Request:
    """A client's request. `body` is there after `read` was awaited, and until `release`."""

    __slots__ = ("_body", "_expects", "_go_on", "body", "headers", "method", "path", "query", "target")

    def __init__(self, head: Head, body: Body, go_on: Callable[[], None]) -> None:
        self._body = body
        self._expects = head.expects
        self._go_on = go_on
        self.method = head.method
        """As it was sent: methods are case-sensitive."""
        self.path = head.path
        """The target's path, still encoded."""
        self.query = head.query
        """The target's query, still encoded, without the question mark."""
        self.target = head.target
        """Path and query, as they are sent to the next server."""
        self.headers = head.headers
        self.body = b""

    @property
    def complete(self) -> bool:
        """The whole body has arrived, so that `take` may be called in place of `read`."""
        return self._body.complete

    def take(self) -> bytes:
        """The whole body, which has arrived. Raises Fault: it was refused."""
        self.body = body = self._body.take()
        return body

    async def read(self) -> bytes:
        """Wait for the whole body. Raises Fault: too long, too slow, no memory for it, malformed."""
        body = self._body
        if body.complete:
            return self.take()
        if self._expects and not body.failed:
            self._go_on()
        self.body = await body.read()
        return self.body

    def release(self) -> None:
        """Free the body."""
        self.body = b""
        self._body.release()


Handler = Callable[[Request, Reply], Awaitable[None]]
"""Answers one request. Cancelled when its client disconnects. If it raises, the connection is cut."""

Refuse = Callable[[Fault], tuple[Pairs, bytes]]
"""Headers and body of the answer to data that is not a valid request."""
