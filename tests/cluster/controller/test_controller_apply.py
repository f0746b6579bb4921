"""From `kubectl apply` to a plan, children and Ready."""

from __future__ import annotations

import json

import pytest
import yaml

from helpers.sizes import GIB
from uellm.kube import EVENT, POD, Conflict
from uellm.kube.kinds import CONFIGMAP, DEPLOYMENT, PDB, SERVICE

BY_KWOK = {"placement": {"schedulerName": "default-scheduler"}}  # kwok's pods run as soon as they have a node


async def test_one_apply_creates_a_plan_and_every_child(operator, service, gpu_node):
    node = await gpu_node([24 * GIB, 24 * GIB])
    llama = await service()
    await operator().settle("llama")
    plan = await llama.plan()
    assert plan["gpusPerReplica"] == 1
    assert plan["nodes"] == [node]
    assert (await llama.condition("Planned"))[:2] == ("True", "Planned")
    assert await llama.children() == ["ConfigMap", "Service", "PodDisruptionBudget", "Deployment"]
    assert (await llama.status())["summary"]["gpus"] == "1 = tp1 x pp1"


async def test_children_are_owned_so_that_kubernetes_deletes_them(operator, service, gpu_node):
    await gpu_node([24 * GIB])
    llama = await service()
    await operator().settle("llama")
    owner = (await llama.get())["metadata"]
    for kind in (CONFIGMAP, SERVICE, PDB, DEPLOYMENT):
        (reference,) = (await llama.child(kind))["metadata"]["ownerReferences"]
        assert (reference["uid"], reference["controller"]) == (owner["uid"], True)


async def test_the_pod_asks_for_what_was_planned_and_names_no_node(operator, service, gpu_node):
    node = await gpu_node([12 * GIB, 12 * GIB])
    llama = await service()
    await operator().settle("llama")
    template = (await llama.deployment())["spec"]["template"]
    engine = template["spec"]["containers"][0]
    assert engine["resources"]["limits"]["nvidia.com/gpu"] == "2"
    terms = template["spec"]["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    assert {"key": "uellm.io/gpu.count", "operator": "Gt", "values": ["1"]} in terms["nodeSelectorTerms"][0][
        "matchExpressions"
    ]
    assert json.loads(template["metadata"]["annotations"]["uellm.io/plan"])["gpus"] == 2
    assert node not in json.dumps(template)


async def test_one_configmap_holds_what_is_reloaded_and_another_what_pods_start_from(operator, service, gpu_node):
    await gpu_node([24 * GIB])
    classes = [{"name": "chat", "ttft": "1s", "priority": 5}]
    llama = await service(slo={"classes": classes}, scheduling={"policy": "FCFS"})
    await operator().settle("llama")
    data, revision = (await llama.child(CONFIGMAP))["data"], (await llama.revision())["data"]
    assert list(data) == ["sidecar.yaml"]
    assert json.loads(revision["plan.json"])["plan"]["layers"] == (await llama.plan())["layers"]
    assert yaml.safe_load(revision["engine.yaml"])["model"] == "llama"
    sidecar = yaml.safe_load(data["sidecar.yaml"])
    assert sidecar["defaultClass"] == "chat"
    assert sidecar["classes"] == [{"name": "chat", "priority": 5, "ttft": "1s", "onDeadline": "Serve"}]
    assert sidecar["scheduling"] == {"policy": "FCFS", "maxQueuedRequests": 1024, "predictor": "Online"}


async def test_a_second_pass_writes_nothing_and_neither_does_a_restarted_operator(operator, service, gpu_node):
    await gpu_node([24 * GIB])
    template = {
        "spec": {
            "nodeSelector": {},
            "volumes": [{"name": "models", "hostPath": {"path": "/models"}}],
            "containers": [
                {
                    "name": "engine",
                    "resources": {"limits": {"memory": "1024Mi"}, "requests": {"cpu": "1000m"}},
                    "volumeMounts": [{"name": "models", "mountPath": "/data", "readOnly": True}],
                    "env": [{"name": "EMPTY", "value": ""}],
                }
            ],
        }
    }
    await service(template=template, engine={"resources": {"requests": {"memory": "2048Mi"}}})
    first = operator()
    await first.settle("llama")
    assert await first.step("llama") == []
    assert await operator().step("llama") == []


async def test_pods_that_run_make_the_service_ready(operator, service, gpu_node, eventually):
    await gpu_node([24 * GIB])
    llama = await service(**BY_KWOK)
    watching = operator()

    async def ready():
        await watching.step("llama")
        return (await llama.condition("Ready"))[:2] == ("True", "Ready")

    await eventually(ready)
    assert (await llama.condition("Reconciling"))[0] == "False"
    assert (await llama.condition("Stalled"))[0] == "False"
    status = await llama.status()
    assert (status["readyReplicas"], status["summary"]["ready"]) == (1, "1/1")
    assert status["observedGeneration"] == (await llama.get())["metadata"]["generation"]


async def test_a_pod_that_no_node_can_take_is_unschedulable_in_the_schedulers_words(
    operator, service, gpu_node, eventually
):
    await gpu_node([24 * GIB])
    llama = await service(**BY_KWOK, engine={"resources": {"requests": {"cpu": "1000"}}})
    watching = operator()

    async def unschedulable():
        await watching.step("llama")
        return (await llama.condition("Ready"))[1] == "Unschedulable"

    await eventually(unschedulable)
    assert "Insufficient cpu" in (await llama.condition("Ready"))[2]
    assert (await llama.condition("Reconciling"))[0] == "True"


async def test_scaling_changes_the_number_and_not_the_pods(operator, service, gpu_node):
    await gpu_node([24 * GIB, 24 * GIB])
    llama = await service()
    watching = operator()
    await watching.settle("llama")
    before = (await llama.deployment())["spec"]
    await llama.change(lambda spec: spec.update(replicas=2))
    await watching.settle("llama")
    after = (await llama.deployment())["spec"]
    assert (before["replicas"], after["replicas"]) == (1, 2)
    assert after["template"] == before["template"]


async def test_a_plan_is_on_record_before_its_children_and_more_replicas_of_it_go_ahead(operator, service, gpu_node):
    await gpu_node([24 * GIB, 24 * GIB])
    llama = await service()
    watching = operator()
    assert (await watching.step("llama"))[0] == "status LLMService"
    await watching.settle("llama")
    await llama.change(lambda spec: spec.update(replicas=2))
    assert (await watching.step("llama"))[0] == "apply Deployment"
    await watching.settle("llama")
    await llama.change(lambda spec: spec.update(replicas=1))
    assert (await watching.step("llama"))[0] == "status LLMService"
    await watching.settle("llama")
    await llama.change(lambda spec: spec.update(replicas=2, scheduling={"maxQueuedRequests": 7}))
    writes = await watching.step("llama")
    assert writes.index("apply ConfigMap") < writes.index("apply Deployment"), "what the new pods mount comes first"
    await watching.settle("llama")
    await llama.change(lambda spec: spec.update(replicas=1))
    await watching.settle("llama")
    await llama.change(lambda spec: spec.update(replicas=2, engine={"args": ["--seed=7"]}))
    assert (await watching.step("llama"))[0] == "status LLMService"


async def test_more_replicas_that_cannot_be_written_do_not_keep_the_status_from_being_told(operator, service, gpu_node):
    await gpu_node([24 * GIB, 24 * GIB])
    llama = await service()
    watching = operator()
    await watching.settle("llama")
    await llama.change(lambda spec: spec.update(replicas=2))
    watching.kube.conflicts = 1
    with pytest.raises(Conflict):
        await watching.step("llama")
    assert (await llama.deployment())["spec"]["replicas"] == 1
    assert (await llama.status())["observedGeneration"] == (await llama.get())["metadata"]["generation"]
    await watching.settle("llama")
    assert (await llama.deployment())["spec"]["replicas"] == 2


async def test_suspending_removes_the_pods_and_keeps_the_plan(operator, service, gpu_node, kube, namespace, eventually):
    await gpu_node([24 * GIB])
    llama = await service(**BY_KWOK)
    watching = operator()
    await watching.settle("llama")
    plan = await llama.plan()
    await llama.change(lambda spec: spec.update(suspend=True))

    async def no_pods():
        await watching.step("llama")
        return (await llama.condition("Ready"))[1] == "Suspended" and not await kube.list(POD, namespace)

    await eventually(no_pods)
    assert await llama.plan() == plan
    assert (await llama.deployment())["spec"]["replicas"] == 0
    await llama.change(lambda spec: spec.update(suspend=False))
    await watching.settle("llama")
    assert (await llama.deployment())["spec"]["replicas"] == 1
    assert await llama.plan() == plan


async def test_a_changed_spec_is_rolled_out_and_not_ready_meanwhile(operator, service, gpu_node, eventually):
    await gpu_node([24 * GIB])
    llama = await service(**BY_KWOK)
    watching = operator()

    async def ready():
        await watching.step("llama")
        return (await llama.condition("Ready"))[0] == "True"

    await eventually(ready)
    await llama.change(lambda spec: spec.update(engine={"env": [{"name": "NEW", "value": "1"}]}))
    await watching.step("llama")
    assert (await llama.condition("Ready"))[:2] == ("False", "RollingOut")
    assert (await llama.status())["observedGeneration"] == 2
    await eventually(ready)
    engine = (await llama.deployment())["spec"]["template"]["spec"]["containers"][0]
    assert {"name": "NEW", "value": "1"} in engine["env"]


async def test_a_field_that_is_taken_out_of_the_spec_goes_from_the_pods(operator, service, gpu_node):
    await gpu_node([24 * GIB])
    llama = await service(engine={"env": [{"name": "OLD", "value": "1"}]})
    watching = operator()
    await watching.settle("llama")
    await llama.change(lambda spec: spec.update(engine={"env": []}))
    await watching.settle("llama")
    engine = (await llama.deployment())["spec"]["template"]["spec"]["containers"][0]
    assert "OLD" not in [each["name"] for each in engine["env"]]


async def test_going_back_to_the_first_spec_gives_the_first_state(operator, service, gpu_node):
    await gpu_node([24 * GIB, 24 * GIB])
    # In place: no kubelet makes a surge's pod ready here.
    llama = await service(rollout={"maxSurge": 0})
    watching = operator()
    await watching.settle("llama")
    first = await llama.state()
    spec = (await llama.get())["spec"]
    await llama.change(lambda spec: spec.update(engine={"args": ["--seed", "7"]}, rollout={"maxSurge": 1}))
    await watching.settle("llama")
    assert await llama.state() != first
    await llama.change(lambda changed: (changed.clear(), changed.update(spec)))
    await watching.settle("llama")
    second = await llama.state()
    # A Deployment keeps counting its revisions.
    for state in (first, second):
        state["Deployment"]["metadata"]["annotations"].pop("deployment.kubernetes.io/revision", None)
        state["Deployment"].pop("status"), state["status"].pop("conditions")
        # How replicas were replaced last depends on what was free then.
        state["Deployment"]["metadata"]["annotations"].pop("uellm.io/rollout", None)
        state["Deployment"]["spec"].pop("strategy")
    assert second == first


async def test_a_newer_operator_keeps_the_images_until_the_spec_changes(operator, service, gpu_node):
    from uellm.reconcile.children import Images

    await gpu_node([24 * GIB])
    llama = await service()
    await operator().settle("llama")
    before = (await llama.deployment())["spec"]["template"]
    newer = operator(images=Images(engine="engine:2", sidecar="sidecar:2", launcher="launcher:2"))
    assert await newer.step("llama") == []
    await llama.change(lambda spec: spec.update(replicas=0))
    await newer.settle("llama")
    assert (await llama.deployment())["spec"]["template"] == before
    await llama.change(lambda spec: spec["engine"].update(startupTimeout="5m"))
    await newer.settle("llama")
    pod = (await llama.deployment())["spec"]["template"]["spec"]
    images = [container["image"] for container in (*pod["initContainers"], *pod["containers"])]
    assert images == ["launcher:2", "sidecar:2", "engine:2"]


async def a_pods_address(kube, namespace):
    pods = await kube.list(POD, namespace)
    return next((pod["status"]["podIP"] for pod in pods if pod["status"].get("podIP")), None)


async def test_a_pods_report_becomes_its_placement(operator, service, gpu_node, kube, namespace, eventually):
    await gpu_node([12 * GIB, 12 * GIB, 12 * GIB])
    llama = await service(**BY_KWOK)
    watching = operator()
    await watching.settle("llama")

    address = await eventually(lambda: a_pods_address(kube, namespace))
    await watching.step("llama")
    assert (await llama.condition("PlacementVerified"))[:2] == ("Unknown", "NoReport")
    plan = await llama.plan()
    planned = [uuid for stage in plan["stages"] for uuid in stage["devices"]]
    report = {"devices": [{"uuid": uuid} for uuid in planned], "layers": plan["layers"]}
    watching.reports[address] = {**report, "tensor": plan["tensor"], "pipeline": plan["pipeline"]}
    watching.later(3)
    await watching.settle("llama")
    assert (await llama.condition("PlacementVerified"))[:2] == ("True", "AsPlanned")
    (placement,) = (await llama.status())["placements"]
    assert (placement["actual"], placement["matchesPlan"]) == (planned, "True")


async def test_measured_attainment_comes_into_status_once_a_minute_and_only_where_it_changed(
    operator, service, gpu_node, kube, namespace
):
    await gpu_node([24 * GIB])
    llama = await service(**BY_KWOK, slo={"classes": [{"name": "chat", "ttft": "1s"}]})
    watching = operator()
    await watching.serve("llama")
    address = await a_pods_address(kube, namespace)
    watching.measurements[address] = {
        "classes": [{"name": "chat", "requests": 1234, "met": 1230, "p99TtftSeconds": 0.5}]
    }
    watching.measured_at_s += 60
    await watching.settle("llama")
    status = await llama.status()
    assert status["slo"] == [{"name": "chat", "attainment": "99.6%", "p99TtftMilliseconds": 500, "requests": 1200}]
    assert status["summary"]["slo"] == "99.6%"
    assert (await llama.condition("SLOMet"))[:2] == ("True", "TargetsMet")
    watching.measurements[address] = {"classes": [{"name": "chat", "requests": 10, "met": 5}]}
    assert await watching.step("llama") == []
    watching.measured_at_s += 60
    assert await watching.step("llama") != []
    assert (await llama.condition("SLOMet"))[:2] == ("False", "TargetsMissed")
    watching.measured_at_s += 60
    assert await watching.step("llama") == []


async def test_each_transition_is_one_event(operator, service, gpu_node, kube, namespace):
    await gpu_node([24 * GIB])
    llama = await service()
    watching = operator()
    await watching.settle("llama")
    await operator().settle("llama")
    uid = (await llama.get())["metadata"]["uid"]
    events = [event for event in await kube.list(EVENT, namespace) if event["regarding"].get("uid") == uid]
    reasons = [event["reason"] for event in events]
    assert {"Planned", "Predicted"} <= set(reasons)
    assert len(reasons) == len(set(reasons))


async def test_a_new_number_of_replicas_is_written_without_a_trial_and_a_new_template_with_one(
    operator, service, gpu_node
):
    await gpu_node([24 * GIB, 24 * GIB])
    llama = await service()
    watching = operator()
    await watching.write_out("llama")
    tried = watching.kube.tried
    await llama.change(lambda spec: spec.update(replicas=2))
    await watching.write_out("llama")
    assert (await llama.deployment())["spec"]["replicas"] == 2
    assert watching.kube.tried == tried
    await llama.change(lambda spec: spec.update(template={"metadata": {"labels": {"team": "a"}}}))
    await watching.write_out("llama")
    assert watching.kube.tried > tried
