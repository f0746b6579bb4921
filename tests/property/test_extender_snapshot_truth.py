"""However old a node's profile is, the snapshot counts its free GPUs correctly as long as pod events arrive."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from uellm.extender.decide import Judge, scores
from uellm.extender.snapshot import Snapshot
from uellm.hardware import GPU_RESOURCE
from uellm.planner.assignment.assign import Task
from uellm.planner.cost.rates import Costs
from uellm.planner.handover.annotation import PlanAnnotation

TASK = Task((1,) * 8, (0,) * 8, 0, 0, fixed_bytes=0, margin="0", tensor=1, costs=Costs())
DEVICES = 8
NODES = ("a", "b")


def annotation(gpus: int, *nodes: str) -> str:
    return PlanAnnotation(gpus, GPU_RESOURCE, gpus, TASK, "default/llama").to_json()


class World:
    """Nodes whose kubelets allocate devices at once, and whose profiles are only written by a step of the test."""

    def __init__(self) -> None:
        self.snapshot = Snapshot()
        self.allocated: dict[str, dict[int, str]] = {name: {} for name in NODES}
        self.pods: dict[str, dict] = {}
        self.serial = 0
        for name in NODES:
            self.report(name)

    def free(self, name: str) -> list[int]:
        return [index for index in range(DEVICES) if index not in self.allocated[name]]

    def report(self, name: str) -> None:
        devices = []
        for index in range(DEVICES):
            uid = self.allocated[name].get(index)
            taken = {"allocatedTo": {"podUID": uid}} if uid else {}
            devices.append({"index": index, "uuid": f"{name}-{index}", "memoryBytes": 1, **taken})
        self.snapshot.put_profile({"metadata": {"name": name}, "status": {"devices": devices}})

    def bind(self, name: str, gpus: int, pick: int) -> None:
        free = self.free(name)
        if gpus > len(free):
            return
        self.serial += 1
        uid = f"pod-{self.serial}"
        for offset in range(gpus):
            self.allocated[name][free[(pick + offset) % len(free)]] = uid
        plan = annotation(gpus)
        self.pods[uid] = {
            "metadata": {"uid": uid, "annotations": {"uellm.io/plan": plan}},
            "spec": {"nodeName": name},
            "status": {"phase": "Running"},
        }
        self.snapshot.put_pod(self.pods[uid])

    def end(self, pick: int, *, deleted: bool) -> None:
        if not self.pods:
            return
        uid = sorted(self.pods)[pick % len(self.pods)]
        pod = self.pods.pop(uid)
        name = pod["spec"]["nodeName"]
        self.allocated[name] = {index: owner for index, owner in self.allocated[name].items() if owner != uid}
        if deleted:
            self.snapshot.drop_pod(uid)
        else:
            self.snapshot.put_pod({**pod, "status": {"phase": "Succeeded"}})

    def tell_again(self, pick: int) -> None:
        if self.pods:
            self.snapshot.put_pod(self.pods[sorted(self.pods)[pick % len(self.pods)]])


NUMBER = st.integers(0, 100)
STEP = st.one_of(
    st.tuples(st.just("bind"), st.sampled_from(NODES), st.integers(1, 4), NUMBER),
    st.tuples(st.just("report"), st.sampled_from(NODES)),
    st.tuples(st.just("end"), NUMBER, st.booleans()),
    st.tuples(st.just("tell_again"), NUMBER),
)


def take(world: World, step: tuple) -> None:
    match step:
        case ("bind", name, gpus, pick):
            world.bind(name, gpus, pick)
        case ("report", name):
            world.report(name)
        case ("end", pick, deleted):
            world.end(pick, deleted=deleted)
        case ("tell_again", pick):
            world.tell_again(pick)


@given(st.lists(STEP, max_size=40))
def test_free_minus_promised_is_the_true_number_of_free_gpus(steps):
    world = World()
    for step in steps:
        take(world, step)
        for name in NODES:
            offer = world.snapshot.offer(name, GPU_RESOURCE)
            assert len(offer.free) - offer.promised == len(world.free(name))


@given(st.lists(STEP, max_size=40))
def test_once_all_is_reported_the_free_devices_are_the_real_ones_and_nothing_is_remembered(steps):
    world = World()
    for step in steps:
        take(world, step)
    for name in NODES:
        world.report(name)
        offer = world.snapshot.offer(name, GPU_RESOURCE)
        assert offer.free == tuple(f"{name}-{index}" for index in world.free(name))
        assert offer.promised == 0
    assert world.snapshot._gone == {}


@given(st.lists(STEP, max_size=30), st.integers(1, 9))
def test_deciding_changes_nothing_and_admits_only_what_the_count_allows(steps, gpus):
    world = World()
    for step in steps:
        take(world, step)
    text = annotation(gpus, "b")
    judge = Judge(lambda plan, node, free: None)
    first = judge.refusals(text, NODES, world.snapshot)
    ranked = scores(text, NODES, world.snapshot)
    assert judge.refusals(text, NODES, world.snapshot) == first
    assert set(NODES) - set(first) == {name for name in NODES if gpus <= len(world.free(name))}
    assert all(0 <= score <= 10 for score in ranked.values())
