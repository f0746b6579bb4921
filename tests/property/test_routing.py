"""The router under random sequences of events."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from hypothesis import given, settings
from hypothesis import strategies as st

from uellm.api.replica_load import SPANS, PrefixNews, ReplicaLoad, WaitingLoad
from uellm.routing import AUTO, ROUTES, RoutedRequest, Router
from uellm.step_time import StepTime

NAMES = ("a", "b", "c", "d")
STEP = StepTime(5.5e-3, 45e-6, 44e-9, 15e-6, 0.5e-3)

times = st.floats(0.0, 2.0)
maybe_targets = st.one_of(st.none(), st.floats(1e-3, 100.0))
prefixes = st.lists(st.integers(0, 5), max_size=4).map(tuple)
numbers = st.integers(0, 10**6)

loads = st.builds(
    ReplicaLoad,
    incarnation=st.sampled_from(["1", "2"]),
    ready=st.booleans(),
    draining=st.booleans(),
    step=st.one_of(st.none(), st.just(STEP), st.builds(StepTime, *[st.floats(0.0, 1.0)] * 5)),
    chunk_tokens=numbers,
    gap_s=st.floats(0.0, 10.0),
    sequences=numbers,
    decoding=numbers,
    unfilled_tokens=st.floats(0.0, 1e12),
    kv_tokens=numbers,
    kv_capacity_tokens=numbers,
    paced_tokens_per_second=st.one_of(st.none(), st.floats(1e-3, 1e6)),
    waiting=st.tuples(*[st.builds(WaitingLoad, numbers, numbers)] * SPANS),
    late=st.builds(WaitingLoad, numbers, numbers),
    prefixes=st.builds(lambda hashes: PrefixNews(len(hashes), hashes), prefixes),
)
events = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.sampled_from(NAMES), times),
        st.tuples(st.just("remove"), st.sampled_from(NAMES), times),
        st.tuples(st.just("report"), st.sampled_from(NAMES), times, loads),
        st.tuples(st.just("send"), st.frozensets(st.sampled_from(NAMES), max_size=3), times, prefixes, maybe_targets,
                  maybe_targets, maybe_targets),
        st.tuples(st.just("first"), numbers, times),
        st.tuples(st.just("end"), numbers, times, st.booleans()),
    ),
    max_size=40,
)  # fmt: skip


@dataclass
class World:
    """A router, and what is true of its replicas."""

    router: Router
    now_s: float = 0.0
    alive: dict[str, bool] = field(default_factory=dict)
    """Whether each replica drains."""
    sent: list[tuple[str, RoutedRequest]] = field(default_factory=list)
    chosen: list[str | None] = field(default_factory=list)

    def happen(self, event: tuple) -> None:  # type: ignore[type-arg]
        kind, about, after_s, *others = event
        self.now_s += after_s
        if kind == "add":
            self.router.add(about, self.now_s)
            self.alive.setdefault(about, False)
        elif kind == "remove":
            self.router.remove(about, self.now_s)
            self.alive.pop(about, None)
        elif kind == "report":
            self.router.report(about, others[0], self.now_s)
            if about in self.alive:
                self.alive[about] = others[0].draining
        elif kind == "send":
            self._send(about, *others)
        elif self.sent:
            name, request = self.sent[about % len(self.sent)]
            if kind == "first":
                self.router.first_token(name, request, self.now_s)
            else:
                self.router.ended(name, request, self.now_s, failed=others[0])

    def _send(self, exclude, prefix, ttft_s, tpot_s, e2e_s) -> None:  # type: ignore[no-untyped-def]
        request = RoutedRequest(self.now_s, 700, 100.0, ttft_s, tpot_s, e2e_s, prefix)
        chosen = self.router.choose(request, self.now_s, exclude)
        able = {name for name, draining in self.alive.items() if not draining} - exclude
        assert chosen in able if able else chosen is None
        self.chosen.append(chosen)
        if chosen is not None:
            self.router.sent(chosen, request, self.now_s)
            self.sent.append((chosen, request))


def after(route: str, some: list[tuple]) -> World:  # type: ignore[type-arg]
    world = World(Router(route))
    for event in some:
        world.happen(event)
    return world


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(ROUTES), events)
def test_every_choice_is_a_known_replica_that_neither_drains_nor_is_excluded(route: str, some: list) -> None:  # type: ignore[type-arg]
    after(route, some)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(ROUTES), events)
def test_the_same_events_lead_to_the_same_choices(route: str, some: list) -> None:  # type: ignore[type-arg]
    assert after(route, some).chosen == after(route, some).chosen


@settings(max_examples=60, deadline=None)
@given(events)
def test_the_books_are_empty_when_every_request_has_ended(some: list) -> None:  # type: ignore[type-arg]
    world = after(AUTO, some)
    for name, request in world.sent:
        world.router.ended(name, request, world.now_s)

    for name in NAMES:
        replica = world.router.replica(name)
        if replica is not None:
            assert not replica.outstanding
            assert (replica.unfilled_tokens, replica.began, replica.kv_tokens) == (0, 0, 0)


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 6), st.integers(40, 200), st.booleans())
def test_a_replica_that_always_claims_to_be_idle_gets_little_more_than_its_share(
    replicas: int, requests: int, begin: bool
) -> None:
    """Nothing ends, so that the honest ones report more and more."""
    router, honest = Router(AUTO), {f"r{index}": 0 for index in range(1, replicas)}
    idle = ReplicaLoad(step=STEP, chunk_tokens=2048, gap_s=6e-3, kv_capacity_tokens=384_000)
    got = dict.fromkeys(("r0", *honest), 0)
    for name in got:
        router.add(name, 0.0)
    for number in range(requests):
        now_s = 0.2 * number
        router.report("r0", idle, now_s)
        for name in honest:
            tokens = 0 if begin else 1000 * got[name]
            decoding = got[name] if begin else 0
            load = replace(idle, unfilled_tokens=tokens, sequences=got[name], decoding=decoding)
            router.report(name, replace(load, kv_tokens=1000 * decoding), now_s)
        request = RoutedRequest(now_s, 1000, 200.0, ttft_s=1.0)
        chosen = router.choose(request, now_s)
        assert chosen is not None
        router.sent(chosen, request, now_s)
        got[chosen] += 1
        if begin:
            router.first_token(chosen, request, now_s)

    assert got["r0"] <= 2 * requests / replicas + 5
