"""Room for whole groups: whatever comes and goes, no GPU is given twice and no two half groups wait for each other."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from uellm.extender.decide import Judge
from uellm.extender.groups import RESERVED_S, Groups, deal
from uellm.extender.snapshot import Snapshot
from uellm.hardware import GPU_RESOURCE
from uellm.planner.assignment.assign import Task
from uellm.planner.cost.rates import Costs
from uellm.planner.handover.annotation import PlanAnnotation

DEVICES = 4
NODES = ("a", "b", "c", "d")


def plan(gpus: int, nodes: int) -> PlanAnnotation:
    layers = (1,) * (gpus * nodes)
    task = Task((1,) * len(layers), (0,) * len(layers), 0, 0, 0, "0", 1, Costs(), layers_override=layers)
    return PlanAnnotation(gpus, GPU_RESOURCE, gpus * nodes, task, "default/llama", nodes)


class World:
    """Nodes whose kubelets allocate at once, groups of pods, and a scheduler that asks the extender."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.serial = 0
        self.sizes: dict[str, tuple[int, int]] = {}
        self.pods: dict[str, dict[str, str]] = {}
        """By group: node by uid of pod; empty for none."""
        self.restart()

    def restart(self) -> None:
        self.snapshot = Snapshot()
        self.judge = Judge(lambda plan, node, free: None)
        self.groups = Groups(self.judge, clock=lambda: self.now_s)
        for name in NODES:
            devices = [{"index": index, "uuid": f"{name}-{index}", "memoryBytes": 1} for index in range(DEVICES)]
            self.snapshot.put_profile({"metadata": {"name": name}, "status": {"devices": devices}})
        for group, pods in self.pods.items():
            for uid in pods:
                self.tell(group, uid)

    def tell(self, group: str, uid: str) -> None:
        gpus, nodes = self.sizes[group]
        labels = {"leaderworkerset.sigs.k8s.io/name": group, "leaderworkerset.sigs.k8s.io/group-index": "0"}
        metadata = {"uid": uid, "namespace": "ns", "annotations": {"uellm.io/plan": plan(gpus, nodes).to_json()}}
        metadata |= {"labels": labels} if nodes > 1 else {}
        self.snapshot.put_pod({"metadata": metadata, "spec": {"nodeName": self.pods[group][uid]}, "status": {}})

    def create(self, gpus: int, nodes: int) -> None:
        self.serial += 1
        self.sizes[f"g{self.serial}"] = gpus, nodes
        self.make_pods(f"g{self.serial}")

    def make_pods(self, group: str) -> None:
        self.pods[group] = {}
        for _ in range(self.sizes[group][1]):
            self.serial += 1
            self.pods[group][f"pod-{self.serial}"] = ""

    def remove_pods(self, group: str) -> None:
        for uid in self.pods.pop(group):
            self.snapshot.drop_pod(uid)

    def delete(self, group: str) -> None:
        self.remove_pods(group)
        del self.sizes[group]

    def waiting(self, group: str) -> list[str]:
        return [uid for uid, node in self.pods[group].items() if not node]

    def half(self) -> list[str]:
        return [group for group in self.pods if 0 < len(self.waiting(group)) < self.sizes[group][1]]

    def passing(self, group: str) -> list[str]:
        gpus, nodes = self.sizes[group]
        made = plan(gpus, nodes)
        if nodes > 1:
            refused = self.groups.refusals(f"ns/{group}/0", made.to_json(), made, NODES, self.snapshot)
        else:
            kept = self.groups.kept(self.snapshot)
            refused = self.judge.refusals(made.to_json(), NODES, self.snapshot, lambda *where: kept[where])
        return [name for name in NODES if name not in refused]

    def schedule(self, group: str, pick: int) -> bool:
        """Try one pod that waits."""
        waiting = self.waiting(group)
        nodes = self.passing(group) if waiting else []
        if not nodes:
            return False
        self.pods[group][waiting[0]] = nodes[pick % len(nodes)]
        self.tell(group, waiting[0])
        return True

    def used(self, name: str) -> int:
        return sum(self.sizes[group][0] for group, pods in self.pods.items() for node in pods.values() if node == name)


LIFE = ("create", "schedule", "schedule", "schedule", "schedule", "delete", "recreate", "pass")
STEPS = 2_500
SEEDS = range(4)


def take(world: World, dice: Random, kind: str) -> None:
    """One random step."""
    groups = sorted(world.pods)
    if kind == "create" and len(groups) < 6:
        world.create(dice.randint(1, DEVICES), dice.randint(1, 3))
    elif kind == "schedule" and groups:
        world.schedule(dice.choice(groups), dice.randrange(DEVICES))
    elif kind == "delete" and groups and dice.random() < 0.5:
        world.delete(dice.choice(groups))
    elif kind == "recreate" and groups and dice.random() < 0.2:
        group = dice.choice(groups)
        world.remove_pods(group)
        world.make_pods(group)
    elif kind == "pass":
        world.now_s += dice.choice((1, 30, 61))
    elif kind == "restart":
        world.restart()


def walk(seed: int, *kinds: str) -> Iterator[World]:
    """A world after each of many random steps."""
    dice, world = Random(seed), World()
    for _ in range(STEPS):
        take(world, dice, dice.choice(kinds))
        yield world


@pytest.mark.parametrize("seed", SEEDS)
def test_no_gpu_is_given_twice(seed):
    for world in walk(seed, *LIFE, "restart"):
        assert all(world.used(name) <= DEVICES for name in NODES)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_group_of_which_one_pod_has_a_node_always_finds_nodes_for_the_others(seed):
    found = 0
    for world in walk(seed, *LIFE):
        for group in world.half():
            found += 1
            assert world.passing(group)
    assert found > STEPS / 20


@pytest.mark.parametrize("seed", SEEDS)
def test_after_restarts_no_two_half_groups_wait_for_each_other_for_ever(seed):
    """The launchers of a half group give up, and its pods are made anew."""
    for step, world in enumerate(walk(seed, *LIFE, "restart")):
        if step % 50:
            continue
        for _ in range(2 * len(world.pods) + 1):
            while any(world.schedule(group, 0) for group in sorted(world.pods)):
                pass
            for group in world.half():
                world.remove_pods(group)
                world.make_pods(group)
            world.now_s += RESERVED_S + 1
        while any(world.schedule(group, 0) for group in sorted(world.pods)):
            pass
        assert world.half() == []


@pytest.mark.parametrize("seed", SEEDS)
def test_nothing_is_kept_for_groups_that_are_gone(seed):
    for step, world in enumerate(walk(seed, *LIFE, "restart")):
        if step % 50:
            continue
        for group in list(world.pods):
            world.delete(group)
        world.now_s += RESERVED_S
        assert not world.groups.kept(world.snapshot)
        assert world.snapshot._groups == {}


class Queue:
    """Kueue: it admits whole groups within a quota, and ends whole groups to give their quota to others.

    The scheduler does not look at pods that it holds back, and so it does not ask the extender about them.
    """

    def __init__(self, world: World, quota: int) -> None:
        self.world, self.quota = world, quota
        self.admitted: set[str] = set()

    def needs(self, group: str) -> int:
        gpus, nodes = self.world.sizes[group]
        return gpus * nodes

    def admit(self, group: str) -> None:
        if sum(map(self.needs, self.admitted)) + self.needs(group) <= self.quota:
            self.admitted.add(group)

    def preempt(self, group: str) -> None:
        """Its pods end, and those that come in their place wait."""
        self.admitted.discard(group)
        self.world.remove_pods(group)
        self.world.make_pods(group)

    def schedule(self) -> None:
        """All that the scheduler can do now."""
        while any(self.world.schedule(group, 0) for group in sorted(self.admitted)):
            pass


@pytest.mark.parametrize("seed", SEEDS)
def test_with_a_quota_for_more_than_there_is_groups_are_whole_or_wait_whole_and_those_held_back_keep_nothing(seed):
    dice, world = Random(seed), World()
    queue, whole = Queue(world, 2 * DEVICES * len(NODES)), 0
    for _ in range(6):
        world.create(dice.randint(1, DEVICES), dice.randint(2, 3))
    for _ in range(300):
        group = dice.choice(sorted(world.pods))
        if group in queue.admitted and dice.random() < 0.5:
            queue.preempt(group)
        else:
            queue.admit(group)
        queue.schedule()
        assert world.half() == []
        assert not world.groups.kept(world.snapshot)
        whole += sum(not world.waiting(group) for group in world.pods)
        # Whoever is admitted and waits has less room than it needs, whatever the others once kept.
        for waits in (each for each in queue.admitted if world.waiting(each)):
            gpus, nodes = world.sizes[waits]
            assert sum((DEVICES - world.used(name)) // gpus for name in NODES) < nodes
    assert whole > 300


PARTS = st.lists(st.frozensets(st.integers(0, 3)), min_size=1, max_size=5)


@given(PARTS, st.integers(1, 4), st.data())
def test_seats_are_dealt_wherever_that_is_possible(held, count, data):
    seats = [f"n{index}" for index in range(len(held))]
    parts = {seat: frozenset(part for part in own if part < count) for seat, own in zip(seats, held, strict=True)}
    wanted = data.draw(st.integers(1, count))
    possible = any(
        all(part in parts[seat] for seat, part in zip(some, order, strict=True))
        for some in itertools.combinations(seats, min(wanted, len(seats)))
        for order in itertools.permutations(range(count), len(some))
        if len(some) == wanted
    )
    assert (len(deal(seats, parts, count, wanted)) == wanted) == possible


@pytest.mark.parametrize("free", range(1, 5))
def test_the_first_pod_waits_until_there_is_room_for_all(free):
    world = World()
    for name in NODES[free:]:
        world.create(DEVICES, 1)
        group = f"g{world.serial - 1}"
        world.pods[group] = dict.fromkeys(world.pods[group], name)
        world.restart()
    world.create(DEVICES, 3)
    group = f"g{world.serial - 3}"
    assert len(world.passing(group)) == (3 if free >= 3 else 0)
