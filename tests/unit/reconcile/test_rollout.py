from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from uellm.api import parse_service
from uellm.kube.kinds import DEPLOYMENT
from uellm.reconcile.children.rollout import NO_SURGE, RollingUpdate, Surge, rolling_update
from uellm.reconcile.observe import Observed
from uellm.reconcile.pods.engine_readiness import engine_readiness
from uellm.reconcile.reconciler import _change

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

    def build(update: RollingUpdate | None = None, template=TEMPLATE, **status):
        deployment = make.deployment()
        deployment["status"] |= status
        deployment["spec"]["template"] = template
        if update is not None:
            deployment["spec"]["strategy"] = update.strategy()
            deployment["metadata"]["annotations"]["uellm.io/rollout"] = update.why
        return deployment

    return build


OLD = {"spec": {"containers": [{"name": "engine", "image": "engine:1"}]}}
SURGE = RollingUpdate(1, 0, "surge: node node-b has the 2 free GPUs for one more replica meanwhile")
IN_PLACE = RollingUpdate(0, 1, "in place: no node has the 2 free GPUs for one more replica meanwhile")
ROLLING = {"replicas": 2, "updatedReplicas": 1}
PENDING = Surge(gpus=2, stuck="the additional pod llama-x has been Pending for a minute")


def of_revision(name, image="engine:2"):
    labels = {"uellm.io/revision": name}
    return {"metadata": {"labels": labels}, "spec": {"containers": [{"name": "engine", "image": image}]}}


def test_an_explicit_rollout_is_used(choose, live):
    said = {"maxSurge": 2, "maxUnavailable": 1}
    assert choose(ROOM, live=live(template=OLD), rollout=said) == RollingUpdate(2, 1)


def test_with_free_gpus_a_change_is_a_surge(choose, live):
    assert choose(ROOM, live=live(template=OLD)) == SURGE


def test_without_free_gpus_a_change_is_in_place_and_says_so(choose, live):
    found = choose(Surge(gpus=1), live=live(template=OLD))
    assert found == RollingUpdate(0, 1, "in place: no node has the 1 free GPU for one more replica meanwhile")


def test_a_rollout_keeps_its_strategy_whatever_becomes_free(choose, live):
    assert choose(NO_SURGE, live=live(SURGE, **ROLLING)) == SURGE
    assert choose(ROOM, live=live(IN_PLACE, **ROLLING)) == IN_PLACE
    # Its controller has not seen the change yet, so the numbers are from before.
    assert choose(ROOM, live=live(IN_PLACE, observedGeneration=1)) == IN_PLACE


def test_between_changes_a_deployment_is_made_ready_for_a_restart_without_a_gap(choose, live):
    assert choose(ROOM) == SURGE
    assert choose(ROOM, live=live(IN_PLACE)) == SURGE
    assert choose(ROOM, live=live()) == SURGE
    # The other way round costs nothing: a surge that finds no GPUs goes on in place.
    assert choose(NO_SURGE, live=live(SURGE)) == SURGE
    restarted = {**OLD, "metadata": {"annotations": {"kubectl.kubernetes.io/restartedAt": "now"}}}
    assert choose(NO_SURGE, live=live(SURGE, template=restarted | TEMPLATE)) == SURGE


@given(
    surges=st.lists(st.sampled_from([NO_SURGE, ROOM, Surge(2, "node-c"), PENDING, PENDING._replace(room="node-c")])),
    rolling=st.booleans(),
    first=st.sampled_from([SURGE, IN_PLACE]),
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
def test_a_strategy_turns_at_most_once_between_changes(choose, live, surges, rolling, first):
    """At rest into a surge, during a rollout into one in place: never back, whatever becomes free or is taken."""
    found = [first]
    for surge in surges:
        found.append(choose(surge, live=live(found[-1], **(ROLLING if rolling else {}))))
    turns = [(before[:2], after[:2]) for before, after in pairwise(found) if before != after]
    assert turns in ([], [((1, 0), (0, 1)) if rolling else ((0, 1), (1, 0))])


def test_a_surge_is_not_promised_while_a_pod_finds_no_place(choose, live):
    assert choose(PENDING._replace(room="node-c"), live=live(IN_PLACE)) == IN_PLACE


def test_a_change_during_a_surge_takes_the_gpus_of_the_pod_that_is_not_needed_any_more(choose, live):
    loading = live(SURGE, template=OLD, **ROLLING)
    found = choose(Surge(gpus=2, spare="llama-b"), live=loading)
    assert found == RollingUpdate(1, 0, "surge: pod llama-b gives its GPUs to the next one")
    assert choose(ROOM._replace(spare="llama-b"), live=loading) == SURGE


def test_a_surge_whose_pod_does_not_start_goes_on_in_place(choose, live):
    found = choose(PENDING, live=live(SURGE, **ROLLING))
    assert found == RollingUpdate(0, 1, "in place: the additional pod llama-x has been Pending for a minute")
    assert choose(PENDING, live=live(found, **ROLLING)) == found


def test_a_deployment_of_an_earlier_release_keeps_its_strategy_while_there_is_no_room(choose, live):
    assert choose(NO_SURGE, live=live())[:2] == (0, 1)


def test_a_template_that_a_webhook_rewrites_is_no_change(choose, live):
    mine, mirrored = of_revision("0123456789"), of_revision("0123456789", "mirror/engine:2")
    for surge in (ROOM, NO_SURGE, Surge(2, "node-c")):
        assert choose(surge, live=live(SURGE, template=mirrored), template=mine) == SURGE
        assert choose(surge, live=live(IN_PLACE, template=mirrored, **ROLLING), template=mine) == IN_PLACE
    assert choose(NO_SURGE, live=live(SURGE, template=of_revision("9876543210")), template=mine) == IN_PLACE._replace(
        why="in place: no node has the 0 free GPUs for one more replica meanwhile"
    )


def test_only_another_revision_is_told_as_a_change(make, live):
    mirrored = live(SURGE, template=of_revision("0123456789", "mirror/engine:2"))
    observed = Observed(make.service(), None, children={DEPLOYMENT: mirrored})
    assert _change(observed, [live(SURGE, template=of_revision("0123456789"))]) == ""
    told = _change(observed, [live(SURGE, template=of_revision("9876543210"))])
    assert told == f"the Deployment is being brought up to date, {SURGE.why}"


def test_the_condition_says_how_replicas_are_replaced(make, live):
    deployment = live(SURGE)
    state = engine_readiness(deployment, [make.pod("a"), make.pod("b")], 1)
    assert (state.reason, state.message) == ("RollingOut", f"replicas are being replaced, {SURGE.why}; 0 of 1 serve")
