"""The path of a request, its id, and the headers that are passed on."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from functools import lru_cache
from operator import itemgetter
from typing import Protocol
from urllib.parse import unquote_to_bytes

from uellm.http import Headers, Pairs
from uellm.proxying.outcome import Refusal, RequestOutcome
from uellm.vllm_routes import SCHEDULED

HOP_BY_HOP = frozenset(
    (
        *(b"connection", b"keep-alive", b"proxy-connection", b"proxy-authenticate", b"proxy-authorization"),
        *(b"te", b"trailer", b"transfer-encoding", b"upgrade", b"expect"),
    )
)
_NAME: Callable[[tuple[bytes, bytes]], bytes] = itemgetter(0)
_KEEP_ALIVE = ["keep-alive"]
"""What most clients send as Connection. It names no header besides the hop-by-hop ones."""
SLO_CLASS = "x-slo-class"
"""Names the class of a request."""
OBJECTIVES = ("x-llm-d-inference-objective", "x-gateway-inference-objective")
"""llm-d's headers, which may name one as well."""

MEANT_FOR = "x-uellm-service"
"""From the gateway to a sidecar: namespace and name of the service that the request is for."""

WAITED_MS = "x-uellm-waited-ms"
"""From the gateway to a sidecar, beside `MEANT_FOR`: milliseconds since the request came to the gateway. They count in
its targets."""

SEARCH = "x-uellm-search"
"""From the gateway to a sidecar: nobody has asked this replica, the gateway looks for the one that keeps a response."""

_ID_BYTES, _IDS_TOGETHER = 16, 64
_NEW_IDS: list[str] = []
"""Ids that no request has yet."""
_MILLISECONDS = re.compile(r"[0-9]{1,8}")
_REQUEST_ID = re.compile(r"[A-Za-z0-9._:/-]{1,128}")


class HeaderLookup(Protocol):
    """Headers by name, in any case."""

    def get(self, name: str, /) -> str | None:
        """The value, or None."""


def path_of(method: str, raw_path: str) -> str:
    """The path of a request as the engine's router reads it. Raises Refusal.

    The engine decodes a path once before it matches it. The decoded path is therefore checked: `/%73leep` is `/sleep`.
    """
    if method in ("CONNECT", "TRACE"):
        raise Refusal(RequestOutcome.BAD_REQUEST, f"method {method} is not served here", status=405)
    if raw_path in SCHEDULED:
        return raw_path
    path = unquote_to_bytes(raw_path).decode("utf-8", "replace")
    segments = [segment for segment in path.split("/") if segment]
    if not path.startswith("/") or "." in segments or ".." in segments or not path.isprintable():
        raise Refusal(
            RequestOutcome.BAD_REQUEST, "the path cannot be used: send it without dot segments or control characters"
        )
    return "/" + "/".join(segments)


def end_to_end(
    headers: Headers, replaced: Pairs = (), ended: frozenset[bytes] = HOP_BY_HOP
) -> list[tuple[bytes, bytes]]:
    """The headers of the message that are passed on: without those in `replaced`, and without hop-by-hop headers.

    `ended`: names in lower case that end here, the hop-by-hop ones (RFC 9110, 7.6.1) among them.
    """
    dropped = _dropped(tuple(map(_NAME, replaced)), ended) if replaced else ended
    if "connection" in headers and (options := headers.get_all("connection")) != _KEEP_ALIVE:
        dropped |= {
            option.strip().lower().encode("latin-1", "replace") for value in options for option in value.split(",")
        }
    return headers.without(dropped)


@lru_cache(maxsize=64)
def _dropped(replaced: tuple[bytes, ...], ended: frozenset[bytes]) -> frozenset[bytes]:
    """What is not passed on of a message. A proxy replaces the same few combinations of names all the time."""
    return ended | {name.lower() for name in replaced}


def waited_s(headers: HeaderLookup, service: str) -> float:
    """Seconds that a request had waited at the gateway when it was sent to a replica of `service`.

    0 without the gateway's other header. A client that reaches the sidecar itself may set both, which gains it no more
    than a shorter target of its own.
    """
    if not service or headers.get(MEANT_FOR) != service:
        return 0.0
    text = headers.get(WAITED_MS) or ""
    return int(text) / 1e3 if _MILLISECONDS.fullmatch(text) else 0.0


def request_id(headers: Headers) -> str:
    """The client's X-Request-Id if it is safe in logs and headers, else a new id."""
    given = headers.get("x-request-id")
    if given and _REQUEST_ID.fullmatch(given):
        return given
    if not _NEW_IDS:
        _draw_ids()
    return _NEW_IDS.pop()


def _draw_ids() -> None:
    """Add random ids. The kernel is asked for many together: to ask costs more than to take one of them."""
    drawn = os.urandom(_ID_BYTES * _IDS_TOGETHER).hex()
    _NEW_IDS.extend([drawn[start : start + 2 * _ID_BYTES] for start in range(0, len(drawn), 2 * _ID_BYTES)])
