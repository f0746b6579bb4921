"""How the steps of measuring are carried out: which image, how many at once, and what the API server's answers mean."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from uellm.controller import measuring
from uellm.controller.measuring import MeasuringKeeper
from uellm.kube import AlreadyExists, Forbidden, Unavailable
from uellm.kube.kinds import GPUNODEPROFILE, LLMSERVICE, NODE, POD
from uellm.reconcile.cache import Cache
from uellm.reconcile.measuring.settings import MeasuringSettings

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
SETTINGS = MeasuringSettings("profilers", "engine:1", "launcher:1", "/d", "measuring")


class FakeKube:
    """The part of `Kube` that the keeper uses, in memory. `refusal`: raised by the next creations of pods."""

    def __init__(self) -> None:
        self.pods: list[dict[str, Any]] = []
        self.events: list[str] = []
        self.looked_at: list[str] = []
        self.images: dict[str, list[str]] = {}
        self.refusal: Exception | None = None
        self.kept: set[str] = set()
        """Pods that an admission policy lets nobody delete."""
        self.deleted: list[str] = []

    async def get(self, kind: Any, name: str) -> dict[str, Any]:
        assert kind == NODE
        self.looked_at.append(name)
        return {"metadata": {"name": name}, "status": {"images": [{"names": self.images.get(name, [])}]}}

    async def delete(self, kind: Any, name: str, namespace: str, *, uid: str) -> None:
        assert kind == POD
        if name in self.kept:
            raise Forbidden(403, "Forbidden", "kept")
        self.deleted.append(f"{namespace}/{name}")

    async def create(self, obj: dict[str, Any]) -> dict[str, Any]:
        if obj["kind"] == "Event":
            self.events.append(obj["note"])
            return obj
        if self.refusal is not None:
            raise self.refusal
        made = {**obj, "metadata": {**obj["metadata"], "uid": "u", "resourceVersion": "9"}, "status": {}}
        self.pods.append(made)
        return made


class World:
    def __init__(self) -> None:
        self.kube, self.cache = FakeKube(), Cache()
        self.keeper = MeasuringKeeper(self.kube, self.cache, SETTINGS, instance="test")  # type: ignore[arg-type]

    def node(self, name: str, *, images: tuple[str, ...] = ("docker.io/library/engine:1",)) -> None:
        metadata = {"name": name, "uid": name, "resourceVersion": "1"}
        devices = [{"uuid": f"GPU-{name}", "index": 0, "memoryBytes": 1}]
        self.cache.put(NODE, {"metadata": metadata, "spec": {}})
        self.cache.put(GPUNODEPROFILE, {"metadata": metadata, "status": {"source": "NVML", "devices": devices}})
        self.kube.images[name] = list(images)

    def service(self, name: str, image: str | None, *nodes: str) -> None:
        spec, status = {"engine": {"image": image}}, {"plan": {"nodes": list(nodes)}}
        metadata = {"name": name, "namespace": "team", "resourceVersion": "1"}
        self.cache.put(LLMSERVICE, {"metadata": metadata, "spec": spec, "status": status})

    def engine_pod(self, service: str, created: str, **spec: Any) -> None:
        labels = {"uellm.io/service": service}
        metadata = {"name": f"{service}-0", "namespace": "team", "uid": "e", "labels": labels}
        metadata |= {"resourceVersion": "1", "creationTimestamp": created}
        self.cache.put(POD, {"metadata": metadata, "spec": spec, "status": {}})

    def measuring_pod(self, node: str, namespace: str, phase: str) -> None:
        labels = {"uellm.io/service": "", "uellm.io/measuring": "mark"}
        metadata = {"name": f"measure-{node}", "namespace": namespace, "uid": "m", "labels": labels}
        metadata |= {"resourceVersion": "1", "creationTimestamp": "2026-01-01T11:00:00Z"}
        self.cache.put(POD, {"metadata": metadata, "spec": {"nodeName": node}, "status": {"phase": phase}})

    async def step(self, after_s: float = 0.0) -> list[dict[str, Any]]:
        """The pods that the step makes."""
        before = len(self.kube.pods)
        await self.keeper.step(NOON + timedelta(seconds=after_s))
        return self.kube.pods[before:]


@pytest.fixture
def world() -> World:
    return World()


def image(pod: dict[str, Any]) -> str:
    return str(pod["spec"]["containers"][0]["image"])


async def test_the_image_need_not_be_there_yet_where_an_engine_of_it_is_planned(world):
    world.node("n1", images=())
    world.node("n2", images=())
    world.service("llama", None, "n1")
    (pod,) = await world.step()
    assert (pod["spec"]["nodeName"], image(pod)) == ("n1", "engine:1")


async def test_an_image_that_a_user_named_measures_nothing(world):
    world.node("n1", images=("docker.io/library/own:1",))
    world.service("llama", "own:1", "n1")
    assert await world.step() == []


async def test_a_node_without_the_image_is_looked_at_once_a_minute(world):
    world.node("n1", images=())
    for after_s in (0, 2, 58):
        assert await world.step(after_s) == []
    assert world.kube.looked_at == ["n1"]
    world.kube.images["n1"] = ["docker.io/library/engine:1"]
    assert len(await world.step(61)) == 1


async def test_a_few_nodes_measure_at_a_time(world, monkeypatch):
    monkeypatch.setattr(measuring, "MOST_AT_ONCE", 3)
    for index in range(5):
        world.node(f"n{index}")
    assert len(await world.step()) == 3
    assert await world.step() == []


async def test_no_pod_is_made_while_an_engine_that_was_just_made_has_no_node(world):
    world.node("n1")
    world.service("chat", "engine:1", "n1")
    world.engine_pod("chat", "2026-01-01T11:59:50Z")
    assert await world.step() == []
    # It waits for something else: it would have preempted a pod that measures.
    assert len(await world.step(60)) == 1


async def test_what_the_api_server_refuses_is_told_and_tried_again_later(world):
    world.node("n1")
    world.kube.refusal = Forbidden(403, "Forbidden", 'pods "measure-n1" is forbidden: exceeded quota: few')
    for after_s in (0, 2, 61):
        assert await world.step(after_s) == []
    [note] = world.kube.events
    assert note == (
        "the GPUs are not measured, so plans assume the rates of their product: the API server refuses the pod that "
        'measures: pods "measure-n1" is forbidden: exceeded quota: few'
    )
    world.kube.refusal = None
    assert await world.step(62) == []
    assert len(await world.step(3600)) == 1


async def test_a_pod_of_before_that_is_still_being_deleted_is_waited_for_in_silence(world):
    world.node("n1")
    world.kube.refusal = AlreadyExists(409, "AlreadyExists", "there")
    assert await world.step() == []
    world.kube.refusal = None
    assert await world.step(2) == []
    assert len(await world.step(20)) == 1
    assert world.kube.events == []


async def test_a_silent_api_server_is_an_error_of_the_step_and_no_failure_of_measuring(world):
    world.node("n1")
    world.kube.refusal = Unavailable(0, "Unreachable", "away")
    with pytest.raises(Unavailable):
        await world.step()
    world.kube.refusal = None
    assert len(await world.step(2)) == 1
    assert world.kube.events == []


async def test_a_stale_profile_is_no_reason_to_measure(world):
    world.node("n1")
    world.cache.set_stale_profiles({"n1": "its profile has not been renewed"})
    assert await world.step() == []


async def test_a_label_on_somebody_s_pod_neither_deletes_it_nor_keeps_its_node_from_being_measured(world):
    world.node("n1")
    world.node("n2")
    world.measuring_pod("n1", "team", "Running")
    world.measuring_pod("n2", "team", "Succeeded")
    assert len(await world.step()) == 2
    assert world.kube.deleted == []


async def test_a_pod_that_cannot_be_deleted_does_not_keep_other_nodes_waiting(world):
    for name in ("n1", "n2"):
        world.node(name)
    world.measuring_pod("n1", "profilers", "Succeeded")
    world.kube.kept = {"measure-n1"}
    for _ in range(2):
        with pytest.raises(Forbidden):
            await world.step()
    assert [pod["spec"]["nodeName"] for pod in world.kube.pods] == ["n2"]
    assert world.kube.events == []


async def test_pods_on_nodes_that_are_down_do_not_keep_others_from_being_measured(world, monkeypatch):
    monkeypatch.setattr(measuring, "MOST_AT_ONCE", 1)
    for name in ("n1", "n2"):
        world.node(name)
    world.measuring_pod("n1", "profilers", "Running")
    assert await world.step() == []
    taints = [{"key": "node.kubernetes.io/unreachable"}]
    metadata = {"name": "n1", "uid": "n1", "resourceVersion": "2"}
    world.cache.put(NODE, {"metadata": metadata, "spec": {"taints": taints}})
    [pod] = await world.step()
    assert pod["spec"]["nodeName"] == "n2"


async def test_a_pod_that_waits_in_a_queue_keeps_nobody_from_measuring(world):
    world.node("n1")
    world.service("chat", "engine:1", "n1")
    world.engine_pod("chat", "2026-01-01T11:59:50Z", schedulingGates=[{"name": "kueue.x-k8s.io/admission"}])
    assert len(await world.step()) == 1
