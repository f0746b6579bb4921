"""Routing of requests, and the headers that are passed on."""

from __future__ import annotations

import re
from collections.abc import Collection
from enum import Enum
from secrets import token_hex
from urllib.parse import unquote_to_bytes

from uellm.http import Headers, Pairs
from uellm.sidecar.outcome import Refusal, RequestOutcome
from uellm.vllm_routes import SCHEDULED, administrative

_HOP_BY_HOP = frozenset(
    (
        *(b"connection", b"keep-alive", b"proxy-connection", b"proxy-authenticate", b"proxy-authorization"),
        *(b"te", b"trailer", b"transfer-encoding", b"upgrade", b"expect"),
    )
)
_REQUEST_ID = re.compile(r"[A-Za-z0-9._:/-]{1,128}")


class Way(Enum):
    """How a request is handled."""

    SCHEDULE = "schedule"
    PASS = "pass"
    METRICS = "metrics"


def path_of(method: str, raw_path: str) -> str:
    """The path of a request as the engine's router reads it. Raises Refusal.

    The engine decodes a path once before it matches it. The decoded path is therefore checked: `/%73leep` is `/sleep`.
    """
    if method in ("CONNECT", "TRACE"):
        raise Refusal(RequestOutcome.BAD_REQUEST, f"method {method} is not served here", status=405)
    path = unquote_to_bytes(raw_path).decode("utf-8", "replace")
    segments = [segment for segment in path.split("/") if segment]
    if not path.startswith("/") or "." in segments or ".." in segments or not path.isprintable():
        raise Refusal(
            RequestOutcome.BAD_REQUEST, "the path cannot be used: send it without dot segments or control characters"
        )
    return "/" + "/".join(segments)


def way_of(method: str, path: str, allowed: Collection[str] = ()) -> Way:
    """How to handle a path from `path_of`. `allowed`: administrative routes that are open. Raises Refusal."""
    if administrative(path) and path not in allowed:
        raise Refusal(
            RequestOutcome.FORBIDDEN, f"{path} is an administrative route of the engine; it is not served here"
        )
    if method == "POST" and path in SCHEDULED:
        return Way.SCHEDULE
    return Way.METRICS if method == "GET" and path == "/metrics" else Way.PASS


def end_to_end(headers: Headers, replaced: Pairs = ()) -> list[tuple[bytes, bytes]]:
    """The headers of the message, without hop-by-hop headers (RFC 9110, 7.6.1) and without those in `replaced`."""
    dropped = _HOP_BY_HOP
    if (named := headers.get_all("connection")) or replaced:
        options = {
            option.strip().lower().encode("latin-1", "replace") for value in named for option in value.split(",")
        }
        dropped = dropped | options | {name.lower() for name, _ in replaced}
    return [(name, value) for name, value in headers.raw if name.lower() not in dropped]


def request_id(headers: Headers) -> str:
    """The client's X-Request-Id if it is safe in logs and headers, else a new id."""
    given = headers.get("x-request-id") or ""
    return given if _REQUEST_ID.fullmatch(given) else token_hex(16)
