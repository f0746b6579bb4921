"""When a service is planned, with what it may use, and what it is promised."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest

from uellm.kube.kinds import GPUNODEPROFILE, LLMSERVICE, NODE, POD
from uellm.reconcile.names import Key
from uellm.reconcile.planning.records import IMPROVE_EVERY_S
from uellm.reconcile.planning.stranded import stranded_in_s
from uellm.reconcile.revisions import inputs_of


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


async def test_what_is_freed_during_a_search_is_offered_in_the_next_pass(world):
    world.node("a", "stranger", None)
    world.service("waits")
    world.gate.clear()
    search = asyncio.create_task(world.plan("waits"))
    await world.asked(1)
    world.node("a", None, None)
    world.gate.set()
    assert (await search).plan is None
    assert (await world.plan("waits")).plan is not None


async def test_a_promise_that_ends_during_a_search_is_offered_in_the_next_pass(world):
    world.node("a", None, None)
    world.service("one")
    world.service("waits")
    await world.plan("one")
    world.gate.clear()
    search = asyncio.create_task(world.plan("waits"))
    await world.asked(2)
    world.planning.withdraw(Key("ns", "one"))
    world.gate.set()
    assert (await search).plan is None
    assert (await world.plan("waits")).plan is not None


async def test_other_hardware_asks_the_planner_at_once(world):
    world.node("a", None, None)
    world.service("one")
    await world.plan("one")
    world.node("b", None, None)
    await world.plan("one")
    assert len(world.requests) == 2


async def test_hardware_that_changes_during_a_search_asks_the_planner_again_in_the_next_pass(world):
    world.node("a", None, None)
    world.service("one")
    world.gate.clear()
    search = asyncio.create_task(world.plan("one"))
    await world.asked(1)
    world.node("b", None, None)
    world.gate.set()
    await search
    await world.plan("one")
    assert len(world.requests) == 2


async def test_a_gpu_that_is_lost_after_a_pass_has_begun_does_not_hold_the_plan_in_force(world, make):
    world.node("a", None, None)
    world.service("one", plan=make.plan(nodes=("a",)))
    world.deployed("one")
    seen = world.observed("one")
    world.node("a", None, None, health={"state": "Quarantined"})
    (offer,) = world.planning.promises.hardware(seen)
    assert offer.free == ()


async def test_a_measurement_of_the_network_plans_nobody_anew_and_is_used_for_the_next_plan(world, make):
    network = [{"node": "b", "bytesPerSecond": 10**8, "roundTripNanoseconds": 60_000}]
    world.node("a", None, None, None, None)
    world.service("one")
    first = await world.plan("one")
    profile = make.profile("a", (None,) * 4)
    profile["status"]["network"] = network
    world.put(GPUNODEPROFILE, profile)
    assert await world.plan("one") == first
    world.now += timedelta(seconds=IMPROVE_EVERY_S)
    assert await world.plan("one") == first
    assert len(world.requests) == 1
    world.service("two")
    await world.plan("two")
    assert [link.bytes_per_s for link in world.requests[-1].nodes[0].node.network] == [10**8]


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
    assert (await world.plan("one")).failure.reason == "ModelUnknown"
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


async def test_a_node_whose_profile_nobody_keeps_is_told_and_takes_no_new_plan(world):
    world.node("a", None, None)
    world.cache.set_stale_profiles({"a": "its profile is old"})
    world.service("one")
    assert (await world.plan("one")).failure.reason == "NoFit"
    assert tuple(map(str, world.requests[-1].left_out)) == ("a: its profile is old",)
    world.cache.set_stale_profiles({})
    assert (await world.plan("one")).plan.nodes == ("a",)


async def test_a_node_whose_profile_nobody_keeps_keeps_the_plan_whose_pods_run_there(world, make):
    world.node("a", None, None)
    world.service("one", plan=make.plan(nodes=("a",)))
    world.deployed("one")
    world.cache.set_stale_profiles({"a": "its profile is old"})
    assert (await world.plan("one")).plan.nodes == ("a",)


class TestThePlaceOfPodsThatRun:
    """An edit is under way or was refused, and a pod that served is evicted meanwhile: its place stays promised."""

    @pytest.fixture
    async def edited(self, world, make):
        """A service of two GPUs on node a, after which its spec is changed and its pod is evicted."""

        async def edit(*gpus, replicas=1, **changed):
            world.node("a", *("uid-p",) * 2, *(None,) * (len(gpus) - 2))
            plan = make.plan(nodes=("a",))
            world.service("one", plan=plan)
            world.deployed("one", inputs=inputs_of(plan))
            world.pod("one", "p", make.pod(node="a"))
            world.planning.promises.restore()
            await world.plan("one")
            document = world.service("one", plan=plan, replicas=replicas, **changed)
            document["metadata"]["generation"] = 2
            world.put(LLMSERVICE, document)
            world.cache.remove(POD, make.pod("p") | {"metadata": {"name": "p", "namespace": "ns", "uid": "uid-p"}})
            world.node("a", *(None,) * len(gpus))
            return Key("ns", "one")

        return edit

    @pytest.mark.parametrize(
        ("changed", "reason"),
        [
            ({"slo": {"classes": "many"}}, "InvalidSpec"),
            ({"engine": {"env": [{"name": "CUDA_VISIBLE_DEVICES", "value": "1"}]}}, "InvalidOverride"),
        ],
    )
    async def test_it_is_kept_while_the_edit_is_refused(self, world, edited, changed, reason):
        await edited(0, 1, **changed)
        assert (await world.plan("one")).failure.reason == reason
        world.service("two")
        assert (await world.plan("two")).failure.reason == "NoFit"

    async def test_it_is_kept_though_the_operator_restarts_while_the_edit_is_refused(self, world, edited):
        await edited(0, 1, slo={"classes": "many"})
        await world.plan("one")
        world.planning = type(world.planning)(world.cache, world, workers=2)
        world.planning.promises.restore()
        assert (await world.plan("one")).failure.reason == "InvalidSpec"
        world.service("two")
        assert (await world.plan("two")).failure.reason == "NoFit"

    async def test_no_more_replicas_are_promised_than_the_deployment_has(self, world, edited):
        await edited(0, 1, replicas=2, slo={"classes": "many"})
        await world.plan("one")
        world.node("b", None, None)
        world.service("two")
        assert (await world.plan("two")).plan.nodes == ("b",)

    async def test_it_is_kept_while_a_smaller_plan_waits_to_be_carried_out(self, world, make, edited):
        key = await edited(0, 1, 2, engine={"args": ["--seed", "7"]})
        world.planning.promises.enter(key, make.plan(layers=(8,), nodes=("a",), devices=("a-g0",)))
        world.service("two")
        assert (await world.plan("two")).failure.reason == "NoFit"

    async def test_a_larger_plan_has_its_own_promise(self, world, make, edited):
        key = await edited(0, 1, 2, 3, engine={"args": ["--seed", "7"]})
        devices = ("a-g0", "a-g1", "a-g2")
        world.planning.promises.enter(key, make.plan(layers=(4, 2, 2), nodes=("a",), devices=devices))
        world.service("two")
        assert (await world.plan("two")).failure.reason == "NoFit"

    async def test_it_is_free_once_the_smaller_plan_is_carried_out(self, world, make, edited):
        key = await edited(0, 1, 2, engine={"args": ["--seed", "7"]})
        smaller = make.plan(layers=(8,), nodes=("a",), devices=("a-g0",))
        world.planning.promises.enter(key, smaller)
        document = world.service("one", plan=smaller, engine={"args": ["--seed", "7"]})
        document["metadata"]["generation"] = 2
        world.put(LLMSERVICE, document)
        world.deployed("one", inputs=inputs_of(smaller))
        world.planning.promises.runs(world.observed("one"))
        world.service("two")
        assert (await world.plan("two")).plan.nodes == ("a",)

    async def test_it_is_free_when_the_service_is_gone(self, world, edited):
        key = await edited(0, 1, slo={"classes": "many"})
        await world.plan("one")
        world.planning.forget(key)
        world.service("two")
        assert (await world.plan("two")).plan.nodes == ("a",)
