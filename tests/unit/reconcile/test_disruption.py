from __future__ import annotations

import pytest

from uellm.api import parse_service
from uellm.kube.kinds import POD
from uellm.reconcile.cache import Cache
from uellm.reconcile.children.disruption import MARKS, MarkedPod, marks_to_lift

READY = [{"type": "Ready", "status": "True"}]


def marked(make, **status):
    pod = make.pod("a", **status)
    pod["metadata"]["annotations"] = dict(MARKS)
    return pod


@pytest.fixture
def lifted(make):
    def lift(*pods, **spec):
        return marks_to_lift(parse_service(make.service(**spec)), pods)

    return lift


def test_the_marks_stay_while_the_engine_loads(make, lifted):
    assert lifted(marked(make)) == []


def test_they_are_taken_off_a_pod_that_serves(make, lifted):
    assert lifted(marked(make, conditions=READY)) == [MarkedPod("a", "uid-a", tuple(MARKS))]


def test_they_are_taken_off_a_pod_that_may_never_serve(make, lifted):
    failing = marked(make, containerStatuses=[{"name": "engine", "restartCount": 3}])
    assert lifted(failing) == [MarkedPod("a", "uid-a", tuple(MARKS))]


def test_a_mark_that_the_user_chose_stays(make, lifted):
    template = {"metadata": {"annotations": {"karpenter.sh/do-not-disrupt": "true"}}}
    found = lifted(marked(make, conditions=READY), template=template)
    assert [each.marks for each in found] == [("cluster-autoscaler.kubernetes.io/safe-to-evict",)]


def test_a_pod_without_marks_is_left_alone(make, lifted):
    assert lifted(make.pod("a", conditions=READY)) == []


def test_of_a_pods_annotations_only_the_marks_are_kept_in_memory(make):
    cache, pod = Cache(), marked(make)
    pod["metadata"]["annotations"]["uellm.io/plan"] = "a long document"
    cache.put(POD, pod)
    assert cache.get(POD, "a", "ns")["metadata"]["annotations"] == MARKS
