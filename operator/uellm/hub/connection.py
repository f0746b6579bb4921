"""GET with what a look-up needs: ranges, limits, guarded redirects, the environment's proxies and certificates."""

from __future__ import annotations

import os
import ssl
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from types import TracebackType
from typing import Self
from urllib.parse import urljoin, urlsplit, urlunsplit

import httpx

from uellm.hub.addresses import AddressRefused, NoAddress, public_address
from uellm.hub.facts import LookUpRefusal
from uellm.hub.remedies import OF_COMMANDS, Remedies

PUBLIC_HUB = "https://huggingface.co"
REDIRECTS = 5
TIMEOUT_S = 20.0
DEADLINE_S = 120.0
"""Of one look-up, all its requests together."""
_REDIRECT_BODY_BYTES = 64 << 10
_REDIRECTED = {301, 302, 303, 307, 308}


@dataclass(frozen=True)
class HubSettings:
    """Where to ask, and as whom; and what refusals tell a person to set."""

    endpoint: str = PUBLIC_HUB
    token: str = ""
    remedies: Remedies = OF_COMMANDS

    @classmethod
    def from_environment(cls, remedies: Remedies = OF_COMMANDS) -> HubSettings:
        """`HF_ENDPOINT` and `HF_TOKEN`, as huggingface_hub reads them."""
        endpoint = os.environ.get("HF_ENDPOINT", "").rstrip("/") or PUBLIC_HUB
        return cls(endpoint, os.environ.get("HF_TOKEN", "").strip(), remedies)


@dataclass(frozen=True)
class Answer:
    """A final answer. `body` is cut at the limit that was asked for; `whole` says whether it was not."""

    status: int
    headers: Mapping[str, str]
    """Names in lower case. A redirect's own come before those of the answer that it led to."""
    body: bytes
    whole: bool
    file_bytes: int | None
    """Size of the whole file; None where the server does not say."""


class InterruptedStreamError(Exception):
    """The connection broke in the middle of a body."""

    def __init__(self, refusal: LookUpRefusal) -> None:
        super().__init__(refusal.message)
        self.refusal = refusal


@dataclass(frozen=True)
class Stream:
    """A final answer whose body is still to be read."""

    answer: Answer
    """Status and headers; its body is empty."""
    first: int
    """Offset in the file at which the body begins: 0 where the server knows no ranges."""
    pieces: Iterator[bytes]
    """The body. Raises InterruptedStreamError."""


class HubConnection:
    """The connections of one look-up or copy. `get` returns a LookUpRefusal where no answer came.

    `deadline_s`: of all requests together; None for no limit. Threads may share it.
    """

    def __init__(self, settings: HubSettings, deadline_s: float | None = DEADLINE_S) -> None:
        self.settings = settings
        self._allowed_s = deadline_s or 0.0
        self._deadline_s = float("inf") if deadline_s is None else time.monotonic() + deadline_s
        # Proxies and private CAs (SSL_CERT_FILE) are those of the environment.
        self._client = httpx.Client(timeout=TIMEOUT_S, follow_redirects=False, trust_env=True, verify=_certificates())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._client.close()

    def get(self, path: str, *, first: int = 0, limit: int) -> Answer | LookUpRefusal:
        """At most `limit` bytes of the endpoint's file at `path`, from byte `first` on."""
        opened = self._open(path, f"bytes={first}-{first + limit - 1}")
        if isinstance(opened, LookUpRefusal):
            return opened
        response, told = opened
        # A server without ranges sends the file from its beginning.
        skip = first if response.status_code == 200 else 0
        try:
            body = self._read(response, skip + limit)
        except (httpx.HTTPError, OSError) as error:
            return self._unreachable(str(error) or type(error).__name__)
        finally:
            response.close()
        size = _file_bytes(response)
        whole = len(body) <= skip + limit and (size is None or first + len(body) - skip >= size)
        return Answer(response.status_code, told, body[skip : skip + limit], whole, size)

    @contextmanager
    def stream(self, path: str, *, first: int, last: int) -> Iterator[Stream | LookUpRefusal]:
        """The bytes `first` to `last` (included) of the endpoint's file at `path`, piece by piece."""
        opened = self._open(path, f"bytes={first}-{last}")
        if isinstance(opened, LookUpRefusal):
            yield opened
            return
        response, told = opened
        answer = Answer(response.status_code, told, b"", False, _file_bytes(response))
        try:
            yield Stream(answer, first if response.status_code == 206 else 0, self._pieces(response))
        finally:
            response.close()

    def _pieces(self, response: httpx.Response) -> Iterator[bytes]:
        try:
            # Pieces of a chosen size would be gathered first, and lost where the connection breaks.
            yield from response.iter_raw()
        except (httpx.HTTPError, OSError) as error:
            raise InterruptedStreamError(self._unreachable(str(error) or type(error).__name__)) from error

    def _open(self, path: str, wanted: str) -> tuple[httpx.Response, dict[str, str]] | LookUpRefusal:
        """The final answer, its body unread, and its headers: a redirect's own come before those of what it led to."""
        url, told = self.settings.endpoint + path, dict[str, str]()
        ranged = {"Range": wanted, "Accept-Encoding": "identity"}
        for _ in range(REDIRECTS + 1):
            request = self._request(url, ranged)
            if isinstance(request, LookUpRefusal):
                return request
            if time.monotonic() > self._deadline_s:
                return self._unreachable(f"the look-up was not done within {self._allowed_s:.0f} s")
            try:
                response = self._client.send(request, stream=True)
                told = {**{name.lower(): value for name, value in response.headers.items()}, **told}
                target = response.headers.get("location")
                if response.status_code not in _REDIRECTED or not target:
                    return response, told
                try:
                    # So that the connection can be used again.
                    self._read(response, _REDIRECT_BODY_BYTES)
                finally:
                    response.close()
            except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
                return self._unreachable(str(error) or type(error).__name__)
            url = urljoin(url, target)
        return LookUpRefusal("InvalidAnswer", f"{self.settings.endpoint} redirects more than {REDIRECTS} times")

    def _request(self, url: str, headers: dict[str, str]) -> httpx.Request | LookUpRefusal:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or "@" in parts.netloc:
            return LookUpRefusal(
                "InvalidAnswer", f"{self.settings.endpoint} redirects to {url[:200]!r}: no web address"
            )
        if _origin(url) == _origin(self.settings.endpoint):
            if self.settings.token:
                headers = headers | {"Authorization": f"Bearer {self.settings.token}"}
            return self._client.build_request("GET", url, headers=headers)
        if parts.scheme in urllib.request.getproxies() and not urllib.request.proxy_bypass(parts.hostname):
            return self._client.build_request("GET", url, headers=headers)  # the proxy decides what may be reached
        port = parts.port or (443 if parts.scheme == "https" else 80)
        address = public_address(parts.hostname, port)
        if isinstance(address, AddressRefused):
            return LookUpRefusal(
                "AddressRefused",
                f"{self.settings.endpoint} redirects to {parts.hostname}, which has the address {address.address}: "
                "only public addresses are followed, and HF_ENDPOINT itself",
            )
        if isinstance(address, NoAddress):
            return self._unreachable(f"{parts.hostname} has no address")
        # The address that was checked is the one that is connected to, whatever the name means a moment later.
        pinned = f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
        return self._client.build_request(
            "GET",
            urlunsplit(parts._replace(netloc=pinned)),
            headers=headers | {"Host": parts.netloc},
            extensions={"sni_hostname": parts.hostname},
        )

    def _read(self, response: httpx.Response, limit: int) -> bytes:
        found = bytearray()
        for piece in response.iter_raw():
            found += piece
            if len(found) > limit or time.monotonic() > self._deadline_s:
                break
        return bytes(found[: limit + 1])

    def _unreachable(self, cause: str) -> LookUpRefusal:
        endpoint, what = self.settings.endpoint, self.settings.remedies.network
        return LookUpRefusal("Unreachable", f"{endpoint} cannot be reached ({cause}): {what}")


@cache
def _certificates() -> ssl.SSLContext:
    """The trusted certificates; reading them takes longer than a request."""
    return httpx.create_ssl_context()


def _origin(url: str) -> tuple[str, str, int | None]:
    parts = urlsplit(url)
    try:
        port = parts.port
    except ValueError:
        port = None
    return parts.scheme, (parts.hostname or "").lower(), port or {"https": 443, "http": 80}.get(parts.scheme)


def _file_bytes(response: httpx.Response) -> int | None:
    headers = response.headers
    ranged = response.status_code == 206
    text = headers.get("content-range", "").rpartition("/")[2] if ranged else headers.get("content-length", "")
    return int(text) if text.isascii() and text.isdecimal() else None
