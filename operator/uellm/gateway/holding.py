"""Requests of services without a replica: they wait, within bounds, while a replica is asked for."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass

from uellm.gateway.catalog import Service, ServiceKey
from uellm.gateway.replicas import Replicas
from uellm.proxying.outcome import RETRY_ENGINE_S, Refusal, RequestOutcome, spread_s

ASK_EVERY_S = 10.0
"""How often a replica is asked for while requests wait."""
SPREAD = 1.2
"""Retry times are up to this much longer than the start, so that clients do not come back together."""
MOST_RETRY_S = 55.0
"""The official clients ignore a longer retry time, or give up."""
HOLD_S = 300.0


@dataclass(frozen=True, slots=True)
class HoldLimits:
    """How much may wait, and how long."""

    hold_s: float = HOLD_S
    """For requests whose class does not say when they are late."""
    requests: int = 256
    """Of one service."""
    service_bytes: int = 32 * 1024 * 1024
    """Bodies of one service."""
    bytes: int = 128 * 1024 * 1024
    """All bodies."""


class Holding:
    """Everything that is held. `want` asks for a replica of a service."""

    def __init__(self, limits: HoldLimits, want: Callable[[Service], Awaitable[None]]) -> None:
        self.limits = limits
        self._want = want
        self.requests: Counter[ServiceKey] = Counter()
        """Held requests by service."""
        self._bytes: Counter[ServiceKey] = Counter()
        self._asking: dict[ServiceKey, asyncio.Task[None]] = {}
        self._asked_for: dict[ServiceKey, tuple[Service, Replicas]] = {}
        """As the latest request knows the service, which may be edited, or deleted and made anew."""
        self._since_s: dict[ServiceKey, float] = {}
        """Since when a replica of a service is asked for."""
        self._until_s: dict[ServiceKey, float] = {}
        """Until when it is asked for, if nothing is held."""

    def counts(self) -> dict[tuple[str, ...], float]:
        """Held requests by namespace and service."""
        return {(key.namespace, key.name): number for key, number in self.requests.items()}

    @property
    def held_bytes(self) -> int:
        """Bytes of their bodies."""
        return self._bytes.total()

    async def hold(self, service: Service, replicas: Replicas, deadline_s: float | None, size_bytes: int) -> None:
        """Wait until there is a replica, or none will start any more. Raises Refusal: too many wait, or too long.

        `deadline_s`: how long the request may wait by its class; None: its class does not say. Such a request waits
        although the start is known to take longer, because clients retry a few times only.
        """
        if not service.starts:
            raise stopped(service)
        left_s = self._start_left_s(service)
        if left_s is not None and deadline_s is not None and left_s > deadline_s:
            raise self._comes_back(service, replicas, _starting(service, left_s), left_s)
        if (full := self._full(service.key, size_bytes, left_s)) is not None:
            raise self._comes_back(service, replicas, full, left_s)
        allowed_s = self.limits.hold_s if deadline_s is None else deadline_s
        self._keep(service.key, size_bytes)
        try:
            self._ask(service, replicas, until_s=0.0)
            async with asyncio.timeout(allowed_s):
                await replicas.some()
        except TimeoutError:
            left_s = self._start_left_s(service)
            refusal = _too_long(service, allowed_s, left_s, late=deadline_s is not None)
            raise self._comes_back(service, replicas, refusal, left_s) from None
        finally:
            self._release(service.key, size_bytes)

    def close(self) -> None:
        """Ask for nothing more."""
        for task in self._asking.values():
            task.cancel()

    def _comes_back(self, service: Service, replicas: Replicas, refusal: Refusal, left_s: float | None) -> Refusal:
        """The refusal. If its client comes back it should find a replica, so one is asked for until then."""
        if refusal.retry_after_s is not None:
            wait_s = max(refusal.retry_after_s, left_s or 0.0)
            self._ask(service, replicas, until_s=_now_s() + SPREAD * wait_s)
        return refusal

    def _full(self, key: ServiceKey, size_bytes: int, left_s: float | None) -> Refusal | None:
        """The refusal of a request that cannot be kept; None: it can."""
        limits = self.limits
        if self.requests[key] >= limits.requests:
            why = f"{self.requests[key]} requests wait for one"
        elif self._bytes[key] + size_bytes > limits.service_bytes or self.held_bytes + size_bytes > limits.bytes:
            why = (
                f"this body of {size_bytes} bytes cannot be kept until it has: bodies of {self._bytes[key]} bytes wait "
                f"for it, {limits.service_bytes} may for one service and {limits.bytes} for all"
            )
        else:
            return None
        message = f"{key.name} has no replica yet and {why}; retry later"
        return Refusal(RequestOutcome.QUEUE_FULL, message, retry_after_s=_spread_s(left_s))

    def _keep(self, key: ServiceKey, size_bytes: int) -> None:
        self.requests[key] += 1
        self._bytes[key] += size_bytes

    def _release(self, key: ServiceKey, size_bytes: int) -> None:
        self.requests[key] -= 1
        self._bytes[key] -= size_bytes
        if not self.requests[key]:
            del self.requests[key], self._bytes[key]

    def _start_left_s(self, service: Service) -> float | None:
        """How long the start of a replica still takes; None: never measured."""
        if service.startup_s is None:
            return None
        now_s = _now_s()
        return max(0.0, self._since_s.get(service.key, now_s) + service.startup_s - now_s)

    def _ask(self, service: Service, replicas: Replicas, *, until_s: float) -> None:
        """Ask for a replica as long as requests are held, and at least until then."""
        key = service.key
        if not service.wakes:
            return
        self._asked_for[key] = service, replicas
        self._until_s[key] = max(self._until_s.get(key, 0.0), until_s)
        if key not in self._asking:
            self._since_s[key] = _now_s()
            self._asking[key] = asyncio.create_task(self._keep_asking(key))

    async def _keep_asking(self, key: ServiceKey) -> None:
        try:
            while self._is_missing(key) and (self.requests[key] or _now_s() < self._until_s[key]):
                service, replicas = self._asked_for[key]
                await self._want(service)
                with suppress(TimeoutError):
                    async with asyncio.timeout(ASK_EVERY_S):
                        await replicas.some()
        finally:
            del self._asking[key], self._asked_for[key], self._since_s[key], self._until_s[key]

    def _is_missing(self, key: ServiceKey) -> bool:
        return self._asked_for[key][1].missing


def _now_s() -> float:
    return asyncio.get_running_loop().time()


def _spread_s(left_s: float | None) -> float:
    if left_s is None:
        return spread_s(RETRY_ENGINE_S)
    most_s = min(SPREAD * max(left_s, 1.0), MOST_RETRY_S)
    return spread_s((most_s / SPREAD, most_s))


def stopped(service: Service) -> Refusal:
    """The answer to requests of a service that gets no replica."""
    if service.deleting:
        return Refusal(RequestOutcome.MODEL_NOT_FOUND, f"{service.key.name} is being deleted")
    why = "it is suspended" if service.suspended else "it is scaled to 0 replicas and has no spec.autoscaling"
    message = f"{service.key.name} has no replica, and none will start: {why}"
    return Refusal(RequestOutcome.ENGINE_UNAVAILABLE, message, retry=False)


def _starting(service: Service, left_s: float) -> Refusal:
    message = f"a replica of {service.key.name} is starting, which takes about {left_s:.0f} s more; retry later"
    return Refusal(RequestOutcome.ENGINE_UNAVAILABLE, message, retry_after_s=_spread_s(left_s))


def _too_long(service: Service, waited_s: float, left_s: float | None, *, late: bool) -> Refusal:
    message = f"no replica of {service.key.name} started within {waited_s:.3g} s"
    if late:
        return Refusal(RequestOutcome.DEADLINE_PASSED, message, retry=False)
    return Refusal(RequestOutcome.ENGINE_UNAVAILABLE, f"{message}; retry later", retry_after_s=_spread_s(left_s))
