"""How requests end. Every request has exactly one outcome, the same in the metrics and in the access log.

`Refusal` is an answer of the sidecar itself, in OpenAI's error form. `STATUS` has the HTTP status of each outcome that
is a refusal.
"""

from __future__ import annotations

import json
import math
import random
from enum import StrEnum

from uellm.http import Fault


class RequestOutcome(StrEnum):
    """How a request ended: a label of low cardinality. The docstrings give what the client gets."""

    COMPLETED = "completed"
    """The engine's answer below 400, whole."""
    REJECTED_BY_ENGINE = "rejected_by_engine"
    """The engine's own 4xx, whole."""
    FAILED_BY_ENGINE = "failed_by_engine"
    """The engine's own 5xx, whole."""
    ENGINE_LOST = "engine_lost"
    """503. After the first bytes: an SSE error event, else a cut connection."""
    ENGINE_UNAVAILABLE = "engine_unavailable"
    """503: the engine was not reached and did not come back in time."""
    QUEUE_FULL = "queue_full"
    """429: the queue, or the memory for waiting bodies, is full."""
    SHED = "shed"
    """429: the engine is overloaded and the request cannot meet its targets any more."""
    DEADLINE_PASSED = "deadline_passed"
    """504: its class says `onDeadline: Reject`."""
    DRAINING = "draining"
    """503: the pod is about to stop. A cut answer: the pod stopped before it was complete."""
    BAD_REQUEST = "bad_request"
    """400 or 405: not HTTP, an unknown class, or an unusable path."""
    UNAUTHORIZED = "unauthorized"
    """401: no API key, or a wrong one."""
    FORBIDDEN = "forbidden"
    """403: an administrative route."""
    MODEL_NOT_FOUND = "model_not_found"
    """404, of the gateway: no service has a model of that name."""
    MODEL_AMBIGUOUS = "model_ambiguous"
    """400, of the gateway: several services have one, so the name needs its namespace."""
    TOO_LARGE = "too_large"
    """413 for the body, 431 for the headers, 414 for the request line."""
    CLIENT_SLOW = "client_slow"
    """408 while sending its body; a cut answer while not reading it."""
    CLIENT_LEFT = "client_left"
    """Nothing: the client had disconnected."""
    INTERNAL_ERROR = "internal_error"
    """500: a fault of the sidecar."""


STATUS = {
    RequestOutcome.ENGINE_LOST: 503,
    RequestOutcome.ENGINE_UNAVAILABLE: 503,
    RequestOutcome.QUEUE_FULL: 429,
    RequestOutcome.SHED: 429,
    RequestOutcome.DEADLINE_PASSED: 504,
    RequestOutcome.DRAINING: 503,
    RequestOutcome.BAD_REQUEST: 400,
    RequestOutcome.UNAUTHORIZED: 401,
    RequestOutcome.FORBIDDEN: 403,
    RequestOutcome.MODEL_NOT_FOUND: 404,
    RequestOutcome.MODEL_AMBIGUOUS: 400,
    RequestOutcome.TOO_LARGE: 413,
    RequestOutcome.CLIENT_SLOW: 408,
    RequestOutcome.INTERNAL_ERROR: 500,
}

_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    408: "timeout_error",
    429: "rate_limit_error",
    503: "service_unavailable_error",
    504: "timeout_error",
}

DROPPED = {
    RequestOutcome.QUEUE_FULL: "rejected-saturated",
    RequestOutcome.SHED: "rejected-saturated",
    RequestOutcome.DEADLINE_PASSED: "rejected-ttl-expired",
    RequestOutcome.ENGINE_UNAVAILABLE: "rejected-no-endpoints",
    RequestOutcome.ENGINE_LOST: "evicted",
    RequestOutcome.DRAINING: "rejected-shutting-down",
    RequestOutcome.INTERNAL_ERROR: "rejected-internal",
}
"""Reasons why a valid request is not served, as in llm-d's flow control (`RequestDroppedReason`)."""

_UNREAD = frozenset((405, 408, 413, 414, 431))

_FAULTS = {
    408: RequestOutcome.CLIENT_SLOW,
    413: RequestOutcome.TOO_LARGE,
    414: RequestOutcome.TOO_LARGE,
    429: RequestOutcome.QUEUE_FULL,
    431: RequestOutcome.TOO_LARGE,
    503: RequestOutcome.QUEUE_FULL,
}

RETRY_CONNECTION_S = (1.0, 5.0)
"""Retry time for too many connections or bodies: nobody knows how long that lasts."""

RETRY_ENGINE_S = (5.0, 15.0)
"""Retry time while the engine is not ready. Loading a model takes tens of seconds; early requests wait in the queue."""

RETRY_REPLICA_S = (0.1, 1.0)
"""Retry time while a replica stops. Another one takes the request at once; the spread avoids a burst."""


class Refusal(Exception):
    """The sidecar's own answer to a request.

    `retry_after_s`: when to send the request again; None: unknown. `retry` is false if clients must not send it again
    by themselves, because its deadline has passed.
    """

    def __init__(
        self,
        outcome: RequestOutcome,
        message: str,
        *,
        status: int | None = None,
        retry_after_s: float | None = None,
        retry: bool = True,
    ) -> None:
        super().__init__(message)
        self.outcome = outcome
        self.message = message
        self.status = STATUS[outcome] if status is None else status
        self.retry_after_s = retry_after_s
        self.retry = retry

    @property
    def closes(self) -> bool:
        """Whether the connection must be closed, because its next bytes may not be the start of a request."""
        return self.status in _UNREAD

    @classmethod
    def of(cls, fault: Fault) -> Refusal:
        """The refusal for a fault of the transport."""
        outcome = _FAULTS.get(fault.status, RequestOutcome.BAD_REQUEST)
        retry_after_s = spread_s(RETRY_CONNECTION_S) if outcome is RequestOutcome.QUEUE_FULL else None
        return cls(outcome, fault.message, status=fault.status, retry_after_s=retry_after_s)

    def headers(self) -> dict[str, str]:
        """Headers of the answer."""
        headers = {"Content-Type": "application/json", "Server": "uellm", "x-uellm-outcome": str(self.outcome)}
        if (reason := DROPPED.get(self.outcome)) is not None:
            headers["x-llm-d-request-dropped-reason"] = reason
        if self.outcome is RequestOutcome.UNAUTHORIZED:
            headers["WWW-Authenticate"] = "Bearer"
        if self.retry_after_s is not None:
            headers["Retry-After"] = str(max(1, math.ceil(self.retry_after_s)))
            headers["retry-after-ms"] = str(math.ceil(self.retry_after_s * 1e3))
        if not self.retry:
            headers["x-should-retry"] = "false"
        return headers

    def body(self) -> bytes:
        """OpenAI's error object, as the official clients read it."""
        return json.dumps(error_object(self.outcome, self.message, self.status)).encode()


def error_object(outcome: RequestOutcome, message: str, status: int) -> dict[str, object]:
    """`{"error": {message, type, param, code}}`; the code is the outcome, so that a client can tell refusals apart."""
    kind = _TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")
    return {"error": {"message": message, "type": kind, "param": None, "code": str(outcome)}}


def spread_s(bounds_s: tuple[float, float]) -> float:
    """A random time between the bounds, so that clients do not come back together."""
    return random.uniform(*bounds_s)


COMPLETED = RequestOutcome.COMPLETED
"""By a name of its own: to read a member of an enum costs as much as a call, and every request does so many times."""


def of_engine_status(status: int) -> RequestOutcome:
    """Outcome of an answer that was relayed whole."""
    if status < 400:
        return COMPLETED
    return RequestOutcome.REJECTED_BY_ENGINE if status < 500 else RequestOutcome.FAILED_BY_ENGINE
