from __future__ import annotations

import asyncio
import dataclasses
from datetime import UTC, datetime, timedelta

import pytest

from helpers.models import SMALLEST_LLAMA
from uellm.kube.kinds import DEPLOYMENT, GPUNODEPROFILE, LLMSERVICE, NODE, POD
from uellm.reconcile.cache import Cache
from uellm.reconcile.names import Key
from uellm.reconcile.observe import observe
from uellm.reconcile.obstacle import Obstacle
from uellm.reconcile.planning.answer import PlanningAnswer
from uellm.reconcile.planning.evaluate import Evaluation
from uellm.reconcile.planning.plan_status import plan_status
from uellm.reconcile.planning.planning import Planning
from uellm.reconcile.planning.records import IMPROVE_EVERY_S
from uellm.reconcile.planning.stranded import stranded_in_s

GPUS = 2


class World:
    """A cluster in the cache, and a planner that plans two GPUs on every node with room."""

    def __init__(self, make):
        self.make = make
        self.cache = Cache()
        self.now = datetime(2026, 1, 1, tzinfo=UTC)
        self.requests = []
        self.broken = None
        self.rendered = []
        self.renders_itself = True
        self.planning = Planning(self.cache, self, workers=2)
        self.revisions = {}
        self.version = 100
        self.gate = asyncio.Event()
        self.gate.set()
        self._changed = asyncio.Condition()

    async def answer(self, question):
        self.requests.append(question.request)
        async with self._changed:
            self._changed.notify_all()
        await asyncio.sleep(0)  # other tasks get a turn, as with a real worker
        await self.gate.wait()
        choice = question.choice(self._evaluation(question.request, question.incumbent))
        rendered = choice.plan and self.renders_itself and self._rendered(choice.plan, question.request)
        return PlanningAnswer(choice, rendered or None)

    async def asked(self, times):
        """Wait until the planner was asked so often."""
        async with asyncio.timeout(5), self._changed:
            await self._changed.wait_for(lambda: len(self.requests) >= times)

    async def render(self, plan, request):
        self.rendered.append(plan)
        return self._rendered(plan, request)

    def _rendered(self, plan, request):
        facts = [offer.node.devices for offer in request.nodes if offer.node.name in plan.nodes]
        return ("rendered", plan, facts)

    def _evaluation(self, request, incumbent):
        nodes = tuple(o.node.name for o in request.nodes if len(o.free) - o.promised >= GPUS)
        broken = None if incumbent is None or set(incumbent.nodes) & set(nodes) else "no room"
        if not nodes:
            return Evaluation(None, Obstacle("NoFit", "no room"), broken, self.broken)
        return Evaluation(self.make.plan(nodes=nodes), None, broken, self.broken)

    def put(self, kind, obj):
        self.version += 1
        self.cache.put(kind, {**obj, "metadata": {**obj["metadata"], "resourceVersion": str(self.version)}})

    def node(self, name, *holders, **device):
        self.put(GPUNODEPROFILE, self.make.profile(name, holders, **device))

    def service(self, name, *, plan=None, **spec):
        document = self.make.service(name, model={"uri": "file:///m", "config": SMALLEST_LLAMA}, **spec)
        document["metadata"]["uid"] = f"uid-{name}"
        if plan is not None:
            document["status"] = {"plan": plan_status(plan)}
        self.put(LLMSERVICE, document)
        return document

    def deployed(self, name, *, replicas=1):
        """The Deployment of the service's current spec."""
        observed = self.observed(name)
        deployment = self.make.deployment(replicas)
        revision = self.make.revision(observed.spec_mark)
        self.revisions[name] = {revision.name: revision}
        metadata = {**deployment["metadata"], "name": f"{name}-engine"}
        owner = {"kind": "LLMService", "name": name, "uid": f"uid-{name}", "controller": True}
        self.put(DEPLOYMENT, {**deployment, "metadata": {**metadata, "ownerReferences": [owner]}})

    def pod(self, service, name, pod):
        metadata = {**pod["metadata"], "name": name, "uid": f"uid-{name}", "labels": {"uellm.io/service": service}}
        self.put(POD, {**pod, "metadata": metadata})

    def observed(self, name):
        found = observe(self.cache, Key("ns", name))
        return found and dataclasses.replace(found, revisions=self.revisions.get(name, {}))

    async def planned(self, name):
        return await self.planning.plan(self.observed(name), self.now)

    async def plan(self, name):
        return (await self.planned(name)).choice


@pytest.fixture
def world(make):
    return World(make)


async def test_services_planned_at_the_same_time_share_no_gpu(world):
    world.node("a", None, None, None)
    for name in ("one", "two"):
        world.service(name)
    choices = await asyncio.gather(world.plan("one"), world.plan("two"))
    assert sorted(choice.plan is None for choice in choices) == [False, True]


async def test_a_search_whose_room_was_taken_meanwhile_is_repeated(world):
    world.node("a", None, None)
    world.node("b", None, None)
    for name in ("one", "two"):
        world.service(name)
    choices = await asyncio.gather(world.plan("one"), world.plan("two"))
    assert all(choice.plan for choice in choices)
    world.service("three")
    assert (await world.plan("three")).failure.reason == "NoFit"


async def test_two_searches_run_at_a_time(world):
    world.node("a", *[None] * 8)
    for name in ("one", "two", "three"):
        world.service(name)
    world.gate.clear()
    searches = [asyncio.create_task(world.plan(name)) for name in ("one", "two", "three")]
    await world.asked(2)
    assert world.planning.in_line == 1
    world.gate.set()
    assert all(choice.plan for choice in await asyncio.gather(*searches))


async def test_services_whose_searches_are_long_leave_a_worker_to_the_others(world, monkeypatch):
    monkeypatch.setattr("uellm.reconcile.planning.turns.SLOW_S", -1.0)
    world.node("a", *[None] * 8)
    for name in ("long", "longer"):
        world.service(name)
        await world.plan(name)
    world.node("b", None, None)  # every service is planned again
    world.service("short")
    world.gate.clear()
    asked = len(world.requests)
    searches = [asyncio.create_task(world.plan(name)) for name in ("long", "longer", "short")]
    await world.asked(asked + 2)
    assert {request.service for request in world.requests[asked:]} == {"ns/long", "ns/short"}
    world.gate.set()
    await asyncio.gather(*searches)


async def test_a_pass_for_another_reason_does_not_plan(world):
    world.node("a", None, None)
    world.service("one")
    first = await world.plan("one")
    assert await world.plan("one") == first
    assert len(world.requests) == 1


async def test_a_pass_in_which_nothing_has_changed_walks_over_no_node_and_no_other_service(world, monkeypatch):
    world.node("a", None, None)
    world.service("one")
    world.service("waits")
    first, without = await world.planned("one"), await world.planned("waits")
    assert without.choice.failure.reason == "NoFit"
    for name in ("hardware_offers", "reachable", "claim"):
        monkeypatch.delattr(f"uellm.reconcile.planning.promises.{name}")
    assert await world.planned("one") is first
    assert await world.planned("waits") is without


async def test_what_was_freed_is_offered_to_a_service_that_waits(world):
    world.node("a", "stranger", None)
    world.service("waits")
    assert (await world.plan("waits")).plan is None
    world.node("a", None, None)
    assert (await world.plan("waits")).plan is not None


async def test_other_hardware_asks_the_planner_at_once(world):
    world.node("a", None, None)
    world.service("one")
    await world.plan("one")
    world.node("b", None, None)
    await world.plan("one")
    assert len(world.requests) == 2


async def test_freed_gpus_replan_a_service_without_a_plan(world):
    world.node("a", "x", "y")
    world.service("one")
    assert (await world.plan("one")).failure.reason == "NoFit"
    world.node("a", None, "y")
    await world.plan("one")
    world.node("a", None, None)
    assert (await world.plan("one")).plan is not None


async def test_a_service_with_a_plan_considers_freed_gpus_from_time_to_time(world):
    world.node("a", None, None, "x")
    world.service("one")
    await world.plan("one")
    world.node("a", None, None, None)
    await world.plan("one")
    assert len(world.requests) == 1
    world.now += timedelta(seconds=IMPROVE_EVERY_S + 1)
    await world.plan("one")
    assert len(world.requests) == 2


async def test_a_restarted_operator_knows_what_was_promised(world, make):
    world.node("a", None, None)
    world.service("one", plan=make.plan(nodes=("a",)))
    world.service("two")
    world.planning.promises.restore()
    assert (await world.plan("two")).failure.reason == "NoFit"


async def test_a_withdrawn_plan_frees_its_gpus(world):
    world.node("a", None, None)
    for name in ("one", "two"):
        world.service(name)
    await world.plan("one")
    world.planning.withdraw(Key("ns", "one"))
    assert (await world.plan("two")).plan is not None


async def test_services_without_a_plan_count_as_waiting(world):
    world.node("a", None, None)
    for name in ("one", "two"):
        world.service(name)
        await world.plan(name)
    assert world.planning.waiting() == [Key("ns", "two")]


async def test_a_suspended_service_keeps_its_plan_without_asking_and_promises_nothing(world, make):
    world.node("a", None, None)
    kept = make.plan(nodes=("a",))
    world.service("one", plan=kept, suspend=True)
    world.deployed("one", replicas=0)
    world.planning.promises.restore()
    assert (await world.plan("one")).plan == kept
    assert world.requests == []
    world.service("two")
    assert (await world.plan("two")).plan is not None


async def test_a_resumed_service_whose_gpus_were_taken_gets_another_plan(world, make):
    world.node("a", "x", "y")
    world.node("b", None, None)
    world.service("one", plan=make.plan(nodes=("a",)))
    world.deployed("one", replicas=0)
    assert (await world.plan("one")).plan.nodes == ("b",)


async def test_gpus_taken_by_others_move_no_pods_until_one_is_unschedulable_for_a_minute(world, make):
    world.node("a", "x", "y")
    world.node("b", None, None)
    kept = make.plan(nodes=("a",))
    world.service("one", plan=kept)
    world.deployed("one")
    since = world.now.strftime("%Y-%m-%dT%H:%M:%SZ")
    world.pod("one", "p", make.unschedulable(since=since))
    assert (await world.plan("one")).plan == kept
    assert stranded_in_s(world.observed("one"), world.now) == 60
    world.now += timedelta(seconds=61)
    assert (await world.plan("one")).plan.nodes == ("b",)


async def test_an_unreadable_model_is_reported_without_the_planner(world):
    world.service("one")
    document = world.observed("one").document
    document["spec"]["model"] = {"uri": "hf://org/model"}
    assert (await world.plan("one")).failure.reason == "ModelConfigMissing"
    document["spec"]["model"]["config"] = {"architectures": ["Unknown"]}
    assert (await world.plan("one")).failure.reason == "InvalidModel"
    document["spec"]["slo"] = {"classes": "many"}
    assert (await world.plan("one")).failure.reason == "InvalidSpec"
    assert world.requests == []


async def test_a_plan_that_is_lost_gives_up_its_unplaced_replicas_and_keeps_its_pods(world, make):
    world.node("a", "uid-p", "uid-p")
    world.service("one", plan=make.plan(nodes=("a",)), replicas=2)
    world.deployed("one", replicas=2)
    world.pod("one", "p", make.pod(node="a"))
    world.planning.promises.restore()
    world.broken = "quarantined"
    world.node("a", "uid-p", "uid-p", health={"state": "Quarantined"})
    assert (await world.plan("one")).failure is not None
    world.node("b", None, None)
    world.service("two")
    assert (await world.plan("two")).plan.nodes == ("b",)


@pytest.mark.parametrize("name", ["VLLM_API_KEY", "CUDA_VISIBLE_DEVICES", "VLLM_PP_LAYER_PARTITION"])
async def test_a_variable_that_the_launcher_would_not_take_is_refused_before_any_pod_exists(world, name):
    world.node("n1", None, None)
    world.service("a", engine={"env": [{"name": name, "value": "s3cret"}]})
    choice = await world.plan("a")
    assert choice.plan is None
    assert choice.failure.reason == "InvalidOverride"
    assert choice.failure.message.startswith(f"spec.engine.env: {name} is not allowed: ")
    assert "s3cret" not in choice.failure.message


async def test_nodes_that_the_pods_cannot_reach_are_no_candidates(world):
    world.node("a", None, None)
    world.node("b", None, None)
    for name, own in (("a", {}), ("b", {"gpu": "h100"})):
        labels = {"uellm.io/gpu.count": "2", **own}
        world.put(NODE, {"metadata": {"name": name, "uid": f"n-{name}", "labels": labels}, "spec": {}})
    world.service("one", template={"spec": {"nodeSelector": {"gpu": "h100"}}})
    assert (await world.plan("one")).plan.nodes == ("b",)
    assert tuple(map(str, world.requests[-1].left_out)) == ("a: spec.template.spec.nodeSelector wants gpu=h100",)


async def test_a_cordoned_node_keeps_the_plan_whose_pods_run_there(world, make):
    world.node("a", None, None)
    world.service("one", plan=make.plan(nodes=("a",)))
    world.deployed("one")
    world.put(NODE, {"metadata": {"name": "a", "uid": "n-a", "labels": {}}, "spec": {"unschedulable": True}})
    assert (await world.plan("one")).plan.nodes == ("a",)


async def test_a_pass_for_another_reason_renders_nothing(world):
    world.node("a", None, None, "x")
    world.service("one")
    first = await world.planned("one")
    world.node("a", None, None, None)  # freed, but no document shows it
    assert (await world.planned("one")).rendered == first.rendered is not None
    assert world.rendered == []


async def test_a_plan_that_the_worker_chose_without_rendering_it_is_rendered_once(world):
    world.node("a", None, None)
    world.service("one")
    world.renders_itself = False
    first = await world.planned("one")
    assert (await world.planned("one")).rendered == first.rendered is not None
    assert world.rendered == [first.choice.plan]


async def test_a_suspended_services_plan_is_rendered_again_when_the_facts_of_its_nodes_change(world, make):
    world.node("a", None, None)
    world.service("one", plan=make.plan(nodes=("a",)), suspend=True)
    world.deployed("one", replicas=0)
    first = await world.planned("one")
    assert await world.planned("one") == first
    assert len(world.rendered) == 1
    world.node("a", None, None, product="Other")
    assert (await world.planned("one")).rendered != first.rendered
    assert len(world.rendered) == 2


async def test_nothing_is_rendered_for_a_service_without_a_plan(world):
    world.service("one")
    assert await world.planned("one") == (await world.plan("one"), None)
    assert world.rendered == []


@pytest.fixture
def background(world):
    """The same world, whose passes do not wait for searches; which services were told of the end of one."""
    world.told = asyncio.Queue()
    world.planning = Planning(world.cache, world, workers=2, on_planned=world.told.put_nowait)
    return world


async def test_a_pass_does_not_wait_for_a_search_and_is_told_of_its_end(background):
    background.node("a", None, None)
    background.service("one")
    assert await background.planned("one") is None
    assert await background.planned("one") is None
    assert await background.told.get() == Key("ns", "one")
    assert (await background.plan("one")).plan is not None
    assert len(background.requests) == 1


async def test_more_replicas_are_had_at_once_while_their_plan_is_sought(background):
    background.node("a", *[None] * 8)
    background.service("one")
    assert await background.planned("one") is None
    await background.told.get()
    chosen = (await background.planned("one")).choice.plan
    document = background.service("one", plan=chosen, replicas=2)
    document["metadata"]["generation"] += 1
    background.put(LLMSERVICE, document)
    background.deployed("one")
    background.gate.clear()
    planned = await background.planned("one")
    assert planned.choice.plan == chosen
    assert planned.rendered is not None
    background.gate.set()
    await background.told.get()


async def test_a_service_that_is_deleted_while_it_is_planned_is_promised_nothing(background):
    background.node("a", None, None)
    background.service("one")
    background.gate.clear()
    assert await background.planned("one") is None
    await background.asked(1)
    background.planning.forget(Key("ns", "one"))
    await background.told.get()
    background.gate.set()
    background.service("two")
    assert await background.planned("two") is None
    await background.told.get()
    assert (await background.plan("two")).plan is not None


async def test_a_search_that_failed_is_told_by_the_next_pass(background):
    class PlannerGone(Exception):
        pass

    async def gone(_):
        raise PlannerGone

    background.answer = gone
    background.node("a", None, None)
    background.service("one")
    assert await background.planned("one") is None
    await background.told.get()
    with pytest.raises(PlannerGone):
        await background.planned("one")


async def test_a_plan_that_its_search_did_not_render_is_rendered_after_the_search_has_given_up_its_turn(world):
    world.told = asyncio.Queue()
    world.planning = Planning(world.cache, world, workers=1, on_planned=world.told.put_nowait)
    world.renders_itself = False
    world.node("a", None, None)
    world.service("one")
    assert await world.planned("one") is None
    async with asyncio.timeout(5):
        assert await world.told.get() == Key("ns", "one")
    assert (await world.planned("one")).rendered is not None
    assert len(world.rendered) == 1


async def test_a_service_that_is_made_again_while_its_former_search_ends_has_one_search(world):
    world.told = asyncio.Queue()
    world.planning = Planning(world.cache, world, workers=2, on_planned=world.told.put_nowait)
    world.node("a", None, None)
    document = world.service("one")
    world.gate.clear()
    assert await world.planned("one") is None
    await world.asked(1)
    world.cache.remove(LLMSERVICE, document)
    world.planning.forget(Key("ns", "one"))
    world.service("one")
    assert await world.planned("one") is None
    await world.asked(2)
    assert await world.planned("one") is None
    world.gate.set()
    async with asyncio.timeout(5):
        while (planned := await world.planned("one")) is None:
            await world.told.get()
    assert planned.choice.plan is not None
    assert len(world.requests) == 2
