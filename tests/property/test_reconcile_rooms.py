"""What nodes offer, counted change by change, beside the same counted from the beginning."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from uellm.hardware import StageNeeds
from uellm.reconcile.names import Key
from uellm.reconcile.planning.ledger import BoundPod, Claim, Commitment, offers, suits
from uellm.reconcile.planning.rooms import Rooms
from uellm.reconcile.profiled_node import profiled_node

NODES = {"a": 4, "b": 3, "c": 1, "d": 2}
KEYS = [Key("ns", name) for name in ("one", "two", "three")]

names = st.sampled_from(sorted(NODES))
pods = st.lists(st.builds(BoundPod, st.sampled_from(["p", "q", "r"]), names, st.integers(1, 2)), max_size=2)
commitments = st.builds(
    Commitment,
    gpus=st.integers(1, 3),
    nodes=st.lists(names, max_size=3, unique=True).map(tuple),
    needs=st.sampled_from([(), (1,)]),
    alike=st.just(value=False),
    simulated=st.just(value=False),
    claims=st.just(()),
    planned=st.just(()),
)
claims = st.builds(Claim, commitments, st.integers(0, 3), pods.map(tuple), st.integers(0, 2))
claiming = st.integers(1, 2).flatmap(
    lambda gpus: st.builds(
        Commitment,
        gpus=st.just(gpus),
        nodes=st.lists(names, max_size=2, unique=True).map(tuple),
        needs=st.just((1,) * gpus),
        alike=st.just(value=False),
        simulated=st.just(value=False),
        claims=st.sampled_from(["even", "odd"]).map(lambda product: (StageNeeds(product, 1),) * gpus),
        planned=st.sampled_from([(), ("a-0", "a-2")[:gpus]]),
    )
)
mixed = st.builds(Claim, st.one_of(commitments, claiming), st.integers(0, 3), pods.map(tuple), st.integers(0, 2))
holders = st.lists(st.sampled_from(["p", "q", "r", "stranger", None]), min_size=4, max_size=4)
steps = st.lists(
    st.one_of(
        st.tuples(st.just("claim"), st.sampled_from(KEYS), st.one_of(st.none(), claims)),
        st.tuples(st.just("node"), names, st.one_of(st.none(), holders)),
    ),
    max_size=12,
)


def node(name, held):
    devices = [
        {"index": index, "uuid": f"{name}-{index}", "memoryBytes": 1, "product": ("even", "odd")[index % 2]}
        | ({"allocatedTo": {"podUID": holder}} if holder else {})
        for index, holder in enumerate(held[: NODES[name]])
    ]
    return profiled_node({"metadata": {"name": name}, "status": {"devices": devices}})


class World:
    def __init__(self):
        self.rooms = Rooms()
        self.nodes = {}
        self.claims = {}

    def set_node(self, name, held):
        self.nodes.pop(name, None)
        if held is not None:
            self.nodes[name] = node(name, held)
        self.rooms.set_nodes(self.in_order(), [name])

    def set_claim(self, key, claim):
        self.claims.pop(key, None)
        if claim is not None:
            self.claims[key] = claim
        self.rooms.set_claim(key, claim)

    def in_order(self):
        return [self.nodes[name] for name in sorted(self.nodes)]


def total(offered):
    return sum(offer.promised for offer in offered)


def after(steps):
    world = World()
    for name in NODES:
        world.set_node(name, [None] * 4)
    for what, which, value in steps:
        (world.set_claim if what == "claim" else world.set_node)(which, value)
    return world


@given(st.lists(st.tuples(st.sampled_from(KEYS), claims), max_size=5))
@settings(deadline=None)
def test_promises_without_pods_are_counted_as_if_all_were_counted_together(entered):
    world = World()
    for name in NODES:
        world.set_node(name, [None] * 4)
    for key, claim in dict(entered).items():
        world.set_claim(key, claim._replace(bound_pods=()))
    assert world.rooms.offers_beside_all() == offers(world.in_order(), list(world.claims.values()), ())


@given(st.lists(st.tuples(st.sampled_from(KEYS), mixed), max_size=5))
@settings(deadline=None)
def test_gpus_that_will_be_claimed_are_counted_as_if_all_were_counted_together(entered):
    world = World()
    for name in NODES:
        world.set_node(name, [None] * 4)
    for key, claim in dict(entered).items():
        world.set_claim(key, claim._replace(bound_pods=()))
    assert world.rooms.offers_beside_all() == offers(world.in_order(), list(world.claims.values()), ())


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("claim"), st.sampled_from(KEYS), st.one_of(st.none(), mixed)),
            st.tuples(st.just("node"), names, st.one_of(st.none(), holders)),
        ),
        max_size=12,
    )
)
@settings(deadline=None)
def test_a_gpu_is_reserved_for_one_claim_and_offered_to_nobody_else(steps):
    world = after(steps)
    reserved = [
        uuid for entry in world.rooms._entries.values() for devices in entry.reserved.values() for uuid in devices
    ]
    assert len(reserved) == len(set(reserved))
    for offer in world.rooms.offers_beside_all():
        assert not set(offer.free) & set(reserved)
        assert 0 <= offer.promised <= len(offer.free)
    for key in world.claims:
        own = {uuid for devices in world.rooms._entries[key].reserved.values() for uuid in devices}
        offered = {uuid for offer in world.rooms.offers(key, ()) for uuid in offer.free}
        assert own <= offered
        assert not offered & (set(reserved) - own)


@given(steps)
@settings(deadline=None)
def test_no_node_is_promised_more_than_it_has(steps):
    for offer in after(steps).rooms.offers_beside_all():
        assert 0 <= offer.promised <= len(offer.free)


@given(steps)
@settings(deadline=None)
def test_devices_and_nodes_are_those_of_the_last_profiles(steps):
    world = after(steps)
    offered = world.rooms.offers_beside_all()
    assert [offer.node for offer in offered] == [each.facts for each in world.in_order()]
    assert [offer.free for offer in offered] == [each.free_for(set()) for each in world.in_order()]


@given(steps)
@settings(deadline=None)
def test_a_replica_is_counted_wherever_any_node_has_room_for_it(steps):
    """History may decide which node a replica is counted on, but none is forgotten while there is room."""
    world = after(steps)
    room = {offer.node.name: len(offer.free) - offer.promised for offer in world.rooms.offers_beside_all()}
    for key, claim in world.claims.items():
        entry = world.rooms._entries[key]
        if entry.homeless:
            suiting = [name for name in room if suits(claim.commitment, name, world.nodes)]
            assert all(room[name] < claim.commitment.gpus for name in suiting)


@given(steps, st.sampled_from(KEYS))
@settings(deadline=None)
def test_a_service_is_offered_what_is_promised_to_itself(steps, key):
    world = after(steps)
    beside_all, own = world.rooms.offers_beside_all(), world.rooms.offers(key, ())
    assert total(own) <= total(beside_all)
    if key not in world.claims:
        assert own == beside_all


def test_equal_offers_are_one_object():
    world = after([])
    before = world.rooms.offers_beside_all()
    world.set_claim(KEYS[0], Claim(Commitment(2, ("a",)), 1, ()))
    changed = world.rooms.offers_beside_all()
    assert [new is old for old, new in zip(before, changed, strict=True)] == [False, True, True, True]
    world.set_claim(KEYS[0], None)
    assert all(new is old for old, new in zip(before, world.rooms.offers_beside_all(), strict=True))
