"""A newer operator that renders pods differently leaves running pods unchanged until the spec changes."""

from __future__ import annotations

import importlib

from helpers.sizes import GIB

revision_module = importlib.import_module("uellm.reconcile.children.revision")


def newer_pod_template(monkeypatch):
    """From now on pod templates contain one more environment variable, as from a later version of the operator."""
    made = revision_module.pod_template

    def with_news(*arguments):
        template = made(*arguments)
        template["spec"]["containers"][0]["env"].append({"name": "NEWS", "value": "1"})
        return template

    monkeypatch.setattr(revision_module, "pod_template", with_news)


def environment(deployment) -> set[str]:
    return {entry["name"] for entry in deployment["spec"]["template"]["spec"]["containers"][0]["env"]}


async def test_a_newer_operator_keeps_the_pod_template_until_the_spec_changes(operator, service, gpu_node, monkeypatch):
    await gpu_node([24 * GIB])
    llama = await service()
    await operator().settle("llama")
    before = (await llama.deployment())["spec"]["template"]
    newer_pod_template(monkeypatch)
    newer = operator()
    assert await newer.step("llama") == []
    await llama.change(lambda spec: spec.update(replicas=0))
    await newer.settle("llama")
    assert (await llama.deployment())["spec"]["template"] == before
    await llama.change(lambda spec: spec["engine"].update(startupTimeout="5m"))
    await newer.settle("llama")
    assert "NEWS" in environment(await llama.deployment())


async def test_a_newer_operator_repairs_an_edited_pod_template_to_its_former_state(
    operator, service, gpu_node, kube, namespace, monkeypatch
):
    await gpu_node([24 * GIB])
    llama = await service()
    await operator().settle("llama")
    before = (await llama.deployment())["spec"]["template"]["spec"]["containers"][0]
    newer_pod_template(monkeypatch)
    await kube.apply(
        {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": {"name": "llama-engine", "namespace": namespace},
            "spec": {"template": {"spec": {"containers": [{"name": "engine", "image": "somebody/else:1"}]}}},
        },
        manager="somebody",
    )
    await operator().settle("llama")
    assert (await llama.deployment())["spec"]["template"]["spec"]["containers"][0] == before
