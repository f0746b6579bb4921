"""Plans that change with the hardware and with the GPUs that others take, and plans that do not."""

from __future__ import annotations

import pytest

from helpers.sizes import GIB
from uellm.kube import EVENT, GPUNODEPROFILE, POD

BY_KWOK = {"placement": {"schedulerName": "default-scheduler"}}


@pytest.fixture
def profile(kube):
    """Change a node's profile as its profiler would."""

    async def change(node, edit):
        document = await kube.get(GPUNODEPROFILE, node)
        edit(document["status"]["devices"])
        await kube.apply_status(
            {
                **{name: document[name] for name in ("apiVersion", "kind", "status")},
                "metadata": {"name": node},
            },
            manager="uellm-tests",
        )

    return change


def quarantine(index):
    def edit(devices):
        devices[index]["health"] = {"state": "Quarantined", "reason": "OffTheBus"}

    return edit


async def test_a_service_without_profiles_is_planned_when_there_is_one(operator, service, gpu_node):
    llama = await service()
    watching = operator()
    await watching.settle("llama")
    assert (await llama.condition("Planned"))[:2] == ("False", "NoProfile")
    assert (await llama.condition("Stalled"))[0] == "False"
    assert await llama.children() == []
    await gpu_node([24 * GIB])
    await watching.settle("llama")
    assert (await llama.condition("Planned"))[0] == "True"
    assert len(await llama.children()) == 4


async def test_a_quarantined_device_of_the_plan_makes_another_plan(operator, service, gpu_node, profile):
    node = await gpu_node([24 * GIB, 24 * GIB])
    llama = await service()
    watching = operator()
    await watching.settle("llama")
    (before,) = (await llama.plan())["stages"][0]["devices"]
    index = int(before.rsplit("-", 1)[1])
    await profile(node, quarantine(index))
    await profile(node, lambda devices: devices[1 - index].update(memoryBytes=40 * GIB))
    await watching.settle("llama")
    assert (await llama.condition("Planned"))[0] == "True"


async def test_hardware_that_no_longer_holds_the_plan_is_reported_and_pods_are_kept(
    operator, service, gpu_node, profile
):
    node = await gpu_node([24 * GIB])
    llama = await service()
    watching = operator()
    await watching.settle("llama")
    await profile(node, quarantine(0))
    await watching.settle("llama")
    assert (await llama.condition("Planned"))[0] == "False"
    assert len(await llama.children()) == 4
    assert (await llama.deployment())["spec"]["replicas"] == 1


async def test_new_measurements_change_the_plans_facts_and_never_the_pods(operator, service, gpu_node, profile):
    node = await gpu_node([12 * GIB, 12 * GIB])
    llama = await service()
    watching = operator()
    await watching.settle("llama")
    before = await llama.deployment()

    def slower(devices):
        for device in devices:
            device["measured"]["memoryBytesPerSecond"] //= 2

    await profile(node, slower)
    await watching.settle("llama")
    after = await llama.deployment()
    assert after["spec"]["template"] == before["spec"]["template"]
    assert after["metadata"]["generation"] == before["metadata"]["generation"]


async def test_a_plan_with_fewer_gpus_is_told_and_taken_only_where_the_service_says_so(operator, service, gpu_node):
    await gpu_node([12 * GIB, 12 * GIB])
    llama = await service()
    watching = operator()
    await watching.settle("llama")
    before = await llama.deployment()
    bigger = await gpu_node([24 * GIB])
    await watching.settle("llama")
    assert (await llama.plan())["gpusPerReplica"] == 2
    assert (await llama.deployment())["spec"]["template"] == before["spec"]["template"]
    status, reason, message = await llama.condition("BetterPlan")
    assert (status, reason) == ("True", "NotTaken")
    assert message.startswith("1 GPU a replica")
    watching.later(3600)
    await llama.change(lambda spec: spec.update(placement={"replan": "WhenBetter"}))
    await watching.settle("llama")
    plan = await llama.plan()
    assert (plan["gpusPerReplica"], plan["nodes"]) == (1, [bigger])
    assert (await llama.condition("BetterPlan"))[:2] == ("False", "NoneKnown")


async def test_another_node_that_would_do_as_well_moves_nothing(operator, service, gpu_node):
    await gpu_node([24 * GIB])
    llama = await service()
    watching = operator()
    await watching.settle("llama")
    before = await llama.deployment()
    await gpu_node([24 * GIB, 24 * GIB])
    await watching.settle("llama")
    now = await llama.deployment()
    # Only the next change, or a restart by hand, may take the room.
    assert now["spec"].pop("strategy")["rollingUpdate"] == {"maxSurge": 1, "maxUnavailable": 0}
    assert before["spec"].pop("strategy")["rollingUpdate"] == {"maxSurge": 0, "maxUnavailable": 1}
    assert now["spec"] == before["spec"]


async def test_two_services_are_never_planned_onto_the_same_gpu(operator, service, gpu_node):
    await gpu_node([24 * GIB])
    first, second = await service("first"), await service("second")
    watching = operator()
    await watching.settle("first", "second")
    assert (await first.condition("Planned"))[0] == "True"
    assert (await second.condition("Planned"))[:2] == ("False", "NoFit")
    assert await second.children() == []
    restarted = operator()
    await restarted.settle("second", "first")
    assert (await first.condition("Planned"))[0] == "True"
    assert (await second.condition("Planned"))[:2] == ("False", "NoFit")


async def test_gpus_of_a_service_that_goes_are_for_the_one_that_waits(operator, service, gpu_node):
    await gpu_node([24 * GIB])
    first, second = await service("first"), await service("second")
    watching = operator()
    await watching.settle("first", "second")
    await first.delete()
    await watching.step("first")
    await watching.settle("second")
    assert (await second.condition("Planned"))[0] == "True"


async def test_gpus_of_a_suspended_service_are_for_others(operator, service, gpu_node):
    await gpu_node([24 * GIB])
    first, second = await service("first"), await service("second")
    watching = operator()
    await watching.settle("first", "second")
    await first.change(lambda spec: spec.update(suspend=True))
    await watching.settle("first", "second")
    assert (await second.condition("Planned"))[0] == "True"


async def test_a_service_keeps_its_plan_when_its_own_pod_has_taken_the_gpus(
    operator, service, gpu_node, profile, kube, namespace, eventually
):
    node = await gpu_node([24 * GIB])
    llama = await service(**BY_KWOK)
    watching = operator()
    await watching.settle("llama")

    async def bound():
        return [pod for pod in await kube.list(POD, namespace) if pod["spec"].get("nodeName")]

    (pod,) = await eventually(bound)
    uid = pod["metadata"]["uid"]
    await profile(node, lambda devices: devices[0].update(allocatedTo={"podUID": uid}))
    await watching.settle("llama")
    await operator().settle("llama")
    assert (await llama.condition("Planned"))[0] == "True"
    assert (await llama.status())["placements"][0]["actual"] == [f"GPU-{node}-0"]


async def test_a_pod_whose_node_is_full_takes_another_that_fits_without_another_plan(
    operator, service, gpu_node, profile, kube, namespace, eventually
):
    taken = await gpu_node([24 * GIB])
    llama = await service(**BY_KWOK)
    watching = operator()
    await watching.step("llama")
    plan = await llama.plan()
    assert plan["nodes"] == [taken]
    await eventually(lambda: kube.list(POD, namespace))
    await kube.apply_status(
        {
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {"name": taken},
            "status": {"allocatable": {"nvidia.com/gpu": "0"}, "capacity": {"nvidia.com/gpu": "0"}},
        },
        manager="kubelet",
    )
    for pod in await kube.list(POD, namespace):
        await kube.delete(POD, pod["metadata"]["name"], namespace)
    await profile(taken, lambda devices: devices[0].update(allocatedTo={"podUID": "stranger"}))
    free = await gpu_node([24 * GIB])

    async def bound_elsewhere():
        await watching.step("llama")
        return free in [pod["spec"].get("nodeName") for pod in await kube.list(POD, namespace)]

    await eventually(bound_elsewhere)
    assert await llama.plan() == plan


async def test_a_pod_that_no_node_can_hold_for_a_minute_calls_for_another_plan(
    operator, service, gpu_node, profile, kube, namespace, eventually
):
    taken = await gpu_node([24 * GIB])
    llama = await service(**BY_KWOK)
    watching = operator()
    await watching.step("llama")
    await eventually(lambda: kube.list(POD, namespace))
    await kube.apply_status(
        {
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {"name": taken},
            "status": {"allocatable": {"nvidia.com/gpu": "0"}, "capacity": {"nvidia.com/gpu": "0"}},
        },
        manager="kubelet",
    )
    for pod in await kube.list(POD, namespace):
        await kube.delete(POD, pod["metadata"]["name"], namespace)
    await profile(taken, lambda devices: devices[0].update(allocatedTo={"podUID": "stranger"}))
    smaller = await gpu_node([12 * GIB, 12 * GIB])

    async def unschedulable():
        await watching.step("llama")
        return (await llama.condition("Ready"))[1] == "Unschedulable"

    await eventually(unschedulable)
    assert (await llama.plan())["nodes"] == [taken]
    watching.later(120)
    await watching.settle("llama")
    assert (await llama.plan())["nodes"] == [smaller]


async def test_a_plan_has_the_reason_why_it_was_made_or_replaced_another(operator, service, gpu_node, kube, namespace):
    await gpu_node([12 * GIB, 12 * GIB])
    llama = await service(placement={"replan": "WhenBetter"})
    watching = operator()
    await watching.settle("llama")
    first = await llama.plan()
    assert first["reason"] == "the first plan"
    assert first["profileHash"]
    assert first["binding"]
    await gpu_node([24 * GIB])
    watching.later(3600)
    await watching.settle("llama")
    second = await llama.plan()
    assert second["reason"].startswith("the former plan took 2 GPUs")
    assert second["profileHash"] != first["profileHash"]
    told = [event["note"] for event in await kube.list(EVENT, namespace) if event["reason"] == "Replanned"]
    assert told == [second["reason"]]


async def test_plans_do_not_alternate_when_measurements_vary(operator, service, gpu_node, profile):
    """Two equally good nodes whose measurements vary by some percent."""
    nodes = [await gpu_node([24 * GIB]), await gpu_node([24 * GIB])]
    llama = await service()
    watching = operator()
    await watching.settle("llama")
    before = await llama.deployment()
    for round_ in range(4):
        for index, node in enumerate(nodes):
            faster = 1.04 if (round_ + index) % 2 else 0.96

            def waver(devices, faster=faster):
                for device in devices:
                    device["measured"]["memoryBytesPerSecond"] = int(1e12 * faster)

            await profile(node, waver)
        watching.later(600)
        await watching.settle("llama")
    after = await llama.deployment()
    assert after["metadata"]["generation"] == before["metadata"]["generation"]


async def test_infeasible_targets_get_the_nearest_plan_and_are_reported(operator, service, gpu_node):
    node = await gpu_node([24 * GIB, 24 * GIB])
    classes = [{"name": "chat", "tpot": "8ms"}]
    llama = await service(slo={"classes": classes})
    await operator().settle("llama")
    status, reason, message = await llama.condition("SLOFeasible")
    assert (status, reason) == ("False", "TargetsTooTight")
    assert "TPOT 8.0 ms of class chat: the best for a lone request is" in message
    assert "x the memory bandwidth" in message
    plan = await llama.plan()
    assert plan["nodes"] == [node]
    assert plan["slo"]["feasible"] is False
    assert len(await llama.children()) == 4


async def test_pods_are_planned_only_where_their_template_lets_them_go(operator, service, gpu_node):
    await gpu_node([80 * GIB])
    labelled = await gpu_node([24 * GIB], labels={"pool": "llm"})
    llama = await service(template={"spec": {"nodeSelector": {"pool": "llm"}}})
    await operator().settle("llama")
    assert (await llama.plan())["nodes"] == [labelled]
    nowhere = await service("nowhere", template={"spec": {"nodeSelector": {"pool": "none"}}})
    await operator().settle("nowhere")
    status, reason, message = await nowhere.condition("Planned")
    assert (status, reason) == ("False", "NoFit")
    assert "nodeSelector wants pool=none" in message


async def test_a_service_without_room_is_on_the_list_of_those_that_wait_until_there_is_some(
    operator, service, gpu_node, profile
):
    node = await gpu_node([10 * GIB])
    llama = await service()
    watching = operator()
    await watching.settle("llama")
    assert (await llama.condition("Planned"))[:2] == ("False", "NoFit")
    assert [key.name for key in watching.waiting()] == ["llama"]
    await profile(node, lambda devices: devices[0].update(memoryBytes=40 * GIB))
    await watching.settle("llama")
    assert (await llama.condition("Planned"))[0] == "True"
    assert watching.waiting() == []
