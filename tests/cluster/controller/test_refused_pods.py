"""Pods that the API server does not let Kubernetes' own controllers create, as a real quota refuses them."""

from __future__ import annotations

from helpers.sizes import GIB
from uellm.kube.kinds import Kind

RESOURCE_QUOTA = Kind("v1", "ResourceQuota", "resourcequotas", True)


async def test_gpus_of_pods_that_a_quota_refuses_are_planned_for_others_after_a_minute(
    operator, service, gpu_node, kube, namespace, eventually
):
    await gpu_node([24 * GIB])
    quota = {"metadata": {"name": "none"}, "spec": {"hard": {"pods": "0"}}}
    await kube._transport.call("POST", RESOURCE_QUOTA.path(namespace=namespace), body=quota)
    llama, watching = await service(), operator()

    async def refused():
        await watching.write_out("llama")
        return (await llama.condition("Ready"))[1] == "PodsRefused"

    await eventually(refused)
    other = await service("other")
    await watching.write_out("other")
    assert (await other.condition("Planned"))[:2] == ("False", "NoFit")
    watching.later(120)
    for name in ("llama", "other"):
        await watching.write_out(name)
    assert (await other.condition("Planned"))[0] == "True"
