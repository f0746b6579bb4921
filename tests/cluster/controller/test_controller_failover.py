"""Two `uellm controller`: who works when the other is killed, ended or frozen."""

from __future__ import annotations

import asyncio
import re
import signal
import time

import pytest

from helpers.sizes import GIB
from uellm.controller.lease import OPERATORS, Lease
from uellm.kube import CLUSTERROLEBINDING, LEASE, LLMSERVICE
from uellm.kube.kinds import CONFIGMAP, DEPLOYMENT, EVENT, PDB, SERVICE

pytestmark = pytest.mark.timeout(180)

# The other holds the lease after 11 s at most: 8 s, and a look every 1.5 s on either side. Then its work has to start.
LONGEST_FAILOVER_S = 20.0


@pytest.fixture
def lease(kube, namespace):
    async def get():
        return await kube.get(LEASE, "uellm-controller", namespace)

    return get


@pytest.fixture
async def pair(controller, lease, eventually):
    """One that works and one that stands by, and who holds the lease."""

    async def held():
        return ((await lease()) or {}).get("spec", {}).get("holderIdentity")

    first = controller()
    holder = await eventually(held)
    second = controller()

    async def both_ready():
        return first.ready() and second.ready()

    await eventually(both_ready, timeout_s=40)
    return first, second, holder


@pytest.fixture
def scaled(eventually):
    async def wait(llama, replicas):
        async def is_scaled():
            return (await llama.deployment())["spec"]["replicas"] == replicas

        start = time.monotonic()
        await eventually(is_scaled, timeout_s=60)
        return time.monotonic() - start

    return wait


async def test_when_the_one_at_work_is_killed_the_other_works_within_20_s(pair, service, gpu_node, planned, scaled):
    await gpu_node([24 * GIB])
    first, second, _ = pair
    llama = await service()
    await planned(llama)
    first.end(signal.SIGKILL)
    await llama.change(lambda spec: spec.update(replicas=2))
    failover_s = await scaled(llama, 2)
    assert failover_s < LONGEST_FAILOVER_S, f"after {failover_s:.1f} s\n{second.text()}"
    print(f"failover after SIGKILL: {failover_s:.1f} s")


async def test_when_the_one_at_work_is_ended_the_other_works_at_once(pair, service, gpu_node, planned, scaled):
    await gpu_node([24 * GIB])
    first, _, _ = pair
    llama = await service()
    await planned(llama)
    first.end()
    await llama.change(lambda spec: spec.update(replicas=2))
    failover_s = await scaled(llama, 2)
    assert failover_s < LONGEST_FAILOVER_S / 2
    print(f"failover after SIGTERM: {failover_s:.1f} s")


async def test_one_that_was_frozen_past_its_lease_writes_nothing_when_it_goes_on(
    pair, service, gpu_node, kube, namespace, lease, planned, eventually
):
    await gpu_node([24 * GIB])
    first, second, holder = pair
    llama = await service()
    await planned(llama)
    first.stop()

    async def taken_over():
        return (await lease())["spec"]["holderIdentity"] != holder

    await eventually(taken_over, timeout_s=40)
    # From here on only the first one can write, and there is plenty for it to do.
    second.stop()
    await kube.delete(CONFIGMAP, "llama-config", namespace)
    await kube.delete(SERVICE, "llama", namespace)
    await llama.change(lambda spec: spec.update(replicas=3, suspend=True))
    before = await written(kube, namespace)
    first.go_on()

    async def ended():
        return first.ended

    await eventually(ended, timeout_s=30)
    assert await written(kube, namespace) == before
    assert first.end(0) == 1
    # It may have been frozen in the middle of a renewal, which then took too long.
    assert re.search("was taken by|could not be renewed for", first.text())
    second.go_on()
    await eventually(lambda: llama.child(CONFIGMAP), timeout_s=40)


async def test_a_lease_in_another_namespace_counts_only_where_a_release_has_its_binding(kube, namespace, eventually):
    # Of a name of their own, so that the operators of other tests on this API server work on.
    here, there = (Lease(kube, place, f"in-{place}", name=f"of-{namespace}") for place in (namespace, "default"))
    label, _, value = OPERATORS.partition("=")
    rbac = "rbac.authorization.k8s.io"
    binding = {
        "apiVersion": CLUSTERROLEBINDING.api_version,
        "kind": CLUSTERROLEBINDING.kind,
        "metadata": {"name": f"of-{namespace}", "labels": {label: value}},
        "roleRef": {"apiGroup": rbac, "kind": "ClusterRole", "name": f"of-{namespace}"},
        "subjects": [{"kind": "ServiceAccount", "name": "uellm-operator", "namespace": "default"}],
    }

    async def stands_by():
        return here.standing_by

    await there.acquire()
    keeping = asyncio.create_task(there.keep())
    try:
        await asyncio.wait_for(here.acquire(), 20)
        await here.release()
        await kube.create(binding)
        waiting = asyncio.create_task(here.acquire())
        await eventually(stands_by)
        assert here.writable_s() == 0
        waiting.cancel()
    finally:
        keeping.cancel()
        await kube.delete(CLUSTERROLEBINDING, f"of-{namespace}")
        await kube.delete(LEASE, f"of-{namespace}", "default")


async def written(kube, namespace):
    """The version of every object that an operator writes; Kubernetes' own controllers change a Deployment's status."""
    kinds = (LLMSERVICE, LEASE, CONFIGMAP, SERVICE, PDB, EVENT)
    found = [each for kind in kinds for each in await kube.list(kind, namespace)]
    versions = {(each["kind"], each["metadata"]["name"]): each["metadata"]["resourceVersion"] for each in found}
    generations = {
        ("Deployment", each["metadata"]["name"]): each["metadata"]["generation"]
        for each in await kube.list(DEPLOYMENT, namespace)
    }
    return versions | generations
