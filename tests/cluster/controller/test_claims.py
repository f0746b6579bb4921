"""Services whose pods claim their GPUs: the real scheduler allocates what a made-up driver publishes."""

from __future__ import annotations

import uuid

import pytest

from helpers.dra import Gpu, device_class, profile, resource_slice
from helpers.sizes import GIB
from uellm.api.node_labels import own_labels
from uellm.hardware import DRA_DRIVER, Node
from uellm.kube.kinds import (
    CONFIGMAP,
    DEVICECLASS,
    GPUNODEPROFILE,
    NODE,
    POD,
    RESOURCECLAIM,
    RESOURCECLAIMTEMPLATE,
    RESOURCESLICE,
)
from uellm.reconcile.optional_kinds import Availability

CLAIMS = {"placement": {"allocation": "DRA"}}
LARGE = 'NVIDIA "Large" GPU, 24 GiB'
SMALL = "NVIDIA Small"
CAPACITY = {"cpu": "32", "memory": "256Gi", "pods": "110", "ephemeral-storage": "1Ti"}


def unlike(node, *, large=2, small=2, tag=""):
    """GPUs of which only the large ones hold the model."""
    kinds = [(LARGE, 24 * GIB)] * large + [(SMALL, 4 * GIB)] * small
    return [Gpu(f"GPU-{node}-{tag}{index}", product, size) for index, (product, size) in enumerate(kinds)]


@pytest.fixture
async def driver(kube):
    """NVIDIA's DeviceClass; the driver's own part is played by `publish`."""
    await kube.create(device_class())
    yield
    await kube.delete(DEVICECLASS, DRA_DRIVER)


@pytest.fixture
async def claim_node(kube, eventually):
    """`await claim_node(gpus_of)` makes a node whose GPUs a driver publishes, and returns its name."""
    made = []

    async def make(gpus_of=unlike, *, published=True):
        name = f"gpu-{uuid.uuid4().hex[:8]}"
        made.append(name)
        gpus = gpus_of(name)
        document = profile(name, gpus)
        labels = own_labels(Node.from_profile(document).devices, simulated=True)
        metadata = {
            "name": name,
            "annotations": {"kwok.x-k8s.io/node": "fake"},
            "labels": {"kubernetes.io/hostname": name, **labels},
        }
        status = {"capacity": CAPACITY, "allocatable": CAPACITY}
        await kube.create({"apiVersion": "v1", "kind": "Node", "metadata": metadata, "status": status})
        await kube.apply({key: document[key] for key in ("apiVersion", "kind", "metadata")}, manager="tests")
        await kube.apply_status(document, manager="tests")
        if published:
            await kube.apply(resource_slice(name, gpus), manager="driver")
        await eventually(lambda: schedulable(kube, name))
        return name

    yield make
    for name in made:
        await kube.delete(RESOURCESLICE, f"{name}-{DRA_DRIVER}")
        await kube.delete(NODE, name)
        await kube.delete(GPUNODEPROFILE, name)


async def schedulable(kube, name):
    node = await kube.get(NODE, name) or {}
    conditions = node.get("status", {}).get("conditions") or []
    ready = any(each["type"] == "Ready" and each["status"] == "True" for each in conditions)
    return ready and not node["spec"].get("taints")


async def claimed(kube, namespace, *, of=""):
    """What the claims hold, by the name of their pod."""
    slices = {each["spec"]["pool"]["name"]: each for each in await kube.list(RESOURCESLICE)}
    held = {}
    for claim in await kube.list(RESOURCECLAIM, namespace):
        allocation = (claim.get("status") or {}).get("allocation")
        owner = claim["metadata"]["ownerReferences"][0]["name"]
        if allocation and owner.startswith(of):
            held[owner] = [uuid_of(slices, result) for result in allocation["devices"]["results"]]
    return held


def uuid_of(slices, result):
    devices = slices[result["pool"]]["spec"]["devices"]
    return next(each["attributes"]["uuid"]["string"] for each in devices if each["name"] == result["device"])


async def templates(kube, namespace):
    return {each["metadata"]["name"]: each for each in await kube.list(RESOURCECLAIMTEMPLATE, namespace)}


async def all_claimed(kube, namespace, count, *, of=""):
    held = await claimed(kube, namespace, of=of)
    return held if len(held) == count else None


async def test_a_plan_that_a_device_plugin_cannot_carry_out_runs_by_a_claim(
    operator, service, driver, claim_node, kube, namespace, eventually
):
    node = await claim_node()
    llama = await service(placement={"gpus": {"max": 1}})
    watching = operator()
    await watching.settle("llama")
    refused = await llama.condition("Planned")
    assert refused[:2] == ("False", "NoFit")
    assert f"{node}: GPUs there can only be claimed: set spec.placement.allocation to DRA or Auto" in refused[2]

    await llama.change(lambda spec: spec["placement"].update(allocation="DRA"))
    await watching.write_out("llama")
    plan = await llama.plan()
    assert plan["allocation"] == "DRA"
    assert plan["stages"][0]["requires"]["product"] == LARGE
    (held,) = (await eventually(lambda: all_claimed(kube, namespace, 1))).values()
    assert [uuid[:-1] for uuid in held] == [f"GPU-{node}-"]
    assert held[0][-1] in "01"

    await watching.settle("llama")
    (placement,) = (await llama.status())["placements"]
    assert (placement["node"], placement["planned"], placement["actual"]) == (node, held, held)


async def test_a_pod_asks_by_its_claim_alone_and_the_clusters_own_scheduler_is_asked(
    operator, service, driver, claim_node, kube, namespace
):
    await claim_node()
    llama = await service(**CLAIMS)
    await operator().settle("llama")
    revision = (await llama.status())["revision"]
    pod = (await llama.deployment())["spec"]["template"]["spec"]
    (engine,) = pod["containers"]
    assert pod["schedulerName"] == "default-scheduler"
    assert pod["resourceClaims"] == [{"name": "gpus", "resourceClaimTemplateName": f"llama-{revision}"}]
    assert engine["resources"]["claims"] == [{"name": "gpus"}]
    assert not any("nvidia" in name for name in engine["resources"]["requests"])
    assert not pod.get("affinity")
    (template,) = (await templates(kube, namespace)).values()
    assert template["metadata"]["name"] == f"llama-{revision}"
    assert template["metadata"]["ownerReferences"][0]["kind"] == "LLMService"


async def test_every_replica_uses_the_one_template(operator, service, driver, claim_node, kube, namespace, eventually):
    first, second = await claim_node(), await claim_node()
    llama = await service(**CLAIMS, replicas=3)
    watching = operator()
    await watching.write_out("llama")
    held = await eventually(lambda: all_claimed(kube, namespace, 3))
    used = [uuid for uuids in held.values() for uuid in uuids]
    assert len(set(used)) == 3
    assert set(used) <= {f"GPU-{node}-{index}" for node in (first, second) for index in (0, 1)}
    assert len(await templates(kube, namespace)) == 1
    await watching.settle("llama")
    before = await llama.deployment()
    await llama.change(lambda spec: spec.update(replicas=1))
    await watching.settle("llama")
    assert (await llama.deployment())["spec"]["template"] == before["spec"]["template"]


async def test_a_gpu_that_replaces_another_is_claimed_by_the_same_template(
    operator, service, driver, claim_node, kube, namespace, eventually
):
    node = await claim_node(lambda name: unlike(name, large=1))
    llama = await service(**CLAIMS)
    watching = operator()
    await watching.settle("llama")
    await eventually(lambda: all_claimed(kube, namespace, 1))
    before = await llama.deployment()
    gpus = unlike(node, large=1, tag="new-")
    await kube.apply_status(profile(node, gpus), manager="tests")
    await kube.apply(resource_slice(node, gpus, generation=2), manager="driver")
    former = {pod["metadata"]["name"] for pod in await kube.list(POD, namespace)}
    for name in former:
        await kube.delete(POD, name, namespace, grace_s=0)

    async def is_claimed():
        # The former pod's claim is for a device of the same name.
        held = await claimed(kube, namespace)
        return [f"GPU-{node}-new-0"] in [uuids for pod, uuids in held.items() if pod not in former]

    await eventually(is_claimed)
    await watching.settle("llama")
    assert (await llama.deployment())["spec"]["template"] == before["spec"]["template"]
    assert (await llama.condition("Planned"))[:2] == ("True", "Planned"), await llama.condition("Planned")


async def test_two_services_never_plan_on_the_same_gpus(
    operator, service, driver, claim_node, kube, namespace, eventually
):
    await claim_node(lambda name: unlike(name, large=2))
    await service(**CLAIMS)
    other = await service("other", **CLAIMS)
    third = await service("third", **CLAIMS)
    watching = operator()
    for name in ("llama", "other", "third"):
        await watching.write_out(name)
    held = await eventually(lambda: all_claimed(kube, namespace, 2))
    assert len({uuid for uuids in held.values() for uuid in uuids}) == 2
    assert (await other.condition("Planned"))[0] == "True"
    assert (await third.condition("Planned"))[:2] == ("False", "NoFit")


async def test_a_gpu_that_a_strangers_claim_holds_is_not_planned_on(
    operator, service, driver, claim_node, kube, namespace, eventually
):
    node = await claim_node()
    large = f'device.attributes["{DRA_DRIVER}"].productName.startsWith("NVIDIA \\"Large")'
    request = {"deviceClassName": DRA_DRIVER, "count": 2, "selectors": [{"cel": {"expression": large}}]}
    claim = {
        "apiVersion": "resource.k8s.io/v1",
        "kind": "ResourceClaim",
        "metadata": {"name": "theirs", "namespace": namespace},
        "spec": {"devices": {"requests": [{"name": "all", "exactly": request}]}},
    }
    await kube.create(claim)
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "stranger", "namespace": namespace},
        "spec": {
            "containers": [{"name": "main", "image": "main", "resources": {"claims": [{"name": "all"}]}}],
            "resourceClaims": [{"name": "all", "resourceClaimName": "theirs"}],
        },
    }
    await kube.create(pod)

    async def is_bound():
        return (await kube.get(POD, "stranger", namespace))["spec"].get("nodeName") == node

    await eventually(is_bound)
    llama = await service(**CLAIMS)
    watching = operator()
    await watching.settle("llama")
    assert (await llama.condition("Planned"))[:2] == ("False", "NoFit")
    await kube.delete(POD, "stranger", namespace, grace_s=0)

    async def is_freed():
        return not (await kube.get(RESOURCECLAIM, "theirs", namespace)).get("status", {}).get("allocation")

    await eventually(is_freed)
    await watching.write_out("llama")
    assert (await llama.condition("Planned"))[:2] == ("True", "Planned"), await llama.condition("Planned")


async def test_a_template_that_somebody_replaced_comes_back(operator, service, driver, claim_node, kube, namespace):
    await claim_node()
    llama = await service(**CLAIMS)
    watching = operator()
    await watching.settle("llama")
    (name, before), deployment = *(await templates(kube, namespace)).items(), await llama.deployment()
    await kube.delete(RESOURCECLAIMTEMPLATE, name, namespace)
    kept = {key: before["metadata"][key] for key in ("name", "namespace", "labels", "annotations", "ownerReferences")}
    forged = {**before, "metadata": kept, "spec": {"spec": {"devices": {}}}}
    await kube.create(forged)
    await watching.settle("llama")
    assert (await templates(kube, namespace))[name]["spec"] == before["spec"]
    await kube.delete(RESOURCECLAIMTEMPLATE, name, namespace)
    await watching.settle("llama")
    assert (await templates(kube, namespace))[name]["spec"] == before["spec"]
    assert (await llama.deployment())["metadata"]["generation"] == deployment["metadata"]["generation"]


async def test_templates_go_with_their_revisions(operator, service, driver, claim_node, kube, namespace):
    await claim_node()
    llama = await service(**CLAIMS)
    watching = operator()
    for seed in range(6):
        await llama.change(lambda spec, seed=seed: spec.update(engine={"env": [{"name": "A", "value": f"x{seed}"}]}))
        await watching.settle("llama")
    kept = await llama.revisions()
    assert len(kept) == 4
    assert set(await templates(kube, namespace)) == {f"llama-{name}" for name in kept}


async def test_what_an_administrator_has_to_do_is_a_condition(operator, service, claim_node, kube, namespace):
    node = await claim_node(published=False)
    llama = await service(**CLAIMS)
    watching = operator()
    await watching.settle("llama")
    status, reason, message = await llama.condition("Planned")
    assert (status, reason) == ("False", "NoDeviceClass")
    assert "install NVIDIA's DRA driver" in message
    await kube.create(device_class())
    try:
        await watching.settle("llama")
        status, reason, message = await llama.condition("Planned")
        assert (status, reason) == ("False", "NoResourceSlices")
        assert "kubelet plugin" in message
        await kube.apply(resource_slice(node, unlike(node)), manager="driver")
        await watching.settle("llama")
        assert (await llama.condition("Planned"))[:2] == ("True", "Planned"), await llama.condition("Planned")
    finally:
        await kube.delete(DEVICECLASS, DRA_DRIVER)


async def test_pods_that_run_stay_where_the_driver_goes(operator, service, driver, claim_node, kube, namespace):
    node = await claim_node()
    llama = await service(**CLAIMS)
    watching = operator()
    await watching.settle("llama")
    before = await llama.deployment()
    await kube.delete(RESOURCESLICE, f"{node}-{DRA_DRIVER}")
    await watching.settle("llama")
    assert (await llama.deployment())["metadata"]["generation"] == before["metadata"]["generation"]
    assert (await llama.condition("Planned"))[:2] == ("True", "Planned"), await llama.condition("Planned")
    assert await kube.get(CONFIGMAP, "llama-config", namespace)


async def excluded(kube, node, *uuids):
    devices = [{"uuid": uuid, "reason": "its fan is broken"} for uuid in uuids]
    await kube.apply(
        {
            "apiVersion": GPUNODEPROFILE.api_version,
            "kind": GPUNODEPROFILE.kind,
            "metadata": {"name": node},
            "spec": {"excludedDevices": devices},
        },
        manager="admin",
    )


async def test_a_gpu_that_is_excluded_after_the_plan_is_given_to_no_pod_any_more_and_nothing_rolls(
    operator, service, driver, claim_node, kube, namespace, eventually
):
    node = await claim_node()
    llama = await service(**CLAIMS)
    watching = operator()
    await watching.settle("llama")
    ((_, (held,)),) = (await eventually(lambda: all_claimed(kube, namespace, 1))).items()
    before, (name, frozen) = await llama.deployment(), *(await templates(kube, namespace)).items()
    await excluded(kube, node, held)
    await watching.settle("llama")
    assert list((await claimed(kube, namespace)).values()) == [[held]]  # the pod that runs keeps it
    assert (await llama.deployment())["metadata"]["generation"] == before["metadata"]["generation"]
    (pod,) = await kube.list(POD, namespace)
    await kube.delete(POD, pod["metadata"]["name"], namespace, grace_s=0)
    twin = f"GPU-{node}-{1 - int(held[-1])}"

    async def is_elsewhere():
        return [twin] in (await claimed(kube, namespace)).values()

    await eventually(is_elsewhere)
    await excluded(kube, node)
    await watching.settle("llama")
    assert (await templates(kube, namespace))[name]["spec"] == frozen["spec"]
    assert (await llama.deployment())["metadata"]["generation"] == before["metadata"]["generation"]


async def test_where_claims_are_served_no_more_a_condition_says_why_the_pods_are_not_changed(
    operator, service, driver, claim_node, kube, namespace
):
    await claim_node()
    llama = await service(**CLAIMS)
    watching = operator()
    await watching.settle("llama")
    before = await llama.deployment()
    watching.cache.available[RESOURCECLAIMTEMPLATE] = Availability.NOT_INSTALLED
    await llama.change(lambda spec: spec.update(replicas=2))
    await watching.write_out("llama")
    status, reason, message = await llama.condition("Ready")
    assert (status, reason) == ("False", "DRANotServed")
    assert message.startswith("the API server does not serve resource.k8s.io/v1")
    assert (await llama.deployment())["spec"]["template"] == before["spec"]["template"]
    watching.cache.available[RESOURCECLAIMTEMPLATE] = Availability.SERVED
    await watching.write_out("llama")
    assert (await llama.condition("Ready"))[1] != "DRANotServed"
    assert (await llama.deployment())["spec"]["replicas"] == 2
