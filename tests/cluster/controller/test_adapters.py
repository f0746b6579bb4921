"""LoRA adapters on the real API server: looked up by a pod, planned for, told to the sidecars, and what rolls.

The test plays the inspection pod, and says what the sidecars have loaded.
"""

from __future__ import annotations

import json

import pytest
import yaml

from helpers.models import LLAMA_8B
from helpers.sizes import GIB
from uellm.hub import LookUpRefusal, ModelFacts
from uellm.hub.adapter import AdapterFacts
from uellm.hub.document import to_document
from uellm.kube import POD
from uellm.kube.kinds import CONFIGMAP

COMMIT = "c0ffee" + "0" * 34
CONFIG = {**LLAMA_8B, "max_position_embeddings": 8192, "tie_word_embeddings": False}
BY_KWOK = {"placement": {"schedulerName": "default-scheduler"}}
MODEL = {"uri": "file:///models/llama", "config": CONFIG, "maxModelLen": 4096}
HIDDEN = LLAMA_8B["hidden_size"]


def adapter(name, rank=16, *, base="", hidden=HIDDEN, revision="main"):
    """What the pod finds of an adapter."""
    source = f"hf://org/{name}@{revision}"
    return AdapterFacts(name, source, COMMIT, rank, 1000, base, 2, (("q_proj", hidden, HIDDEN),))


class World:
    """A service, its operator, and its inspection pods as kwok runs them."""

    def __init__(self, operator, service, kube, namespace, eventually):
        self.operator, self.service, self.kube = operator, service, kube
        self.namespace, self.eventually = namespace, eventually

    async def running(self):
        async def found():
            pods = await self.kube.list(POD, self.namespace, label_selector="uellm.io/inspection=llama")
            alive = [pod for pod in pods if "deletionTimestamp" not in pod["metadata"]]
            return next((pod for pod in alive if pod["status"].get("phase") == "Running"), None)

        return await self.eventually(found)

    async def answer(self, found):
        """Let the pod that runs answer, and the operator take it."""
        pod = await self.running()
        self.operator.answers = {pod["status"]["podIP"]: to_document(found)}
        await self.operator.settle("llama")
        self.operator.answers = {}
        return pod

    async def change(self, llama, *found):
        """Give the service the adapters that are `found`, and let them be looked up."""
        entries = [{"name": each.name, "uri": each.source.partition("@")[0]} for each in found]
        await llama.change(lambda spec: spec["model"].update(adapters=entries))
        await self.operator.settle("llama")
        if found:
            await self.answer(ModelFacts("", {}, None, 0, found))

    async def sidecar_file(self):
        config = await self.kube.get(CONFIGMAP, "llama-config", self.namespace)
        return yaml.safe_load(config["data"]["sidecar.yaml"])

    async def told(self):
        return {each["name"]: each for each in (await self.sidecar_file()).get("adapters", ())}

    async def revision(self, llama):
        return (await llama.status())["revision"]


@pytest.fixture
async def world(operator, service, gpu_node, kube, namespace, eventually):
    await gpu_node([40 * GIB])
    return World(operator(), service, kube, namespace, eventually)


async def engine_args(llama):
    return json.loads((await llama.revision())["data"]["plan.json"])["engine"]["args"]


async def serving(world, *found):
    llama = await world.service(model=MODEL, **BY_KWOK)
    await world.operator.settle("llama")
    await world.eventually(lambda: is_ready(world, llama))
    await world.change(llama, *found)
    await world.eventually(lambda: is_ready(world, llama))
    return llama


async def is_ready(world, llama):
    world.operator.later(4)  # sidecars are asked every three seconds
    await world.operator.settle("llama")
    return (await llama.condition("Ready"))[0] == "True"


async def test_the_first_adapter_rolls_and_the_next_ones_are_told_to_the_pods_that_run(world):
    llama = await world.service(model=MODEL, **BY_KWOK)
    await world.operator.settle("llama")
    await world.eventually(lambda: is_ready(world, llama))
    assert "--enable-lora" not in await engine_args(llama)
    without = await world.revision(llama)

    await world.change(llama, adapter("sql"))
    await world.eventually(lambda: is_ready(world, llama))
    first = await world.revision(llama)
    assert first != without
    args = await engine_args(llama)
    assert "--enable-lora" in args
    assert args[args.index("--max-loras") + 1] == "4"
    assert args[args.index("--max-lora-rank") + 1] == "16"
    assert (await llama.plan())["adapters"] == {"slots": 4, "rank": 16}
    assert (await llama.plan())["stages"][0]["memory"]["adapters"] > 0
    assert await world.told() == {
        "sql": {"name": "sql", "source": "hf://org/sql@main", "repository": "org/sql", "commit": COMMIT}
    }

    await world.change(llama, adapter("sql"), adapter("chat", 8))
    await world.eventually(lambda: is_ready(world, llama))
    assert (set(await world.told()), await world.revision(llama)) == ({"sql", "chat"}, first)

    await world.change(llama, adapter("chat", 8))
    assert (set(await world.told()), await world.revision(llama)) == ({"chat"}, first)
    await world.change(llama)
    await world.eventually(lambda: is_ready(world, llama))
    assert (await world.told(), await world.revision(llama)) == ({}, first)


async def test_a_larger_rank_and_a_fifth_adapter_roll_and_twenty_do_not_roll_again(world):
    llama = await serving(world, adapter("a0"))
    first = await world.revision(llama)
    await world.change(llama, adapter("a0"), adapter("a1", 64))
    await world.eventually(lambda: is_ready(world, llama))
    second = await world.revision(llama)
    assert second != first
    assert (await llama.plan())["adapters"] == {"slots": 4, "rank": 64}
    await world.change(llama, *(adapter(f"a{number}") for number in range(5)))
    await world.eventually(lambda: is_ready(world, llama))
    third = await world.revision(llama)
    assert third != second
    assert (await llama.plan())["adapters"]["slots"] == 8
    await world.change(llama, *(adapter(f"a{number}") for number in range(20)))
    assert await world.revision(llama) == third
    assert len(await world.told()) == 20


@pytest.mark.parametrize(
    ("found", "reason", "message"),
    [
        (
            LookUpRefusal("NoSuchRepository", "adapter bad: https://hub/org/bad does not exist, or is private"),
            "NoSuchRepository",
            "adapter bad: https://hub/org/bad does not exist, or is private",
        ),
        (
            ModelFacts("", {}, None, 0, (adapter("sql"), adapter("bad", hidden=HIDDEN // 2))),
            "InvalidAdapter",
            f"adapter bad (hf://org/bad@main) is not of this model: its q_proj is for a hidden size of {HIDDEN // 2}, "
            f"and the model's is {HIDDEN}",
        ),
    ],
)
async def test_an_adapter_that_is_refused_leaves_the_others_served_and_says_why(world, found, reason, message):
    llama = await serving(world, adapter("sql"))
    first = await world.revision(llama)
    entries = [{"name": name, "uri": f"hf://org/{name}"} for name in ("sql", "bad")]
    await llama.change(lambda spec: spec["model"].update(adapters=entries))
    await world.operator.settle("llama")
    assert (await llama.condition("Ready"))[:2] == ("False", "Inspecting")
    await world.answer(found)
    assert await llama.condition("Ready") == ("False", reason, message)
    assert (await llama.condition("Stalled"))[0] == "True"
    assert (set(await world.told()), await world.revision(llama)) == ({"sql"}, first)


def sources(adapters):
    return {each["name"]: each["source"] for each in adapters}


async def test_a_wrong_letter_in_a_revision_leaves_the_adapter_served(world):
    llama = await serving(world, adapter("sql"))
    wrong = [{"name": "sql", "uri": "hf://org/sql", "revision": "v33"}]
    await llama.change(lambda spec: spec["model"].update(adapters=wrong))
    await world.operator.settle("llama")
    assert (await world.told())["sql"]["source"] == "hf://org/sql@main"
    await world.answer(LookUpRefusal("NoSuchRevision", "adapter sql: https://hub/org/sql has no v33"))
    assert (await llama.condition("Ready"))[:2] == ("False", "NoSuchRevision")
    assert (await world.told())["sql"]["source"] == "hf://org/sql@main"

    await llama.change(lambda spec: spec["model"]["adapters"][0].update(revision="v3"))
    await world.operator.settle("llama")
    await world.answer(ModelFacts("", {}, None, 0, (adapter("sql", revision="v3"),)))
    await world.eventually(lambda: is_ready(world, llama))
    assert (await world.told())["sql"]["source"] == "hf://org/sql@v3"


async def test_pods_of_a_former_model_keep_their_adapter_until_they_are_replaced(world):
    llama = await serving(world, adapter("sql"))

    def retrained(spec):
        spec["model"].update(uri="file:///models/next")
        spec["model"]["adapters"][0].update(revision="next")
        # There is one GPU: the pod of the new revision waits, and the old one stays.
        spec["rollout"] = {"maxSurge": 1, "maxUnavailable": 0}

    former = await world.revision(llama)
    await llama.change(retrained)
    await world.operator.settle("llama")
    assert sources((await world.sidecar_file())["adapters"]) == {"sql": "hf://org/sql@main"}
    pod = await world.running()
    retrained_sql = ModelFacts("", {}, None, 0, (adapter("sql", revision="next"),))
    world.operator.answers = {pod["status"]["podIP"]: to_document(retrained_sql)}
    await world.operator.write_out("llama")  # its rollout waits
    current = await world.revision(llama)
    assert current != former
    told = await world.sidecar_file()
    assert sources(told["adapters"]) == {"sql": "hf://org/sql@main"}
    [own] = told["revisionAdapters"]
    assert (own["revision"], sources(own["adapters"])) == (current, {"sql": "hf://org/sql@next"})

    await llama.change(lambda spec: spec.update(rollout={"maxSurge": 0, "maxUnavailable": 1}))
    await world.eventually(lambda: is_ready(world, llama))
    told = await world.sidecar_file()
    assert (sources(told["adapters"]), "revisionAdapters" in told) == ({"sql": "hf://org/sql@next"}, False)


async def test_ready_waits_until_every_pod_has_loaded_them_and_tells_the_engines_reason(world):
    llama = await serving(world, adapter("sql"))
    pods = await world.kube.list(POD, world.namespace, label_selector="uellm.io/service=llama")
    address = pods[0]["status"]["podIP"]
    known = await world.operator._sidecar(address)
    for report, reason, message in (
        ({"adapters": []}, "AdaptersLoading", "is loading adapter sql"),
        ({"failedAdapters": {"sql": "LoRA rank 64 is greater\nthan 8."}}, "AdapterFailed", "greater than 8."),
    ):
        world.operator.running = {address: {**known, "adapters": [], **report}}
        world.operator.later(700)
        await world.operator.settle("llama")
        status, found, told = await llama.condition("Ready")
        assert (status, found) == ("False", reason)
        assert told.endswith(message)
    world.operator.running = {}
    world.operator.later(10)
    await world.operator.settle("llama")
    assert (await llama.condition("Ready"))[0] == "True"


async def test_another_base_model_of_the_same_widths_is_a_warning(world):
    llama = await world.service(model={**MODEL, "uri": "hf://org/llama"}, **BY_KWOK)
    await world.operator.settle("llama")
    await world.change(llama, adapter("sql", base="org/other-llama"))
    assert "adapter sql says that it was trained on org/other-llama" in (await llama.condition("ModelAccessible"))[2]
    assert (await llama.condition("Planned"))[0] == "True"
