"""GETs reports from the metrics ports of the pods' sidecars."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeVar

import aiohttp

from uellm.hub.document import DOCUMENT_BYTES
from uellm.pod_interface import (
    ATTAINMENT_PATH,
    DOWNLOAD_PATH,
    METRICS_PORT,
    MODEL_PATH,
    NODE_COPY_PORT,
    PLACEMENT_PATH,
    RUNNING_PATH,
)

logger = logging.getLogger(__name__)

TIMEOUT_S = 2.0
# A whole answer, however slowly its parts arrive.
ANSWER_S = 10.0
# Requests at a time: fewer than the controller has passes at a time.
MOST_OPEN = 16
# Of these, to addresses from which nothing has come yet, or nothing any more: the others must not wait for them.
MOST_UNPROVEN = 8
# How long a silent address is left alone, growing from the first to the second.
FIRST_SILENCE_S = 5.0
LONGEST_SILENCE_S = 300.0
# A pass asks a pod several things. Between passes a connection is not worth its 18 kB.
KEPT_S = 2.0
# Addresses that are remembered as silent, and as answering.
MOST_REMEMBERED = 10_000
_LARGEST_BYTES = 256 * 1024


V = TypeVar("V")


class NotAsked(Exception):
    """As many requests are open as there may be: nothing was asked, so nothing is known of the pod."""


class SidecarClient:
    """Asks sidecars for their reports. An async context manager.

    A network policy may let no packet through, so that every request runs into its timeout. Passes must not wait for
    that: few requests are open at a time, the rest is left for a later pass, and a silent address is asked less and
    less often. Part of the requests is kept for addresses that answer, however many others are hidden.
    """

    def __init__(self, *, port: int = METRICS_PORT, clock: Callable[[], float] = time.monotonic) -> None:
        self._port = port
        self._clock = clock
        self._open = 0
        self._unproven = 0
        self._answering: dict[str, None] = {}
        self._silent: dict[str, _Silence] = {}
        self._session: aiohttp.ClientSession

    async def __aenter__(self) -> SidecarClient:
        # Pod addresses are not reachable through a proxy. How many requests are open is counted here.
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=KEPT_S),
            cookie_jar=aiohttp.DummyCookieJar(),
            trust_env=False,
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._session.close()

    async def placement(self, pod_ip: str) -> Mapping[str, Any] | None:
        """The placement report; None where there is none yet or the pod does not answer."""
        return await self._get(pod_ip, PLACEMENT_PATH)

    async def measurements(self, pod_ip: str) -> Mapping[str, Any] | None:
        """How its requests fared; None where the pod does not answer or is too old to report it. Raises NotAsked."""
        if self._is_full(pod_ip):
            raise NotAsked
        return await self._get(pod_ip, ATTAINMENT_PATH)

    async def running(self, pod_ip: str) -> Mapping[str, Any] | None:
        """What it runs with; None where the pod does not answer or is too old to report it."""
        return await self._get(pod_ip, RUNNING_PATH)

    async def model(self, pod_ip: str) -> Mapping[str, Any] | None:
        """What an inspection pod has found out; empty while it reads, None where it does not answer."""
        answer = await self._ask(pod_ip, MODEL_PATH, DOCUMENT_BYTES)
        if answer is None:
            return None
        return parse(*answer, DOCUMENT_BYTES) or {}

    async def download(self, pod_ip: str) -> Mapping[str, Any] | None:
        """How far a download pod is; None where it does not answer."""
        return await self._get(pod_ip, DOWNLOAD_PATH)

    async def node_copy(self, pod_ip: str) -> Mapping[str, Any] | None:
        """How far a pod is that copies its model to its node; None where it does not answer."""
        return await self._get(pod_ip, DOWNLOAD_PATH, NODE_COPY_PORT)

    async def _get(self, pod_ip: str, path: str, port: int | None = None) -> Mapping[str, Any] | None:
        answer = await self._ask(pod_ip, path, _LARGEST_BYTES, port)
        return None if answer is None else parse(*answer)

    async def _ask(self, pod_ip: str, path: str, limit: int, port: int | None = None) -> tuple[int, bytes] | None:
        """Status and body of an answer, the body cut off above `limit` bytes; None for none."""
        # A policy may let one port through and not another.
        asked = pod_ip if port is None else f"{pod_ip} at port {port}"
        silence, unproven = self._silent.get(asked), asked not in self._answering
        if silence is not None and self._clock() < silence.ask_again_s:
            return None
        if self._is_full(asked):
            return None
        host = f"[{pod_ip}]" if ":" in pod_ip else pod_ip
        self._open += 1
        self._unproven += unproven
        timeout = aiohttp.ClientTimeout(total=ANSWER_S, sock_connect=TIMEOUT_S, sock_read=TIMEOUT_S)
        url = f"http://{host}:{port or self._port}{path}"
        try:
            async with self._session.get(url, timeout=timeout, allow_redirects=False) as response:
                answer = response.status, await _body(response, limit)
        except TimeoutError:
            self._note_silence(asked)
            return None
        except (aiohttp.ClientError, OSError) as error:
            logger.debug("no answer from %s to %s: %s", pod_ip, path, error)
            return None
        finally:
            self._open -= 1
            self._unproven -= unproven
        self._silent.pop(asked, None)
        _remember(self._answering, asked, None)
        return answer

    def _is_full(self, asked: str) -> bool:
        """Whether as many requests are open as there may be to addresses like this one."""
        return self._open >= MOST_OPEN or (asked not in self._answering and self._unproven >= MOST_UNPROVEN)

    def _note_silence(self, asked: str) -> None:
        before = self._silent.pop(asked, None)
        wait_s = FIRST_SILENCE_S if before is None else min(2 * before.wait_s, LONGEST_SILENCE_S)
        self._answering.pop(asked, None)
        _remember(self._silent, asked, _Silence(self._clock() + wait_s, wait_s))
        logger.debug("no packet from %s; asked again in %.0f s", asked, wait_s)


class _Silence(NamedTuple):
    """An address from which nothing came."""

    ask_again_s: float
    wait_s: float


def _remember(known: dict[str, V], pod_ip: str, value: V) -> None:
    """Enter an address; the one that was entered first is forgotten if there are too many."""
    known[pod_ip] = value
    if len(known) > MOST_REMEMBERED:
        del known[next(iter(known))]


async def _body(response: aiohttp.ClientResponse, limit: int) -> bytes:
    """The body, cut off somewhere above `limit` bytes."""
    found = bytearray()
    async for piece in response.content.iter_any():
        found += piece
        if len(found) > limit:
            break
    return bytes(found)


def parse(status: int, body: bytes, limit: int = _LARGEST_BYTES) -> Mapping[str, Any] | None:
    """The report in an answer; None for anything else. Pods are not trusted."""
    if status != 200 or len(body) > limit:
        return None
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        return None
    return document if isinstance(document, dict) else None
