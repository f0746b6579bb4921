"""`spec.routing: InferencePool` with the real CRDs of the Gateway API and of its inference extension."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
import yaml

from helpers.sizes import GIB
from uellm.kube import CRD, NotFound
from uellm.kube.kinds import DEPLOYMENT, HTTPROUTE, INFERENCEPOOL, SERVICE
from uellm_devcluster.binaries import GATEWAY_API_VERSION, INFERENCE_EXTENSION_VERSION, module_files

pytestmark = pytest.mark.timeout(600)

POOL_CRD = "inferencepools.inference.networking.k8s.io"
ROUTE_CRD = "httproutes.gateway.networking.k8s.io"
BEHIND_GATEWAY = {
    "routing": "InferencePool",
    "inferencePool": {"gateways": [{"name": "public", "namespace": "infra"}], "hostnames": ["llama.example"]},
}


@pytest.fixture(scope="session")
def crds() -> dict[str, dict[str, Any]]:
    """The real CRDs by name."""
    extension = "sigs.k8s.io/gateway-api-inference-extension"
    paths = [
        *module_files(extension, INFERENCE_EXTENSION_VERSION, "config/crd/bases/*k8s.io_inferencepools.yaml"),
        *module_files("sigs.k8s.io/gateway-api", GATEWAY_API_VERSION, "config/crd/standard/*_httproutes.yaml"),
    ]
    found = [yaml.safe_load(path.read_text()) for path in paths]
    by_name = {crd["metadata"]["name"]: {**crd, "status": {}} for crd in found}
    return {name: by_name[name] for name in (POOL_CRD, ROUTE_CRD)}


@pytest.fixture
async def install(kube, crds, eventually):
    """`await install()` installs the CRDs; `await install(remove=True)` removes them with all of their objects."""

    async def served(kind):
        try:
            return await kube.list(kind) is not None
        except NotFound:
            return False

    async def change(*, remove=False):
        for name, crd in crds.items():
            kind = INFERENCEPOOL if name == POOL_CRD else HTTPROUTE
            if remove:
                await kube.delete(CRD, name)
                await eventually(lambda kind=kind: _not(served(kind)), timeout_s=90)
            else:
                await kube.apply({key: value for key, value in crd.items() if key != "status"}, manager="uellm-tests")
                await eventually(lambda kind=kind: served(kind), timeout_s=90)

    yield change
    await change(remove=True)


async def _not(answer):
    return not await answer


@pytest.fixture
async def routed(install, operator, service, gpu_node):
    """`await routed(**spec)`: a service whose InferencePool is made, and its operator."""

    async def make(**spec):
        await install()
        await gpu_node([24 * GIB])
        llama = await service(**{"routing": "InferencePool", **spec})
        watching = operator()
        await watching.settle("llama")
        return llama, watching

    return make


async def pool_of(llama):
    return await llama.kube.get(INFERENCEPOOL, llama.name, llama.namespace)


async def route_of(llama):
    return await llama.kube.get(HTTPROUTE, llama.name, llama.namespace)


async def test_the_pool_has_the_pods_of_the_service_and_the_route_leads_to_the_pool(routed):
    llama, watching = await routed(**BEHIND_GATEWAY)
    pool, route = await pool_of(llama), await route_of(llama)
    assert pool["spec"] == {
        "selector": {"matchLabels": {"uellm.io/service": "llama"}},
        "targetPorts": [{"number": 8000}],
        "endpointPickerRef": {
            "group": "",
            "kind": "Service",
            "name": "llama-epp",
            "port": {"number": 9002},
            "failureMode": "FailOpen",
        },
    }
    [parent] = route["spec"]["parentRefs"]
    assert (parent["namespace"], parent["name"]) == ("infra", "public")
    assert route["spec"]["hostnames"] == ["llama.example"]
    [backend] = route["spec"]["rules"][0]["backendRefs"]
    assert (backend["kind"], backend["name"]) == ("InferencePool", "llama")
    for child in (pool, route):
        assert child["metadata"]["ownerReferences"][0]["name"] == "llama"
    status, reason, message = await llama.condition("Routed")
    assert (status, reason) == ("True", "PoolMade")
    assert message == (
        "InferencePool llama names the endpoint picker llama-epp:9002; HTTPRoute llama attaches it to infra/public"
    )
    assert await watching.step("llama") == []
    # The Service stays.
    assert await llama.child(SERVICE)


async def test_back_and_forth_the_pool_goes_and_comes_and_no_pod_is_replaced(routed):
    llama, watching = await routed(**BEHIND_GATEWAY)
    template = (await llama.deployment())["spec"]["template"]
    for _ in range(2):
        await llama.change(lambda spec: spec.update(routing="Service"))
        await watching.settle("llama")
        assert await pool_of(llama) is None
        assert await route_of(llama) is None
        assert not [each for each in (await llama.status())["conditions"] if each["type"] == "Routed"]
        await llama.change(lambda spec: spec.update(routing="InferencePool"))
        await watching.settle("llama")
        assert await pool_of(llama)
        assert await route_of(llama)
    await llama.change(lambda spec: spec["inferencePool"].update(gateways=[], hostnames=[]))
    await watching.settle("llama")
    assert await route_of(llama) is None
    assert await pool_of(llama)
    assert (await llama.deployment())["spec"]["template"] == template


@pytest.mark.parametrize("kind", [INFERENCEPOOL, HTTPROUTE], ids=lambda kind: kind.kind)
async def test_what_belongs_to_others_is_not_touched_and_nothing_else_waits(
    install, operator, service, gpu_node, kube, namespace, kind
):
    await install()
    metadata = {"name": "llama", "namespace": namespace}
    specs = {
        INFERENCEPOOL: {
            "selector": {"matchLabels": {"app": "theirs"}},
            "targetPorts": [{"number": 1}],
            "endpointPickerRef": {"name": "theirs", "port": {"number": 2}},
        },
        HTTPROUTE: {"parentRefs": [{"name": "theirs"}]},
    }
    document = {"apiVersion": kind.api_version, "kind": kind.kind, "metadata": metadata, "spec": specs[kind]}
    theirs = await kube.create(document)
    await gpu_node([24 * GIB])
    llama = await service(**BEHIND_GATEWAY)
    watching = operator()
    await watching.settle("llama")
    status, reason, message = await llama.condition("Routed")
    assert (status, reason) == ("False", "NameTaken")
    assert message == (
        f"{kind.kind} llama exists and no LLMService owns it; it is not touched: delete it, or give this LLMService "
        "another name; the Service serves all the same"
    )
    assert await kube.get(kind, "llama", namespace) == theirs
    assert await llama.deployment()
    # A route would lead to the pool of others.
    assert (await route_of(llama) is None) is (kind == INFERENCEPOOL)
    await llama.change(lambda spec: spec.update(routing="Service"))
    await watching.settle("llama")
    assert await kube.get(kind, "llama", namespace) == theirs
    await llama.change(lambda spec: spec.update(routing="InferencePool"))
    await kube.delete(kind, "llama", namespace)
    await watching.settle("llama")
    assert (await llama.condition("Routed"))[:2] == ("True", "PoolMade")
    assert await route_of(llama)


async def test_two_services_have_pools_of_their_own(routed, service, gpu_node):
    llama, watching = await routed()
    await gpu_node([24 * GIB])
    other = await service("other", routing="InferencePool", inferencePool={"endpointPicker": {"name": "shared"}})
    await watching.settle("llama", "other")
    assert (await pool_of(other))["spec"]["selector"]["matchLabels"] == {"uellm.io/service": "other"}
    assert (await pool_of(other))["spec"]["endpointPickerRef"]["name"] == "shared"
    assert (await pool_of(llama))["spec"]["selector"]["matchLabels"] == {"uellm.io/service": "llama"}


async def test_a_gateway_that_does_not_take_the_pool_is_reported(routed, kube):
    llama, watching = await routed()
    pool = await pool_of(llama)
    condition = {
        "type": "ResolvedRefs",
        "status": "False",
        "reason": "InvalidExtensionRef",
        "message": "Service llama-epp not found",
        "lastTransitionTime": "2026-01-01T00:00:00Z",
        "observedGeneration": pool["metadata"]["generation"],
    }
    parents = [{"parentRef": {"name": "public"}, "conditions": [condition]}]
    kept = {name: pool["metadata"][name] for name in ("name", "namespace")}
    document = {"apiVersion": pool["apiVersion"], "kind": pool["kind"], "metadata": kept}
    await kube.apply_status({**document, "status": {"parents": parents}}, manager="gateway")
    await watching.settle("llama")
    assert await llama.condition("Routed") == (
        "False",
        "NotAccepted",
        "Gateway public does not take InferencePool llama: InvalidExtensionRef (Service llama-epp not found); the "
        "Service serves all the same",
    )


async def test_the_operator_finds_the_crds_when_they_come_and_when_they_go(
    controller, install, service, gpu_node, kube, planned, eventually
):
    await gpu_node([24 * GIB])
    process = controller()
    await eventually(lambda: asyncio.to_thread(process.ready), timeout_s=120)
    llama = await service(**BEHIND_GATEWAY)
    await planned(llama)

    async def condition(*expected):
        entries = (await llama.status()).get("conditions") or []
        found = [each for each in entries if each["type"] == "Routed"]
        return found and (found[0]["status"], found[0]["reason"]) == expected and found[0]["message"]

    message = await eventually(lambda: condition("False", "NotInstalled"), timeout_s=90)
    assert message == (
        "the cluster has no InferencePool (inference.networking.k8s.io/v1): install the CRDs of the Gateway API "
        "inference extension, and it is made within seconds; or set spec.routing to Service; the Service serves all "
        "the same"
    )
    assert (await llama.condition("Planned"))[0] == "True"

    await install()
    await eventually(lambda: condition("True", "PoolMade"), timeout_s=90)
    before = await pool_of(llama)

    # A pool that was edited by hand is put right, and one that was deleted is made again.
    metadata = {name: before["metadata"][name] for name in ("name", "namespace", "uid")}
    edited = {**before["spec"], "targetPorts": [{"number": 9}], "selector": {"matchLabels": {"uellm.io/service": "x"}}}
    document = {"apiVersion": before["apiVersion"], "kind": before["kind"], "metadata": metadata, "spec": edited}
    await kube.apply(document, manager="somebody")

    async def put_right():
        found = await pool_of(llama)
        return found is not None and found["spec"] == before["spec"]

    await eventually(put_right, timeout_s=90)
    await kube.delete(INFERENCEPOOL, "llama", llama.namespace)
    await eventually(put_right, timeout_s=90)

    deployment = await llama.child(DEPLOYMENT)
    await install(remove=True)
    await eventually(lambda: condition("False", "NotInstalled"), timeout_s=90)
    assert (await llama.child(DEPLOYMENT))["spec"] == deployment["spec"]
    await install()
    await eventually(lambda: condition("True", "PoolMade"), timeout_s=90)

    await llama.change(lambda spec: spec.update(routing="Service"))
    await eventually(lambda: _gone(llama), timeout_s=90)
    assert process.healthy()
    await asyncio.to_thread(process.end)
    assert "ERROR" not in process.text()


async def _gone(llama):
    return await pool_of(llama) is None and await route_of(llama) is None
