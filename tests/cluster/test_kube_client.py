"""The client against a real API server: its errors and watches reflect the server's answers."""

from __future__ import annotations

import asyncio
from contextlib import aclosing

import pytest

from uellm.kube import (
    CONFIGMAP,
    GPUNODEPROFILE,
    LEASE,
    NAMESPACE,
    POD,
    AlreadyExists,
    Conflict,
    Forbidden,
    Invalid,
    Kube,
    NotFound,
)
from uellm.kube.transport import Transport
from uellm.kube.watch import Watch

MANAGER = "uellm-tests"


def config_map(namespace: str, name: str = "a", **data: str) -> dict:
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": name, "namespace": namespace},
        "data": data,
    }


async def test_what_is_applied_is_read_back_without_managed_fields(kube: Kube, namespace: str):
    applied = await kube.apply(config_map(namespace, x="1"), manager=MANAGER)
    assert await kube.get(CONFIGMAP, "a", namespace) == applied
    assert applied["data"] == {"x": "1"}
    assert "managedFields" not in applied["metadata"]


async def test_a_field_no_longer_applied_goes_and_others_fields_stay(kube: Kube, namespace: str):
    await kube.apply(config_map(namespace, mine="1", old="1"), manager=MANAGER)
    await kube.apply(config_map(namespace, theirs="2"), manager="someone")
    assert (await kube.apply(config_map(namespace, mine="1"), manager=MANAGER))["data"] == {"mine": "1", "theirs": "2"}


async def test_applying_the_same_again_writes_nothing(kube: Kube, namespace: str):
    first = await kube.apply(config_map(namespace, x="1"), manager=MANAGER)
    second = await kube.apply(config_map(namespace, x="1"), manager=MANAGER)
    assert first["metadata"]["resourceVersion"] == second["metadata"]["resourceVersion"]


async def test_a_field_of_someone_else_is_a_conflict_without_force(kube: Kube, namespace: str):
    await kube.apply(config_map(namespace, x="1"), manager="someone")
    with pytest.raises(Conflict) as caught:
        await kube.apply(config_map(namespace, x="2"), manager=MANAGER, force=False)
    assert caught.value.causes == ((".data.x", 'conflict with "someone"'),)
    assert (await kube.apply(config_map(namespace, x="2"), manager=MANAGER))["data"] == {"x": "2"}


async def test_a_resource_version_makes_apply_a_compare_and_swap(kube: Kube, namespace: str):
    lease = {
        "apiVersion": LEASE.api_version,
        "kind": LEASE.kind,
        "metadata": {"name": "l", "namespace": namespace},
        "spec": {"holderIdentity": "a"},
    }
    version = (await kube.create(lease))["metadata"]["resourceVersion"]
    with_version = {**lease, "metadata": {**lease["metadata"], "resourceVersion": version}}
    taken = await kube.apply({**with_version, "spec": {"holderIdentity": "b"}}, manager=MANAGER)
    assert taken["spec"]["holderIdentity"] == "b"
    with pytest.raises(Conflict):
        await kube.apply({**with_version, "spec": {"holderIdentity": "c"}}, manager=MANAGER)


async def test_a_dry_run_changes_nothing_and_finds_faults(kube: Kube, namespace: str):
    await kube.apply(config_map(namespace, x="1"), manager=MANAGER, dry_run=True)
    assert await kube.get(CONFIGMAP, "a", namespace) is None
    with pytest.raises(Invalid, match="must consist of lower case"):
        await kube.apply(config_map(namespace, name="Not_A_Name"), manager=MANAGER, dry_run=True)


async def test_a_misspelt_field_is_invalid_and_named(kube: Kube, namespace: str):
    with pytest.raises(Invalid) as caught:
        await kube.apply({**config_map(namespace), "datum": {}}, manager=MANAGER)
    assert caught.value.causes == (("datum", "field not declared in schema"),)
    with pytest.raises(Invalid, match="datum"):
        await kube.create({**config_map(namespace), "datum": {}})


async def test_a_custom_resource_that_breaks_its_schema_is_invalid_and_names_the_field(kube: Kube):
    profile = {"apiVersion": "uellm.io/v1alpha1", "kind": "GPUNodeProfile", "metadata": {"name": "n"}}
    with pytest.raises(Invalid, match=r"spec\.excludedDevices"):
        await kube.apply({**profile, "spec": {"excludedDevices": [{"uuid": ""}]}}, manager=MANAGER)


async def test_creating_twice_says_that_it_is_there(kube: Kube, namespace: str):
    await kube.create(config_map(namespace))
    with pytest.raises(AlreadyExists):
        await kube.create(config_map(namespace))


async def test_writing_to_a_namespace_that_is_not_there_is_not_found(kube: Kube):
    with pytest.raises(NotFound, match="nowhere"):
        await kube.apply(config_map("nowhere"), manager=MANAGER)


async def test_the_status_of_an_object_that_is_not_there_is_not_found(kube: Kube):
    profile = {"apiVersion": "uellm.io/v1alpha1", "kind": "GPUNodeProfile", "metadata": {"name": "nowhere"}}
    with pytest.raises(NotFound):
        await kube.apply_status({**profile, "status": {"source": "Simulated"}}, manager=MANAGER)


async def test_status_and_spec_are_applied_apart(kube: Kube, gpu_node):
    name = await gpu_node([8_000_000_000])
    profile = {"apiVersion": "uellm.io/v1alpha1", "kind": "GPUNodeProfile", "metadata": {"name": name}}
    excluded = {"excludedDevices": [{"uuid": f"GPU-{name}-0", "reason": "fan"}]}
    applied = await kube.apply({**profile, "spec": excluded}, manager="person")
    assert applied["spec"] == excluded
    assert applied["status"]["devices"][0]["memoryBytes"] == 8_000_000_000


async def test_deleting_minds_the_uid(kube: Kube, namespace: str):
    uid = (await kube.create(config_map(namespace)))["metadata"]["uid"]
    assert await kube.delete(CONFIGMAP, "a", namespace, uid="of-another") is False
    assert await kube.get(CONFIGMAP, "a", namespace) is not None
    assert await kube.delete(CONFIGMAP, "a", namespace, uid=uid) is True
    assert await kube.delete(CONFIGMAP, "a", namespace) is False


async def test_binding_puts_a_pod_on_a_node_once(kube: Kube, namespace: str, gpu_node):
    node = await gpu_node([])
    spec = {"schedulerName": "nobody", "containers": [{"name": "c", "image": "i"}]}
    metadata = {"name": "p", "namespace": namespace}
    pod = await kube.create({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec})
    with pytest.raises(Conflict):
        await kube.bind("p", namespace, "another-uid", node)
    await kube.bind("p", namespace, pod["metadata"]["uid"], node)
    assert (await kube.get(POD, "p", namespace))["spec"]["nodeName"] == node
    with pytest.raises(Conflict):
        await kube.bind("p", namespace, pod["metadata"]["uid"], node)


async def test_a_deletion_of_the_namespace_forbids_new_objects(kube: Kube, namespace: str, eventually):
    held = config_map(namespace, "held")
    held["metadata"]["finalizers"] = ["uellm.io/test"]
    await kube.create(held)
    await kube.delete(NAMESPACE, namespace)
    with pytest.raises(Forbidden, match="being terminated"):
        await kube.create(config_map(namespace))
    await kube.apply({**config_map(namespace, "held"), "metadata": {**held["metadata"], "finalizers": []}}, manager="x")


async def test_a_list_goes_over_many_pages(kube: Kube, namespace: str, monkeypatch):
    monkeypatch.setattr("uellm.kube.watch.PAGE", 3)
    names = [f"a{index}" for index in range(8)]
    await asyncio.gather(*(kube.create(config_map(namespace, name)) for name in names))
    found = await kube.list(CONFIGMAP, namespace, field_selector="metadata.name!=kube-root-ca.crt")
    assert sorted(obj["metadata"]["name"] for obj in found) == names
    assert {(obj["apiVersion"], obj["kind"]) for obj in found} == {("v1", "ConfigMap")}


async def test_a_watch_tells_of_every_change_and_survives_its_renewals(kube: Kube, namespace: str, eventually):
    seen: list[tuple[str, str]] = []
    contacts = 0

    async def read() -> None:
        def count() -> None:
            nonlocal contacts
            contacts += 1

        selector = "metadata.name!=kube-root-ca.crt"
        async for event in kube.watch(
            CONFIGMAP, namespace=namespace, field_selector=selector, session_s=1, on_contact=count
        ):
            seen.append((event.type, event.object.get("metadata", {}).get("name", "")))

    async def arrived(*event: str) -> bool:
        return bool(seen) and seen[-1] == event

    async def heard_since(before: int) -> bool:
        return contacts >= before + 2

    await kube.create(config_map(namespace, "early"))
    reader = asyncio.create_task(read())
    try:
        await eventually(lambda: arrived("SYNCED", ""))
        for number, change in enumerate(("ADDED", "MODIFIED", "MODIFIED")):
            await kube.apply(config_map(namespace, "b", x=str(number)), manager=MANAGER)
            await eventually(lambda change=change: arrived(change, "b"))
            # The next change arrives in a later session.
            await eventually(lambda before=contacts: heard_since(before))
        await kube.delete(CONFIGMAP, "b", namespace)
        await eventually(lambda: arrived("DELETED", "b"))
    finally:
        reader.cancel()
    assert seen == [
        ("ADDED", "early"),
        ("SYNCED", ""),
        ("ADDED", "b"),
        ("MODIFIED", "b"),
        ("MODIFIED", "b"),
        ("DELETED", "b"),
    ]


@pytest.mark.parametrize("version", ["1", "999999999999"], ids=["no longer kept", "of a lost history"])
async def test_a_version_that_the_server_does_not_have_is_listed_again(kubeconfig: str, gpu_node, version: str):
    name = await gpu_node([8_000_000_000])
    transport = await Transport.open(kubeconfig)
    watch = Watch(transport, GPUNODEPROFILE.path(), {}, session_s=1)
    watch._version = version
    try:
        async with aclosing(watch.events()) as events:
            first = await anext(events)
        assert (first.type, first.object["metadata"]["name"]) == ("ADDED", name)
    finally:
        await transport.close()
