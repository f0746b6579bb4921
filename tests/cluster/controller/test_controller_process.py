"""The real `uellm controller`: watches, lease, health, signals."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from helpers.sizes import GIB
from uellm.kube import GPUNODEPROFILE, LEASE
from uellm.kube.kinds import CONFIGMAP

pytestmark = pytest.mark.timeout(120)


async def test_it_plans_repairs_follows_profiles_and_ends_in_time(
    controller, service, gpu_node, kube, namespace, eventually, planned
):
    process = controller()
    llama = await service()
    await gpu_node([24 * GIB])
    await planned(llama)
    assert process.healthy()
    # After the other one's plan, for either of two services that wait may get the only GPU.
    waits = await service("waits")

    await kube.delete(CONFIGMAP, "llama-config", namespace)
    await eventually(lambda: llama.child(CONFIGMAP), timeout_s=30)

    async def has_no_room():
        conditions = (await waits.status()).get("conditions") or []
        return any((each["type"], each["reason"]) == ("Planned", "NoFit") for each in conditions)

    await eventually(has_no_room)
    await llama.delete()
    await planned(waits)

    assert process.end() == 0, process.text()
    assert "ERROR" not in process.text()
    lease = await kube.get(LEASE, "uellm-controller", namespace)
    assert lease["spec"].get("holderIdentity", "") == ""


async def test_a_changed_profile_replans_a_service(controller, service, gpu_node, kube, planned, eventually):
    node = await gpu_node([24 * GIB])
    controller()
    llama = await service()
    await planned(llama)
    document = await kube.get(GPUNODEPROFILE, node)
    document["status"]["devices"][0]["health"] = {"state": "Quarantined"}
    kept = {name: document[name] for name in ("apiVersion", "kind", "status")}
    await kube.apply_status({**kept, "metadata": {"name": node}}, manager="uellm-tests")

    async def told():
        return (await llama.condition("Planned"))[0] == "False"

    await eventually(told)


async def test_two_at_a_time_only_one_works_and_the_other_takes_over(
    controller, service, gpu_node, kube, namespace, eventually, planned
):
    await gpu_node([24 * GIB])
    first = controller()

    async def held():
        lease = await kube.get(LEASE, "uellm-controller", namespace)
        return lease and lease["spec"]["holderIdentity"]

    holder = await eventually(held)
    second = controller()
    await eventually(lambda: _says(second, "waiting for"), timeout_s=30)
    assert second.healthy()
    first.end()
    llama = await service()
    await planned(llama)
    assert await held() != holder


async def test_a_killed_controller_leaves_no_process_and_the_next_one_continues(
    controller, service, gpu_node, planned, eventually
):
    await gpu_node([24 * GIB])
    llama = await service()
    first = controller()
    await planned(llama)
    before = await llama.state()
    under_it = first.children()
    assert under_it
    first.end(signal.SIGKILL)
    await eventually(lambda: _gone(under_it))
    await llama.change(lambda spec: spec.update(replicas=2))
    controller()

    async def scaled():
        return (await llama.deployment())["spec"]["replicas"] == 2

    await eventually(scaled, timeout_s=60)
    after = await llama.state()
    assert after["ConfigMap"] == before["ConfigMap"]


async def test_one_whose_lease_was_taken_ends(controller, kube, namespace, eventually):
    process = controller()

    async def held():
        return await kube.get(LEASE, "uellm-controller", namespace)

    lease = await eventually(held)
    lease["spec"]["holderIdentity"] = "usurper"
    metadata = {name: lease["metadata"][name] for name in ("name", "namespace")}
    await kube.apply({**lease, "metadata": metadata}, manager="usurper")
    await eventually(lambda: _ended(process), timeout_s=30)
    assert process.end(0) == 1
    assert "usurper" in process.text()


async def _says(process, text):
    return text in process.text()


async def _ended(process):
    return process.ended


async def _gone(pids):
    return not any(_lives(pid) for pid in pids)


def _lives(pid):
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False
    return status.rpartition(")")[2].split()[0] != "Z"
