from __future__ import annotations

import asyncio
import copy

import pytest

from uellm.controller import lease as module
from uellm.controller.lease import Lease, LeaseLost
from uellm.kube import CLUSTERROLEBINDING, AlreadyExists, Conflict, Forbidden, Unavailable


class Server:
    """An API server with one Lease of the namespace `ns`, those of others, and the bindings of releases."""

    def __init__(self):
        self.leases = {}
        self.version = 0
        self.releases = ["ns", "elsewhere", "former", "of-one", "of-two"]
        self.forbids_lists = False
        self.lists_hang = False
        self.down = False
        self.events = {}

    def happened(self, what, times):
        """An event that is set when this has happened that many times."""
        self.events[what, times] = asyncio.Event()
        return self.events[what, times].wait()

    def _count(self, what):
        for (name, times), event in list(self.events.items()):
            if name == what:
                del self.events[name, times]
                if times > 1:
                    self.events[name, times - 1] = event
                else:
                    event.set()

    async def get(self, kind, name, namespace):
        self._check()
        self._count("read")
        return copy.deepcopy(self.leases.get(namespace))

    async def list(self, kind, *, label_selector="", field_selector=""):
        self._check()
        if kind is CLUSTERROLEBINDING:
            assert label_selector == module.OPERATORS
            user = {"kind": "User", "name": "somebody"}
            return [{"subjects": [user, {"kind": "ServiceAccount", "namespace": each}]} for each in self.releases]
        if self.lists_hang:
            await asyncio.Event().wait()
        assert field_selector == f"metadata.name={module.NAME}"
        if self.forbids_lists:
            raise Forbidden(403, "Forbidden", "leases is forbidden")
        found = copy.deepcopy(list(self.leases.values()))
        # What was read may be old by the time that it is here.
        await asyncio.sleep(0)
        return found

    async def create(self, obj):
        self._check()
        if obj["metadata"]["namespace"] in self.leases:
            raise AlreadyExists(409, "AlreadyExists", "there is one")
        return self._store(obj)

    async def apply(self, obj, *, manager):
        self._check()
        stored = self.leases[obj["metadata"]["namespace"]]
        if obj["metadata"]["resourceVersion"] != stored["metadata"]["resourceVersion"]:
            raise Conflict(409, "Conflict", "somebody was quicker")
        return self._store(obj)

    def _store(self, obj):
        self.version += 1
        stored = copy.deepcopy(dict(obj))
        stored["metadata"]["resourceVersion"] = str(self.version)
        self.leases[stored["metadata"]["namespace"]] = stored
        self._count("write")
        return copy.deepcopy(stored)

    def _check(self):
        if self.down:
            self._count("refusal")
            raise Unavailable(503, "ServiceUnavailable", "down")

    @property
    def lease(self):
        return self.leases["ns"]

    @property
    def holder(self):
        return self.lease["spec"]["holderIdentity"]


@pytest.fixture
def server():
    return Server()


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Turns the lease's seconds into milliseconds."""
    for name in ("RENEW_S", "RETRY_S", "DEADLINE_S", "DURATION_S", "ELSEWHERE_S"):
        monkeypatch.setattr(module, name, getattr(module, name) / 100)


def lease(server, identity, namespace="ns"):
    return Lease(server, namespace, identity)


def timeless(server, identity, namespace="ns"):
    """One for which no lease runs out, however slow the machine."""
    return Lease(server, namespace, identity, clock=lambda: 100.0)


async def test_a_lease_that_nobody_holds_is_taken_at_once(server):
    one = lease(server, "one")
    await one.acquire()
    assert server.holder == "one"
    assert one.age_s < 1


async def test_one_that_is_given_back_goes_to_the_next(server):
    one, two = lease(server, "one"), lease(server, "two")
    await one.acquire()
    waiting = asyncio.create_task(two.acquire())
    await one.release()
    async with asyncio.timeout(5):
        await waiting
    assert server.holder == "two"
    assert server.lease["spec"]["leaseTransitions"] >= 2


async def test_one_whose_holder_died_is_taken_after_its_time(server):
    await lease(server, "dead").acquire()
    server.lease["spec"]["leaseDurationSeconds"] = 0.05
    async with asyncio.timeout(5):
        await lease(server, "two").acquire()
    assert server.holder == "two"


async def test_the_holders_namesake_goes_on_at_once(server, monkeypatch):
    monkeypatch.setattr(module, "RETRY_S", 3600.0)
    await lease(server, "pod-1").acquire()
    async with asyncio.timeout(5):
        await lease(server, "pod-1").acquire()


async def test_a_holder_that_renews_keeps_it(server):
    one = lease(server, "one")
    await one.acquire()
    renewed = server.happened("write", 3)
    keeping = asyncio.create_task(one.keep())
    async with asyncio.timeout(5):
        await renewed
    assert not keeping.done()
    keeping.cancel()


async def test_it_is_lost_when_another_has_taken_it(server):
    one = lease(server, "one")
    await one.acquire()
    server.lease["spec"]["holderIdentity"] = "two"
    with pytest.raises(LeaseLost, match="taken by two"):
        await one.keep()


async def test_it_is_lost_when_the_server_is_gone_for_too_long(server):
    one = lease(server, "one")
    await one.acquire()
    server.down = True
    with pytest.raises(LeaseLost, match="could not be renewed"):
        await one.keep()


async def test_a_holder_that_may_not_write_any_more_goes_on_trying_until_another_may_hold_it(server):
    now_s = 100.0
    one = Lease(server, "ns", "one", clock=lambda: now_s)
    await one.acquire()
    server.down = True
    keeping = asyncio.create_task(one.keep())
    async with asyncio.timeout(5):
        await server.happened("refusal", 1)
        now_s += (module.DEADLINE_S + module.DURATION_S) / 2
        assert one.writable_s() == 0
        await server.happened("refusal", 1)
        server.down = False
        await server.happened("write", 1)
        await asyncio.sleep(0)
    assert not keeping.done()
    assert one.writable_s() > 0
    server.down = True
    async with asyncio.timeout(5):
        await server.happened("refusal", 1)
        now_s += 1.01 * module.DURATION_S
        with pytest.raises(LeaseLost, match="could not be renewed"):
            await keeping


async def test_one_that_is_free_again_is_lost_for_another_may_have_written_meanwhile(server):
    one = lease(server, "one")
    await one.acquire()
    server.lease["spec"]["holderIdentity"] = ""
    with pytest.raises(LeaseLost, match="taken by another operator"):
        await one.keep()
    assert one.writable_s() == 0


async def test_writes_are_allowed_from_the_first_renewal_on_and_end_before_another_may_take_it(server):
    now_s = 100.0
    one = Lease(server, "ns", "one", clock=lambda: now_s)
    assert one.writable_s() == 0
    await one.acquire()
    assert one.writable_s() == pytest.approx(module.DEADLINE_S)
    now_s += module.DEADLINE_S * 0.99
    assert 0 < one.writable_s() < module.DEADLINE_S / 50
    now_s += module.DEADLINE_S * 0.02
    assert one.writable_s() == 0
    assert module.DEADLINE_S < module.DURATION_S


async def test_an_answer_that_came_late_counts_from_when_it_was_asked_for(server):
    now_s = 100.0

    class Slow(Server):
        async def create(self, obj):
            nonlocal now_s
            now_s += module.DEADLINE_S / 2
            return await super().create(obj)

    one = Lease(Slow(), "ns", "one", clock=lambda: now_s)
    await one.acquire()
    assert one.writable_s() == pytest.approx(module.DEADLINE_S / 2)


async def test_after_it_is_given_back_nothing_may_be_written(server):
    one = lease(server, "one")
    await one.acquire()
    await one.release()
    assert one.writable_s() == 0


async def test_whoever_waits_for_a_holder_stands_by_and_whoever_waits_for_the_server_does_not(server):
    one, two = timeless(server, "one"), timeless(server, "two")
    await one.acquire()
    read = server.happened("read", 2)
    waiting = asyncio.create_task(two.acquire())
    async with asyncio.timeout(5):
        await read
        assert two.standing_by
        refused = server.happened("refusal", 2)
        server.down = True
        await refused
        assert not two.standing_by
    waiting.cancel()
    assert not one.standing_by


async def test_whoever_waits_outlives_an_outage(server):
    server.down = True
    one = lease(server, "one")
    refused = server.happened("refusal", 2)
    waiting = asyncio.create_task(one.acquire())
    async with asyncio.timeout(5):
        await refused
    assert not waiting.done()
    server.down = False
    async with asyncio.timeout(5):
        await waiting


async def test_of_two_at_the_same_moment_one_gets_it(server):
    one, two = lease(server, "one"), lease(server, "two")
    tasks = [asyncio.create_task(each.acquire()) for each in (one, two)]
    done, pending = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    assert len(done) == 1
    for task in pending:
        task.cancel()


async def test_an_operator_of_another_release_stands_by_until_the_first_one_is_gone(server, caplog):
    caplog.set_level("INFO")
    one, other = timeless(server, "one"), timeless(server, "other", "elsewhere")
    await one.acquire()
    waiting = asyncio.create_task(other.acquire())
    read = server.happened("read", 3)
    async with asyncio.timeout(5):
        await read
    assert other.standing_by
    assert other.writable_s() == 0
    assert "waiting for one in namespace ns: one operator works for the whole cluster" in caplog.text
    await one.release()
    async with asyncio.timeout(5):
        await waiting
    assert server.leases["elsewhere"]["spec"]["holderIdentity"] == "other"


async def test_what_a_release_of_another_name_left_behind_hinders_nobody_for_long(server):
    await lease(server, "dead", "former").acquire()
    server.leases["former"]["spec"]["leaseDurationSeconds"] = 0.05
    async with asyncio.timeout(5):
        await lease(server, "one").acquire()
    assert server.holder == "one"


async def test_a_lease_that_somebody_made_where_no_operator_is_stops_nobody(server):
    await timeless(server, "somebody", "team-a").acquire()
    one = timeless(server, "one")
    async with asyncio.timeout(5):
        await one.acquire()
    assert server.holder == "one"
    assert not one.standing_by


async def test_another_release_s_lease_counts_no_longer_than_one_of_ours_would_whatever_it_says(server):
    now_s = 100.0
    await lease(server, "dead", "former").acquire()
    server.leases["former"]["spec"]["leaseDurationSeconds"] = 1_000_000
    one = Lease(server, "ns", "one", clock=lambda: now_s)
    waiting = asyncio.create_task(one.acquire())
    async with asyncio.timeout(5):
        await server.happened("read", 2)
        assert one.standing_by
        now_s += 1.01 * module.DURATION_S
        await waiting


async def test_who_waits_for_another_release_looks_less_often_than_who_waits_for_its_own(server, monkeypatch):
    pauses_s = []

    async def sleep(pause_s):
        pauses_s.append(pause_s)
        if len(pauses_s) == 3:
            raise asyncio.CancelledError

    await timeless(server, "one").acquire()
    monkeypatch.setattr(module.asyncio, "sleep", sleep)
    monkeypatch.setattr(module.random, "uniform", lambda low, high: 1.0)
    # The server itself sleeps for 0 s in the middle of a list.
    with pytest.raises(asyncio.CancelledError):
        await timeless(server, "other", "elsewhere").acquire()
    assert pauses_s[:2] == [0, module.ELSEWHERE_S]
    pauses_s[:] = [0, 0]
    with pytest.raises(asyncio.CancelledError):
        await timeless(server, "two").acquire()
    assert pauses_s == [0, 0, module.RETRY_S]


async def test_of_two_releases_at_the_same_moment_one_operator_works(server):
    both = [timeless(server, name, f"of-{name}") for name in ("one", "two")]
    tasks = [asyncio.create_task(each.acquire()) for each in both]
    async with asyncio.timeout(5):
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        await server.happened("read", 3)
    assert sorted(each.age_s is not None for each in both) == [False, True]
    for task in tasks:
        task.cancel()


async def test_one_that_slept_while_another_release_took_over_works_no_more(server):
    now_s = 100.0
    one = Lease(server, "ns", "one", clock=lambda: now_s)
    await one.acquire()
    now_s += module.DURATION_S * 2
    server.leases["ns"]["spec"]["leaseDurationSeconds"] = 0
    async with asyncio.timeout(5):
        await lease(server, "other", "elsewhere").acquire()
    with pytest.raises(LeaseLost, match="renewed late, and now works other in namespace elsewhere"):
        async with asyncio.timeout(5):
            await one.keep()


async def test_one_that_slept_while_nobody_took_over_goes_on(server):
    now_s = 100.0
    one = Lease(server, "ns", "one", clock=lambda: now_s)
    await one.acquire()
    now_s += module.DURATION_S * 2
    renewed = server.happened("write", 1)
    keeping = asyncio.create_task(one.keep())
    async with asyncio.timeout(5):
        await renewed
    await asyncio.sleep(0)
    assert one.writable_s() > 0
    keeping.cancel()


async def test_a_renewal_that_is_late_but_not_too_late_needs_no_list(server):
    now_s = 100.0
    one = Lease(server, "ns", "one", clock=lambda: now_s)
    await one.acquire()
    server.lists_hang = True
    now_s += (module.DEADLINE_S + module.DURATION_S - module.RETRY_S) / 2
    assert one.writable_s() == 0
    keeping = asyncio.create_task(one.keep())
    async with asyncio.timeout(5):
        await server.happened("write", 1)
    await asyncio.sleep(0)
    assert one.writable_s() > 0
    keeping.cancel()


async def test_it_is_lost_where_it_is_not_known_in_time_whether_another_release_took_over(server):
    now_s = 100.0
    one = Lease(server, "ns", "one", clock=lambda: now_s)
    await one.acquire()
    server.lists_hang = True
    now_s += module.DURATION_S * 2
    with pytest.raises(LeaseLost, match="could not be renewed"):
        async with asyncio.timeout(5):
            await one.keep()


async def test_without_the_right_to_look_elsewhere_it_works_as_before_and_says_so(server, caplog):
    server.forbids_lists = True
    await lease(server, "one").acquire()
    assert server.holder == "one"
    assert caplog.text.count("whether another operator works in this cluster is not known") == 1
