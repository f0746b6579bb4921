"""A spec that this version of the operator cannot read: what serves stays, pass after pass."""

from __future__ import annotations

import copy
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from uellm.api import parse_service
from uellm.kube.kinds import DEPLOYMENT
from uellm.reconcile.children.rollout import NO_SURGE
from uellm.reconcile.desired import left_alone
from uellm.reconcile.observe import Observed
from uellm.reconcile.obstacle import Obstacle
from uellm.reconcile.planning.choose import Choice
from uellm.reconcile.planning.plan_status import plan_status
from uellm.reconcile.scaling.scalings import EVERY_S, Scalings
from uellm.reconcile.status.decide import decide

UNREAD = Obstacle("InvalidSpec", "spec.template.spec.nodeSelector: Input should be a valid dictionary")


class World:
    """A service whose number of replicas the operator chose before."""

    def __init__(self, make, *, chosen: int | None, runs: int, **autoscaling: int) -> None:
        self.make = make
        entry = {"replicas": chosen, "startupSeconds": 41} if chosen is not None else None
        status = {"plan": plan_status(make.plan()), **({"autoscaling": entry} if entry else {})}
        self.document = make.service(status=status, autoscaling=autoscaling)
        self.deployment = make.deployment(runs, ready=runs)
        self.scalings = Scalings()
        self.now = datetime(2026, 11, 29, 12, 0, tzinfo=UTC)

    def look(self, *, readable: bool) -> dict:
        """One pass, whose status the next one sees. Returns the Deployment as it is written."""
        self.now += timedelta(seconds=EVERY_S)
        document = copy.deepcopy(self.document)
        service = parse_service({name: document[name] for name in ("apiVersion", "kind", "metadata", "spec")})
        pods = tuple(self.make.pod(f"p{place}") for place in range(self.deployment["spec"]["replicas"]))
        children = {DEPLOYMENT: self.deployment}
        invalid = "" if readable else UNREAD.message
        observed = Observed(document, service if readable else None, invalid, children=children, pods=pods)
        observed = replace(observed, scaling=self.scalings.advance(observed, {}, self.now))
        choice = Choice(observed.incumbent) if readable else Choice(None, UNREAD)
        self.document["status"] = decide(observed, choice, refusal=None, now=self.now).status
        kept = left_alone(observed, NO_SURGE)
        self.deployment = next(each for each in kept if each["kind"] == "Deployment")
        return self.deployment

    @property
    def autoscaling(self) -> dict | None:
        return self.document["status"].get("autoscaling")

    def condition(self, name: str) -> dict:
        return next(each for each in self.document["status"]["conditions"] if each["type"] == name)


@pytest.mark.parametrize(("chosen", "least"), [(5, 1), (0, 0), (3, 0)])
def test_the_chosen_number_stays_in_every_pass(make, chosen, least):
    here = World(make, chosen=chosen, runs=chosen, minReplicas=least, maxReplicas=8)
    for _ in range(3):
        assert here.look(readable=False)["spec"]["replicas"] == chosen
        assert here.autoscaling == {"replicas": chosen, "startupSeconds": 41}


def test_a_number_that_was_never_chosen_stays_too(make):
    here = World(make, chosen=None, runs=4, minReplicas=1, maxReplicas=8)
    for _ in range(2):
        assert here.look(readable=False)["spec"]["replicas"] == 4
    assert here.autoscaling == {"replicas": 4}


def test_the_condition_says_why_the_number_does_not_follow_the_load(make):
    here = World(make, chosen=5, runs=5, minReplicas=1, maxReplicas=8)
    here.look(readable=False)
    scaling = here.condition("Scaling")
    assert (scaling["status"], scaling["reason"]) == ("False", "InvalidSpec")
    assert "5 replicas as before" in scaling["message"]
    assert here.condition("Ready")["reason"] == "InvalidSpec"


def test_a_suspended_service_runs_no_pods_and_keeps_its_number(make):
    here = World(make, chosen=5, runs=5, minReplicas=1, maxReplicas=8)
    here.document["spec"]["suspend"] = True
    assert here.look(readable=False)["spec"]["replicas"] == 0
    assert here.autoscaling == {"replicas": 5, "startupSeconds": 41}


def test_what_was_learned_of_the_load_is_kept(make):
    here = World(make, chosen=2, runs=2, minReplicas=1, maxReplicas=8)
    here.look(readable=True)
    known = dict(here.scalings._memories)
    here.look(readable=False)
    assert known
    assert here.scalings._memories == known
