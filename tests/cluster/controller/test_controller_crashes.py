"""After an operator is killed at any write, or its writes conflict, the next one continues without a trace."""

from __future__ import annotations

import itertools
import json

import pytest

from helpers.sizes import GIB
from uellm.kube import Conflict

# No kubelet makes a pod ready here, which every other rollout would wait for.
AT_ONCE = {"maxSurge": 0, "maxUnavailable": 2}


async def life(operator, llama, killed, arm):
    """A service is planned, scaled and changed. Whenever the operator is killed, another one takes over.

    `arm` prepares the Kube of each operator. Returns the final state and the total number of writes.
    """
    operators = []

    async def settle():
        while True:
            operators.append(operator())
            arm(operators[-1].kube, sum(len(each.kube.writes) for each in operators))
            try:
                return await operators[-1].settle(llama.name)
            except killed:
                continue

    await settle()
    await llama.change(lambda spec: spec.update(replicas=2))
    await settle()
    await llama.change(lambda spec: spec.update(engine={"args": ["--seed=7"]}))
    await settle()
    return _ours(await llama.state()), [write for each in operators for write in each.kube.writes]


def _ours(state):
    """The state without the progress of Kubernetes' own controllers."""
    state["Deployment"]["metadata"]["annotations"].pop("deployment.kubernetes.io/revision", None)
    status = state["status"]
    ours = {**state, "status": {name: status[name] for name in ("plan", "selector", "endpoint")}}
    # A revision's name depends on that of its service.
    revision = state["Deployment"]["spec"]["template"]["metadata"]["labels"]["uellm.io/revision"]
    return json.loads(json.dumps(ours).replace(revision, "REVISION"))


def never(kube, so_far):
    """No operator is killed."""


@pytest.mark.timeout(300)
async def test_killed_between_any_two_writes_the_end_is_the_same(operator, service, gpu_node, killed):
    await gpu_node([24 * GIB, 24 * GIB])
    undisturbed = await service("undisturbed", rollout=AT_ONCE)
    wanted, writes = await life(operator, undisturbed, killed, never)
    await undisturbed.delete()
    assert len(writes) > 10
    for n in range(len(writes)):
        kills = KillsAt(n)
        llama = await service(f"killed-{n}", rollout=AT_ONCE)
        state, made = await life(operator, llama, killed, kills)
        # The number of status writes depends on the speed of Kubernetes' own controllers.
        assert kills.done or len(made) <= n
        assert state == wanted, f"killed before write {n} ({writes[n]})"
        await llama.delete()


class KillsAt:
    """Arms operators until one of them is about to make the n-th of all writes."""

    def __init__(self, n):
        self.n, self.done = n, False

    def __call__(self, kube, so_far):
        if not self.done:
            kube.die_before = max(0, self.n - so_far)
        self.done = so_far >= self.n


async def test_conflicting_writes_are_retried_until_they_succeed(operator, service, gpu_node):
    await gpu_node([24 * GIB])
    llama = await service()
    watching = operator()
    failures = 0
    for conflicts in range(1, 5):
        watching.kube.conflicts = conflicts
        for _ in itertools.count():
            try:
                await watching.settle("llama")
                break
            except Conflict:
                failures += 1
        await llama.change(lambda spec, conflicts=conflicts: spec.update(engine={"args": [f"--seed={conflicts}"]}))
    await watching.settle("llama")
    assert failures == 1 + 2 + 3 + 4
    assert len(await llama.children()) == 4
    assert await watching.step("llama") == []


async def test_an_object_that_took_a_childs_name_between_two_looks_is_not_overwritten(
    operator, service, gpu_node, kube, namespace
):
    from uellm.kube.kinds import CONFIGMAP

    await gpu_node([24 * GIB])
    llama = await service()
    watching = operator()
    await watching.settle("llama")
    await watching.observe()
    await kube.delete(CONFIGMAP, "llama-config", namespace)
    foreign = {"metadata": {"name": "llama-config", "namespace": namespace}, "data": {"mine": "1"}}
    await kube.create({"apiVersion": "v1", "kind": "ConfigMap", **foreign})
    await llama.change(lambda spec: spec.update(scheduling={"policy": "FCFS"}))
    await watching.settle("llama")
    assert (await llama.child(CONFIGMAP))["data"] == {"mine": "1"}
    assert (await llama.condition("Ready"))[1] == "NameTaken"
