"""The pod that measures a node, on the real API server. The test plays program and profiler, kwok the kubelet."""

from __future__ import annotations

import subprocess
import uuid
from datetime import UTC, datetime, timedelta

import pytest
import yaml

from cluster.conftest import left_by_kwok
from helpers.sizes import GIB
from uellm.controller.measuring import MeasuringKeeper
from uellm.kube import GPUNODEPROFILE, NODE, POD
from uellm.kube.kinds import CORE_EVENT
from uellm.reconcile.cache import WATCHED_KINDS, Cache
from uellm.reconcile.measuring.settings import MeasuringSettings
from uellm.reconcile.planning.ledger import offers
from uellm_devcluster.binaries import ensure

IMAGE = "engine:1"
MEASURED = {"bf16GigaflopsPerSecond": 100_000, "measuredAt": "2026-01-01T00:00:00Z"}


@pytest.fixture
def kubectl(kubeconfig):
    def run(*words, document=None):
        command = [str(ensure({"kubectl"}) / "kubectl"), "--kubeconfig", kubeconfig, *words]
        text = yaml.safe_dump(document) if document else None
        return subprocess.run(command, input=text, capture_output=True, text=True, check=True, timeout=30).stdout

    return run


@pytest.fixture
def priority(kubectl):
    """The chart's PriorityClass, under a name of this test."""
    name = f"measuring-{uuid.uuid4().hex[:8]}"
    document = {"apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass", "metadata": {"name": name}}
    kubectl("apply", "-f", "-", document={**document, "value": -1000, "preemptionPolicy": "Never"})
    yield name
    kubectl("delete", "priorityclass", name)


class World:
    """A node whose GPUs nobody has measured, and the keeper of its pod."""

    def __init__(self, kube, namespace, priority, node, **settings):
        self.kube, self.namespace, self.node = kube, namespace, node
        self.cache = Cache()
        self.now = datetime.now(UTC)
        options = {"image": IMAGE, "launcher_image": "launcher:1", "directory": "/d", "priority_class": priority}
        self.settings = MeasuringSettings(namespace=namespace, **{**options, **settings})
        self.restart()

    def restart(self):
        self.keeper = MeasuringKeeper(self.kube, self.cache, self.settings, instance="test")

    async def step(self):
        for kind in WATCHED_KINDS:
            namespace = self.namespace if kind is POD else None
            self.cache.replace(kind, await self.kube.list(kind, namespace), before=self.cache.snapshot(kind))
        # Nodes of other tests are none of ours.
        for profile in self.cache.profiles():
            if profile["metadata"]["name"] != self.node:
                self.cache.remove(GPUNODEPROFILE, profile)
        await self.keeper.step(self.now)
        return await self.pods()

    async def pods(self):
        pods = await self.kube.list(POD, self.namespace)
        return [pod for pod in pods if "deletionTimestamp" not in pod["metadata"]]

    def later(self, seconds):
        self.now += timedelta(seconds=seconds)

    async def report(self, devices=2, **status):
        """What the profiler of the node writes."""
        listed = [
            {"index": index, "uuid": f"GPU-{self.node}-{index}", "memoryBytes": GIB, **status.pop(f"gpu{index}", {})}
            for index in range(devices)
        ]
        await self.kube.apply_status(
            {
                "apiVersion": GPUNODEPROFILE.api_version,
                "kind": GPUNODEPROFILE.kind,
                "metadata": {"name": self.node},
                "status": {"source": "NVML", "driverVersion": "580.1", "devices": listed, **status},
            },
            manager="uellm-tests",
        )

    async def end(self, pod, phase="Succeeded", **status):
        metadata = {name: pod["metadata"][name] for name in ("name", "namespace")}
        await left_by_kwok(self.kube, pod)
        document = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "status": {"phase": phase, **status}}
        await self.kube.apply_status(document, manager="uellm-tests")

    async def events(self):
        found = await self.kube.list(CORE_EVENT, "default", field_selector=f"involvedObject.name={self.node}")
        return [each["message"] for each in found if each["reason"] == "GPUsNotMeasured"]


@pytest.fixture
async def world(kube, namespace, priority, gpu_node):
    async def make(*, image=True, **settings):
        node = await gpu_node([GIB] * 2, measured={})
        made = World(kube, namespace, priority, node, **settings)
        if image:
            names = ["docker.io/library/engine:1"]
            status = {"images": [{"names": names, "sizeBytes": 1}]}
            document = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": node}, "status": status}
            await kube.apply_status(document, manager="uellm-tests")
        await made.report()
        return made

    return make


async def test_one_pod_measures_all_free_gpus_of_the_node_and_a_second_step_makes_no_second(world):
    one = await world()
    [pod] = await one.step()
    assert pod["spec"]["nodeName"] == one.node
    assert pod["spec"]["priority"] == -1000
    assert pod["spec"]["preemptionPolicy"] == "Never"
    assert pod["spec"]["containers"][0]["image"] == IMAGE
    assert pod["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "2"
    assert "serviceAccount" not in str(pod["spec"].get("volumes"))
    for _ in range(2):
        [same] = await one.step()
        assert same["metadata"]["uid"] == pod["metadata"]["uid"]
    one.restart()
    [same] = await one.step()
    assert same["metadata"]["uid"] == pod["metadata"]["uid"]


async def test_a_node_that_the_chart_does_not_select_has_no_pod(world):
    one = await world(node_selector={"measure": "yes"})
    assert await one.step() == []
    await one.kube.apply(
        {"apiVersion": "v1", "kind": "Node", "metadata": {"name": one.node, "labels": {"measure": "yes"}}},
        manager="test-labels",
    )
    assert len(await one.step()) == 1


async def test_without_the_image_on_the_node_the_pod_waits_until_it_is_there(world):
    one = await world(image=False)
    assert await one.step() == []
    status = {"images": [{"names": ["docker.io/library/engine:1"], "sizeBytes": 1}]}
    document = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": one.node}, "status": status}
    await one.kube.apply_status(document, manager="uellm-tests")
    one.later(60)
    assert len(await one.step()) == 1


async def test_a_pod_that_is_done_is_deleted_and_made_again_only_after_a_change(world, eventually):
    one = await world()
    [pod] = await one.step()
    mark = pod["metadata"]["labels"]["uellm.io/measuring"]
    await one.end(pod)
    assert await one.step() == []
    done = {"measurement": {"on": "GPU", "finished": mark}}
    await one.report(gpu0={"measured": MEASURED}, gpu1={"measured": MEASURED}, **done)
    one.later(3600)
    await eventually(lambda: gone(one, pod))
    assert await one.step() == []
    # The profiler takes figures of another power limit away.
    await one.report(gpu0={"powerLimitWatts": 300}, gpu1={"measured": MEASURED}, **done)
    [again] = await one.step()
    assert again["metadata"]["labels"]["uellm.io/measuring"] != mark


async def test_a_request_by_annotation_measures_again(world):
    one = await world()
    links = [{"a": f"GPU-{one.node}-{a}", "b": f"GPU-{one.node}-{b}", "bytesPerSecond": 7} for a, b in ((0, 1), (1, 0))]
    await one.report(gpu0={"measured": MEASURED}, gpu1={"measured": MEASURED}, links=links)
    assert await one.step() == []
    found = await one.kube.get(GPUNODEPROFILE, one.node)
    uid = found["metadata"]["uid"]
    assert await one.kube.annotate(GPUNODEPROFILE, one.node, None, {"uellm.io/measure": "2026-01-01"}, uid=uid)
    [pod] = await one.step()
    assert "--request=2026-01-01" in pod["spec"]["containers"][0]["args"]


async def test_a_quota_that_refuses_the_pod_is_told_on_the_node_once(world, kubectl):
    one = await world()
    quota = {"hard": {"requests.nvidia.com/gpu": "1"}}
    metadata = {"name": "few", "namespace": one.namespace}
    kubectl(
        "apply", "-f", "-", document={"apiVersion": "v1", "kind": "ResourceQuota", "metadata": metadata, "spec": quota}
    )

    assert await one.step() == []
    for _ in range(2):
        one.later(3600)
        assert await one.step() == []
    [told] = await one.events()
    assert told.startswith(
        "the GPUs are not measured, so plans assume the rates of their product: the API server refuses the pod that "
        "measures: pods "
    )
    assert "exceeded quota: few" in told


async def test_a_pod_that_fails_is_told_on_the_node_and_tried_again_later(world, eventually):
    one = await world()
    [pod] = await one.step()
    state = {"terminated": {"exitCode": 1, "message": "measuring: torch is not installed", "reason": "Error"}}
    statuses = [{"name": "measure", "state": state, "image": "", "imageID": "", "ready": False, "restartCount": 0}]
    await one.end(pod, "Failed", containerStatuses=statuses)
    assert await one.step() == []
    [told] = await one.events()
    assert told.endswith("exit status 1: measuring: torch is not installed")
    await eventually(lambda: gone(one, pod))
    one.later(30)
    assert await one.step() == []
    one.later(60)
    assert len(await one.step()) == 1


async def test_the_gpus_of_a_pod_that_measures_are_free_to_every_plan(world):
    one = await world()
    [pod] = await one.step()
    await one.step()
    [offer] = offers(one.cache.profiled_nodes(), [], [])
    assert len(offer.free) == 2
    assert offer.promised == 0
    assert one.cache.measuring_pods()[one.node][0]["metadata"]["uid"] == pod["metadata"]["uid"]


@pytest.mark.timeout(200)
async def test_the_pod_goes_with_the_profile_of_its_node(world, eventually):
    one = await world()
    await one.step()
    await one.kube.delete(NODE, one.node)
    await one.kube.delete(GPUNODEPROFILE, one.node)
    # The garbage collector takes up a new kind every 30 s, and with backoff what it found before.
    await eventually(lambda: none_is_left(one), timeout_s=150)


async def none_is_left(world):
    """None but pods that are on their way out: without its node, the pod collector ends them a minute later."""
    return not await world.pods()


async def gone(world, pod):
    return all(
        each["metadata"]["uid"] != pod["metadata"]["uid"] for each in await world.kube.list(POD, world.namespace)
    )
