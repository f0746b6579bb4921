"""The network between nodes, measured by two profilers on real sockets, and what misbehaving ones come to."""

from __future__ import annotations

import asyncio
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from uellm.api import parse
from uellm.api.gpunodeprofile import NetworkPeer
from uellm.errors import CannotBeDone
from uellm.kube import Unavailable
from uellm.profiler.network import wire
from uellm.profiler.network.exchange import NetworkFigures, NoFigures, measured
from uellm.profiler.network.gate import OWN, PAUSE_S, NetworkGate
from uellm.profiler.network.keeping import MOST_KEPT, TOLD_FROM, NetworkKeeper, NetworkPeriods, entry
from uellm.profiler.network.peers import MOST_ASKED, ProfilerPeer, callers, peers_of, to_ask
from uellm.profiler.network.sink import Sink
from uellm.profiler.process import now

SEND_S = 0.05
V4, V6 = "127.0.0.1", "::1"


def pod(node: str, *addresses: str, phase: str = "Running", leaving: bool = False) -> dict:
    metadata = {"name": f"profiler-{node}", **({"deletionTimestamp": "2026-01-01T00:00:00Z"} if leaving else {})}
    status = {"phase": phase, "podIPs": [{"ip": address} for address in addresses]}
    return {"metadata": metadata, "spec": {"nodeName": node}, "status": status}


def quick_gate() -> NetworkGate:
    """Of a node that may be asked again at once."""
    return NetworkGate(lambda: time.monotonic() * 1e6)


@pytest.fixture
def sink() -> Iterator[Sink]:
    with closing(Sink(None, 0, quick_gate())) as started:
        started.known = frozenset({V4, V6})
        yield started


@pytest.fixture
def peer() -> Iterator[Callable[[Callable[[socket.socket], None]], int]]:
    """Starts a peer that treats each connection as it is told; returns its port."""
    listeners, done = [], threading.Event()

    def start(treat: Callable[[socket.socket], None]) -> int:
        listener = socket.create_server((V4, 0))
        listeners.append(listener)

        def serve(connection: socket.socket) -> None:
            with closing(connection), suppress(OSError):
                treat(connection)

        def accept() -> None:
            with suppress(OSError):
                while True:
                    connection, _ = listener.accept()
                    threading.Thread(target=serve, args=(connection,), daemon=True).start()

        threading.Thread(target=accept, daemon=True).start()
        return listener.getsockname()[1]

    start.over = done  # type: ignore[attr-defined]
    yield start
    done.set()
    for listener in listeners:
        with suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
        listener.close()


@pytest.fixture
def closed_port() -> Iterator[int]:
    """Bound, so that nobody else gets it, and not listened at."""
    with socket.socket() as held:
        held.bind((V4, 0))
        yield held.getsockname()[1]


def connected(port: int) -> socket.socket:
    return socket.create_connection((V4, port), timeout=10)


def has_v6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as tried:
            tried.bind((V6, 0))
    except OSError:
        return False
    return socket.has_dualstack_ipv6()


with_v6 = pytest.mark.skipif(not has_v6(), reason="no IPv6 here")


def greeting(connection: socket.socket) -> bytes:
    return connection.recv(wire.GREETING_BYTES, socket.MSG_WAITALL)


@pytest.mark.parametrize("address", [V4, pytest.param(V6, marks=with_v6)])
def test_two_profilers_measure_bandwidth_and_round_trip(sink: Sink, address: str) -> None:
    found = measured(address, sink.port, send_s=SEND_S)
    assert 1e6 < found.bytes_per_s < 1e12
    assert 1e-6 < found.round_trip_s < 1


def test_a_stranger_is_sent_away_and_the_profilers_are_looked_up(sink: Sink) -> None:
    sink.known, seen = frozenset(), threading.Event()
    sink.stranger = seen.set
    with pytest.raises(NoFigures, match="does not know this node's address"):
        measured(V4, sink.port, send_s=SEND_S)
    assert seen.wait(10)


@with_v6
def test_a_second_asker_is_told_that_the_node_is_busy(sink: Sink) -> None:
    with connected(sink.port) as first:
        assert greeting(first) == wire.GO
        with pytest.raises(NoFigures, match="busy with another measurement"):
            measured(V6, sink.port, send_s=SEND_S)


def test_one_asker_gets_no_more_connections_than_a_measurement_takes(sink: Sink) -> None:
    held = [connected(sink.port) for _ in range(wire.STREAMS)]
    assert [greeting(each) for each in held] == [wire.GO] * wire.STREAMS
    with connected(sink.port) as another:
        assert greeting(another) == wire.BUSY
    for each in held:
        each.close()


def test_an_asker_that_stalls_is_dropped_after_the_limit() -> None:
    gate = NetworkGate()
    with closing(Sink(V4, 0, gate, limit_s=0.2)) as sink:
        sink.known = frozenset({V4})
        with connected(sink.port) as silent:
            assert greeting(silent) == wire.GO
            assert silent.recv(1) == b""  # closed by the sink
        _until_free(gate)


def test_an_asker_that_breaks_off_leaves_the_node_free() -> None:
    gate = NetworkGate()
    with closing(Sink(V4, 0, gate)) as sink:
        sink.known = frozenset({V4})
        breaking = connected(sink.port)
        assert greeting(breaking) == wire.GO
        breaking.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # a reset
        breaking.close()
        _until_free(gate)


def test_an_asker_that_sends_too_much_is_cut_off_without_a_confirmation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("uellm.profiler.network.sink.MOST_BYTES", 1 << 20)
    with closing(Sink(V4, 0, NetworkGate())) as sink:
        sink.known = frozenset({V4})
        with pytest.raises(NoFigures):
            measured(V4, sink.port, send_s=5)


def _until_free(gate: NetworkGate) -> None:
    deadline = time.monotonic() + 10
    while not gate.enter(OWN):
        assert time.monotonic() < deadline
        threading.Event().wait(0.01)


def test_a_port_that_is_taken_is_named(sink: Sink) -> None:
    with pytest.raises(CannotBeDone, match=f"network: cannot listen on {V4} port {sink.port}: Address already in use"):
        Sink(V4, sink.port, NetworkGate())


def test_a_closed_port_gives_no_figure(closed_port: int) -> None:
    with pytest.raises(NoFigures, match=f"{V4} port {closed_port}: connection refused"):
        measured(V4, closed_port)


@pytest.mark.parametrize(
    ("say", "why"),
    [(b"HTTP/1.1 400 Bad Request\r\n\r\n", "is not a profiler of this version"), (b"", "is not a profiler"),
     (wire.GO[:5], "is not a profiler"), (wire.GO, "broke off|reset by peer|broken pipe"),
     (wire.GO + b"!" * wire.PINGS, "broke off")],
    ids=["garbage", "nothing", "half a greeting", "breaks off", "wrong echoes"],
)  # fmt: skip
def test_a_peer_that_talks_nonsense_gives_no_figure(peer, say: bytes, why: str) -> None:
    port = peer(lambda connection: connection.sendall(say))
    with pytest.raises(NoFigures, match=why):
        measured(V4, port, send_s=SEND_S, limit_s=5)


def echo(connection: socket.socket) -> None:
    connection.sendall(wire.GO)
    for _ in range(wire.PINGS):
        connection.sendall(connection.recv(1))


@pytest.mark.parametrize("before", [None, echo], ids=["from the start", "after the echoes"])
def test_a_peer_that_stalls_costs_no_more_than_the_limit(peer, before) -> None:
    def stall(connection: socket.socket) -> None:
        if before is not None:
            before(connection)
        peer.over.wait(30)

    port, start = peer(stall), time.monotonic()
    with pytest.raises(NoFigures, match="does not answer in time: does a NetworkPolicy or firewall block it"):
        measured(V4, port, send_s=SEND_S, limit_s=0.3)
    assert time.monotonic() - start < 5


def test_a_peer_that_confirms_nothing_gives_no_figure(peer) -> None:
    def swallow(connection: socket.socket) -> None:
        echo(connection)
        while connection.recv(1 << 20):
            pass

    with pytest.raises(NoFigures, match="broke off"):
        measured(V4, peer(swallow), send_s=SEND_S, limit_s=5)


# --- the gate -------------------------------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.sampled_from(["a", "b", OWN]), st.booleans(), st.integers(0, 20)), max_size=60))
def test_never_more_than_one_asker_is_in_and_none_is_locked_out(steps) -> None:
    clock, inside = [0.0], list[str]()
    gate = NetworkGate(lambda: clock[0])
    for who, enters, wait_s in steps:
        clock[0] += wait_s
        if not enters and inside:
            inside.pop()
            gate.leave()
        elif enters and gate.enter(who):
            inside.append(who)
        assert len(set(inside)) <= 1
        assert len(inside) <= wire.STREAMS
    for _ in inside:
        gate.leave()
    clock[0] += PAUSE_S
    assert gate.enter("a")


def test_the_same_asker_waits_before_it_measures_again_and_others_do_not() -> None:
    clock = [0.0]
    gate = NetworkGate(lambda: clock[0])
    assert gate.enter("a")
    gate.leave()
    assert not gate.enter("a")
    assert gate.enter("b")
    gate.leave()
    clock[0] += PAUSE_S
    assert gate.enter("a")
    gate.leave()
    for _ in range(2):
        assert gate.enter(OWN)
        gate.leave()


# --- who asks whom --------------------------------------------------------------------------------------------------


def test_only_pods_that_run_are_peers_and_the_node_itself_is_none() -> None:
    pods = [
        pod("b", "10.0.0.2", "fd00::2"),
        pod("a", "10.0.0.1"),
        pod("c", "10.0.0.3", phase="Pending"),
        pod("d", "10.0.0.4", leaving=True),
        pod("e"),
    ]
    found = peers_of(pods)
    assert found == (
        ProfilerPeer("a", "10.0.0.1", frozenset({"10.0.0.1"})),
        ProfilerPeer("b", "10.0.0.2", frozenset({"10.0.0.2", "fd00::2"})),
    )
    assert to_ask(found, "a") == (found[1],)
    assert callers(found, "a") == {"10.0.0.2", "fd00::2"}


@given(st.sets(st.text("abc", min_size=1, max_size=4), max_size=12))
def test_every_node_asks_and_is_asked_equally_often_and_four_nodes_know_every_pair(names: set[str]) -> None:
    peers = [ProfilerPeer(name, name, frozenset({name})) for name in names]
    asked = {name: [peer.node for peer in to_ask(sorted(peers), name)] for name in names}
    count = min(MOST_ASKED, max(0, len(names) - 1))
    for name in names:
        assert len(set(asked[name])) == count
        assert sum(name in others for others in asked.values()) == count
    if len(names) <= 4:
        assert all(b in asked[a] for a in names for b in names if a != b)


# --- what is kept ---------------------------------------------------------------------------------------------------


@given(st.floats(1e-3, 1e20), st.floats(1e-12, 1e3))
def test_what_is_published_is_valid_and_keeps_two_digits(bytes_per_s: float, round_trip_s: float) -> None:
    found = parse(NetworkPeer, entry("b", NetworkFigures(bytes_per_s, round_trip_s), now()))
    if 1 <= bytes_per_s <= 2**50:
        assert found.bytes_per_second == pytest.approx(bytes_per_s, rel=0.5 if bytes_per_s < 10 else 0.05)
        assert len(str(found.bytes_per_second).rstrip("0")) <= 2 or found.bytes_per_second == 2**50


def keeper(sink: Sink, gate: NetworkGate, pods: list, **changes) -> NetworkKeeper:
    async def profilers() -> list:
        if isinstance(pods[0], Exception):
            raise pods[0]
        return pods

    return NetworkKeeper("a", sink, gate, profilers, periods=NetworkPeriods(0.05, 0.01, 0.05), **changes)


async def until_measured(asking: NetworkKeeper, woken: asyncio.Event) -> None:
    """The first tries may find a busy node."""
    async with asyncio.timeout(20):
        while not asking.entries():
            await woken.wait()
            woken.clear()


async def test_a_new_node_is_measured_twice_and_then_left_alone(sink: Sink, background) -> None:
    # The gate of the node that asks and that of the node which is asked are two.
    asking, woken = keeper(sink, NetworkGate(), [pod("a", "192.0.2.1"), pod("b", V4)]), asyncio.Event()
    background(asking.run(woken.set))
    await until_measured(asking, woken)
    async with asyncio.timeout(20):
        while asking._doubts:
            await woken.wait()
            woken.clear()
    (found,) = asking.entries()
    assert found["node"] == "b"
    assert parse(NetworkPeer, found).measured_at is not None
    assert asking.sentence() == ""
    woken.clear()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.3):  # several rounds
            await woken.wait()
    assert asking.entries() == [found]


async def test_a_node_that_cannot_be_measured_is_told_of_after_some_tries_with_its_reason(
    sink: Sink, background, caplog, closed_port: int
) -> None:
    asking = keeper(sink, NetworkGate(), [pod("b", V4)], port=closed_port)
    tries, told = [], asyncio.Event()

    def changed() -> None:
        tries.append(asking.sentence())
        if tries[-1]:
            told.set()

    background(asking.run(changed))
    async with asyncio.timeout(20):
        await told.wait()
    why = f"the network to node b is not measured: {V4} port {closed_port}: connection refused"
    assert tries[:TOLD_FROM] == [*[""] * (TOLD_FROM - 1), why]
    assert [record.getMessage() for record in caplog.records if record.levelname == "WARNING"] == [why]
    assert asking.entries() == []


async def test_an_api_server_that_fails_is_asked_again(sink: Sink, background) -> None:
    pods = [Unavailable(0, "Down", "down")]
    asking, woken = keeper(sink, NetworkGate(), pods), asyncio.Event()
    running = background(asking.run(woken.set))
    await asyncio.sleep(0)
    pods[:] = [pod("b", V4)]
    await until_measured(asking, woken)
    assert not running.done()
    assert [one["node"] for one in asking.entries()] == ["b"]


@pytest.fixture
def seconds(monkeypatch: pytest.MonkeyPatch) -> list[NetworkFigures | Exception]:
    """What the next measurements find, in their order; after the last one nobody measures any more."""
    found = list[NetworkFigures | Exception]()

    def measure(address: str, port: int) -> NetworkFigures:
        one = found.pop(0)
        if isinstance(one, Exception):
            raise one
        return one

    monkeypatch.setattr("uellm.profiler.network.keeping.measured", measure)
    return found


GOOD, A_BIT_LESS, BAD = NetworkFigures(1e10, 5e-5), NetworkFigures(8e9, 6e-5), NetworkFigures(4e9, 5e-5)
SLOW_ANSWERS, WORST = NetworkFigures(1e10, 1.1e-4), NetworkFigures(2e9, 2e-4)
RIGHT = [(10_000_000_000, 50_000)]
A_DAY_AGO = "2020-01-01T00:00:00Z"


@pytest.mark.parametrize(
    ("before", "found", "published"),
    [
        (None, [BAD, GOOD], RIGHT),
        (None, [GOOD, BAD], RIGHT),
        (None, [NetworkFigures(1e10, 9e-5), NetworkFigures(5e9, 5e-5)], RIGHT),
        (GOOD, [A_BIT_LESS], RIGHT),
        (GOOD, [NetworkFigures(1.2e10, 4e-5)], RIGHT),
        (GOOD, [NetworkFigures(7e9, 5e-5)], [(7_000_000_000, 50_000)]),
        (GOOD, [NetworkFigures(4e10, 5e-5)], [(40_000_000_000, 50_000)]),
        (GOOD, [BAD, A_BIT_LESS], RIGHT),
        (GOOD, [SLOW_ANSWERS, GOOD], RIGHT),
        (GOOD, [WORST, BAD], [(4_000_000_000, 50_000)]),
        (GOOD, [BAD, NoFigures("busy"), GOOD], RIGHT),
        (None, [RuntimeError("can't start new thread"), GOOD, GOOD], RIGHT),
    ],
    ids=["the first is bad", "the second is bad", "each is bad in its way", "noise", "noise upwards", "worse", "better",
         "a bad second", "a second of slow answers", "much worse", "a doubt and a failure", "no thread"],
)  # fmt: skip
async def test_one_bad_second_does_not_count_for_a_day_and_noise_changes_nothing(
    sink: Sink, background, seconds: list, before, found: list, published: list, monkeypatch
) -> None:
    asking, done = keeper(sink, NetworkGate(), [pod("b", V4)]), asyncio.Event()
    if before is not None:
        monkeypatch.setattr("uellm.profiler.network.keeping.KEPT_FOR", timedelta(days=1e5))
        asking.adopt({"network": [entry("b", before, A_DAY_AGO)]})
    seconds.extend(found)

    def changed() -> None:
        if not seconds:
            done.set()

    running = background(asking.run(changed))
    async with asyncio.timeout(20):
        await done.wait()
    (one,) = asking.entries()
    assert [(one["bytesPerSecond"], one["roundTripNanoseconds"])] == published
    assert one["measuredAt"] > A_DAY_AGO
    for _ in range(3):
        await asyncio.sleep(0)
    assert asking._doubts == {}
    assert not running.done()


def test_a_node_that_can_start_no_thread_lets_the_next_asker_in(sink: Sink, monkeypatch: pytest.MonkeyPatch) -> None:
    start, refused = threading.Thread.start, []

    def refusing(thread: threading.Thread) -> None:
        if thread.name == "network stream" and not refused:
            refused.append(thread)
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", refusing)
    with connected(sink.port) as dropped:
        assert dropped.recv(1) == b""
    assert measured(V4, sink.port, send_s=SEND_S).bytes_per_s > 0


def test_an_asker_that_can_start_no_thread_says_so(sink: Sink, monkeypatch: pytest.MonkeyPatch) -> None:
    start = threading.Thread.start

    def refusing(thread: threading.Thread) -> None:
        if thread.name == "network":
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", refusing)
    with pytest.raises(NoFigures, match="this node: can't start new thread"):
        measured(V4, sink.port, send_s=SEND_S)


class Lister:
    """The API server: answers in their order, the last one again and again; counts the questions."""

    def __init__(self, *answers: list | Exception) -> None:
        self.answers, self.count, self.asked = list(answers), 0, asyncio.Event()

    async def __call__(self) -> list:
        answer = self.answers[min(self.count, len(self.answers) - 1)]
        self.count += 1
        if self.count >= len(self.answers):
            self.asked.set()
        if isinstance(answer, Exception):
            raise answer
        return answer


async def for_a_while(asking: NetworkKeeper, lister: Lister, background) -> None:
    """Until the last answer was given, and as long again as a loop without rests would ask a thousand times."""
    background(asking.run(lambda: None))
    async with asyncio.timeout(20):
        await lister.asked.wait()
    with suppress(TimeoutError):
        async with asyncio.timeout(0.5):
            await asyncio.Event().wait()


async def test_an_api_server_that_fails_is_not_asked_without_rest_though_a_measurement_is_due(
    sink: Sink, background, closed_port: int
) -> None:
    lister = Lister([pod("b", V4)], Unavailable(0, "Down", "down"))
    periods = NetworkPeriods(rest_s=0.1, least_s=0.05, longest_s=0.1, again_s=0.0)
    asking = NetworkKeeper("a", sink, NetworkGate(), lister, port=closed_port, periods=periods)
    await for_a_while(asking, lister, background)
    assert lister.count <= 2 + 0.5 / 0.05


async def test_a_measurement_that_is_tried_again_asks_the_api_server_no_more_often(
    sink: Sink, background, closed_port: int
) -> None:
    lister = Lister([pod("b", V4)])
    asking = NetworkKeeper(
        "a", sink, NetworkGate(), lister, port=closed_port, periods=NetworkPeriods(least_s=0.005, longest_s=0.02)
    )
    await for_a_while(asking, lister, background)
    assert asking.sentence() != ""  # it was tried more than once
    assert lister.count == 1


async def test_strangers_have_the_api_server_asked_once_in_a_while(sink: Sink, background) -> None:
    lister, many = Lister([], []), threading.Event()
    periods = NetworkPeriods(least_s=0.005, again_s=0.2)
    asking = NetworkKeeper("a", sink, NetworkGate(), lister, periods=periods)

    def knock() -> None:
        while not many.wait(0.002):
            sink.stranger()

    knocking = threading.Thread(target=knock)
    knocking.start()
    try:
        await for_a_while(asking, lister, background)
    finally:
        many.set()
        knocking.join()
    assert 2 <= lister.count <= 2 + 0.5 / 0.2 + 1


async def test_figures_of_nodes_that_have_left_are_forgotten(sink: Sink, background) -> None:
    lister = Lister([])
    asking = NetworkKeeper("a", sink, NetworkGate(), lister, periods=NetworkPeriods(0.01, 0.01, 0.01))
    asking.adopt({"network": [{"node": f"n{index}", "measuredAt": "2020-01-01T00:00:00Z"} for index in range(99)]})
    await for_a_while(asking, lister, background)
    assert asking._entries == {}


def test_figures_outlive_a_restart_and_old_ones_do_not(sink: Sink) -> None:
    asking = keeper(sink, NetworkGate(), [])
    figures = {"bytesPerSecond": 7, "roundTripNanoseconds": 8}
    fresh = {"node": "b", **figures, "measuredAt": now()}
    many = [{"node": f"n{index:02}", **figures, "measuredAt": now()} for index in range(MOST_KEPT)]
    asking.adopt({"network": [fresh, {"node": "c", **figures, "measuredAt": "2020-01-01T00:00:00Z"}, {"node": "d"}]})
    assert asking.entries() == [fresh]
    asking.adopt({"network": [fresh, *many]})
    assert len(asking.entries()) == MOST_KEPT
    asking.adopt({})
    assert asking.entries() == []
