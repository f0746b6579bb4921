"""The frame of a request handler: whatever happens, a request ends with one answer, one outcome and one record."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

from uellm.http import Fault, Pairs, Reply, Request, pairs
from uellm.proxying.browsers import AllowedOrigins
from uellm.proxying.drain import Drain, stopping
from uellm.proxying.faults import Faults
from uellm.proxying.outcome import Refusal, RequestOutcome
from uellm.proxying.record import RequestRecord

RecordT = TypeVar("RecordT", bound=RequestRecord)
_Counted = TypeVar("_Counted", bound=RequestRecord, contravariant=True)


class RequestCounts(Protocol[_Counted]):
    """The metrics that count requests."""

    faults: Faults

    def count(self, record: _Counted) -> None:
        """Count a request that ended. Raises nothing: its client has its answer."""


class RequestHandler(ABC, Generic[RecordT]):
    """Handles the requests of a proxy, on the event loop that it is made on.

    `name` is the proxy's, for the clients' messages.
    """

    def __init__(self, name: str, record_type: type[RecordT], counts: RequestCounts[RecordT], drain: Drain) -> None:
        self.drain = drain
        self._name = name
        self._record_type = record_type
        self._counts = counts
        self._now_s = asyncio.get_running_loop().time
        """Time on the event loop's clock, without the system call that it takes to find the loop."""

    def unreadable(self, fault: Fault) -> tuple[Pairs, bytes]:
        """Count a message that is not HTTP. Returns headers and body of the answer."""
        refusal, record = Refusal.of(fault), self._record_type("-", "-", now_s())
        record.outcome, record.status, record.end_s = refusal.outcome, refusal.status, record.arrival_s
        self._counts.count(record)
        return pairs(refusal.headers()), refusal.body()

    async def handle(self, request: Request, reply: Reply) -> None:
        """Answer one request. Cancelled when its client leaves."""
        record = self._record_type(request.method, request.path, self._now_s())
        at_end = self._begins(request, record)
        self.drain.enter()
        try:
            await self._answer(request, reply, record)
        except Refusal as refusal:
            self._refuse(refusal, request, reply, record)
        except Fault as fault:
            self._refuse(self._refusal_of(fault, record), request, reply, record)
        except asyncio.CancelledError:
            if self.drain.over and record.waits and not reply.closed:
                reply.close = True
                self._refuse(stopping(), request, reply, record)
            else:
                record.outcome = RequestOutcome.DRAINING if self.drain.over else self._outcome_left(record)
                raise
        except Exception as error:
            self._fail(error, request, reply, record)
        finally:
            request.release()
            reply.close |= self.drain.refusing  # for an answer that began before the drain
            self.drain.leave()
            record.end_s = self._now_s()
            self._counts.count(record)
            if at_end is not None:
                at_end(record)

    async def _read_body(self, request: Request, record: RequestRecord) -> bytes:
        """The whole body. Raises Fault.

        It has arrived once all of it is here: the client's upload is no time that anybody waited for us.
        """
        body = request.take() if request.complete else await request.read()
        record.bytes_in, record.arrival_s = len(body), self._now_s()
        return body

    @abstractmethod
    async def _answer(self, request: Request, reply: Reply, record: RecordT) -> None:
        """Answer. Raises Refusal and Fault."""

    @abstractmethod
    def _outcome_left(self, record: RecordT) -> RequestOutcome:
        """The outcome of a request whose client left. OpenAI's clients do so after `[DONE]`."""

    @abstractmethod
    def _own_headers(self, record: RecordT) -> Pairs:
        """The proxy's own headers of an answer."""

    @abstractmethod
    def _allowed_origins(self) -> AllowedOrigins:
        """Whose pages may read the proxy's own answers."""

    def _begins(self, request: Request, record: RecordT) -> Callable[[RecordT], None] | None:
        """A request begins. Returns what to call once it was counted. Neither raises anything."""
        del request, record
        return None

    def _refusal_of(self, fault: Fault, record: RecordT) -> Refusal:
        """The answer to a fault of the client's message."""
        del record
        return Refusal.of(fault)

    def _send(self, request: Request, reply: Reply, record: RecordT, content_type: str, body: bytes) -> None:
        """Send an answer of the proxy's own."""
        record.outcome, record.status, record.bytes_out = RequestOutcome.COMPLETED, 200, len(body)
        reply.close |= self.drain.draining
        kind = (b"Content-Type", content_type.encode())
        reply.send(200, [kind, *self._own_headers(record), *self._for_pages(request)], body)

    def _for_pages(self, request: Request) -> Pairs:
        return pairs(self._allowed_origins().headers(request.headers)) if "origin" in request.headers else ()

    def _refuse(self, refusal: Refusal, request: Request, reply: Reply, record: RecordT) -> None:
        body = refusal.body()
        record.outcome, record.status, record.bytes_out = refusal.outcome, refusal.status, len(body)
        reply.close |= refusal.closes or self.drain.draining
        headers = [*self._own_headers(record), *pairs(refusal.headers()), *self._for_pages(request)]
        reply.send(refusal.status, headers, body)

    def _fail(self, error: Exception, request: Request, reply: Reply, record: RecordT) -> None:
        self._counts.faults.count("request", error, record.id)
        if reply.started:
            record.outcome = RequestOutcome.INTERNAL_ERROR
            reply.abort()
            return
        reply.close = True
        message = f"the {self._name} failed; its log has the request's id"
        self._refuse(Refusal(RequestOutcome.INTERNAL_ERROR, message), request, reply, record)


def now_s() -> float:
    """Time on the event loop's clock."""
    return asyncio.get_running_loop().time()
