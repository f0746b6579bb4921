"""The real Kueue and the real LeaderWorkerSet together: replicas that span nodes wait, are admitted and give way whole.

Both with their webhooks, as etcd, the API server, the scheduler with UELLM's extender, and the operator are the real
ones. kwok plays the nodes, each with one GPU that holds half of the model, and the pods on them.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cluster.conftest import gpu_node, profile_of
from helpers import lws_manager
from helpers.extender_processes import Processes
from helpers.kueue import GPU, QUEUE, QUOTA_GPUS, World, apply, cluster_queue, running
from helpers.sizes import GIB
from uellm.kube import LLMSERVICE, Kube
from uellm.kube.kinds import LEADERWORKERSET, WORKLOAD
from uellm_devcluster import ControlPlane

pytestmark = [
    pytest.mark.timeout(2400),
    pytest.mark.skipif(os.geteuid() != 0, reason="Kueue runs in a root directory of its own, which needs root"),
]

__all__ = ["gpu_node"]

MANAGER = "uellm-tests"
OVER_NODES = {"placement": {"multiNode": "Allowed"}}
WHOLE, WAITS = (2, 0), (0, 2)


@pytest.fixture(scope="module")
def plane() -> Iterator[ControlPlane]:
    with ControlPlane(kwok_nodes=1) as plane:
        yield plane


@pytest.fixture
async def kube(plane: ControlPlane) -> AsyncIterator[Kube]:
    async with await Kube.connect(kubeconfig=str(plane.kubeconfig)) as kube:
        yield kube


@pytest.fixture
async def groups(plane: ControlPlane, kube: Kube, gpu_node: Any, tmp_path: Path) -> AsyncIterator[Groups]:
    """Four nodes of one GPU each; Kueue lets two of them be used."""
    async with lws_manager.running(plane, kube, tmp_path), running(plane, kube, tmp_path) as kueue:
        for name in ("a", "b", "c", "d"):
            await gpu_node([12 * GIB], name=name)
        scheduler = Processes(str(plane.kubeconfig), tmp_path)
        groups = Groups(World(kube, kueue, plane.kubeconfig, tmp_path))
        try:
            yield groups
        finally:
            groups.world.end()
            scheduler.stop()


@pytest.fixture
def apply_profile(kube: Kube) -> Callable[..., Awaitable[None]]:
    async def apply_profile(name: str, memory_bytes: list[int], **fields: Any) -> None:
        profile = profile_of(name, memory_bytes, **fields)
        await kube.apply({key: profile[key] for key in ("apiVersion", "kind", "metadata")}, manager=MANAGER)
        await kube.apply_status(profile, manager=MANAGER)

    return apply_profile


class Groups:
    """Services of which each replica is a group of two pods."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.kube = world.kube

    async def service(self, name: str, **spec: Any) -> None:
        await self.world.service(name, **{**OVER_NODES, **spec})

    async def delete(self, *names: str) -> None:
        for name in names:
            await self.kube.delete(LLMSERVICE, name, "default")
        for name in names:
            await self.world.becomes(lambda name=name: self.world.pods(name), [])

    async def are(self, within_s: float = 120.0, **seats: tuple[int, int]) -> None:
        """Wait until so many pods of these services have a node, and so many are held back by a gate."""

        async def found() -> dict[str, tuple[int, int]]:
            return {name: await self.world.seats(name) for name in seats}

        await self.world.becomes(found, seats, within_s)

    async def ready(self, name: str, *words: str) -> str:
        """Wait until Ready has this reason, and these words in its message."""
        reason, *said = words

        def is_told(found: tuple[str, str]) -> bool:
            return found[0] == reason and all(word in found[1] for word in said)

        await self.world.becomes(lambda: self.world.ready(name), is_told)
        return (await self.world.ready(name))[1]

    async def live(self, name: str) -> dict[str, Any]:
        return await self.kube.get(LEADERWORKERSET, f"{name}-engine", "default") or {"metadata": {"uid": ""}}

    async def uid(self, name: str) -> str:
        return str((await self.live(name))["metadata"]["uid"])

    async def nodes(self, name: str) -> set[str]:
        return {str(each["spec"].get("nodeName")) for each in await self.world.pods(name)}

    async def cordon(self, name: str, *, cordoned: bool) -> None:
        spec = {"unschedulable": True} if cordoned else {}
        document = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}, "spec": spec}
        await self.kube.apply(document, manager="kubectl-cordon")


async def test_groups_wait_are_admitted_and_give_way_whole(groups: Groups, kube: Kube, plane: ControlPlane):
    """Each step begins where the one before it ended."""
    await a_group_is_admitted_whole(groups, kube)
    await one_without_quota_waits_whole_and_keeps_no_gpu_from_others(groups)
    await a_higher_priority_takes_the_quota_of_the_whole_group_and_gives_it_back(groups)
    await groups_of_one_service_wait_one_by_one(groups)
    await a_rollout_keeps_the_quota_that_it_has(groups)
    await another_queue_makes_the_set_anew_once_nothing_serves(groups)
    await with_quota_for_two_and_room_for_one_no_two_half_groups_wait_for_each_other(groups, plane)


async def a_group_is_admitted_whole(groups: Groups, kube: Kube) -> None:
    await groups.service("first")
    await groups.are(first=WHOLE)
    assert len(await groups.nodes("first")) == 2
    live = await groups.live("first")
    assert live["metadata"]["labels"][QUEUE] == "team"
    (workload,) = await kube.list(WORKLOAD, "default")
    assert [(each["name"], each["count"]) for each in workload["spec"]["podSets"]] == [("leader", 1), ("worker", 1)]
    assert workload["spec"]["priorityClassRef"]["name"] == "low"
    # What Kueue's webhook puts into the templates is not taken for somebody's additions.
    message = (await groups.world.ready("first"))[1]
    assert "somebody has added" not in message


async def one_without_quota_waits_whole_and_keeps_no_gpu_from_others(groups: Groups) -> None:
    await groups.service("second")
    await groups.are(second=WAITS, first=WHOLE)
    message = await groups.ready("second", "Queued", "unused quota", GPU)
    assert message.startswith("0 of 1 replicas serve; pod second-engine-0 waits in the queue team: ")
    await groups.service("unqueued", queue="")
    await groups.are(unqueued=WHOLE, first=WHOLE, second=WAITS)
    await groups.delete("unqueued")


async def a_higher_priority_takes_the_quota_of_the_whole_group_and_gives_it_back(groups: Groups) -> None:
    await groups.service("urgent", priority="high")
    await groups.are(urgent=WHOLE, first=WAITS, second=WAITS)
    await groups.ready("first", "Queued", "unused quota")
    assert await groups.world.failures("first", "second", "urgent") == []
    await groups.delete("second", "urgent")
    await groups.are(first=WHOLE)
    await groups.world.becomes(
        lambda: groups.world.ready("first"), lambda found: found[0] not in ("Queued", "Preempted")
    )
    assert await groups.world.failures("first") == []


async def groups_of_one_service_wait_one_by_one(groups: Groups) -> None:
    await groups.service("first", replicas=2)
    await groups.are(first=(2, 2))
    await groups.ready("first", "Queued", "first-engine-1 waits in the queue team")
    await groups.service("first")
    await groups.are(first=WHOLE)


async def a_rollout_keeps_the_quota_that_it_has(groups: Groups) -> None:
    """Another group that waits does not get it in between."""
    await groups.service("second")
    await groups.are(second=WAITS)
    before = {each["metadata"]["uid"] for each in await groups.world.pods("first")}
    uid = await groups.uid("first")
    await groups.service("first", engine={"env": [{"name": "ROLLED", "value": "once"}]})

    async def uids() -> set[str]:
        return {each["metadata"]["uid"] for each in await groups.world.pods("first")}

    await groups.world.becomes(uids, lambda found: len(found) == 2 and not found & before)
    await groups.are(first=WHOLE, second=WAITS)
    assert await groups.uid("first") == uid
    await groups.delete("second")


async def another_queue_makes_the_set_anew_once_nothing_serves(groups: Groups) -> None:
    uid, before = await groups.uid("first"), await groups.nodes("first")
    await groups.service("first", queue="other")
    await groups.ready("first", "Forbidden", QUEUE, "set spec.suspend to true, and then to false, and it is made anew")
    assert (await groups.uid("first"), await groups.nodes("first")) == (uid, before)
    # So with what the pods request.
    selector = {"spec": {"nodeSelector": {"kubernetes.io/os": "linux"}}}
    await groups.service("first", template=selector)
    await groups.ready("first", "Forbidden", "nodeSelector", "it is made anew")
    assert (await groups.uid("first"), await groups.nodes("first")) == (uid, before)
    await groups.service("first", queue="other", template=selector, suspend=True)
    await groups.ready("first", "Suspended")

    async def queue() -> str:
        return str((await groups.live("first"))["metadata"].get("labels", {}).get(QUEUE))

    await groups.world.becomes(queue, "other")
    assert await groups.uid("first") != uid
    await groups.service("first", queue="other", template=selector)
    await groups.are(first=WAITS)
    await groups.ready("first", "Queued", "waits in the queue other")
    # While nothing serves, it needs no suspending.
    await groups.service("first", template=selector)
    await groups.are(first=WHOLE)
    assert await groups.world.failures("first") == []
    await groups.delete("first")


async def with_quota_for_two_and_room_for_one_no_two_half_groups_wait_for_each_other(
    groups: Groups, plane: ControlPlane
) -> None:
    """Kueue admits both, since their GPUs are within the quota; the extender keeps room for one whole group."""
    await groups.cordon("d", cordoned=True)
    apply(plane.kubeconfig, cluster_queue("gpus", 2 * QUOTA_GPUS))
    await groups.service("one")
    await groups.service("two")

    async def pods() -> list[tuple[int, int, int]]:
        """Of each service, the pods that have a node, those that a gate holds back, and all."""
        return sorted(
            [(*await groups.world.seats(name), len(await groups.world.pods(name))) for name in ("one", "two")]
        )

    await groups.world.becomes(pods, [(0, 0, 2), (2, 0, 2)])
    (waits,) = [name for name in ("one", "two") if await groups.world.seats(name) == (0, 0)]
    await groups.ready(waits, "Unschedulable", "room for 1 of them")
    assert await pods() == [(0, 0, 2), (2, 0, 2)]
    await groups.cordon("d", cordoned=False)
    await groups.are(one=WHOLE, two=WHOLE)
    await groups.delete("one", "two")
