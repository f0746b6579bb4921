"""The replicas of one service: connections to them, and which one gets a request."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterable
from dataclasses import dataclass

from uellm.gateway.retry_budget import RetryBudget
from uellm.http import EngineAddress, EnginePool

IDLE_S = 60.0
"""Sidecars keep idle connections for longer."""
CONNECT_TIMEOUT_S = 3.0
DEAD_PEER_S = 10.0
"""A machine that answers no packet for so long is gone, although no connection was closed."""
AVOID_S = 1.0
"""How long a replica that failed or refused gets no request as long as another one can take it."""


@dataclass(frozen=True, slots=True)
class ReplicaAddress:
    """Where a replica's sidecar listens."""

    host: str
    port: int
    metrics_port: int | None = None

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class Replica:
    """One replica, with the requests that this process has at it."""

    def __init__(self, address: ReplicaAddress) -> None:
        self.address = address
        self.name = str(address)
        self.pool = EnginePool(
            EngineAddress(address.host, address.port),
            idle_s=IDLE_S,
            connect_timeout_s=CONNECT_TIMEOUT_S,
            dead_peer_s=DEAD_PEER_S,
        )
        self.outstanding = 0
        self._avoided_until_s = 0.0
        self._chosen = 0

    def judge(self, *, ill: bool) -> None:
        """It could not be reached or refuses requests, or else it answered. Refusing is quick, so without this it would
        seem to have the fewest requests and get all of them."""
        self._avoided_until_s = asyncio.get_running_loop().time() + AVOID_S if ill else 0.0

    def rank(self, now_s: float) -> tuple[bool, int, int]:
        """The lowest goes first: reachable, with the fewest requests, not chosen for the longest time."""
        return now_s < self._avoided_until_s, self.outstanding, self._chosen

    def begin(self, turn: int) -> None:
        """It gets a request."""
        self.outstanding += 1
        self._chosen = turn

    def end(self) -> None:
        """The request ended."""
        self.outstanding -= 1


class Replicas:
    """All replicas of one service."""

    def __init__(self) -> None:
        self._by_address: dict[ReplicaAddress, Replica] = {}
        self._leaving: list[Replica] = []
        self._turn = 0
        self._changed: set[asyncio.Future[None]] = set()
        self.retries = RetryBudget()
        self._gone = False

    def __len__(self) -> int:
        return len(self._by_address)

    @property
    def connected(self) -> bool:
        """Whether a connection to a replica is open."""
        return any(replica.pool.connections for replica in (*self._by_address.values(), *self._leaving))

    def place(self, addresses: Iterable[ReplicaAddress]) -> None:
        """Take these as the replicas that are ready. Requests at others go on."""
        wanted = dict.fromkeys(addresses)
        for address in [each for each in self._by_address if each not in wanted]:
            self._leaving.append(self._by_address.pop(address))
        self._leaving = [replica for replica in self._leaving if replica.pool.connections]
        for address in wanted:
            if address not in self._by_address:
                self._by_address[address] = Replica(address)
        if self._by_address:
            self._wake()

    def choose(self, tried: Collection[Replica] = ()) -> Replica | None:
        """The replica for a request, which counts as begun; None: there is none that was not tried."""
        now_s = asyncio.get_running_loop().time()
        able = [replica for replica in self._by_address.values() if replica not in tried]
        if not able:
            return None
        chosen = min(able, key=lambda replica: replica.rank(now_s))
        self._turn += 1
        chosen.begin(self._turn)
        return chosen

    def has_other(self, tried: Collection[Replica]) -> bool:
        """Whether a request could go to a replica that was not tried."""
        return any(replica not in tried for replica in self._by_address.values())

    def serve(self, *, gone: bool) -> None:
        """Whether the service exists."""
        self._gone = gone
        if gone:
            self._wake()

    async def some(self) -> None:
        """Wait until there is a replica, or the service is gone."""
        while not self._by_address and not self._gone:
            changed = asyncio.get_running_loop().create_future()
            self._changed.add(changed)
            try:
                await changed
            finally:
                self._changed.discard(changed)

    def close(self) -> None:
        """Cut every connection."""
        for replica in (*self._by_address.values(), *self._leaving):
            replica.pool.close()

    def _wake(self) -> None:
        for changed in self._changed:
            if not changed.done():
                changed.set_result(None)
