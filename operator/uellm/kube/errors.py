"""Errors of the API server and of the connection to it.

    KubeError             status (0: no answer came), reason, message, causes
    +-- Unauthorized      401: the credentials are unknown
    +-- Forbidden         403: refused by RBAC, a quota or an admission plugin
    +-- NotFound          404: only where the object is needed (`Kube.get` returns None)
    +-- Conflict          409: someone else wrote in between, or owns the field; read and try again
    |   +-- AlreadyExists 409: an object of that name exists
    +-- Gone              410: the resource version is too old; list again
    +-- Invalid           400, 422: the object is wrong; trying again does not help
    +-- Unavailable       no answer, 429 or 5xx: try again later

`transient`: the same call may succeed later although nobody changes anything.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from uellm.errors import CannotBeDone


class KubeError(CannotBeDone):
    """A call to the API server failed. `causes` are (field, message) pairs where the server names fields."""

    transient = False

    def __init__(
        self,
        status: int,
        reason: str,
        message: str,
        *,
        causes: tuple[tuple[str, str], ...] = (),
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.reason = reason
        self.message = message
        self.causes = causes
        self.retry_after_s = retry_after_s


class Unauthorized(KubeError):
    """The API server does not know the credentials."""


class Forbidden(KubeError):
    """RBAC, a quota or an admission plugin refuses the call."""


class NotFound(KubeError):
    """The object, its namespace or its kind does not exist."""


class Conflict(KubeError):
    """Someone else wrote in between, or owns a field: read and try again."""

    transient = True


class AlreadyExists(Conflict):
    """An object of that name exists."""

    transient = False


class Gone(KubeError):
    """The requested resource version is too old."""

    transient = True


class Invalid(KubeError):
    """The object violates its schema or a validation rule; `causes` names the fields."""


class Unavailable(KubeError):
    """No answer, or one that asks to try later: after `retry_after_s`, where the server names a time."""

    transient = True


_BY_STATUS: Mapping[int, type[KubeError]] = {
    400: Invalid,
    401: Unauthorized,
    403: Forbidden,
    404: NotFound,
    409: Conflict,
    410: Gone,
    422: Invalid,
    429: Unavailable,
}


# Server-side apply answers 500 without a reason where the object does not match its schema.
_UNTYPED = re.compile(r"failed to create typed patch object .*?\): (?:errors:)?(.*)", re.DOTALL)


def error_from(status: int, body: bytes, *, retry_after: str | None = None, what: str = "") -> KubeError:
    """The error for an answer that is not 2xx. `body` is a Kubernetes Status, or text of a proxy."""
    document = _status_document(body)
    message = str(document.get("message") or f"{what}: HTTP status {status} {_excerpt(body)}".strip())
    untyped = _UNTYPED.match(message)
    if untyped:
        return Invalid(422, "Invalid", " ".join(message.split()), causes=tuple(_untyped_causes(untyped[1])))
    reason = str(document.get("reason") or "")
    details = document.get("details") or {}
    return _class_of(status, reason)(
        status,
        reason or f"HTTP{status}",
        message,
        causes=tuple((cause.get("field", ""), cause.get("message", "")) for cause in details.get("causes") or ()),
        retry_after_s=_seconds(retry_after or details.get("retryAfterSeconds")),
    )


def _untyped_causes(text: str) -> Iterator[tuple[str, str]]:
    for line in filter(None, map(str.strip, text.splitlines())):
        field, _, message = line.partition(": ")
        yield field.removeprefix("."), message


def _excerpt(body: bytes) -> str:
    return " ".join(body[:200].decode("utf-8", "replace").split())


def _class_of(status: int, reason: str) -> type[KubeError]:
    if reason == "AlreadyExists":
        return AlreadyExists
    # An expired resource version is also reported inside a watch that began with status 200.
    if reason in ("Expired", "Gone"):
        return Gone
    if status >= 500:
        return Unavailable
    return _BY_STATUS.get(status, KubeError)


def _status_document(body: bytes) -> Mapping[str, Any]:
    try:
        document = json.loads(body)
    except ValueError:
        return {}
    return document if isinstance(document, dict) and document.get("kind") == "Status" else {}


def _seconds(value: Any) -> float | None:
    try:
        return float(value) if value else None
    except ValueError:
        # Retry-After may also be a date; our own backoff is used then.
        return None
