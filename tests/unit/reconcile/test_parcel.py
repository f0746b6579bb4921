"""The way to a worker process and back, within this process."""

from __future__ import annotations

import pytest

from uellm.hardware import Device, Node
from uellm.planner.request import NodeOffer
from uellm.reconcile.planning import parcel


@pytest.fixture
def node():
    return Node("a", (Device("GPU-1", 0, "H100", 80),))


@pytest.fixture
def sender():
    return parcel.Sender()


def given(*arguments):
    return arguments


def test_the_worker_gets_the_function_and_equal_arguments(sender, node):
    assert parcel.run(sender.pack(given, node, [NodeOffer(node, ("GPU-1",))], 3)) == (
        node,
        [NodeOffer(node, ("GPU-1",))],
        3,
    )


def test_a_node_is_sent_once_and_is_one_object_in_the_worker(sender, node):
    [first] = parcel.run(sender.pack(given, node))
    sender.delivered()
    again = sender.pack(given, node)
    assert again.shared == ()
    assert parcel.run(again)[0] is first


def test_an_offer_refers_to_a_node_that_was_sent_before(sender, node):
    [sent] = parcel.run(sender.pack(given, node))
    [offer] = parcel.run(sender.pack(given, NodeOffer(node, ("GPU-1",), promised=1)))
    assert offer.node is sent


def test_an_equal_node_that_is_another_object_is_another_node(sender, node):
    one, other = parcel.run(sender.pack(given, node, Node("a", node.devices)))
    assert one == other
    assert one is not other


def test_after_a_parcel_that_may_be_lost_everything_is_sent_again(sender, node):
    sender.pack(given, node)
    sender.start_over()
    assert parcel.run(sender.pack(given, node)) == (node,)


def test_what_is_kept_at_both_ends_is_limited(sender, node, monkeypatch):
    monkeypatch.setattr(parcel, "MOST_SHARED", 1)
    parcel.run(sender.pack(given, node, NodeOffer(node, ())))
    sender.delivered()
    again = sender.pack(given, node)
    assert len(again.shared) == 1
    assert parcel.run(again) == (node,)
