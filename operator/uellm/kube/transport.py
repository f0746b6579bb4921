"""One HTTP exchange with the API server: path in, document out, every failure a KubeError.

It uses the client of the package `kubernetes` for configuration, credentials and TLS, but not its generated models:
these take three seconds to import, and their strict types break on a newer server.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any, NamedTuple
from urllib.parse import urlencode

import aiohttp
import msgspec

from uellm.errors import UellmError
from uellm.kube import config, fence
from uellm.kube.errors import KubeError, Unauthorized, Unavailable, error_from
from uellm.kube.slots import URGENT_BESIDES, Slots

REQUEST_TIMEOUT_S = 60.0
"""The API server itself gives up on an ordinary request after 60 s."""
CONNECT_TIMEOUT_S = 10.0
USER_AGENT = "uellm-operator"

logger = logging.getLogger(__name__)

Observe = Callable[[str, int, float], None]
"""Called after every request with its verb (a method or WATCH), the status code (0: no answer) and its seconds."""


def unobserved(verb: str, code: int, seconds: float) -> None:
    """Nobody counts requests."""


class _Request(NamedTuple):
    method: str
    path: str
    query: Mapping[str, str]
    body: Any
    content_type: str
    timeout: aiohttp.ClientTimeout

    def __str__(self) -> str:
        return f"{self.method} {self.path}"

    @property
    def verb(self) -> str:
        return "WATCH" if "watch" in self.query else self.method


class Transport:
    """A connection pool to one API server. `close` it at the end."""

    def __init__(
        self,
        api: Any,
        reload: Callable[[], Awaitable[Any]],
        writable_for: fence.WritableFor = fence.always,
        observe: Observe = unobserved,
    ) -> None:
        self._api = api
        self._reload = reload
        self._writable_for = writable_for
        self._observe = observe
        self._renewing = asyncio.Lock()
        self._authorities = config.authorities(api.configuration)
        self._writes = Slots(urgent_besides=URGENT_BESIDES)

    @classmethod
    async def open(
        cls,
        kubeconfig: str | None,
        context: str | None = None,
        writable_for: fence.WritableFor = fence.always,
        observe: Observe = unobserved,
    ) -> Transport:
        """Read the credentials; nothing is sent yet."""
        from kubernetes.aio.client import ApiClient

        async def load() -> Any:
            configuration = await config.load(kubeconfig, context)
            traces = {"trace_configs": [fence.trace_config(writable_for)]}
            configuration.client_session_kwargs = {**(configuration.client_session_kwargs or {}), **traces}
            return configuration

        return cls(ApiClient(await load()), load, writable_for, observe)

    async def close(self) -> None:
        """Close every connection."""
        await self._api.close()

    @property
    def _session(self) -> aiohttp.ClientSession:
        """The client's own session. Its method for a request would encode the body with the slow encoder."""
        client = self._api.rest_client
        if client.pool_manager is None:
            client.pool_manager = client._create_pool_manager()
        session: aiohttp.ClientSession = client.pool_manager
        return session

    @property
    def host(self) -> str:
        """The API server's address, such as `https://10.96.0.1:443`."""
        return str(self._api.configuration.host)

    async def call(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: Any = None,
        content_type: str = "application/json",
    ) -> dict[str, Any]:
        """Send one request and read the whole answer. Raises KubeError; Fenced for a write that is not allowed now."""
        arguments = method, path, query or {}, body, content_type
        if method == "GET":
            answer = await self._answer(*arguments)
        else:
            async with self._writes.slot():
                answer = await self._answer(*arguments)
        request = f"{method} {path}"
        try:
            document = msgspec.json.decode(answer)
        except (ValueError, RecursionError) as error:
            raise Unavailable(0, "NotJSON", f"{request}: the answer is not JSON: {answer[:200]!r}") from error
        if not isinstance(document, dict):
            raise Unavailable(0, "NotJSON", f"{request}: the answer is not an object: {answer[:200]!r}")
        return document

    async def _answer(self, method: str, path: str, query: Mapping[str, str], body: Any, content_type: str) -> bytes:
        fence.check(method, self._writable_for)
        total_s = REQUEST_TIMEOUT_S if method == "GET" else min(REQUEST_TIMEOUT_S, self._writable_for())
        timeout = aiohttp.ClientTimeout(total=total_s, sock_connect=CONNECT_TIMEOUT_S)
        async with self._exchange(_Request(method, path, query, body, content_type, timeout)) as response:
            return await response.read()

    async def lines(
        self, path: str, *, query: Mapping[str, str], silence_s: float, on_open: Callable[[], None]
    ) -> AsyncGenerator[bytes]:
        """Read an answer line by line as it arrives. Raises KubeError, also after `silence_s` without a byte."""
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_TIMEOUT_S, sock_read=silence_s)
        async with self._exchange(_Request("GET", path, query, None, "application/json", timeout)) as response:
            on_open()
            rest = b""
            # `readline` limits the length of a line, and an object may be longer.
            async for chunk in response.content.iter_any():
                *lines, rest = (rest + chunk).split(b"\n")
                for line in lines:
                    if line:
                        yield line

    @asynccontextmanager
    async def _exchange(self, request: _Request) -> AsyncIterator[aiohttp.ClientResponse]:
        try:
            async with await self._authorized(request) as response:
                yield response
        except TimeoutError as error:
            raise Unavailable(0, "Timeout", f"{request}: no answer in time from {self.host}") from error
        except (aiohttp.ClientError, OSError) as error:
            if isinstance(error.__cause__, fence.Fenced):
                raise error.__cause__ from error
            raise Unavailable(0, "Unreachable", f"{request}: {self.host} cannot be reached: {error}") from error

    async def _authorized(self, request: _Request) -> aiohttp.ClientResponse:
        token, api = await self._token(), self._api
        try:
            return await self._send(request, token)
        except aiohttp.ClientConnectorCertificateError:
            if not await self._trusts_anew(api):
                raise
            return await self._send(request, await self._token())
        except Unauthorized:
            # A token (of a file, an exec plugin, OIDC) may have expired. Only a different one is worth a second try.
            renewed = await self._renewed(token)
            if renewed == token:
                raise
            return await self._send(request, renewed)

    async def _send(self, request: _Request, token: str | None) -> aiohttp.ClientResponse:
        headers = {"Accept": "application/json", "Content-Type": request.content_type, "User-Agent": USER_AGENT}
        if token:
            headers["Authorization"] = token
        url = self.host + request.path + ("?" + urlencode(request.query) if request.query else "")
        start_s, code = time.monotonic(), 0
        try:
            response = await self._session.request(
                request.method,
                url,
                headers=headers,
                data=None if request.body is None else msgspec.json.encode(request.body),
                timeout=request.timeout,
                server_hostname=self._api.configuration.tls_server_name,
                proxy=self._api.rest_client.proxy,
                proxy_headers=self._api.rest_client.proxy_headers,
            )
            code = response.status
        finally:
            self._observe(request.verb, code, time.monotonic() - start_s)
        if not response.ok:
            raise await _error(response, str(request))
        return response

    async def _token(self) -> str | None:
        token: str | None = await self._api.configuration.get_api_key_with_prefix("BearerToken")
        return token

    async def _trusts_anew(self, api: Any) -> bool:
        """Whether the cluster's authority has changed since this client was made; it is replaced then.

        Its open connections are cut: they trust the old one.
        """
        async with self._renewing:
            if self._api is not api:
                return True
            try:
                fresh = await self._reload()
            except UellmError as error:
                logger.warning("the certificate of the cluster's authority cannot be read again: %s", error)
                return False
            authorities = config.authorities(fresh)
            if authorities == self._authorities:
                return False
            logger.info("the cluster's authority has changed: %s is connected to anew", self.host)
            self._api, self._authorities = type(api)(fresh), authorities
            await api.close()
            return True

    async def _renewed(self, refused: str | None) -> str | None:
        async with self._renewing:
            if await self._token() == refused:
                try:
                    fresh = await self._reload()
                except UellmError as error:
                    logger.warning("the refused credentials cannot be read again: %s", error)
                    return refused
                self._api.configuration.api_key.update(fresh.api_key)
            return await self._token()


async def _error(response: aiohttp.ClientResponse, what: str) -> KubeError:
    async with response:
        body = await response.read()
    return error_from(response.status, body, retry_after=response.headers.get("Retry-After"), what=what)
