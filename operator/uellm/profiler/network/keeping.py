"""The loop that has the network measured to a few other nodes: when one is new, and then once a day."""

from __future__ import annotations

import asyncio
import logging
import math
import random
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from uellm.kube import KubeError
from uellm.profiler.network.exchange import NetworkFigures, NoFigures, measured
from uellm.profiler.network.gate import OWN, NetworkGate
from uellm.profiler.network.peers import ProfilerPeer, callers, peers_of, to_ask
from uellm.profiler.network.sink import Sink
from uellm.profiler.process import in_daemon_thread, now

logger = logging.getLogger(__name__)

RENEWED_AFTER = timedelta(days=1)
KEPT_FOR = timedelta(days=2)
"""Figures that nothing renews are dropped then: the node has left, or is not reached any more."""
MOST_KEPT = 16  # of the API's list
TOLD_FROM = 5
"""Failures in a row until people are told: a profiler that is being replaced, is busy, or does not know a new one yet,
is none of their business."""

SAME_WITHIN = 0.25
"""A new figure that differs from the published one by no more than this share is noise."""
DOUBTED_SHARE = 0.5
"""A network that is slower than this share of what was known is measured again before it is believed."""

ListProfilers = Callable[[], Awaitable[Sequence[Mapping[str, Any]]]]


@dataclass(frozen=True)
class NetworkPeriods:
    """How often, in seconds."""

    rest_s: float = 1800.0
    """Of asking the API server for the other profilers."""
    least_s: float = 30.0
    """Until a failed question or measurement is repeated the first time. The second failure waits twice as long, and
    so on."""
    longest_s: float = 3600.0
    """Until it is tried again at most."""
    again_s: float = 300.0
    """The least between two questions to the API server where a profiler that is not known yet has asked, or a
    measurement failed: every node asks for all profilers."""


class NetworkKeeper:
    """What is known of the network from one node to others."""

    def __init__(
        self,
        node: str,
        sink: Sink,
        gate: NetworkGate,
        profilers: ListProfilers,
        *,
        port: int | None = None,
        periods: NetworkPeriods = NetworkPeriods(),
    ) -> None:
        """`port`: of the other profilers (default: that of the sink)."""
        self._node = node
        self._sink = sink
        self._gate = gate
        self._profilers = profilers
        self._port = port or sink.port
        self._periods = periods
        self._entries: dict[str, dict[str, Any]] = {}
        self._failures: dict[str, tuple[int, float, str]] = {}  # in a row, next try, why
        self._doubts: dict[str, tuple[NetworkFigures, float]] = {}
        """Figures of one second that may have been a bad one, and when they are measured again."""
        self._trouble = ""
        self._peers: tuple[ProfilerPeer, ...] = ()
        """Whom this node measures, by the last answer of the API server."""
        self._listed = -math.inf
        """When it came."""
        self._list_at = -math.inf
        self._unanswered = 0

    def adopt(self, status: Mapping[str, Any]) -> None:
        """Take over what an earlier process measured."""
        self._entries = {entry["node"]: dict(entry) for entry in status.get("network") or ()}

    def entries(self) -> list[dict[str, Any]]:
        """`status.network`: the newest figures, by node."""
        kept = [entry for entry in self._entries.values() if _age(entry) < KEPT_FOR]
        newest = sorted(kept, key=lambda entry: str(entry["measuredAt"]), reverse=True)[:MOST_KEPT]
        return sorted(newest, key=lambda entry: str(entry["node"]))

    def sentence(self) -> str:
        """What could not be measured, and why; empty where there is none."""
        told = [(node, why) for node, (count, _, why) in sorted(self._failures.items()) if count >= TOLD_FROM]
        return "; ".join([f"the network to node {node} is not measured: {why}" for node, why in told])

    async def run(self, changed: Callable[[], None]) -> None:
        """Measure whenever something is due; `changed` is called when there is something new to publish."""
        asked, loop = asyncio.Event(), asyncio.get_running_loop()

        def stranger() -> None:
            with suppress(RuntimeError):  # the loop has been closed meanwhile
                loop.call_soon_threadsafe(asked.set)

        self._sink.stranger = stranger
        while True:
            await self._round(changed)
            rest_s = self._rest_s()
            await asyncio.sleep(min(rest_s, self._periods.least_s))
            with suppress(TimeoutError):
                async with asyncio.timeout(max(0.0, rest_s - self._periods.least_s)):
                    await asked.wait()
            if asked.is_set():
                asked.clear()
                self._look_sooner()

    async def _round(self, changed: Callable[[], None]) -> None:
        before = self.sentence()
        if any(peer.node in self._failures and self._due(peer.node) for peer in self._peers):
            self._look_sooner()  # perhaps it has another address now
        if time.monotonic() >= self._list_at:
            await self._look()
        self._entries = {each["node"]: each for each in self.entries()}
        for peer in self._peers:
            if self._due(peer.node):
                await self._measure(peer)
                changed()
        if self.sentence() != before:
            changed()

    def _look_sooner(self) -> None:
        """Ask the API server again as soon as it may be. One that fails is left alone."""
        if not self._trouble:
            self._list_at = min(self._list_at, self._listed + self._periods.again_s)

    async def _look(self) -> None:
        """Ask the API server who there is. Where it fails, what is known stays."""
        try:
            peers = peers_of(await self._profilers())
        except KubeError as error:
            if self._trouble != (trouble := str(error)):
                logger.warning("network: %s", trouble)
            self._trouble = trouble
            self._unanswered += 1
            self._list_at = time.monotonic() + self._wait_s(self._unanswered)
            return
        self._trouble, self._unanswered, self._listed = "", 0, time.monotonic()
        # Not all nodes at the same time, though they began together.
        self._list_at = self._listed + self._periods.rest_s * random.uniform(0.8, 1.0)
        self._sink.known = callers(peers, self._node)
        self._peers = to_ask(peers, self._node)
        own = {peer.node for peer in self._peers}
        self._failures = {node: failure for node, failure in self._failures.items() if node in own}
        self._doubts = {node: doubt for node, doubt in self._doubts.items() if node in own}

    def _due(self, node: str) -> bool:
        if node in self._failures:
            return time.monotonic() >= self._failures[node][1]
        if node in self._doubts:
            return time.monotonic() >= self._doubts[node][1]
        return node not in self._entries or _age(self._entries[node]) >= RENEWED_AFTER

    async def _measure(self, peer: ProfilerPeer) -> None:
        if not self._gate.enter(OWN):
            self._failed(peer.node, "this node is busy with another measurement")
            return
        try:
            figures = await in_daemon_thread(lambda: measured(peer.address, self._port))
        except (NoFigures, RuntimeError) as error:  # such as: can't start new thread
            self._failed(peer.node, str(error))
        else:
            self._failures.pop(peer.node, None)
            self._found(peer.node, figures)
        finally:
            self._gate.leave()

    def _found(self, node: str, figures: NetworkFigures) -> None:
        """Believe the figures, or doubt them. One bad second shall not count for a day."""
        logger.info(
            "network to node %s: %.3g GB/s, %.0f µs there and back",
            *(node, figures.bytes_per_s / 1e9, figures.round_trip_s * 1e6),
        )
        known = self._entries.get(node)
        if node in self._doubts:
            figures = _better(figures, self._doubts.pop(node)[0])
        elif known is None or _much_worse(known, figures):
            self._doubts[node] = figures, time.monotonic() + self._wait_s(1)
            if known is not None:
                return
        found = entry(node, figures, now())
        if known is not None and _alike(known, found):
            found = {**known, "measuredAt": found["measuredAt"]}
        self._entries[node] = found

    def _failed(self, node: str, why: str) -> None:
        count, _, before = self._failures.get(node, (0, 0.0, ""))
        if count + 1 == TOLD_FROM or (count >= TOLD_FROM and why != before):
            logger.warning("the network to node %s is not measured: %s", node, why)
        self._failures[node] = count + 1, time.monotonic() + self._wait_s(count + 1), why

    def _wait_s(self, failures: int) -> float:
        """Until the next try after so many in a row that failed."""
        grown_s = self._periods.least_s * 2.0 ** min(failures - 1, 10)
        return min(self._periods.longest_s, grown_s) * random.uniform(1.0, 1.5)

    def _rest_s(self) -> float:
        doubts = (at for node, (_, at) in self._doubts.items() if node not in self._failures)
        dates = [self._list_at, *(at for _, at, _ in self._failures.values()), *doubts]
        return max(0.0, min(dates) - time.monotonic())


def entry(node: str, figures: NetworkFigures, at: str) -> dict[str, Any]:
    """The entry of `status.network`. Two digits: there is no more in a measured second."""
    return {
        "node": node,
        "bytesPerSecond": _rounded(figures.bytes_per_s, most=2**50),
        "roundTripNanoseconds": _rounded(figures.round_trip_s * 1e9, most=10**10),
        "measuredAt": at,
    }


def _better(one: NetworkFigures, other: NetworkFigures) -> NetworkFigures:
    return NetworkFigures(max(one.bytes_per_s, other.bytes_per_s), min(one.round_trip_s, other.round_trip_s))


def _much_worse(known: Mapping[str, Any], figures: NetworkFigures) -> bool:
    bytes_per_s, round_trip_s = float(known["bytesPerSecond"]), known["roundTripNanoseconds"] * 1e-9
    return figures.bytes_per_s < DOUBTED_SHARE * bytes_per_s or DOUBTED_SHARE * figures.round_trip_s > round_trip_s


def _alike(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    pairs = [(one[name], other[name]) for name in ("bytesPerSecond", "roundTripNanoseconds")]
    return all(abs(new - old) <= SAME_WITHIN * old for old, new in pairs)


def _rounded(figure: float, *, most: int) -> int:
    if figure < 1:
        return 1
    return min(most, int(round(figure, 1 - math.floor(math.log10(figure)))))


def _age(one: Mapping[str, Any]) -> timedelta:
    """Since the measurement. One whose time is not known, or is to come, counts as old."""
    try:
        found = datetime.now(UTC) - datetime.fromisoformat(one["measuredAt"])
    except (KeyError, ValueError, TypeError):
        return KEPT_FOR
    return found if found >= timedelta(0) else RENEWED_AFTER
