"""Services may come, bind, grow and go in any order: no GPU is counted twice."""

from __future__ import annotations

from collections import Counter

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from uellm.reconcile.names import Key
from uellm.reconcile.planning.ledger import Commitment, Ledger, claim, offers
from uellm.reconcile.profiled_node import profiled_node

NODES = {"a": 4, "b": 3, "c": 1}
NAMES = ("one", "two", "three", "four")


class Cluster(RuleBasedStateMachine):
    """Services with one replica. Their pods take devices at once, and profiles show that later."""

    def __init__(self):
        super().__init__()
        self.ledger = Ledger()
        self.pods: dict[str, tuple[str, tuple[str, ...]]] = {}  # service -> node, devices
        self.shown: set[str] = set()  # services whose devices the profiles show

    def fleet(self):
        holders = {
            uuid: f"uid-{name}" for name, (_, uuids) in self.pods.items() if name in self.shown for uuid in uuids
        }
        return [profiled_node(_profile(node, count, holders)) for node, count in NODES.items()]

    def pod(self, name):
        if name not in self.pods:
            return []
        metadata = {"uid": f"uid-{name}", "name": name}
        return [{"metadata": metadata, "spec": {"nodeName": self.pods[name][0]}, "status": {"phase": "Running"}}]

    def offered(self, name):
        claims = [claim(each, 1, self.pod(key.name)) for key, each in self.ledger.items() if key.name != name]
        return offers(self.fleet(), claims, self.pod(name))

    @rule(name=st.sampled_from(NAMES), gpus=st.integers(1, 3))
    def plan(self, name, gpus):
        """Plan as the planner would: on a node where the number of GPUs is certain to be free."""
        key = Key("ns", name)
        if self.ledger.get(key) is None:
            nodes = tuple(o.node.name for o in self.offered(name) if len(o.free) - o.promised >= gpus)
            if nodes:
                self.ledger.commit(key, Commitment(gpus, nodes))

    @rule(name=st.sampled_from(NAMES), last=st.booleans())
    def bind(self, name, last):
        """The scheduler takes the first node that the pod may have, the kubelet any of its devices."""
        commitment = self.ledger.get(Key("ns", name))
        if commitment is None or name in self.pods:
            return
        for node in commitment.nodes:
            free = [uuid for uuid in _uuids(node) if uuid not in self.taken()]
            if len(free) >= commitment.gpus:
                self.pods[name] = (node, tuple(free[-commitment.gpus :] if last else free[: commitment.gpus]))
                return
        raise AssertionError(f"{name} was promised {commitment} and finds no place beside {self.pods}")

    @precondition(lambda self: self.pods)
    @rule(data=st.data())
    def show(self, data):
        """A profiler observes a node."""
        self.shown.add(data.draw(st.sampled_from(sorted(self.pods))))

    @precondition(lambda self: self.ledger.items())
    @rule(data=st.data())
    def delete(self, data):
        name = data.draw(st.sampled_from(sorted(key.name for key, _ in self.ledger.items())))
        self.ledger.release(Key("ns", name))
        self.pods.pop(name, None)
        self.shown.discard(name)

    def taken(self):
        return {uuid for _, uuids in self.pods.values() for uuid in uuids}

    @invariant()
    def no_node_is_promised_more_than_it_has(self):
        for offer in self.offered("nobody"):
            assert 0 <= offer.promised <= len(offer.free)

    @invariant()
    def every_plan_without_a_pod_finds_a_place(self):
        room = Counter(NODES)
        for node, uuids in self.pods.values():
            room[node] -= len(uuids)
        unplaced = [each for key, each in self.ledger.items() if key.name not in self.pods]
        assert _all_fit(unplaced, room)


def _all_fit(plans, room):
    """Whether each plan can be given one of its nodes."""
    if not plans:
        return True
    first, *rest = plans
    return any(
        room[node] >= first.gpus and _all_fit(rest, room - Counter({node: first.gpus}) | Counter())
        for node in first.nodes
    )


def _uuids(node):
    return [f"{node}-{index}" for index in range(NODES[node])]


def _profile(node, count, holders):
    devices = [
        {"index": index, "uuid": uuid, "memoryBytes": 1}
        | ({"allocatedTo": {"podUID": holders[uuid]}} if uuid in holders else {})
        for index, uuid in enumerate(_uuids(node))
    ]
    return {"metadata": {"name": node}, "status": {"devices": devices}}


Cluster.TestCase.settings = settings(max_examples=60, stateful_step_count=20, deadline=None)
TestLedger = Cluster.TestCase
