from __future__ import annotations

import pytest

from uellm.reconcile.children.rollout import NO_SURGE, Surge
from uellm.reconcile.children.stand_in import NO_STAND_IN, StandIn, has_stand_in, stand_in
from uellm.reconcile.pods.engine_readiness import engine_readiness

ROOM = Surge(gpus=2, room="node-2")
LEAVING = frozenset({"node-1"})
STANDING_IN = "for node-1"


@pytest.fixture
def live(make):
    def build(note="", *, replicas=1, **status):
        deployment = make.deployment(replicas, ready=replicas)
        deployment["status"] |= status
        if note:
            deployment["metadata"]["annotations"]["uellm.io/stand-in"] = note
        return deployment

    return build


def serving(make, name="a", node="node-1"):
    return make.pod(name, node=node, conditions=[{"type": "Ready", "status": "True"}])


def test_a_cluster_with_room_lets_nobody_evict_a_replica_before_its_stand_in_serves(make, live):
    assert stand_in(live(), 1, [serving(make)], frozenset(), ROOM) == StandIn(0, 0)
    assert stand_in(live(), 1, [serving(make)], frozenset(), NO_SURGE) == NO_STAND_IN


def test_a_replica_whose_node_is_being_emptied_gets_a_stand_in_where_gpus_are_free(make, live):
    assert stand_in(live(), 1, [serving(make)], LEAVING, ROOM) == StandIn(1, 0, STANDING_IN)
    assert stand_in(live(), 1, [serving(make)], LEAVING, NO_SURGE) == NO_STAND_IN


def test_the_eviction_is_allowed_once_the_stand_in_serves(make, live):
    starting, standing = make.pod("b", node="node-2"), serving(make, "b", "node-2")
    deployment = live(STANDING_IN, replicas=2)
    # Its GPUs are taken now, so there is no more room.
    assert stand_in(deployment, 1, [serving(make), starting], LEAVING, NO_SURGE) == StandIn(1, 0, STANDING_IN)
    assert stand_in(deployment, 1, [serving(make), standing], LEAVING, NO_SURGE) == StandIn(1, 1, STANDING_IN)


def test_a_stand_in_that_will_not_serve_is_given_up_and_not_tried_again(make, live):
    hopeless = Surge(gpus=2, room="node-2", hopeless="pod b has been Pending: for long")
    found = stand_in(live(STANDING_IN, replicas=2), 1, [serving(make)], LEAVING, hopeless)
    assert found == StandIn(0, 1, "given up for node-1: pod b has been Pending: for long")
    given_up = live(found.note)
    assert stand_in(given_up, 1, [serving(make)], LEAVING, ROOM) == found
    state = engine_readiness(given_up, [serving(make)], 1)
    assert state.ready
    assert state.message == (
        "1 of 1 replicas serve; no stand-in came for a replica whose node is being emptied: "
        "pod b has been Pending: for long"
    )


def test_a_stand_in_that_an_earlier_release_gave_up_stays_given_up(make, live):
    assert stand_in(live("given up for node-1"), 1, [serving(make)], LEAVING, ROOM).budget == 1


def test_the_budget_stays_open_on_nodes_of_karpenter_until_one_is_marked(make, live):
    announced = ROOM._replace(announced=True)
    assert stand_in(live(), 1, [serving(make)], frozenset(), announced) == NO_STAND_IN
    assert stand_in(live(), 1, [serving(make)], LEAVING, announced) == StandIn(1, 0, STANDING_IN)


def test_another_node_that_is_emptied_later_is_another_chance(make, live):
    found = stand_in(live("given up for node-9"), 1, [serving(make)], LEAVING, ROOM)
    assert found == StandIn(1, 0, STANDING_IN)


def test_after_the_eviction_the_stand_in_is_an_ordinary_replica(make, live):
    found = stand_in(live(STANDING_IN, replicas=2), 1, [serving(make, "b", "node-2")], LEAVING, NO_SURGE)
    assert found == NO_STAND_IN


def test_the_budget_of_a_service_without_a_deployment_is_the_one_that_its_first_pods_need():
    assert stand_in(None, 1, [], LEAVING, ROOM) == StandIn(extra=0, budget=0)
    assert stand_in(None, 1, [], LEAVING, NO_SURGE) == NO_STAND_IN


def test_a_rollout_and_a_service_without_pods_have_no_stand_in(make, live):
    rolling = live(replicas=2, replicas_=0) | {"status": {"replicas": 2, "updatedReplicas": 1}}
    assert stand_in(rolling, 1, [serving(make)], LEAVING, ROOM) == NO_STAND_IN
    assert stand_in(live(), 0, [], LEAVING, ROOM) == NO_STAND_IN


@pytest.mark.parametrize("ready", [1, 2])
def test_a_service_is_ready_while_its_stand_in_starts(make, live, ready):
    deployment = live(STANDING_IN, replicas=2, readyReplicas=ready, availableReplicas=ready)
    assert has_stand_in(deployment)
    state = engine_readiness(deployment, [serving(make)], 1)
    assert state.ready
    assert state.message.endswith("a stand-in is there for a replica whose node is being emptied")
