"""API keys. Only their hashes are kept, and every one is compared, in constant time."""

from __future__ import annotations

import hmac
from collections.abc import Iterable
from hashlib import sha256

from uellm.proxying.outcome import Refusal, RequestOutcome
from uellm.proxying.routes import HeaderLookup
from uellm.vllm_routes import OPEN

KEYS = frozenset((b"authorization", b"x-api-key"))
"""The headers that have a key, in lower case."""


def key_of(headers: HeaderLookup) -> str | None:
    """The key of a request: a bearer token, or Anthropic's `x-api-key`."""
    if given := headers.get("authorization"):
        scheme, _, token = given.partition(" ")
        if scheme.lower() == "bearer" and (token := token.strip()):
            return token
    return headers.get("x-api-key") or None


class Keys:
    """The accepted keys. None: no key is required; empty: every request is refused, because no key exists yet."""

    def __init__(self, keys: Iterable[str] | None = None) -> None:
        self.required = keys is not None
        """Some routes require a key."""
        self._hashes = [sha256(key.encode()).digest() for key in keys or ()]

    def check(self, method: str, path: str, key: str | None) -> None:
        """Raises Refusal if the route requires a key and this is not one of them."""
        if not self.required or path in OPEN or method == "OPTIONS":
            return
        if key is None:
            raise Refusal(
                RequestOutcome.UNAUTHORIZED, "this service needs an API key: send it as `Authorization: Bearer KEY`"
            )
        given = sha256(key.encode("utf-8", "surrogateescape")).digest()
        good = False
        for each in self._hashes:
            good |= hmac.compare_digest(given, each)
        if not good:
            raise Refusal(RequestOutcome.UNAUTHORIZED, "the API key is not one of this service's")
