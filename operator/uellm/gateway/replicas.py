"""The replicas of one service: connections to them, their loads, and which one gets a request."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterable
from contextlib import suppress
from dataclasses import dataclass

from uellm.api.replica_load import ReplicaLoad
from uellm.gateway.catalog import Match, Told
from uellm.gateway.loads import LoadReader
from uellm.gateway.retry_budget import RetryBudget
from uellm.http import EngineAddress, EnginePool
from uellm.prompt import Ratio
from uellm.routing import RoutedRequest, Router

IDLE_S = 60.0
"""Sidecars keep idle connections for longer."""
CONNECT_TIMEOUT_S = 3.0
TELL_S = 2.0
"""So long a new replica has to tell its names. After that it counts as one that tells none."""
DEAD_PEER_S = 10.0
"""A machine that answers no packet for so long is gone, although no connection was closed."""


@dataclass(frozen=True, slots=True)
class ReplicaAddress:
    """Where a replica's sidecar listens."""

    host: str
    port: int
    metrics_port: int | None = None
    """None: its load cannot be read."""

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class Replica:
    """Connections to one replica."""

    def __init__(self, address: ReplicaAddress, now_s: float) -> None:
        self.address = address
        self.name = str(address)
        self.pool = EnginePool(
            EngineAddress(address.host, address.port),
            idle_s=IDLE_S,
            connect_timeout_s=CONNECT_TIMEOUT_S,
            dead_peer_s=DEAD_PEER_S,
        )
        self.reading: asyncio.Task[None] | None = None
        """Reads its load."""
        self.names: tuple[str, ...] = ()
        """What it answers to, as it has told; empty: it has not."""
        self.tells_by_s = now_s if address.metrics_port is None else now_s + TELL_S
        """Until when its names are waited for; 0: it has told its load, which has them unless the sidecar is older."""

    def serves(self, match: Match) -> bool:
        """Whether it answers to the name. One that has not told its names counts as serving those of the spec."""
        return match.service.fixed_names or match.name in (self.names or match.service.names)

    def may_lack(self, match: Match, now_s: float) -> bool:
        """Whether it may yet tell that it does not serve it: an engine starts also if an adapter cannot be loaded."""
        return bool(match.adapter) and not match.service.fixed_names and now_s < self.tells_by_s

    def read_nothing(self) -> None:
        """Stop to read its load."""
        if self.reading is not None:
            self.reading.cancel()
            self.reading = None


class Replicas:
    """All replicas of one service."""

    def __init__(self, on_told: Callable[[], None] = lambda: None) -> None:
        """`on_told` is called when a replica tells other names than before."""
        self._on_told = on_told
        self._by_name: dict[str, Replica] = {}
        self._leaving: list[Replica] = []
        self._changed: set[asyncio.Future[None]] = set()
        self._awaited = True
        self._router = Router()
        self.retries = RetryBudget()
        self.doubts = RetryBudget()
        """For answers that may be one replica's alone. Clients cause them as well, and must not use up the retries."""
        self.ratio = Ratio()

    def __len__(self) -> int:
        return len(self._by_name)

    @property
    def connected(self) -> bool:
        """Whether a connection to a replica is open."""
        return any(replica.pool.connections for replica in (*self._by_name.values(), *self._leaving))

    def place(self, addresses: Iterable[ReplicaAddress]) -> None:
        """Take these as the replicas that are ready. Requests at others go on."""
        now_s = asyncio.get_running_loop().time()
        wanted = {str(address): address for address in addresses}
        for name in [name for name, replica in self._by_name.items() if wanted.get(name) != replica.address]:
            replica = self._by_name.pop(name)
            replica.read_nothing()
            self._router.remove(name, now_s)
            self._leaving.append(replica)
        self._leaving = [replica for replica in self._leaving if replica.pool.connections]
        for name, address in wanted.items():
            if name not in self._by_name:
                self._by_name[name] = Replica(address, now_s)
                self._router.add(name, now_s)
        self._read_loads()
        self._wake()

    @property
    def told(self) -> Told:
        """The names that they tell."""
        return frozenset(replica.names for replica in self._by_name.values())

    def choose(self, request: RoutedRequest, match: Match, tried: Collection[str] = ()) -> Replica | None:
        """The replica for a request, which counts as sent there; None: there is none that was not tried.

        Replicas that do not answer to the request's name are left out.
        """
        now_s = asyncio.get_running_loop().time()
        able = self._able(match, tried)
        if not able:
            return None
        others = self._by_name.keys() - able
        # All may drain; one of them may still take a request, or says itself that it does not.
        name = (self._router.choose(request, now_s, others) if len(able) > 1 else None) or able[0]
        self._router.sent(name, request, now_s)
        return self._by_name[name]

    @property
    def all(self) -> list[Replica]:
        """Those that are ready."""
        return list(self._by_name.values())

    def named(self, name: str) -> Replica | None:
        """The one of that name, or one that is not ready any more and has open connections; None: it is gone."""
        leaving = (each for each in self._leaving if each.name == name and each.pool.connections)
        return self._by_name.get(name) or next(leaving, None)

    def pin(self, replica: Replica, request: RoutedRequest) -> None:
        """A request counts as sent to a replica that only it can be sent to."""
        self._router.sent(replica.name, request, asyncio.get_running_loop().time())

    def began(self, replica: Replica, request: RoutedRequest) -> None:
        """The answer of a replica has begun."""
        self._router.first_token(replica.name, request, asyncio.get_running_loop().time())

    def ended(self, replica: Replica, request: RoutedRequest, *, failed: bool, unanswered: bool = False) -> None:
        """A request ended there. `failed`: the replica could not be reached, broke off, or refused it unserved.

        `unanswered`: its client left before the replica had answered.
        """
        now_s = asyncio.get_running_loop().time()
        self._router.ended(replica.name, request, now_s, failed=failed, unanswered=unanswered)

    def forgive(self, replica: Replica) -> None:
        """The last failure there was none of the replica's."""
        self._router.forgive(replica.name)

    def has_other(self, match: Match, tried: Collection[str]) -> bool:
        """Whether a request could go to a replica that was not tried."""
        return bool(self._able(match, tried))

    def _able(self, match: Match, tried: Collection[str]) -> list[str]:
        now_s = asyncio.get_running_loop().time()
        return [
            name
            for name, each in self._by_name.items()
            if name not in tried and each.serves(match) and not each.may_lack(match, now_s)
        ]

    async def can_serve(self, match: Match) -> bool:
        """Whether a replica serves the name. Waits until one is known to, or none may tell any more that it does."""
        while not self._able(match, ()):
            telling_s = [each.tells_by_s for each in self._by_name.values() if each.serves(match)]
            if not telling_s:
                return False
            with suppress(TimeoutError):
                async with asyncio.timeout_at(min(telling_s)):
                    await self._change()
        return True

    def serve(self, *, awaited: bool) -> None:
        """Whether the service exists and gets a replica, by itself or when it is asked for one."""
        self._awaited = awaited
        if not awaited:
            self._wake()

    @property
    def missing(self) -> bool:
        """There is no replica, and one may be waited for."""
        return not self._by_name and self._awaited

    async def some(self) -> None:
        """Wait until there is a replica, or none will start any more."""
        while self.missing:
            await self._change()

    async def _change(self) -> None:
        changed = asyncio.get_running_loop().create_future()
        self._changed.add(changed)
        try:
            await changed
        finally:
            self._changed.discard(changed)

    def close(self) -> None:
        """Cut every connection."""
        for replica in (*self._by_name.values(), *self._leaving):
            replica.read_nothing()
            replica.pool.close()

    def _read_loads(self) -> None:
        for replica in self._by_name.values():
            if replica.reading is None and replica.address.metrics_port is not None:
                replica.reading = asyncio.create_task(self._reader(replica, replica.address.metrics_port).run())

    def _reader(self, replica: Replica, port: int) -> LoadReader:
        def report(load: ReplicaLoad) -> None:
            self._router.report(replica.name, load, asyncio.get_running_loop().time())
            if load.names != replica.names:
                replica.names = load.names
                self._on_told()
            if replica.tells_by_s:
                replica.tells_by_s = 0.0
                self._wake()

        address = EngineAddress(replica.address.host, port)
        return LoadReader(address, lambda: self._router.known_prefixes(replica.name), report)

    def _wake(self) -> None:
        for changed in self._changed:
            if not changed.done():
                changed.set_result(None)
