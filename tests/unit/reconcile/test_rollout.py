from __future__ import annotations

from datetime import UTC, datetime

import pytest

from uellm.api import parse_service
from uellm.reconcile.children.rollout import NO_SURGE, RollingUpdate, Surge, pending_pod, rolling_update
from uellm.reconcile.pods.engine_readiness import engine_readiness

TEMPLATE = {"spec": {"containers": [{"name": "engine", "image": "engine:2"}]}}
ROOM = Surge(gpus=2, room="node-b")


@pytest.fixture
def choose(make):
    def choose(surge=NO_SURGE, *, live=None, template=TEMPLATE, **spec):
        return rolling_update(parse_service(make.service(**spec)), live, template, surge)

    return choose


@pytest.fixture
def live(make):
    """A Deployment whose replicas are being replaced in this way."""

    def build(update: RollingUpdate | None = None, template=TEMPLATE):
        deployment = make.deployment()
        deployment["spec"]["template"] = template
        if update is not None:
            deployment["spec"]["strategy"] = update.strategy()
            deployment["metadata"]["annotations"]["uellm.io/rollout"] = update.why
        return deployment

    return build


OLD = {"spec": {"containers": [{"name": "engine", "image": "engine:1"}]}}
SURGE = RollingUpdate(1, 0, "surge: node node-b has the 2 free GPUs for one more replica meanwhile")


def test_an_explicit_rollout_is_used(choose, live):
    said = {"maxSurge": 2, "maxUnavailable": 1}
    assert choose(ROOM, live=live(template=OLD), rollout=said) == RollingUpdate(2, 1)


def test_with_free_gpus_a_change_is_a_surge(choose, live):
    assert choose(ROOM, live=live(template=OLD)) == SURGE


def test_without_free_gpus_a_change_is_in_place_and_says_so(choose, live):
    found = choose(Surge(gpus=1), live=live(template=OLD))
    assert found == RollingUpdate(0, 1, "in place: no node has the 1 free GPU for one more replica meanwhile")


def test_a_rollout_keeps_its_strategy_whatever_becomes_free(choose, live):
    assert choose(NO_SURGE, live=live(SURGE)) == SURGE
    in_place = RollingUpdate(0, 1, "in place: no node has the 2 free GPUs for one more replica meanwhile")
    assert choose(ROOM, live=live(in_place)) == in_place


def test_a_surge_whose_pod_stays_pending_goes_on_in_place(choose, live):
    found = choose(Surge(gpus=2, pending="llama-x"), live=live(SURGE))
    assert found == RollingUpdate(0, 1, "in place: the additional pod llama-x has been Pending for a minute")
    assert choose(Surge(gpus=2, pending="llama-x"), live=live(found)) == found


def test_a_deployment_of_an_earlier_release_keeps_its_strategy(choose, live):
    assert choose(ROOM, live=live())[:2] == (0, 1)


def test_a_pod_is_pending_for_too_long_only_without_a_node(make):
    created = {"creationTimestamp": "2026-05-01T12:00:00Z"}
    waiting = make.pod("waiting", node=None)
    waiting["metadata"] |= created
    loading = make.pod("loading", phase="Pending")
    loading["metadata"] |= created
    pods = [loading, waiting]
    assert pending_pod(pods, datetime(2026, 5, 1, 12, 0, 59, tzinfo=UTC)) == ""
    assert pending_pod(pods, datetime(2026, 5, 1, 12, 1, 0, tzinfo=UTC)) == "waiting"


def test_the_condition_says_how_replicas_are_replaced(make, live):
    deployment = live(SURGE)
    state = engine_readiness(deployment, [make.pod("a"), make.pod("b")], 1)
    assert (state.reason, state.message) == ("RollingOut", f"replicas are being replaced, {SURGE.why}; 0 of 1 serve")
