"""When a pass may rely on the last full one."""

from __future__ import annotations

import copy
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from uellm.kube.kinds import DEPLOYMENT
from uellm.reconcile.observe import Observed
from uellm.reconcile.planning.choose import Choice
from uellm.reconcile.planning.records import Planned
from uellm.reconcile.pods.running import WantedConfig
from uellm.reconcile.settled import LONGEST, SettledPass, SettledPasses, holds_until

NOW = datetime(2026, 1, 1, tzinfo=UTC)
WANTED = WantedConfig("rev", "digest")


def ready(pod):
    return {**pod, "status": {**pod["status"], "conditions": [{"type": "Ready", "status": "True"}]}}


def versioned(obj, version):
    return {**copy.deepcopy(obj), "metadata": {**obj["metadata"], "resourceVersion": version}}


@pytest.fixture
def serving(make):
    """A service whose only pod is ready, and its plan."""
    document = make.service(replicas=1)
    seen = Observed(document, None, children={DEPLOYMENT: make.deployment()}, pods=(ready(make.pod("a")),))
    return seen, Planned(Choice(make.plan()), None)


@pytest.fixture
def passes(serving):
    seen, planned = serving
    found = SettledPasses()
    found.put(SettledPass(seen, planned, WANTED, NOW + timedelta(seconds=60)))
    return found


def test_a_pass_over_the_same_state_relies_on_the_last_one(passes, serving):
    seen, planned = serving
    again = replace(seen, running={"uid-a": "asked anew"}, pods=tuple(seen.pods))
    assert passes.of(again, planned, NOW).wanted == WANTED


def test_it_holds_until_something_is_due(passes, serving):
    assert passes.of(*serving, NOW + timedelta(seconds=60)) is None
    assert holds_until(NOW, 5.0) == NOW + timedelta(seconds=5)
    assert holds_until(NOW, None) == holds_until(NOW, 1e6) == NOW + LONGEST


@pytest.mark.parametrize(
    "field", ["document", "pods", "reports", "measurements", "node_states", "kubelet_warnings", "image_pulls"]
)
def test_anything_that_is_observed_anew_calls_for_a_full_pass(passes, serving, field):
    seen, planned = serving
    changed = {
        "document": versioned(seen.document, "2"),
        "pods": (*seen.pods, *seen.pods),
    }.get(field, {"uid-a": "other"})
    assert passes.of(replace(seen, **{field: changed}), planned, NOW) is None


@pytest.mark.parametrize("field", ["uid", "resourceVersion"])
def test_another_version_of_a_child_calls_for_a_full_pass(passes, serving, field):
    seen, planned = serving
    child = copy.deepcopy(seen.children[DEPLOYMENT])
    child["metadata"][field] = "another"
    assert passes.of(replace(seen, children={DEPLOYMENT: child}), planned, NOW) is None
    assert passes.of(replace(seen, configmaps={"a": child}), planned, NOW) is None


def test_another_choice_or_rendering_calls_for_a_full_pass(passes, serving, make):
    seen, planned = serving
    assert passes.of(seen, Planned(Choice(make.plan()), None), NOW) is None
    assert passes.of(seen, Planned(planned.choice, "rendered"), NOW) is None


def test_a_service_with_a_pod_that_is_not_ready_is_never_settled(passes, serving, make):
    seen, planned = serving
    starting = replace(seen, pods=(make.pod("a"),))
    passes.put(SettledPass(starting, planned, WANTED, NOW + timedelta(seconds=60)))
    assert passes.of(starting, planned, NOW) is None
    assert passes.of(seen, planned, NOW) is None
