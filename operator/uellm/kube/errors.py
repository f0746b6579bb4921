"""What the API server, or the way to it, may answer instead of what was asked.

    KubeError             status (0: no answer came), reason, message, causes
    +-- Unauthorized      401: the credentials are not known
    +-- Forbidden         403: RBAC, a quota or an admission says no
    +-- NotFound          404: only where the object is needed (`Kube.get` answers None)
    +-- Conflict          409: someone else wrote in between, or owns the field; read again and try again
    |   +-- AlreadyExists 409: an object of that name is there
    +-- Gone              410: the resource version is too old; list again
    +-- Invalid           400, 422: the object itself is wrong; trying again is of no use
    +-- Unavailable       no answer, 429 and 5xx: trying again later is right

`transient` says whether the same call may succeed later without anybody changing anything.
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
    """The credentials are not known to the API server."""


class Forbidden(KubeError):
    """RBAC, a quota or an admission plugin refuses the call."""


class NotFound(KubeError):
    """The object, its namespace or its kind is not there."""


class Conflict(KubeError):
    """Someone else wrote in between, or owns a field; a fresh read and a new try are right."""

    transient = True


class AlreadyExists(Conflict):
    """An object of that name is there already."""

    transient = False


class Gone(KubeError):
    """The resource version asked for is no longer kept."""

    transient = True


class Invalid(KubeError):
    """The object breaks its schema or a validation rule; `causes` names the fields."""


class Unavailable(KubeError):
    """No answer, or one that says: later. `retry_after_s` is the server's own wish, where it has one."""

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
    """Build the error for an answer that is not 2xx. `body` is a Kubernetes Status, or whatever a proxy wrote."""
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
    # The server also reports an expired resource version inside of a watch that began with status 200.
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
        # Retry-After may also be a date; our own backoff does instead.
        return None
