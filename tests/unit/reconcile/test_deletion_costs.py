"""Which pods are marked as those that end, where a Deployment gets fewer replicas."""

from __future__ import annotations

import random

import pytest

from uellm.api.attainment_report import LoadMeasurement
from uellm.kube.kinds import POD
from uellm.reconcile.cache import Cache
from uellm.reconcile.names import COST_ANNOTATION, OWN_COST_ANNOTATION
from uellm.reconcile.scaling.deletion_costs import cost_marks

NOWHERE: frozenset[str] = frozenset()


def load(requests: int = 0, *, queued: int = 0, passing: int = 0, cached: float = 0.0) -> LoadMeasurement:
    return LoadMeasurement(0, 0, 0, 0, requests, queued, cached, passing=passing)


def ours(cost: int) -> dict[str, str]:
    return {COST_ANNOTATION: str(cost), OWN_COST_ANNOTATION: str(cost)}


@pytest.fixture
def pod(make):
    def build(name, *, ready=True, node="n", annotations=None, of="1", created="2026-11-29T12:00:00Z", **metadata):
        made = make.pod(name, conditions=[{"type": "Ready", "status": str(ready)}])
        made["metadata"] |= {"creationTimestamp": created, "annotations": annotations or {}, **metadata}
        made["metadata"].setdefault("labels", {})["pod-template-hash"] = of
        made["spec"]["nodeName"] = node
        return made

    return build


def marked(pods, loads, replicas, leaving=NOWHERE) -> dict[str, str | None]:
    """By pod, the cost that is written."""
    by_uid = {f"uid-{name}": each for name, each in loads.items()}
    found = cost_marks(pods, by_uid, replicas, leaving)
    assert all(each.annotations[COST_ANNOTATION] == each.annotations[OWN_COST_ANNOTATION] for each in found)
    assert all(each.uid == f"uid-{each.pod}" for each in found)
    return {each.pod: each.annotations[COST_ANNOTATION] for each in found}


def ended(pods, replicas, marks) -> set[str]:
    """What a ReplicaSet ends, as Kubernetes' controller ranks its pods; and those of a tie all the same."""

    def rank(pod):
        name = pod["metadata"]["name"]
        cost = marks.get(name, pod["metadata"]["annotations"].get(COST_ANNOTATION)) or 0
        return any(each["status"] == "True" for each in pod["status"]["conditions"]), int(cost)

    ranks = sorted(map(rank, pods))
    last = ranks[len(pods) - replicas - 1]
    return {pod["metadata"]["name"] for pod in pods if rank(pod) <= last}


def test_the_least_busy_go_and_only_they_are_marked(pod):
    loads = {"a": load(5), "b": load(1), "c": load(0, queued=2), "d": load(9)}
    assert marked([pod(name) for name in loads], loads, 3) == {"b": "-1"}
    assert marked([pod(name) for name in loads], loads, 2) == {"b": "-2", "c": "-1"}


@pytest.mark.parametrize("busy", [load(0, queued=3), load(0, passing=1), load(1)])
def test_waiting_requests_and_open_sessions_count_as_well(pod, busy):
    assert marked([pod("a"), pod("b")], {"a": busy, "b": load()}, 1) == {"b": "-1"}


def test_of_equally_busy_ones_the_one_with_the_colder_cache_goes_then_the_newer(pod):
    assert marked([pod("a"), pod("b")], {"a": load(2, cached=0.1), "b": load(2, cached=0.7)}, 1) == {"a": "-1"}
    newer = pod("b", created="2026-11-29T13:00:00Z")
    loads = {"a": load(2), "b": load(2), "c": load(3)}
    assert marked([pod("a"), newer, pod("c")], loads, 2) == {"b": "-1"}


def test_where_all_are_alike_the_choice_is_kubernetes(pod):
    pods = [pod("a"), pod("b"), pod("c")]
    assert marked(pods, {name: load(2) for name in "abc"}, 1) == {}
    assert marked(pods, {}, 1) == {}


def test_one_that_does_not_tell_its_load_may_be_the_busiest(pod):
    assert marked([pod("a"), pod("b")], {"b": load(7)}, 1) == {"b": "-1"}


def test_one_on_a_node_that_is_being_emptied_goes_before_those_that_could_stay(pod):
    pods = [pod("a", node="leaving"), pod("b")]
    assert marked(pods, {"a": load(7), "b": load()}, 1, frozenset({"leaving"})) == {"a": "-1"}


def test_those_that_are_not_ready_end_first_whatever_is_marked(pod):
    pods = [pod("a"), pod("b"), pod("c", ready=False)]
    loads = {"a": load(1), "b": load(0)}
    assert marked(pods, loads, 2) == {}
    assert marked(pods, loads, 1) == {"b": "-1"}
    gone = pod("d", deletionTimestamp="2026-11-29T12:00:00Z")
    assert marked([pod("a"), pod("b"), gone], {**loads, "d": load()}, 2) == {}


def test_nothing_is_marked_where_all_end(pod):
    assert marked([pod("a"), pod("b")], {"a": load(1), "b": load(0)}, 0) == {}


def test_marks_of_an_earlier_time_are_overwritten_or_taken_off(pod):
    pods = [pod("a", annotations=ours(-1)), pod("b", annotations=ours(-2)), pod("c")]
    assert marked(pods, {"a": load(0), "b": load(5), "c": load(7)}, 2) == {"b": None}
    assert marked(pods, {"a": load(3), "b": load(5), "c": load(0)}, 1) == {"b": None, "c": "-2"}
    assert marked(pods, dict.fromkeys("abc", load(1)), 2) == {"a": None, "b": None}


def test_a_cost_that_somebody_else_has_set_stays_and_is_obeyed(pod):
    kept = pod("a", annotations={COST_ANNOTATION: "100"})
    first = pod("b", annotations={COST_ANNOTATION: "-100"})
    loads = {"a": load(0), "b": load(9), "c": load(3), "d": load(5)}
    assert marked([kept, pod("c"), pod("d")], loads, 2) == {"c": "-1"}
    assert marked([kept, first, pod("c"), pod("d")], loads, 3) == {}
    assert marked([kept, first, pod("c"), pod("d")], loads, 2) == {"c": "-1"}
    changed = pod("b", annotations={**ours(-1), COST_ANNOTATION: "7"})
    assert marked([pod("c"), changed], loads, 1) == {"c": "-1"}
    unreadable = pod("b", annotations={COST_ANNOTATION: "low"})
    assert marked([pod("c"), unreadable], {"b": load(0), "c": load(1)}, 1) == {}


def test_during_a_rollout_the_marks_order_the_pods_of_each_replicaset(pod):
    old, new = [pod(name, of="1") for name in "ab"], [pod("c", of="2")]
    loads = {"a": load(4), "b": load(1), "c": load(0)}
    # One more runs than is wanted. The only pod of the new ReplicaSet, the surge, is not marked.
    assert marked([*old, *new], loads, 2) == {"b": "-1"}


def test_kubernetes_then_ends_only_the_least_busy_whatever_was_marked_before(pod):
    generator = random.Random(7)
    for _ in range(500):
        names = [f"p{number}" for number in range(generator.randint(2, 7))]
        pods = [
            pod(
                name,
                ready=generator.random() < 0.8,
                annotations=ours(-generator.randint(1, 5)) if generator.random() < 0.4 else None,
            )
            for name in names
        ]
        loads = {name: load(generator.randint(0, 3)) for name in names}
        serving = [each for each in pods if each["status"]["conditions"][0]["status"] == "True"]
        replicas = generator.randint(1, len(names) - 1)
        if len(serving) <= replicas:
            continue
        gone = ended(pods, replicas, marked(pods, loads, replicas))
        stay = {each["metadata"]["name"] for each in serving} - gone
        going = {each["metadata"]["name"] for each in serving} & gone
        assert not stay or max(loads[name].running for name in going) <= min(loads[name].running for name in stay)
        same = len({loads[each["metadata"]["name"]].running for each in serving}) == 1
        assert same or len(stay) == replicas


def test_of_a_pods_annotations_those_about_its_cost_are_kept_in_memory(pod):
    cache = Cache()
    cache.put(POD, pod("a", annotations={**ours(-1), "uellm.io/plan": "a long document"}))
    assert cache.get(POD, "a", "ns")["metadata"]["annotations"] == ours(-1)
