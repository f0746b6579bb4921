"""The real Kueue queues the pods of services: they wait, are admitted and give way, and the operator stays sane.

etcd, the API server, the scheduler, Kueue and its webhooks, and the operator are the real ones. kwok plays the
nodes and the pods on them.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cluster.conftest import gpu_node, profile_of
from helpers.kueue import GPU, QUEUE, QUOTA_GPUS, World, running
from helpers.sizes import GIB
from uellm.kube import LLMSERVICE, Kube
from uellm.kube.kinds import DEPLOYMENT, WORKLOAD
from uellm_devcluster import ControlPlane

pytestmark = [
    pytest.mark.timeout(1800),
    pytest.mark.skipif(os.geteuid() != 0, reason="Kueue runs in a root directory of its own, which needs root"),
]

__all__ = ["gpu_node"]

MANAGER = "uellm-tests"


@pytest.fixture(scope="module")
def plane() -> Iterator[ControlPlane]:
    with ControlPlane(kwok_nodes=1) as plane:
        yield plane


@pytest.fixture
async def kube(plane: ControlPlane) -> AsyncIterator[Kube]:
    async with await Kube.connect(kubeconfig=str(plane.kubeconfig)) as kube:
        yield kube


@pytest.fixture
async def world(plane: ControlPlane, kube: Kube, gpu_node: Any, tmp_path: Path) -> AsyncIterator[World]:
    """A node of four GPUs; Kueue lets two of them be used."""
    async with running(plane, kube, tmp_path) as kueue:
        await gpu_node([24 * GIB] * 4)
        world = World(kube, kueue, plane.kubeconfig, tmp_path)
        try:
            yield world
        finally:
            world.end()


@pytest.fixture
def apply_profile(kube: Kube) -> Callable[..., Awaitable[None]]:
    async def apply_profile(name: str, memory_bytes: list[int], **fields: Any) -> None:
        profile = profile_of(name, memory_bytes, **fields)
        await kube.apply({key: profile[key] for key in ("apiVersion", "kind", "metadata")}, manager=MANAGER)
        await kube.apply_status(profile, manager=MANAGER)

    return apply_profile


async def test_services_wait_are_admitted_and_give_way_by_the_words_and_the_quota_of_kueue(world: World, kube: Kube):
    await world.service("first", replicas=QUOTA_GPUS)
    await world.becomes(lambda: world.seats("first"), (QUOTA_GPUS, 0))
    deployment = await kube.get(DEPLOYMENT, "first-engine", "default")
    assert deployment is not None
    assert (
        deployment["metadata"]["labels"][QUEUE] == deployment["spec"]["template"]["metadata"]["labels"][QUEUE] == "team"
    )
    (workload, *_) = await kube.list(WORKLOAD, "default")
    assert workload["spec"]["priorityClassRef"]["name"] == "low"

    # The quota is used up, though the node has two more GPUs.
    await world.service("second")
    await world.becomes(lambda: world.seats("second"), (0, 1))
    await world.becomes(
        lambda: world.ready("second"), lambda found: found[0] == "Queued" and "unused quota" in found[1]
    )
    _, message = await world.ready("second")
    (pod,) = await world.pods("second")
    assert message.startswith(f"0 of 1 replicas serve; pod {pod['metadata']['name']} waits in the queue team: ")
    assert GPU in message

    # A higher priority takes the quota of one of the first's pods. The next one waits, and nothing has failed.
    await world.service("urgent", priority="high")
    await world.becomes(lambda: world.seats("urgent"), (1, 0))
    await world.becomes(lambda: world.seats("first"), (QUOTA_GPUS - 1, 1))
    await world.becomes(lambda: world.ready("first"), lambda found: found[0] == "Queued")
    assert await world.failures("first", "second", "urgent") == []

    # What waits without quota keeps no GPU from others: four GPUs, two in use.
    await world.service("unqueued", queue="", replicas=2)
    await world.becomes(lambda: world.seats("unqueued"), (2, 0))
    await kube.delete(LLMSERVICE, "unqueued", "default")

    # Quota that becomes free goes to those who wait.
    await kube.delete(LLMSERVICE, "urgent", "default")
    await kube.delete(LLMSERVICE, "second", "default")
    await world.becomes(lambda: world.seats("first"), (QUOTA_GPUS, 0))
    await world.becomes(lambda: world.ready("first"), lambda found: found[0] not in ("Queued", "Preempted"))

    # Kueue lets no Deployment whose pods serve change its queue. Suspended, it may.
    await world.service("first", queue="other", replicas=QUOTA_GPUS)
    await world.becomes(lambda: world.ready("first"), lambda found: found[0] == "Forbidden" and QUEUE in found[1])
    assert await world.seats("first") == (QUOTA_GPUS, 0)
    await world.service("first", queue="other", replicas=QUOTA_GPUS, suspend=True)
    await world.becomes(lambda: world.pods("first"), [])
    await world.becomes(lambda: queue_of(kube), "other")
    await world.service("first", queue="other", replicas=QUOTA_GPUS)
    await world.becomes(lambda: world.seats("first"), (0, QUOTA_GPUS))
    await world.becomes(lambda: world.ready("first"), lambda found: found[0] == "Queued" and "other" in found[1])
    assert await world.failures("first") == []


async def queue_of(kube: Kube) -> str:
    found = await kube.get(DEPLOYMENT, "first-engine", "default") or {"metadata": {}}
    return str((found["metadata"].get("labels") or {}).get(QUEUE))
