"""Every change reaches the pods, once: what rolls, what is reloaded, and what becomes of revisions."""

from __future__ import annotations

import json

import pytest
import yaml

from helpers.sizes import GIB
from uellm.kube.kinds import CONFIGMAP, DEPLOYMENT
from uellm.reconcile.children.former import former_spec_digest
from uellm.reconcile.drift import signed
from uellm.reconcile.field_effects import FIELD_EFFECTS
from uellm.reconcile.names import Key

BY_KWOK = {"placement": {"schedulerName": "default-scheduler"}}
# A change of each field, from the spec of `settled`; of those that the API server would not take with it, none.
CHANGES = {
    "model.uri": lambda spec: spec["model"].update(uri="file:///models/other"),
    "model.revision": lambda spec: spec["model"].update(revision="v2"),
    "model.servedName": lambda spec: spec["model"].update(servedName="other"),
    "model.config": lambda spec: spec["model"]["config"].update(num_key_value_heads=4),
    "model.tokenSecretRef.name": lambda spec: spec["model"].update(tokenSecretRef={"name": "other", "key": "token"}),
    "model.tokenSecretRef.key": lambda spec: spec["model"].update(tokenSecretRef={"name": "hf", "key": "other"}),
    "model.trustRemoteCode": lambda spec: spec["model"].update(trustRemoteCode=True),
    "model.dtype": lambda spec: spec["model"].update(dtype="float16"),
    "model.quantization": lambda spec: spec["model"].update(quantization="fp8"),
    "model.task": lambda spec: spec["model"].update(task="Embed"),
    "model.maxModelLen": lambda spec: spec["model"].update(maxModelLen=2048),
    "slo.attainment": lambda spec: spec["slo"].update(attainment="95%"),
    "slo.defaultClass": lambda spec: spec["slo"].update(defaultClass="batch"),
    "slo.classes[].name": lambda spec: spec["slo"]["classes"][1].update(name="bulk"),
    "slo.classes[].priority": lambda spec: spec["slo"]["classes"][0].update(priority=5),
    "slo.classes[].ttft": lambda spec: spec["slo"]["classes"][0].update(ttft="6s"),
    "slo.classes[].tpot": lambda spec: spec["slo"]["classes"][0].update(tpot="1s"),
    "slo.classes[].e2e": lambda spec: spec["slo"]["classes"][1].update(e2e="10m"),
    "slo.classes[].onDeadline": lambda spec: spec["slo"]["classes"][1].update(onDeadline="Reject"),
    "slo.objective": lambda spec: spec["slo"].update(objective="Latency"),
    "workload.requestsPerSecond": lambda spec: spec["workload"].update(requestsPerSecond="2"),
    "workload.promptTokens.mean": lambda spec: spec["workload"].update(promptTokens={"mean": 100}),
    "workload.promptTokens.p95": lambda spec: spec["workload"].update(promptTokens={"p95": 900}),
    "workload.outputTokens.mean": lambda spec: spec["workload"].update(outputTokens={"mean": 100}),
    "workload.outputTokens.p95": lambda spec: spec["workload"].update(outputTokens={"p95": 900}),
    "placement.replan": lambda spec: spec["placement"].update(replan="WhenBetter"),
    "scheduling.policy": lambda spec: spec.update(scheduling={"policy": "FCFS"}),
    "scheduling.maxQueuedRequests": lambda spec: spec.update(scheduling={"maxQueuedRequests": 7}),
    "scheduling.predictor": lambda spec: spec.update(scheduling={"predictor": "Off"}),
    "http.idleTimeout": lambda spec: spec.update(http={"idleTimeout": "10m"}),
    "http.maxBodyBytes": lambda spec: spec.update(http={"maxBodyBytes": 1000}),
    "http.routes[].path": lambda spec: spec["http"]["routes"][0].update(path="/v1/audio/translations"),
    "http.routes[].maxBodyBytes": lambda spec: spec["http"]["routes"][0].update(maxBodyBytes=2000),
    "auth.apiKeysSecretRef.name": lambda spec: spec.update(auth={"apiKeysSecretRef": {"name": "keys"}}),
    "placement.schedulerName": lambda spec: spec["placement"].update(schedulerName="other"),
    "engine.image": lambda spec: spec.update(engine={"image": "other:1"}),
    "engine.args": lambda spec: spec.update(engine={"args": ["--seed=7"]}),
    "engine.env[].name": lambda spec: spec.update(engine={"env": [{"name": "OTHER", "value": "1"}]}),
    "engine.env[].value": lambda spec: spec.update(engine={"env": [{"name": "A", "value": "2"}]}),
    "engine.resources.requests": lambda spec: spec.update(engine={"resources": {"requests": {"cpu": "3"}}}),
    "engine.resources.limits": lambda spec: spec.update(engine={"resources": {"limits": {"cpu": "64"}}}),
    "engine.startupTimeout": lambda spec: spec.update(engine={"startupTimeout": "10m"}),
    "template.metadata": lambda spec: spec.update(template={"metadata": {"labels": {"team": "b"}}}),
    "template.spec": lambda spec: spec.update(template={"spec": {"hostAliases": [{"ip": "10.1.1.1"}]}}),
    "rollout.maxSurge": lambda spec: spec.update(rollout={"maxSurge": 2, "maxUnavailable": 1}),
    "rollout.maxUnavailable": lambda spec: spec.update(rollout={"maxSurge": 1, "maxUnavailable": 2}),
    "autoscaling.minReplicas": lambda spec: spec.update(autoscaling={"minReplicas": 0, "maxReplicas": 1}),
    "autoscaling.maxReplicas": lambda spec: spec.update(autoscaling={"maxReplicas": 3}),
    "autoscaling.idleTimeout": lambda spec: spec.update(autoscaling={"maxReplicas": 3, "idleTimeout": "5m"}),
    "routing": lambda spec: spec.update(routing="InferencePool"),
    "inferencePool.endpointPicker.name": lambda spec: spec.update(inferencePool={"endpointPicker": {"name": "other"}}),
    "inferencePool.endpointPicker.port": lambda spec: spec.update(inferencePool={"endpointPicker": {"port": 9}}),
    "inferencePool.endpointPicker.failureMode": lambda spec: spec.update(
        inferencePool={"endpointPicker": {"failureMode": "FailClose"}}
    ),
    "inferencePool.gateways[].name": lambda spec: spec.update(inferencePool={"gateways": [{"name": "other"}]}),
    "inferencePool.gateways[].namespace": lambda spec: spec.update(
        inferencePool={"gateways": [{"name": "other", "namespace": "infra"}]}
    ),
    "inferencePool.gateways[].sectionName": lambda spec: spec.update(
        inferencePool={"gateways": [{"name": "other", "sectionName": "https"}]}
    ),
    "inferencePool.hostnames": lambda spec: spec.update(
        inferencePool={"gateways": [{"name": "other"}], "hostnames": ["llama.example"]}
    ),
    "suspend": lambda spec: spec.update(suspend=True),
    "replicas": lambda spec: spec.update(replicas=2),
    "parallelism.tensor": lambda spec: spec.update(parallelism={"tensor": 2}),
    "parallelism.pipeline": lambda spec: spec.update(parallelism={"pipeline": 2}),
    "parallelism.layers": lambda spec: spec.update(parallelism={"layers": [20, 12]}),
    "placement.policy": lambda spec: spec["placement"].update(policy="LR"),
    "placement.gpus.min": lambda spec: spec["placement"].update(gpus={"min": 2}),
    "placement.multiNode": lambda spec: spec["placement"].update(multiNode="Allowed"),
    "placement.gpus.max": lambda spec: spec["placement"].update(gpus={"max": 1}),
}
# `file://` models have no revision, and a plan may come out the same whatever it was asked for.
MAY_COME_OUT_THE_SAME = {
    "model.revision",
    "model.dtype",
    "placement.policy",
    "placement.gpus.max",
    "placement.multiNode",
}


@pytest.fixture
async def settled(operator, service, gpu_node):
    await gpu_node([24 * GIB] * 4)
    classes = [{"name": "chat", "ttft": "5s"}, {"name": "batch", "e2e": "5m"}]
    http = {"routes": [{"path": "/v1/audio/transcriptions", "maxBodyBytes": 1000}]}
    env = [{"name": "A", "value": "1"}]
    llama = await service(**BY_KWOK, slo={"classes": classes}, http=http, engine={"env": env})
    watching = operator()
    await watching.serve("llama")
    return llama, watching


async def running(llama):
    """What the pods are started with, and what their sidecars reload."""
    template = (await llama.deployment())["spec"]["template"]
    return template, (await llama.child(CONFIGMAP))["data"]["sidecar.yaml"]


def test_every_row_is_tried():
    # A cache is for models of a hub, and no engine starts before the copy is there: see test_model_cache. What a change
    # of an adapter does depends on the room that the engines have: see test_adapters.
    elsewhere = {path for path in FIELD_EFFECTS if path.startswith(("model.cache.", "model.adapters"))}
    assert set(CHANGES) == set(FIELD_EFFECTS) - {"placement.allocation"} - elsewhere


@pytest.mark.parametrize("path", CHANGES)
async def test_a_change_of_a_field_rolls_or_reloads_as_its_row_says(settled, path):
    llama, watching = settled
    template, reloaded = await running(llama)
    await llama.change(CHANGES[path])
    await watching.write_out("llama")
    assert (await llama.condition("Planned"))[0] == "True"
    after, reloaded_after = await running(llama)
    if path not in MAY_COME_OUT_THE_SAME:
        assert (after != template) is (FIELD_EFFECTS[path] == "rolls")
    assert (reloaded_after != reloaded) is (FIELD_EFFECTS[path] == "reloads")
    name = (await llama.status())["revision"]
    assert after["metadata"]["labels"]["uellm.io/revision"] == name
    assert (await llama.revision())["immutable"] is True


async def test_ready_waits_for_the_report_of_every_pod(settled, kube, namespace):
    llama, watching = settled
    assert (await llama.condition("Ready"))[:2] == ("True", "Ready")
    (pod,) = (await llama.status())["placements"]
    assert pod["revision"] == (await llama.status())["revision"]
    (address,) = {each["status"]["podIP"] for each in watching.cache.pods(_key(llama))}
    watching.running[address] = {"revision": pod["revision"], "configDigest": "old"}
    await llama.change(lambda spec: spec["slo"]["classes"][0].update(ttft="7s"))
    await watching.settle("llama")
    assert (await llama.condition("Ready"))[:2] == ("False", "Reloading")
    assert (await llama.condition("Reconciling"))[0] == "True"
    del watching.running[address]
    watching.later(10)
    await watching.settle("llama")
    assert (await llama.condition("Ready"))[:2] == ("True", "Ready")


async def test_the_same_content_again_has_the_same_name_and_of_others_three_are_kept(settled):
    llama, watching = settled
    first = (await llama.status())["revision"]
    for seed in range(6):
        await llama.change(lambda spec, seed=seed: spec.update(engine={"env": [{"name": "A", "value": f"x{seed}"}]}))
        await watching.settle("llama")
    kept = await llama.revisions()
    assert len(kept) == 1 + 3
    assert first not in kept
    await llama.change(lambda spec: spec.update(engine={"env": [{"name": "A", "value": "1"}]}))
    await watching.settle("llama")
    assert (await llama.status())["revision"] == first


async def test_a_revision_that_somebody_deletes_comes_back_with_its_content(settled, kube, namespace):
    llama, watching = settled
    before, deployment = await llama.revision(), await llama.deployment()
    await kube.delete(CONFIGMAP, before["metadata"]["name"], namespace)
    await watching.settle("llama")
    assert (await llama.revision())["data"] == before["data"]
    assert (await llama.deployment())["metadata"]["generation"] == deployment["metadata"]["generation"]


async def test_content_that_somebody_put_in_a_revisions_place_is_replaced(settled, kube, namespace):
    llama, watching = settled
    before = await llama.revision()
    await kube.delete(CONFIGMAP, before["metadata"]["name"], namespace)
    kept = {name: before["metadata"][name] for name in ("name", "namespace", "labels", "annotations")}
    owner = before["metadata"]["ownerReferences"]
    forged = {**before, "metadata": {**kept, "ownerReferences": owner}, "data": {"plan.json": "{}"}}
    await kube.create(forged)
    await watching.settle("llama")
    assert (await llama.revision())["data"] == before["data"]


async def test_a_foreign_configmap_of_a_revisions_name_is_never_taken_over(settled, kube, namespace):
    llama, watching = settled
    first, before = await llama.revision(), (await llama.deployment())["spec"]["template"]
    await llama.change(lambda spec: spec.update(engine={"args": ["--seed=9"]}))
    await watching.settle("llama")
    await llama.change(lambda spec: spec.update(engine={"env": [{"name": "A", "value": "1"}]}))
    await kube.delete(CONFIGMAP, first["metadata"]["name"], namespace)
    foreign = {"metadata": {"name": first["metadata"]["name"], "namespace": namespace}, "data": {"mine": "1"}}
    await kube.create({"apiVersion": "v1", "kind": "ConfigMap", **foreign})
    await watching.settle("llama")
    assert (await llama.condition("Ready"))[:2] == ("False", "NameTaken")
    assert (await kube.get(CONFIGMAP, first["metadata"]["name"], namespace))["data"] == {"mine": "1"}
    assert (await llama.deployment())["spec"]["template"] != before


async def test_a_deleted_deployment_comes_back_with_its_revision(settled, kube, namespace):
    llama, watching = settled
    before = await llama.deployment()
    await kube.delete(DEPLOYMENT, "llama-engine", namespace)
    await watching.settle("llama")
    assert (await llama.deployment())["spec"]["template"] == before["spec"]["template"]


@pytest.fixture
async def former(settled, kube, namespace):
    """The same service as a release without revisions left it."""
    llama, _ = settled
    document, live = await llama.get(), await llama.deployment()
    revision, plan = await llama.revision(), await llama.plan()
    template = json.loads(json.dumps(live["spec"]["template"]))
    del template["metadata"]["labels"]["uellm.io/revision"]
    spec = template["spec"]
    spec["volumes"] = [each for each in spec["volumes"] if each["name"] not in ("revision", "devices")]
    for container in (*spec["containers"], *spec["initContainers"]):
        mounts = container.get("volumeMounts") or []
        container["volumeMounts"] = [each for each in mounts if each["name"] not in ("revision", "devices")]
    layers = ",".join(str(count) for count in plan["layers"])
    shape = f"tp{plan['tensor']} pp{plan['pipeline']} layers {layers} on {','.join(plan['nodes'])}"
    pinned = json.dumps({"shape": shape, "template": template}, sort_keys=True, separators=(",", ":"))
    await kube.delete(DEPLOYMENT, "llama-engine", namespace)
    for name in await llama.revisions():
        await kube.delete(CONFIGMAP, f"llama-{name}", namespace)
    metadata = {name: live["metadata"][name] for name in ("name", "namespace", "labels", "ownerReferences")}
    metadata["annotations"] = {
        "uellm.io/owner": document["metadata"]["uid"],
        "uellm.io/spec": f"{document['metadata']['generation']}/{former_spec_digest(document['spec'])}",
        "uellm.io/images": json.dumps({"engine": "engine:0", "sidecar": "sidecar:0", "launcher": "launcher:0"}),
        "uellm.io/template": pinned,
    }
    body = {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": metadata}
    await kube.apply(signed({**body, "spec": {**live["spec"], "template": template}}), manager="uellm")
    config = await llama.child(CONFIGMAP)
    engine = yaml.safe_load(revision["data"]["engine.yaml"])
    sidecar = {**yaml.safe_load(config["data"]["sidecar.yaml"]), "model": "llama", "engine": engine["engine"]}
    data = {"sidecar.yaml": yaml.safe_dump(sidecar, sort_keys=False), "plan.json": revision["data"]["plan.json"]}
    kept = {name: config["metadata"][name] for name in ("name", "namespace", "labels", "ownerReferences")}
    kept["annotations"] = {"uellm.io/owner": document["metadata"]["uid"]}
    manifest = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": kept, "data": data}
    await kube.apply(signed(manifest), manager="uellm")
    status = {name: value for name, value in document["status"].items() if name != "revision"}
    kept = {name: document["metadata"][name] for name in ("name", "namespace")}
    await kube.apply_status(
        {**{name: document[name] for name in ("apiVersion", "kind")}, "metadata": kept, "status": status},
        manager="uellm",
    )
    return llama


async def test_an_upgrade_leaves_pods_of_a_release_without_revisions_alone(former, operator):
    before, data = (await former.deployment())["spec"]["template"], (await former.child(CONFIGMAP))["data"]
    await operator().serve("llama")
    assert (await former.deployment())["spec"]["template"] == before
    assert (await former.child(CONFIGMAP))["data"]["plan.json"] == data["plan.json"]
    assert await former.revisions() == set()
    assert (await former.condition("Ready"))[:2] == ("True", "Ready")
    await former.change(lambda spec: spec.update(replicas=2))
    await operator().settle("llama")
    assert (await former.deployment())["spec"]["template"] == before


async def test_former_pods_are_still_given_a_changed_queue(former, operator):
    await former.change(lambda spec: spec.update(scheduling={"policy": "EDF"}))
    before = (await former.deployment())["spec"]["template"]
    await operator().settle("llama")
    sidecar = yaml.safe_load((await former.child(CONFIGMAP))["data"]["sidecar.yaml"])
    assert sidecar["scheduling"]["policy"] == "EDF"
    assert sidecar["engine"]["maxNumSeqs"] > 0
    assert (await former.deployment())["spec"]["template"] == before


async def test_the_next_change_takes_former_pods_to_a_revision(former, operator):
    await former.change(lambda spec: spec.update(engine={"args": ["--seed=7"]}))
    watching = operator()
    await watching.settle("llama")
    assert len(await former.revisions()) == 1
    template = (await former.deployment())["spec"]["template"]
    assert template["metadata"]["labels"]["uellm.io/revision"] == (await former.status())["revision"]
    assert list((await former.child(CONFIGMAP))["data"]) == ["sidecar.yaml"]
    assert "uellm.io/template" not in (await former.deployment())["metadata"]["annotations"]


def _key(llama):
    return Key(llama.namespace, llama.name)
