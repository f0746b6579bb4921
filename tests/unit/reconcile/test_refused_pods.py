"""Pods that the API server refuses, as by a quota: what is promised to them, and to whom it goes instead."""

from __future__ import annotations

import asyncio
from datetime import timedelta

from uellm.kube.kinds import DEPLOYMENT, LEADERWORKERSET, LLMSERVICE, POD
from uellm.reconcile.names import Key
from uellm.reconcile.planning.ledger import claims_of_others
from uellm.reconcile.planning.planning import Planning
from uellm.reconcile.times import timestamp

KEY = Key("ns", "one")
MINUTE = timedelta(seconds=60)


async def refused(world, *, replicas=1, pods=()):
    """A service with a plan for GPUs of node a, whose further pods are refused."""
    world.service("one", replicas=replicas)
    assert (await world.plan("one")).plan is not None
    for name in pods:
        world.pod("one", name, world.make.pod(node="a"))
    world.deployed("one", replicas=replicas, refused=True)
    await world.plan("one")


def ended(world, name):
    """A pod is gone."""
    world.cache.remove(POD, {"metadata": {"namespace": "ns", "name": name, "uid": f"uid-{name}"}})


async def test_gpus_of_a_refused_pod_are_kept_for_a_minute_and_then_offered_to_others(world):
    world.node("a", None, None)
    await refused(world)
    world.service("two")
    assert (await world.plan("two")).failure.reason == "NoFit"
    assert world.planning.promises.refused_in_s(KEY, world.now) == 60

    world.now += MINUTE
    await world.plan("one")
    assert world.planning.promises.refused_in_s(KEY, world.now) is None
    assert (await world.plan("two")).plan is not None


async def test_replicas_that_are_there_keep_their_gpus_where_others_are_refused(world):
    world.node("a", "uid-one-1", "uid-one-1", None, None)
    await refused(world, replicas=2, pods=["one-1"])
    world.now += MINUTE
    await world.plan("one")
    for name in ("two", "three"):
        world.service(name)
    assert (await world.plan("two")).plan is not None
    assert (await world.plan("three")).failure.reason == "NoFit"


async def test_a_pod_that_is_let_in_after_all_is_promised_its_gpus_before_it_has_a_node(world):
    world.node("a", None, None)
    await refused(world)
    world.now += MINUTE
    await world.plan("one")
    world.pod("one", "one-1", world.make.pod(node=None))
    world.service("two")
    assert (await world.plan("two")).failure.reason == "NoFit"


async def test_what_is_no_longer_refused_is_promised_again(world):
    world.node("a", None, None)
    await refused(world)
    world.now += MINUTE
    await world.plan("one")
    world.deployed("one")
    await world.plan("one")
    world.service("two")
    assert (await world.plan("two")).failure.reason == "NoFit"


async def test_the_place_of_a_pod_that_the_quota_still_counted_is_kept_until_kubernetes_has_tried_again(world):
    """Refused for five minutes, it is tried again within the next five."""
    world.node("a", None, None)
    ending = world.make.pod(node="a")
    ending["metadata"]["deletionTimestamp"] = "2026-01-01T00:05:00Z"
    world.service("one")
    await world.plan("one")
    world.pod("one", "one-1", ending)
    world.deployed("one", refused=True)
    await world.plan("one")
    world.now += 5 * MINUTE
    await world.plan("one")
    ended(world, "one-1")
    await world.plan("one")
    world.service("two")
    assert (await world.plan("two")).failure.reason == "NoFit"
    world.now += 5 * MINUTE
    await world.plan("one")
    assert (await world.plan("two")).failure.reason == "NoFit"
    world.now += MINUTE
    await world.plan("one")
    assert (await world.plan("two")).plan is not None


async def test_the_place_of_a_pod_that_has_just_ended_is_kept_before_its_service_is_looked_at(world):
    """As in a rollout in place, after the additional pod has been refused for a minute."""
    world.node("a", None, None)
    await refused(world, pods=["one-1"])
    world.now += MINUTE
    await world.plan("one")
    ended(world, "one-1")
    world.service("two")
    assert (await world.plan("two")).failure.reason == "NoFit"
    await world.plan("one")
    assert (await world.plan("two")).failure.reason == "NoFit"


async def test_a_pod_that_failed_keeps_its_place_for_the_one_that_follows(world):
    world.node("a", None, None)
    await refused(world, pods=["one-1"])
    world.now += MINUTE
    await world.plan("one")
    failed = world.make.pod(node="a")
    failed["status"] = {"phase": "Failed"}
    world.pod("one", "one-1", failed)
    world.service("two")
    assert (await world.plan("two")).failure.reason == "NoFit"


async def test_pods_that_come_and_go_beside_the_refused_ones_keep_no_places_for_those(world):
    """Each that goes is followed by another, so what is lacking was refused all along."""
    world.node("a", None, None)
    world.node("b", None, None)
    await refused(world, replicas=2, pods=["one-0"])
    world.now += 10 * MINUTE
    await world.plan("one")
    for number in range(3):
        ended(world, f"one-{number}")
        await world.plan("one")
        assert world.planning.promises.refused_in_s(KEY, world.now) > 60
        world.pod("one", f"one-{number + 1}", world.make.pod(node="a"))
        await world.plan("one")
        assert world.planning.promises.refused_in_s(KEY, world.now) is None
    world.service("two")
    assert (await world.plan("two")).plan is not None


async def test_services_that_wait_are_looked_at_as_soon_as_nothing_is_promised_to_refused_pods(world):
    told: asyncio.Queue[Key] = asyncio.Queue()
    world.planning = Planning(world.cache, world, on_planned=told.put_nowait)
    world.node("a", None, None)
    for name in ("one", "two"):
        world.service(name)
        await world.planned(name)
        assert await told.get() == Key("ns", name)
    world.deployed("one", refused=True)
    await world.planned("one")
    assert told.empty()
    world.now += MINUTE
    await world.planned("one")
    assert told.get_nowait() == Key("ns", "two")


async def test_pods_of_groups_count_as_refused_where_they_have_not_been_there_for_a_minute(world):
    world.node("a", None, None)
    world.service("one")
    await world.plan("one")
    world.deployed("one")
    deployment = world.observed("one").deployment
    world.cache.remove(DEPLOYMENT, deployment)
    size = {"size": 2, "leaderTemplate": deployment["spec"]["template"]}
    world.put(LEADERWORKERSET, {**deployment, "spec": {"replicas": 1, "leaderWorkerTemplate": size}})
    await world.plan("one")
    world.service("two")
    assert (await world.plan("two")).failure.reason == "NoFit"
    world.now += MINUTE
    await world.plan("one")
    assert (await world.plan("two")).plan is not None


def test_from_the_status_alone_nothing_is_promised_to_pods_that_were_refused_for_a_minute_either(world):
    """As `uellm plan` counts, which reads no Deployments."""
    document = world.service("one", plan=world.make.plan(nodes=("a",)))
    for stalled, reason, seconds, pods in (
        ("False", "EngineStarting", 60, 1),
        ("True", "ImagePullFailed", 60, 1),
        ("True", "PodsRefused", 59, 1),
        ("True", "PodsRefused", 60, 0),
    ):
        since = timestamp(world.now - timedelta(seconds=seconds))
        condition = {"type": "Stalled", "status": stalled, "reason": reason, "lastTransitionTime": since}
        document["status"]["conditions"] = [condition]
        world.put(LLMSERVICE, document)
        assert [claim.pods for claim in claims_of_others(world.cache, Key("ns", "two"), world.now)] == [pods]
