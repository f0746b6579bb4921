from __future__ import annotations

import pickle

from uellm.reconcile.obstacle import Obstacle
from uellm.reconcile.planning.answer import with_shared_names
from uellm.reconcile.planning.choose import Choice


def from_a_worker(choice):
    return with_shared_names(pickle.loads(pickle.dumps(choice)))


def test_plans_of_two_services_have_the_names_of_nodes_in_common(make):
    sent = Choice(make.plan(nodes=("node-a", "node-b")), why="a node has joined")
    one, other = from_a_worker(sent), from_a_worker(sent)
    assert one == other == sent
    assert all(first is second for first, second in zip(one.plan.nodes, other.plan.nodes, strict=True))


def test_a_choice_without_a_plan_stays_as_it_is():
    choice = Choice(None, Obstacle("NoFit", "no GPU is free"))
    assert with_shared_names(choice) is choice
