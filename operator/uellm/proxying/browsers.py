"""Which web pages may read the answers of a proxy itself (CORS, the Fetch standard). Pure.

A browser shows a page an answer from another origin only if the answer's headers name the page's origin. As with vLLM,
no origin is allowed unless a setting names it: else every page that somebody inside the network opens could read what
is served there.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from uellm.errors import BadInput
from uellm.http import Headers, Pairs, pairs

EVERY_ORIGIN = "*"
_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[a-z0-9._:\[\]-]+")
_READABLE = "Retry-After, retry-after-ms, x-should-retry, x-uellm-outcome, X-Request-Id"
"""Headers of ours that a page may read: its client's library obeys them."""
PREFLIGHT_S = 600
"""How long a browser may remember the answer to a preflight request."""


@dataclass(frozen=True, slots=True)
class AllowedOrigins:
    """The origins, such as `https://chat.example.com`, or `*` for every one."""

    origins: frozenset[str] = frozenset()
    credentials: bool = False
    """Pages may send cookies, too. API keys are none."""

    @classmethod
    def parse(cls, origins: Iterable[str], field: str) -> AllowedOrigins:
        """Origins as browsers write them. Raises BadInput: any other would never match."""
        found = frozenset(origins)
        for origin in sorted(found):
            if origin != EVERY_ORIGIN and not _ORIGIN.fullmatch(origin):
                message = "is no origin: give scheme, host and port in lower case, such as https://chat.example.com"
                raise BadInput(field, f"{origin!r} {message}, or *")
        return cls(found)

    def headers(self, request: Headers) -> dict[str, str]:
        """The headers that let the page which sent this request read the answer; none if it may not."""
        origin = request.get("origin")
        every = EVERY_ORIGIN in self.origins
        if not origin or not origin.isascii() or not (every or origin in self.origins):
            return {}
        headers = {
            "Access-Control-Allow-Origin": EVERY_ORIGIN if every and not self.credentials else origin,
            "Access-Control-Expose-Headers": _READABLE,
        }
        if self.credentials:
            headers["Access-Control-Allow-Credentials"] = "true"
        if headers["Access-Control-Allow-Origin"] != EVERY_ORIGIN:
            headers["Vary"] = "Origin"
        return headers

    def preflight(self, request: Headers, methods: str) -> Pairs:
        """The headers that answer a browser's question whether the page may send a request; empty if it may not."""
        allowed = self.headers(request)
        if not allowed:
            return ()
        asked = request.get("access-control-request-headers")
        headers = {
            **allowed,
            "Access-Control-Allow-Methods": methods,
            "Access-Control-Max-Age": str(PREFLIGHT_S),
            "Vary": "Origin, Access-Control-Request-Headers",
        }
        if asked and asked.isascii():  # every header may be sent: clients have their own, and keys go in one
            headers["Access-Control-Allow-Headers"] = asked
        return pairs(headers)


NO_ORIGIN = AllowedOrigins()


def is_preflight(method: str, headers: Headers) -> bool:
    """Whether a browser asks by this request if a page may send another one."""
    return method == "OPTIONS" and "origin" in headers and "access-control-request-method" in headers
