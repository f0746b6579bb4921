"""Fewer replicas on the real API server, where Kubernetes' own ReplicaSet controller ends the pods."""

from __future__ import annotations

import asyncio

import pytest

from helpers.sizes import GIB
from uellm.kube import Forbidden, KubeError
from uellm.kube.kinds import POD
from uellm.reconcile.names import COST_ANNOTATION, OWN_COST_ANNOTATION
from uellm.reconcile.pods.pod_state import is_ready

BY_KWOK = {"placement": {"schedulerName": "default-scheduler"}, "parallelism": {"tensor": 1, "pipeline": 1}}


class Pods:
    """The pods of a service, by address, and the requests that their sidecars tell."""

    def __init__(self, watching, eventually) -> None:
        self.watching = watching
        self.eventually = eventually

    async def ready(self, count: int) -> dict[str, dict]:
        """So many that serve, and no other."""

        async def found():
            pods = await self.watching.kube.list(POD, self.watching.namespace)
            pods = [pod for pod in pods if "deletionTimestamp" not in pod["metadata"] and is_ready(pod)]
            return {pod["status"]["podIP"]: pod for pod in pods} if len(pods) == count else None

        return await self.eventually(found)

    def have(self, requests: dict[str, int]) -> None:
        """They are read when they are asked for next, and not before."""
        self.watching.measured_at_s += 60.0
        for address, running in requests.items():
            counts = {"ended": 0, "missed": 0, "promptTokens": 0, "outputTokens": 0}
            load = {**counts, "running": running, "queued": 0, "cachedShare": 0}
            self.watching.measurements[address] = {"version": 1, "classes": [], "load": load}


@pytest.fixture
async def three(operator, service, gpu_node, eventually, monkeypatch):
    """(the service, its operator, its pods) with three replicas that serve."""
    await gpu_node([24 * GIB] * 4)
    llama = await service(**BY_KWOK, replicas=3)
    watching = operator()
    await watching.settle("llama")
    pods = Pods(watching, eventually)
    await pods.ready(3)
    await watching.settle("llama")
    annotate = watching.kube.annotate

    async def annotate_and_pause(*args, **options):
        done = await annotate(*args, **options)
        # The ReplicaSet controller learns of marks by a watch of its own, and nothing tells when it has.
        await asyncio.sleep(0.5)
        return done

    monkeypatch.setattr(watching.kube, "annotate", annotate_and_pause)
    return llama, watching, pods


def annotations(pod) -> dict[str, str]:
    return pod["metadata"].get("annotations") or {}


async def test_the_least_busy_replica_ends_and_the_others_are_not_touched(three):
    llama, watching, pods = three
    # Left to itself, Kubernetes would end one that got ready last.
    first, second, third = sorted(await pods.ready(3))
    for gone, requests, left in (
        (first, {first: 1, second: 5, third: 9}, {second, third}),
        # The measurements are old when the number is lowered again, so they are read anew.
        (third, {second: 4, third: 0}, {second}),
    ):
        pods.have(requests)
        before = len(watching.kube.writes)
        await llama.change(lambda spec, left=left: spec.update(replicas=len(left)))
        await watching.settle("llama")
        remaining = await pods.ready(len(left))
        assert set(remaining) == left
        assert watching.kube.writes[before:].count("annotate Pod") == 1, gone
        assert not any(COST_ANNOTATION in annotations(pod) for pod in remaining.values())


async def test_a_mark_from_a_lowering_that_did_not_come_about_is_taken_off_by_the_next(three):
    llama, watching, pods = three
    found = await pods.ready(3)
    first, second, third = sorted(found)
    stale = {COST_ANNOTATION: "-1", OWN_COST_ANNOTATION: "-1"}
    metadata = found[third]["metadata"]
    assert await watching.kube.annotate(POD, metadata["name"], watching.namespace, stale, uid=metadata["uid"])
    pods.have({first: 0, second: 5, third: 9})
    await llama.change(lambda spec: spec.update(replicas=2))
    await watching.settle("llama")
    remaining = await pods.ready(2)
    assert set(remaining) == {second, third}
    assert not {COST_ANNOTATION, OWN_COST_ANNOTATION} & annotations(remaining[third]).keys()


@pytest.mark.parametrize("error", [Forbidden(403, "Forbidden", "no"), KubeError(500, "InternalError", "no")])
async def test_replicas_are_lowered_also_where_no_pod_can_be_marked(three, monkeypatch, error):
    llama, watching, pods = three
    first, second, third = sorted(await pods.ready(3))
    pods.have({first: 0, second: 5, third: 9})

    async def annotate(*args, **options):
        raise error

    monkeypatch.setattr(watching.kube, "annotate", annotate)
    await llama.change(lambda spec: spec.update(replicas=1))
    await watching.settle("llama")
    await pods.ready(1)
