"""A model by its name alone, on the real API server: looked up by a pod, kept, planned with, and never asked twice.

The test plays the inspection pod: kwok lets it run, and the test gives its answer.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from helpers.checkpoints import llama_tensors
from helpers.hub_server import COMMIT as HUB_COMMIT
from helpers.hub_server import hub_server
from helpers.models import LLAMA_8B
from helpers.sizes import GIB
from uellm.hub import LookUpRefusal, ModelFacts
from uellm.hub.adapter import AdapterFacts
from uellm.hub.document import to_document
from uellm.kube import POD
from uellm.kube.kinds import CONFIGMAP
from uellm.reconcile.inspection.kept_facts import facts_configmap

COMMIT, LATER_COMMIT = "c0ffee" + "0" * 34, "beef" + "0" * 36
CONFIG = {**LLAMA_8B, "max_position_embeddings": 8192, "tie_word_embeddings": False}
FACTS = ModelFacts(COMMIT, CONFIG, llama_tensors(CONFIG), 4)
BY_NAME = {"uri": "hf://org/llama", "maxModelLen": 4096}
GATED = LookUpRefusal("Gated", "https://hub/org/llama is gated: accept its terms on that page")


class World:
    """A service, its operator, and its inspection pods as kwok runs them."""

    def __init__(self, make_operator, service, kube, namespace, eventually):
        self.restart = make_operator
        self.operator = make_operator()
        self.service, self.kube, self.namespace, self.eventually = service, kube, namespace, eventually

    async def pods(self):
        pods = await self.kube.list(POD, self.namespace, label_selector="uellm.io/inspection=llama")
        return [pod for pod in pods if "deletionTimestamp" not in pod["metadata"]]

    async def running(self, timeout_s=20.0):
        async def found():
            pods = await self.pods()
            return next((pod for pod in pods if (pod["status"].get("phase")) == "Running"), None)

        return await self.eventually(found, timeout_s=timeout_s)

    async def answer(self, found):
        """Let the pod that runs answer, and the operator take it."""
        pod = await self.running()
        self.operator.answers = {pod["status"]["podIP"]: to_document(found)}
        await self.operator.settle("llama")
        self.operator.answers = {}  # the next pod may have the same address
        return pod

    async def asked(self):
        """The service, with an inspection pod that runs."""
        llama = await self.service(model=BY_NAME)
        await self.operator.settle("llama")
        await self.running()
        return llama

    async def serving(self):
        """The service, planned with the facts that a pod has found."""
        llama = await self.asked()
        await self.answer(FACTS)
        assert (await llama.condition("Planned"))[0] == "True"
        return llama

    async def configmap(self):
        return await self.kube.get(CONFIGMAP, "llama-model", self.namespace)


@pytest.fixture
async def world(operator, service, gpu_node, kube, namespace, eventually):
    await gpu_node([24 * GIB])
    return World(operator, service, kube, namespace, eventually)


async def planned_engine(llama):
    return json.loads((await llama.revision())["data"]["plan.json"])["engine"]


async def test_a_name_alone_is_looked_up_by_a_pod_and_planned_with_its_commit(world):
    llama = await world.asked()
    status, reason, message = await llama.condition("ModelAccessible")
    assert (status, reason, message.startswith("the model is being looked up: ")) == ("Unknown", "Inspecting", True)
    assert (await llama.condition("Ready"))[1] == "Inspecting"
    assert (await llama.condition("Stalled"))[0] == "False"
    assert await llama.children() == []
    pod = await world.answer(FACTS)
    assert await llama.condition("ModelAccessible") == (
        "True",
        "Found",
        "commit c0ffee000000: 15.0 GiB in 4 safetensors files",
    )
    engine = await planned_engine(llama)
    assert (engine["model"], engine["revision"]) == ("org/llama", COMMIT)
    assert len(await llama.children()) == 4
    assert pod["metadata"]["name"] not in {each["metadata"]["name"] for each in await world.pods()}
    assert set((await world.configmap())["binaryData"]) == {"tensors.json.z"}


async def test_the_service_s_address_and_deployment_have_nothing_to_do_with_the_inspection_pod(world):
    await world.serving()
    pod = (await world.kube.list(POD, world.namespace, label_selector="uellm.io/service=llama"))[0]
    assert "uellm.io/inspection" not in pod["metadata"]["labels"]


async def test_a_pod_that_has_no_answer_yet_is_asked_again_soon(world):
    llama = await world.asked()
    pod = await world.running()
    world.operator.answers = {pod["status"]["podIP"]: {}}
    await world.operator.settle("llama")
    name = pod["metadata"]["name"]
    message = f"the model is being looked up: pod {name} reads its configuration and headers"
    assert (await llama.condition("ModelAccessible"))[2] == message
    await world.answer(FACTS)
    assert (await llama.condition("ModelAccessible"))[0] == "True"


async def test_a_refusal_is_told_and_asked_again_after_a_growing_delay(world):
    llama = await world.asked()
    await world.answer(GATED)
    assert await llama.condition("ModelAccessible") == ("False", "Gated", GATED.message)
    assert (await llama.condition("Ready"))[1:] == ("Gated", GATED.message)
    assert (await llama.condition("Stalled"))[0] == "True"
    assert await world.pods() == []
    for wait_s in (60, 120):
        world.operator.later(wait_s - 2)
        assert await world.operator.step("llama") == []
        world.operator.later(3)
        assert "create Pod" in await world.operator.step("llama")
        await world.answer(GATED)
    world.operator.later(601)
    await world.operator.settle("llama")
    await world.answer(FACTS)  # its terms were accepted
    assert (await llama.condition("ModelAccessible"))[0] == "True"
    assert (await llama.condition("Planned"))[0] == "True"


async def test_a_hub_that_limits_the_rate_says_when_it_is_asked_again(world):
    llama = await world.asked()
    await world.answer(LookUpRefusal("RateLimited", "ask again in 300 s", 300.0))
    assert (await llama.condition("ModelAccessible"))[:2] == ("False", "RateLimited")
    assert (await llama.condition("Stalled"))[0] == "False"
    world.operator.later(298)
    assert await world.operator.step("llama") == []
    world.operator.later(3)
    assert "create Pod" in await world.operator.step("llama")


async def test_a_changed_spec_is_looked_up_at_once_with_the_token_that_it_names(world):
    llama = await world.asked()
    await world.answer(GATED)
    token = {"name": "hub", "key": "token"}
    await llama.change(lambda spec: spec["model"].update(tokenSecretRef=token))
    assert "create Pod" in await world.operator.step("llama")
    (pod,) = await world.pods()
    environment = pod["spec"]["containers"][0]["env"]
    assert {"name": "HF_TOKEN", "valueFrom": {"secretKeyRef": token}} in environment


async def test_an_answer_that_is_nonsense_is_one_line(world):
    llama = await world.asked()
    pod = await world.running()
    world.operator.answers = {pod["status"]["podIP"]: {"facts": {"config": [], "commit": 7}}}
    await world.operator.settle("llama")
    status, reason, message = await llama.condition("ModelAccessible")
    assert (status, reason, "\n" in message) == ("False", "InvalidAnswer", False)
    assert await world.configmap() is None


async def test_an_operator_that_was_restarted_reads_the_facts_and_asks_nobody(world):
    llama = await world.serving()
    before = await llama.state()
    world.operator = world.restart()
    await world.operator.settle("llama")
    assert "create Pod" not in world.operator.kube.writes
    assert await llama.state() == before


async def test_an_operator_that_was_restarted_meanwhile_asks_the_pod_that_is_there(world):
    llama = await world.asked()
    (pod,) = await world.pods()
    world.operator = world.restart()
    await world.operator.settle("llama")
    assert [each["metadata"]["uid"] for each in await world.pods()] == [pod["metadata"]["uid"]]
    await world.answer(FACTS)
    assert (await llama.condition("Planned"))[0] == "True"


async def test_an_operator_that_dies_before_the_facts_are_written_is_continued_by_the_next_one(world, killed):
    llama = await world.asked()
    pod = await world.running()
    world.operator.answers = {pod["status"]["podIP"]: to_document(FACTS)}
    world.operator.kube.die_before = len(world.operator.kube.writes)
    with pytest.raises(killed):
        await world.operator.step("llama")
    world.operator = world.restart()
    await world.answer(FACTS)
    assert (await llama.condition("Planned"))[0] == "True"
    assert "create Pod" not in world.operator.kube.writes


SQL = {"name": "sql", "uri": "hf://org/sql"}
OF_MODEL = AdapterFacts("sql", "hf://org/sql@main", LATER_COMMIT, 16, 1000, "", 2, ())


@pytest.mark.parametrize("release", ["this", "earlier"])
async def test_an_adapter_that_is_added_is_asked_about_with_the_model_at_its_commit(world, release):
    llama = await world.serving()
    if release == "earlier":
        live = await world.configmap()
        source = json.loads(live["data"]["model.json"])["source"]
        kept = {name: live["metadata"][name] for name in ("name", "namespace", "labels", "ownerReferences")}
        await world.kube.delete(CONFIGMAP, "llama-model", world.namespace)
        await world.kube.create({**facts_configmap(await llama.get(), FACTS, source), "metadata": kept})
    world.operator = world.restart()
    await world.operator.settle("llama")
    await llama.change(lambda spec: spec["model"].update(adapters=[SQL]))
    await world.operator.settle("llama")
    pod = await world.answer(replace(FACTS, adapters=(OF_MODEL,)))
    arguments = pod["spec"]["containers"][0]["args"]
    assert [each for each in arguments if "hf://" in each] == [
        f"hf://org/llama@{COMMIT}",
        "--adapter=sql=hf://org/sql@main",
    ]
    assert (await planned_engine(llama))["revision"] == COMMIT
    assert await world.pods() == []

    await llama.change(lambda spec: spec["model"].update(revision="v2"))
    await world.operator.settle("llama")
    assert "hf://org/llama@v2" in (await world.running())["spec"]["containers"][0]["args"]


async def test_a_commit_that_a_rewritten_branch_has_lost_is_not_asked_for_again(world):
    llama = await world.serving()
    await llama.change(lambda spec: spec["model"].update(adapters=[SQL]))
    await world.operator.settle("llama")
    pod = await world.answer(LookUpRefusal("NoSuchRevision", f"https://hub/org/llama has no revision {COMMIT}"))
    assert f"hf://org/llama@{COMMIT}" in pod["spec"]["containers"][0]["args"]
    assert (await llama.condition("ModelAccessible"))[1] == "NoSuchRevision"
    world.operator.later(3600)
    await world.operator.settle("llama")
    pod = await world.answer(replace(FACTS, adapters=(OF_MODEL,)))
    assert "hf://org/llama@main" in pod["spec"]["containers"][0]["args"]
    assert (await llama.condition("ModelAccessible"))[0] == "True"


async def damage(world, how):
    """Delete the ConfigMap, or change its content."""
    live = await world.configmap()
    await world.kube.delete(CONFIGMAP, "llama-model", world.namespace)
    if how == "edited":
        kept = {name: live["metadata"][name] for name in ("name", "namespace", "labels", "ownerReferences")}
        data = {**live["data"], "config.json": "{}"}
        await world.kube.create({"apiVersion": "v1", "kind": "ConfigMap", "metadata": kept, "data": data})


@pytest.mark.parametrize("how", ["deleted", "edited"])
async def test_damaged_facts_are_written_again_and_roll_nobody(world, how):
    llama = await world.serving()
    before, kept = await llama.state(), await world.configmap()
    await damage(world, how)
    await world.operator.settle("llama")
    again = await world.configmap()
    assert (again["data"], again["binaryData"]) == (kept["data"], kept["binaryData"])
    assert await llama.state() == before
    assert await world.pods() == []


@pytest.mark.parametrize("how", ["deleted", "edited"])
async def test_facts_that_are_lost_with_the_operator_s_memory_are_looked_up_again_and_roll_nobody(world, how):
    llama = await world.serving()
    deployment, revision = await llama.deployment(), (await llama.status())["revision"]
    await damage(world, how)
    world.operator = world.restart()
    await world.operator.settle("llama")
    assert (await llama.condition("ModelAccessible"))[1] == "Inspecting"
    assert (await llama.condition("Planned"))[0] == "True"
    await world.answer(ModelFacts(LATER_COMMIT, CONFIG, llama_tensors(CONFIG), 4))  # its branch has moved meanwhile
    assert (await llama.condition("ModelAccessible"))[0] == "True"
    assert (await llama.deployment())["spec"] == deployment["spec"]
    assert (await llama.status())["revision"] == revision
    assert (await planned_engine(llama))["revision"] == COMMIT


async def test_pods_stay_while_a_changed_model_is_looked_up_and_then_are_replaced(world):
    llama = await world.serving()
    before = await llama.deployment()
    await llama.change(lambda spec: spec["model"].update(uri="hf://org/other"))
    await world.operator.settle("llama")
    assert (await llama.deployment())["spec"] == before["spec"]
    assert (await llama.condition("Ready"))[1] == "Inspecting"
    await world.answer(ModelFacts(LATER_COMMIT, CONFIG, None))
    sized = "commit beef00000000: sized by its configuration: no safetensors headers"
    assert (await llama.condition("ModelAccessible"))[2] == sized
    engine = await planned_engine(llama)
    assert (engine["model"], engine["revision"]) == ("org/other", LATER_COMMIT)
    assert (await llama.deployment())["spec"]["template"] != before["spec"]["template"]


async def test_a_given_configuration_is_used_as_it_is_and_ends_the_look_up(world):
    llama = await world.asked()
    await llama.change(lambda spec: spec["model"].update(config=CONFIG))
    await world.operator.settle("llama")
    assert await world.pods() == []
    assert (await llama.condition("ModelAccessible"))[:2] == ("Unknown", "NotAsked")
    assert (await planned_engine(llama))["revision"] == "main"


async def test_a_pod_that_is_evicted_is_told_in_the_kubelet_s_words_and_tried_again(world):
    llama = await world.asked()
    pod = await world.running()
    kept = {name: pod["metadata"][name] for name in ("name", "namespace", "uid")}
    evicted = {"phase": "Failed", "reason": "Evicted", "message": "The node was low on resource: memory."}
    failed = {"apiVersion": "v1", "kind": "Pod", "metadata": kept, "status": evicted}
    await world.kube.apply_status(failed, manager="kubelet")
    await world.operator.step("llama")
    status, reason, message = await llama.condition("ModelAccessible")
    assert (status, reason) == ("Unknown", "InspectionFailed")
    assert message.startswith(
        f"the model could not be looked up, which is tried again in 15 s: pod {kept['name']} failed: Evicted; The node "
        "was low on resource: memory."
    )
    world.operator.later(16)
    assert "create Pod" in await world.operator.step("llama")
    await world.answer(FACTS)
    assert (await llama.condition("Planned"))[0] == "True"


async def restrict(world):
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    strict = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": world.namespace, "labels": labels}}
    await world.kube.apply(strict, manager="user")


async def test_a_pod_that_the_api_server_refuses_is_told_in_its_words(world):
    await restrict(world)
    disk = {"name": "disk", "hostPath": {"path": "/data"}}
    engine = {"name": "engine", "volumeMounts": [{"name": "disk", "mountPath": "/data"}]}
    template = {"spec": {"volumes": [disk], "containers": [engine]}}
    llama = await world.service(model={"uri": "file:///data/llama", "maxModelLen": 4096}, template=template)
    await world.operator.settle("llama")
    status, reason, message = await llama.condition("ModelAccessible")
    assert (status, reason) == ("Unknown", "InspectionFailed")
    assert "the API server refuses the pod: " in message
    assert "restricted volume types" in message


async def test_the_pod_is_admitted_where_pod_security_is_restricted(world):
    await restrict(world)
    await world.asked()


async def test_a_claim_is_read_by_a_pod_that_mounts_it_read_only(world):
    llama = await world.service(model={"uri": "pvc://models/llama", "maxModelLen": 4096})
    await world.operator.step("llama")
    (pod,) = await world.pods()
    spec = pod["spec"]
    assert spec["containers"][0]["args"][:4] == [
        "inspect",
        "/models/llama",
        "--volume=/models",
        "--called=pvc://models/llama",
    ]
    assert spec["volumes"] == [{"name": "model", "persistentVolumeClaim": {"claimName": "models", "readOnly": True}}]

    # The claim does not exist, so no scheduler places the pod.
    async def told():
        await world.operator.step("llama")
        return 'persistentvolumeclaim "models" not found' in (await llama.condition("ModelAccessible"))[2]

    await world.eventually(told)
    assert (await llama.condition("ModelAccessible"))[1] == "Inspecting"


async def test_the_operator_s_process_fetches_what_the_pod_s_own_program_has_read(world, controller, planned, tmp_path):
    controller()
    llama = await world.service(model=BY_NAME)
    # The operator's process has to start first.
    address = (await world.running(timeout_s=60.0))["status"]["podIP"]  # kwok's addresses are on loopback
    with hub_server() as hub:
        hub.repository = "org/llama"
        hub.files = {"config.json": json.dumps(CONFIG).encode(), "pytorch_model.bin": b"x"}
        command = [str(Path(sys.executable).with_name("uellm")), "inspect", "hf://org/llama@main"]
        environment = {**os.environ, "HF_ENDPOINT": hub.url, "HF_TOKEN": ""}
        with (tmp_path / "log").open("wb") as log:
            listen = f"--listen={address}:8002"
            process = await asyncio.create_subprocess_exec(*command, listen, env=environment, stderr=log)
        try:
            await planned(llama)
        finally:
            process.terminate()
            await process.wait()
    assert (await llama.condition("ModelAccessible"))[:2] == ("True", "Found")
    assert (await planned_engine(llama))["revision"] == HUB_COMMIT

    async def gone():
        return not await world.pods()

    await world.eventually(gone)


IMAGE = "oci://registry:5000/org/llama:V2_b@sha256:" + "0a" * 32
VOLUME = {"reference": IMAGE.removeprefix("oci://"), "pullPolicy": "IfNotPresent"}


def image_of(spec):
    return next(each["image"] for each in spec["volumes"] if each["name"] == "model")


@pytest.mark.timeout(180)
async def test_a_model_that_is_an_image_is_read_and_served_from_a_volume_of_it(world):
    llama = await world.service(model={"uri": f"{IMAGE}#8b", "maxModelLen": 4096})
    await world.operator.settle("llama")
    pod = await world.running()
    assert image_of(pod["spec"]) == VOLUME
    await world.answer(ModelFacts("", CONFIG, llama_tensors(CONFIG), 4))
    assert await llama.condition("ModelAccessible") == ("True", "Found", "15.0 GiB in 4 safetensors files")
    assert image_of((await llama.deployment())["spec"]["template"]["spec"]) == VOLUME
    assert (await planned_engine(llama))["model"] == "/models/8b"


@pytest.mark.timeout(180)
@pytest.mark.parametrize("config", [None, CONFIG])
async def test_a_model_that_is_an_image_waits_for_a_server_that_can_mount_it(world, config):
    world.operator.kube.drops_image_volumes = True
    given = {} if config is None else {"config": config}
    llama = await world.service(model={"uri": IMAGE, "maxModelLen": 4096, **given})
    await world.operator.settle("llama")
    found = await llama.condition("ModelAccessible")
    assert (found[:2], found[2].partition(":")[0]) == (("False", "NoImageVolumes"), "oci")
    assert (await llama.condition("Ready"))[1] == "NoImageVolumes"
    assert (await llama.children(), await world.pods()) == ([], [])
    world.operator.kube.drops_image_volumes = False
    world.operator.later(601)
    await world.operator.settle("llama")
    assert (await llama.condition("ModelAccessible"))[1] == ("Inspecting" if config is None else "NotAsked")


@pytest.mark.timeout(180)
async def test_a_model_of_a_bucket_needs_its_configuration_and_is_planned_with_it(world):
    llama = await world.service(model={"uri": "s3://bucket/llama", "maxModelLen": 4096})
    await world.operator.settle("llama")
    message = (
        "s3://bucket/llama is in an object store, which the engine alone reads: put the model's config.json into "
        "spec.model.config"
    )
    assert await llama.condition("ModelAccessible") == ("False", "NotReadable", message)
    await llama.change(lambda spec: spec["model"].update(config=CONFIG))
    await world.operator.settle("llama")
    engine = await planned_engine(llama)
    assert engine["model"] == "s3://bucket/llama"
    assert ("--load-format", "runai_streamer") in zip(engine["args"], engine["args"][1:], strict=False)
    await llama.change(lambda spec: spec.update(engine={"args": ["--load-format", "dummy"]}))
    await world.operator.settle("llama")
    assert await llama.condition("Planned") == (
        "False",
        "InvalidOverride",
        "spec.engine.args: --load-format dummy cannot load s3://bucket/llama: leave it out, or take one of "
        "runai_streamer, runai_streamer_sharded, modelexpress",
    )
