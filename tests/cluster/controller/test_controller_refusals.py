"""Errors that only the controller can detect become a condition before any pod exists."""

from __future__ import annotations

import pytest

from helpers.sizes import GIB
from uellm.errors import PlanError
from uellm.kube import POD, Invalid


@pytest.fixture
async def refused(operator, service, gpu_node):
    """Apply a spec on a node with two GPUs and return the resulting condition."""

    async def look(**spec):
        await gpu_node([24 * GIB, 24 * GIB])
        llama = await service(**spec)
        watching = operator()
        await watching.settle("llama")
        assert await llama.children() == []
        assert await watching.step("llama") == []
        ready = await llama.condition("Ready")
        assert ready[0] == "False"
        return ready[1], ready[2], (await llama.condition("Stalled"))[0], llama

    return look


def model(**config):
    return {"uri": "pvc://models/llama", "config": {"architectures": ["LlamaForCausalLM"], **config}}


async def test_an_unknown_architecture_is_an_invalid_model(refused):
    unknown = model(architectures=["NobodysForCausalLM"], model_type="nobodys")
    reason, message, stalled, llama = await refused(model=unknown)
    assert (reason, stalled) == ("InvalidModel", "True")
    assert "NobodysForCausalLM" in message
    assert message.startswith("spec.model.config.architectures")
    assert (await llama.condition("Planned"))[1] == "InvalidModel"


async def test_an_unreadable_config_is_an_invalid_model(refused):
    reason, message, _, _ = await refused(model=model(hidden_size="many"))
    assert reason == "InvalidModel"
    assert "hidden_size" in message


async def test_files_in_the_engine_s_image_cannot_be_read_before_it_starts(refused):
    reason, message, stalled, llama = await refused(model={"uri": "file:///models/llama"})
    assert (reason, stalled) == ("NotOnVolume", "True")
    assert message.endswith("put the model's config.json into spec.model.config")
    assert (await llama.condition("ModelAccessible"))[:2] == ("False", "NotOnVolume")


async def test_code_of_the_repository_is_run_only_if_the_user_trusts_it(refused):
    code = model(architectures=["TheirsForCausalLM"], auto_map={"AutoConfig": "configuration_theirs.TheirsConfig"})
    reason, message, stalled, _ = await refused(model=code)
    assert (reason, stalled) == ("NeedsRemoteCode", "True")
    assert message == (
        "'TheirsForCausalLM' is no class of the engine, and pvc://models/llama brings code of its own for it: set "
        "spec.model.trustRemoteCode if you trust that code"
    )


async def test_no_node_is_large_enough(operator, service, gpu_node):
    await gpu_node([4 * GIB])
    llama = await service()
    await operator().settle("llama")
    assert (await llama.condition("Planned"))[:2] == ("False", "NoFit")
    assert (await llama.condition("Stalled"))[0] == "False"
    assert await llama.children() == []


@pytest.mark.parametrize(
    "parallelism",
    [{"layers": [1, 2]}, {"pipeline": 3, "layers": [16, 16]}, {"tensor": 5}],
    ids=["wrong sum", "wrong count", "indivisible"],
)
async def test_an_impossible_override_is_refused(refused, parallelism):
    reason, _, stalled, _ = await refused(parallelism=parallelism)
    assert (reason, stalled) == ("InvalidOverride", "True")


@pytest.mark.parametrize(
    ("spec", "part"),
    [
        ({"volumes": [{"name": "x", "hostPath": {}}]}, "volumes"),
        ({"containers": [{"name": "other"}]}, "image"),
        ({"restartPolicy": "Never"}, "restartPolicy"),
        ({"noSuchField": 1}, "noSuchField"),
        ({"containers": [{"name": "engine", "resources": {"limits": {"memory": "lots"}}}]}, "quantities"),
        ({"priority": "high"}, "priority"),
        ({"containers": "engine"}, "spec.template.spec.containers"),
    ],
    ids=["volume", "no image", "policy", "unknown field", "quantity", "type", "unmergeable"],
)
async def test_a_template_that_is_not_a_pod_has_the_servers_message(refused, spec, part):
    reason, message, stalled, llama = await refused(template={"spec": spec})
    assert (reason, stalled) == ("InvalidTemplate", "True")
    assert part in message
    assert (await llama.condition("Planned"))[0] == "True"


async def test_a_refused_template_holds_no_gpus(operator, service, gpu_node):
    await gpu_node([24 * GIB])
    await service("wrong", template={"spec": {"noSuchField": 1}})
    right = await service("right")
    watching = operator()
    await watching.settle("wrong", "right")
    assert (await right.condition("Planned"))[0] == "True"


async def test_a_corrected_template_goes_on(operator, service, gpu_node):
    await gpu_node([24 * GIB])
    llama = await service(template={"spec": {"noSuchField": 1}})
    watching = operator()
    await watching.settle("llama")
    await llama.change(lambda spec: spec.update(template={"spec": {"priorityClassName": ""}}))
    await watching.settle("llama")
    assert len(await llama.children()) == 4
    assert (await llama.condition("Stalled"))[0] == "False"


async def test_a_wrong_change_leaves_the_pods_and_may_still_suspend_them(operator, service, gpu_node):
    await gpu_node([24 * GIB])
    llama = await service()
    watching = operator()
    await watching.settle("llama")
    before = (await llama.deployment())["spec"]["template"]
    await llama.change(lambda spec: spec.update(template={"spec": {"noSuchField": 1}}))
    await watching.settle("llama")
    assert (await llama.condition("Ready"))[1] == "InvalidTemplate"
    assert (await llama.deployment())["spec"]["template"] == before
    await llama.change(lambda spec: spec.update(suspend=True))
    await watching.settle("llama")
    assert (await llama.deployment())["spec"]["replicas"] == 0
    assert (await llama.deployment())["spec"]["template"] == before


async def test_documents_that_the_schema_refuses_never_reach_the_operator(service, kube, namespace):
    with pytest.raises(Invalid, match=r"spec\.rollout"):
        await service(rollout={"maxSurge": 0, "maxUnavailable": 0})
    assert await kube.list(POD, namespace) == []


EMBEDDER = model(
    architectures=["BertModel"],
    model_type="bert",
    hidden_size=384,
    num_hidden_layers=6,
    num_attention_heads=12,
    intermediate_size=1536,
    vocab_size=30522,
    max_position_embeddings=512,
)


async def test_a_target_that_the_pods_would_take_over_is_refused_and_the_pods_stay(operator, service, gpu_node):
    await gpu_node([24 * GIB])
    llama = await service(model=EMBEDDER, slo={"classes": [{"name": "search", "e2e": "1s"}]})
    watching = operator()
    await watching.settle("llama")
    before = (await llama.status())["revision"]
    await llama.change(lambda spec: spec["slo"]["classes"][0].update(tpot="50ms"))
    await watching.settle("llama")
    status, reason, message = await llama.condition("Planned")
    assert (status, reason) == ("False", "InvalidTargets")
    assert message.startswith("spec.slo.classes[0].tpot of class search: a service with task Embed writes no tokens")
    assert (await llama.status())["revision"] == before
    assert (await llama.deployment())["spec"]["replicas"] == 1
    await llama.change(lambda spec: spec["slo"]["classes"][0].pop("tpot"))
    await watching.settle("llama")
    assert (await llama.condition("Planned"))[:2] == ("True", "Planned")


async def test_a_service_that_an_earlier_release_accepted_goes_on(operator, service, gpu_node, monkeypatch):
    await gpu_node([24 * GIB])
    llama = await service()
    await operator().settle("llama")

    def stricter(*args, **kwargs):
        raise PlanError("InvalidModel", "this release knows better")

    monkeypatch.setattr("uellm.reconcile.planning.planning.architecture_of", stricter)
    later = operator()
    await later.settle("llama")
    assert (await llama.condition("Planned"))[:2] == ("True", "Planned")
    await llama.change(lambda spec: spec["engine"].update(args=["--enforce-eager"]))
    await later.settle("llama")
    assert await llama.condition("Planned") == ("False", "InvalidModel", "this release knows better")
    assert (await llama.deployment())["spec"]["replicas"] == 1


@pytest.mark.parametrize(
    ("template", "expected", "field"),
    [
        ({"containers": [{"name": ["engine"]}]}, "InvalidTemplate", "containers[0].name"),
        ({"affinity": {"nodeAffinity": "none"}}, "InvalidSpec", "affinity.nodeAffinity"),
        ({"nodeSelector": ["zone"]}, "InvalidSpec", "nodeSelector"),
    ],
)
async def test_a_template_of_the_wrong_form_is_told_with_the_path_of_the_field(refused, template, expected, field):
    reason, message, stalled, _ = await refused(template={"spec": template})
    assert (reason, stalled) == (expected, "True")
    assert message.startswith(f"spec.template.spec.{field}: must be a ")
