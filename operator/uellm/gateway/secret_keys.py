"""The API keys of services without a replica, read from their Secrets where the gateway may read them."""

from __future__ import annotations

import asyncio
import base64
import logging
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from uellm.kube import SECRET, Forbidden, Kube, KubeError
from uellm.proxying.keys import Keys
from uellm.proxying.outcome import RETRY_REPLICA_S, Refusal, RequestOutcome, spread_s

KEYS_FOR_S = 30.0
"""How long keys that were read, or a refusal to read them, are taken for current."""
FAILED_FOR_S = 2.0
"""How long a Secret is not read again after the API server gave no answer."""
READ_S = 10.0
"""How long a read may take: requests wait for it."""
READ_AGAIN_S = 2.0
"""The same where the last answer can stay in force."""

LOG = logging.getLogger("uellm.gateway")


class KeySecret(NamedTuple):
    """Namespace and name of a Secret."""

    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"


@dataclass(frozen=True, slots=True)
class _Read:
    """What the last read gave."""

    until_s: float
    known: bool
    keys: Keys | None = None
    """None, if it is known: the gateway may not read them."""


_NEVER = _Read(until_s=float("-inf"), known=False)


class SecretKeys:
    """Reads Secrets, each at most every 30 s. Of a burst of requests the first one reads, and the others wait."""

    def __init__(self, kube: Kube, clock: Callable[[], float] = time.monotonic) -> None:
        self._kube = kube
        self._clock = clock
        self._read: dict[KeySecret, _Read] = {}
        self._reading: defaultdict[KeySecret, asyncio.Lock] = defaultdict(asyncio.Lock)

    async def of(self, secret: KeySecret) -> Keys | None:
        """The keys; None: the gateway may not read them. Raises Refusal: they were never read, and cannot be now.

        While the API server gives no answer, the last ones stay in force.
        """
        async with self._reading[secret]:
            read = self._read.get(secret, _NEVER)
            if self._clock() >= read.until_s:
                read = self._read[secret] = await self._again(secret, read)
        if not read.known:
            message = "the API keys of the service cannot be read from its Secret now; retry later"
            raise Refusal(RequestOutcome.ENGINE_UNAVAILABLE, message, retry_after_s=spread_s(RETRY_REPLICA_S))
        return read.keys

    def forget(self, secret: KeySecret) -> None:
        """A service does not use it any more; if another one does, it is read again."""
        self._read.pop(secret, None)
        self._reading.pop(secret, None)

    async def _again(self, secret: KeySecret, last: _Read) -> _Read:
        allowed_s = READ_AGAIN_S if last.known else READ_S
        try:
            async with asyncio.timeout(allowed_s):
                document = await self._kube.get(SECRET, secret.name, secret.namespace)
        except Forbidden:
            return _Read(self._clock() + KEYS_FOR_S, known=True)
        except (KubeError, TimeoutError) as error:
            why = str(error) or f"the API server gave no answer within {allowed_s:g} s"
            LOG.warning("the API keys of Secret %s cannot be read: %s", secret, why)
            return _Read(self._clock() + FAILED_FOR_S, last.known, last.keys)
        values = [base64.b64decode(value) for value in ((document or {}).get("data") or {}).values()]
        lines = [line.strip() for value in values for line in value.decode("utf-8", "replace").splitlines()]
        return _Read(self._clock() + KEYS_FOR_S, known=True, keys=Keys(line for line in lines if line))
