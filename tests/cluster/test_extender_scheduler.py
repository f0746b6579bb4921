"""The extender behind the real kube-scheduler: where pods go, and the reasons for pods that go nowhere.

The scheduler only binds; kwok simulates the nodes.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import time
from collections.abc import Iterator
from typing import Any

import pytest

from helpers.extender_processes import SCHEDULER, Processes
from helpers.sizes import GIB
from uellm.hardware import GPU_RESOURCE
from uellm.kube import POD, Kube
from uellm_devcluster.binaries import ensure


@pytest.fixture(scope="module")
def processes(kubeconfig: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Processes]:
    running = Processes(kubeconfig, tmp_path_factory.mktemp("scheduler"))
    yield running
    running.stop()


def plan(gpus: int, *, layers: int = 32) -> str:
    """The plan of a model with `layers` layers of 1 GiB each."""
    document = {
        "gpus": gpus,
        "tensor": 1,
        "pipeline": gpus,
        "resourceName": GPU_RESOURCE,
        "layerCount": layers,
        "layerBytes": GIB,
        "layerKvBytes": 0,
        "firstStageBytes": 0,
        "lastStageBytes": 0,
        "reservedBytes": {"fixed": 0, "fraction": "0"},
        "layers": None,
        "service": "test/model",
    }
    return json.dumps(document)


def pod(namespace: str, name: str, *, text: str | None, gpus: int) -> dict[str, Any]:
    annotations = {"uellm.io/plan": text} if text is not None else {}
    limits = {GPU_RESOURCE: str(gpus)} if gpus else {}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": name,
            "namespace": namespace,
            "annotations": annotations,
            "labels": {"uellm.io/service": "model"},
        },
        "spec": {
            "schedulerName": SCHEDULER,
            "containers": [{"name": "engine", "image": "engine", "resources": {"limits": limits}}],
        },
    }


async def node_of(kube: Kube, namespace: str, name: str) -> str | None:
    found = await kube.get(POD, name, namespace)
    return found["spec"].get("nodeName") if found else None


async def unscheduled_because(kube: Kube, namespace: str, name: str) -> str | None:
    found = await kube.get(POD, name, namespace)
    conditions = (found or {}).get("status", {}).get("conditions") or []
    said = [c for c in conditions if c["type"] == "PodScheduled" and c["status"] == "False"]
    return said[0]["message"] if said else None


async def test_a_pod_goes_where_its_plan_fits_and_not_where_only_the_count_does(
    kube, namespace, gpu_node, processes, eventually
):
    await gpu_node([8 * GIB] * 4)
    big = await gpu_node([24 * GIB] * 4)
    await kube.create(pod(namespace, "p", text=plan(2), gpus=2))
    assert await eventually(lambda: node_of(kube, namespace, "p")) == big


async def test_a_pod_that_fits_nowhere_stays_pending_and_says_why_until_a_node_fits(
    kube, namespace, gpu_node, processes, eventually
):
    await gpu_node([8 * GIB] * 4)
    await kube.create(pod(namespace, "p", text=plan(2), gpus=2))

    message = await eventually(lambda: unscheduled_because(kube, namespace, "p"))
    assert "GiB" in message
    assert await node_of(kube, namespace, "p") is None
    big = await gpu_node([24 * GIB] * 4)
    assert await eventually(lambda: node_of(kube, namespace, "p")) == big


async def test_the_next_try_sees_a_profile_that_has_changed(
    kube, namespace, gpu_node, apply_profile, processes, eventually
):
    taken = {"allocatedTo": {"podUID": "somebody-elses"}}
    name = await gpu_node([24 * GIB] * 2, **taken)
    await kube.create(pod(namespace, "p", text=plan(2), gpus=2))

    async def told() -> bool:
        return "needs 2 nvidia.com/gpu, 0 free" in (await unscheduled_because(kube, namespace, "p") or "")

    await eventually(told)
    await apply_profile(name, [24 * GIB] * 2)
    # kube-scheduler does not watch profiles: it retries after an event that it watches, or after a time.
    await gpu_node([])
    assert await eventually(lambda: node_of(kube, namespace, "p")) == name


async def test_the_node_with_the_faster_memory_is_taken_first(kube, namespace, gpu_node, processes, eventually):
    measured = {"bf16GigaflopsPerSecond": 100_000, "measuredAt": "2026-01-01T00:00:00Z"}
    rates = [300_000_000_000, 3_000_000_000_000, 600_000_000_000]
    names = [await gpu_node([24 * GIB] * 4, measured={**measured, "memoryBytesPerSecond": rate}) for rate in rates]
    await kube.create(pod(namespace, "p", text=plan(2), gpus=2))
    assert await eventually(lambda: node_of(kube, namespace, "p")) == names[1]


async def test_a_pod_without_a_plan_is_placed_as_usual(kube, namespace, processes, eventually):
    await kube.create(pod(namespace, "p", text=None, gpus=0))
    assert await eventually(lambda: node_of(kube, namespace, "p"))


async def test_a_plan_that_cannot_be_read_is_said_in_the_pods_condition(kube, namespace, processes, eventually):
    await kube.create(pod(namespace, "p", text="{", gpus=0))

    async def told() -> bool:
        return "uellm.io/plan cannot be read" in (await unscheduled_because(kube, namespace, "p") or "")

    await eventually(told)


@pytest.fixture
def priority(kubeconfig: str) -> Iterator[str]:
    """The chart's PriorityClass of measuring pods."""
    kubectl = [str(ensure({"kubectl"}) / "kubectl"), "--kubeconfig", kubeconfig]
    words = ["create", "priorityclass", "measuring", "--value=-1000", "--preemption-policy=Never"]
    subprocess.run([*kubectl, *words], check=True, capture_output=True, timeout=30)
    yield "measuring"
    subprocess.run([*kubectl, "delete", "priorityclass", "measuring"], check=True, capture_output=True, timeout=30)


@pytest.mark.parametrize("text", [plan(2), None], ids=["an engine", "a pod of somebody else"])
async def test_a_pod_that_wants_gpus_preempts_the_pod_that_measures_them_within_5_s(
    kube, namespace, gpu_node, processes, priority, eventually, text
):
    # The profiler names no pod that measures, so the profile calls the GPUs free.
    name = await gpu_node([24 * GIB] * 2)
    measuring = pod(namespace, "measure", text=None, gpus=2)
    measuring["metadata"]["labels"] = {"uellm.io/service": "", "uellm.io/measuring": "mark"}
    measuring["spec"] |= {"nodeName": name, "priorityClassName": priority, "terminationGracePeriodSeconds": 2}
    await kube.create(measuring)

    async def runs() -> bool:
        return ((await kube.get(POD, "measure", namespace) or {}).get("status") or {}).get("phase") == "Running"

    await eventually(runs)
    start_s = time.monotonic()
    await kube.create(pod(namespace, "p", text=text, gpus=2))
    assert await eventually(lambda: node_of(kube, namespace, "p")) == name
    assert time.monotonic() - start_s < 5
    assert await kube.get(POD, "measure", namespace) is None


async def test_a_hundred_pods_are_placed_and_no_node_gets_more_than_it_has(
    kube, namespace, gpu_node, processes, eventually
):
    names = list(await asyncio.gather(*(gpu_node([24 * GIB] * 8) for _ in range(25))))
    pods = [pod(namespace, f"p{index}", text=plan(2), gpus=2) for index in range(100)]
    await asyncio.gather(*(kube.create(each) for each in pods))

    async def all_placed() -> list[str]:
        placed = [each["spec"]["nodeName"] for each in await kube.list(POD, namespace) if each["spec"].get("nodeName")]
        return placed if len(placed) == 100 else []

    placed = await eventually(all_placed, timeout_s=40)
    assert all(placed.count(name) == 4 for name in names)


async def test_the_extender_ends_on_sigterm_and_pods_wait_for_its_return(
    kube, namespace, gpu_node, processes, eventually
):
    name = await gpu_node([24 * GIB] * 2)
    processes.extender.terminate()
    assert processes.extender.wait(10) == 0
    await kube.create(pod(namespace, "p", text=plan(2), gpus=2))
    await eventually(lambda: unscheduled_because(kube, namespace, "p"))
    await asyncio.to_thread(processes.start_extender)
    assert await eventually(lambda: node_of(kube, namespace, "p"), timeout_s=40) == name
