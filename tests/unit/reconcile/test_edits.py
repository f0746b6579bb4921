"""A changed spec reaches the prediction of the plan in force, whenever there is a plan to judge it by."""

from __future__ import annotations

import asyncio
import copy
from dataclasses import replace
from datetime import timedelta

from helpers.children import CONFIG
from helpers.sizes import GIB
from uellm.api import parse_service
from uellm.kube.kinds import DEPLOYMENT, GPUNODEPROFILE, LLMSERVICE, NODE
from uellm.planner.request import NodeOffer
from uellm.reconcile.cache import Cache
from uellm.reconcile.names import Key
from uellm.reconcile.planning.answer import PlanningQuestion, answer
from uellm.reconcile.planning.ledger import offers
from uellm.reconcile.planning.plan_status import plan_status
from uellm.reconcile.planning.planning import Planning
from uellm.reconcile.planning.records import IMPROVE_EVERY_S
from uellm.reconcile.planning.request import architecture_of, plan_request
from uellm.reconcile.profiled_node import profiled_node

KEY = Key("ns", "one")


class Service:
    """A service that serves by the first plan, on node a; its status is what the last pass wrote."""

    def __init__(self, world) -> None:
        self.world = world
        world.node("a", None, None)
        self.document = world.service("one")

    async def look(self, *, lost=False):
        """A pass, and the status that it writes. `lost`: the API server does not get it."""
        self.world.put(LLMSERVICE, self.document)
        planned = await self.world.planned("one")
        if planned is not None and not lost:
            self.written(planned.choice.plan)
        return planned

    def written(self, plan) -> None:
        generation = self.document["metadata"]["generation"]
        predicted = generation
        if self.world.planning.is_of_earlier_spec(KEY):
            predicted = self.predicted_generation
        condition = {"type": "SLOFeasible", "observedGeneration": predicted}
        self.document["status"] = {
            "observedGeneration": generation,
            "plan": plan_status(plan),
            "conditions": [condition],
        }
        self.world.put(LLMSERVICE, self.document)

    def restart_operator(self) -> None:
        """Another one, which knows what the API server has."""
        former, self.world.cache = self.world.cache, Cache()
        for kind in (GPUNODEPROFILE, NODE, LLMSERVICE, DEPLOYMENT):
            for each in former.snapshot(kind).values():
                self.world.put(kind, each.object)
        self.world.planning = Planning(self.world.cache, self.world)
        self.world.planning.promises.restore()

    @property
    def predicted_generation(self) -> int:
        """Of the spec that the prediction in the status is about."""
        return self.document["status"]["conditions"][0]["observedGeneration"]

    def edit(self, rate: str) -> None:
        self.document = copy.deepcopy(self.document)
        self.document["spec"]["workload"] = {"requestsPerSecond": rate}
        self.document["metadata"]["generation"] += 1

    def cordon(self, *, closed: bool) -> None:
        metadata = {"name": "a", "uid": "a", "labels": {"uellm.io/gpu.count": "2"}}
        self.world.put(NODE, {"metadata": metadata, "spec": {"unschedulable": closed}})
        self.world.now += timedelta(seconds=IMPROVE_EVERY_S)


async def test_a_change_is_asked_for_until_a_search_finds_a_plan(world):
    service = Service(world)
    await service.look()
    world.deployed("one")
    service.cordon(closed=True)
    service.edit("8")
    for _ in range(2):
        assert (await service.look()).choice.plan is not None
    service.cordon(closed=False)
    for _ in range(2):
        await service.look()
    assert world.revisions_asked == [True, True, True]


async def test_a_change_that_finds_no_plan_is_asked_for_by_an_operator_that_is_restarted_too(world):
    service = Service(world)
    await service.look()
    world.deployed("one")
    service.cordon(closed=True)
    service.edit("8")
    await service.look()
    assert (service.document["status"]["observedGeneration"], service.predicted_generation) == (2, 1)
    service.restart_operator()
    await service.look()
    assert service.predicted_generation == 1
    service.cordon(closed=False)
    await service.look()
    assert world.revisions_asked == [True, True, True, True]
    assert service.predicted_generation == 2
    service.restart_operator()
    await service.look()
    assert world.revisions_asked[4:] == [False]


async def test_a_change_that_asks_nothing_of_a_plan_leaves_the_one_before_open(world):
    service = Service(world)
    await service.look()
    world.deployed("one")
    service.cordon(closed=True)
    service.edit("8")
    await service.look()
    service.document = copy.deepcopy(service.document)
    service.document["spec"]["http"] = {"idleTimeout": "30m"}
    service.document["metadata"]["generation"] += 1
    await service.look()
    assert service.predicted_generation == 1


async def test_a_change_that_was_answered_is_not_asked_for_again(world):
    service = Service(world)
    await service.look()
    service.edit("8")
    await service.look()
    assert world.revisions_asked[-1]
    await service.look()
    world.node("a", None, None, memoryBytes=1001)
    await service.look()
    assert len(world.revisions_asked) == 3
    assert not world.revisions_asked[-1]


async def test_an_answer_that_never_reached_the_status_is_asked_for_again(world):
    service = Service(world)
    await service.look()
    service.edit("8")
    before = copy.deepcopy(service.document["status"])
    await service.look()
    service.document["status"] = before | {"observedGeneration": service.document["metadata"]["generation"]}
    service.document["status"]["plan"]["reason"] = "another"
    await service.look()
    assert world.revisions_asked[-1]


async def test_the_answer_to_a_change_that_waited_reaches_the_status_although_writes_are_lost(world):
    service = Service(world)
    await service.look()
    world.deployed("one")
    service.cordon(closed=True)
    service.edit("8")
    await service.look()
    service.cordon(closed=False)
    for _ in range(3):
        await service.look(lost=True)
    await service.look()
    assert service.predicted_generation == 2
    asked = len(world.revisions_asked)
    await service.look()
    world.node("a", None, None, memoryBytes=1001)
    await service.look()
    assert world.revisions_asked[asked:] == [False]


async def test_a_change_is_asked_for_although_the_status_has_it_before_its_search_begins(world):
    told: asyncio.Queue[Key] = asyncio.Queue()
    world.planning = Planning(world.cache, world, on_planned=told.put_nowait)
    service = Service(world)
    await service.look()
    await told.get()
    plan = (await service.look()).choice.plan
    service.edit("8")
    world.deployed("one")
    world.gate.clear()
    world.service("other")
    await world.planned("other")  # the search of it takes the only turn
    await world.asked(2)
    await service.look()
    service.written(plan)
    await service.look()
    world.gate.set()
    assert {await told.get(), await told.get()} == {KEY, Key("ns", "other")}
    assert world.revisions_asked[-1]


def test_an_answer_says_whether_a_fresh_plan_was_found(make):
    service = parse_service(make.service(model={"uri": "hf://org/model", "config": CONFIG}))
    node = profiled_node(make.profile("node-1", (None, None), memoryBytes=24 * GIB))
    opened = plan_request(service, architecture_of(service), offers([node], [], []))
    closed = replace(opened, nodes=(NodeOffer(node.facts, (), closed="cordoned"),))
    first = answer(PlanningQuestion(opened))
    assert first.found
    again = answer(PlanningQuestion(closed, first.choice.plan, revise=True))
    assert again.choice.plan == first.choice.plan
    assert not again.found
