"""Ten thousand random steps of scheduling, in each mode of allocation: no GPU is given twice, and nothing is a ghost.

The extender's watches are late, its process restarts, schedulers give up between its answer and the binding, and pods
end at any moment. The kubelet picks any GPUs. With claims, the scheduler picks them, and the operator's cache follows.
"""

from __future__ import annotations

import random
from collections import deque

import pytest

from helpers.dra import Gpu, resource_slice
from helpers.dra import profile as claim_profile
from helpers.sizes import GIB
from uellm.extender.decide import Judge, scores
from uellm.extender.snapshot import Snapshot
from uellm.hardware import DRA_DRIVER, GPU_RESOURCE, StageNeeds
from uellm.kube.kinds import GPUNODEPROFILE, RESOURCECLAIM, RESOURCESLICE
from uellm.planner.assignment.assign import Task
from uellm.planner.cost.rates import Costs
from uellm.planner.handover.annotation import PlanAnnotation, refusal_on
from uellm.reconcile.cache import Cache
from uellm.reconcile.planning.ledger import Claim, Commitment, offers

STEPS = 10_000
SIZES = (16 * GIB, 40 * GIB)
NODES = {"large": (1,) * 8, "small": (0,) * 8, "mixed": (0, 0, 0, 0, 1, 1, 1, 1), "few": (1, 1)}
LAYERS = 8


def plan(gpus: int, layer_gib: int) -> PlanAnnotation:
    """A model of eight layers on one GPU each stage."""
    costs = Task((layer_gib * GIB,) * LAYERS, (0,) * LAYERS, 0, 0, fixed_bytes=GIB, margin="0", tensor=1, costs=Costs())
    return PlanAnnotation(gpus, GPU_RESOURCE, gpus, costs, "default/llama")


PLANS = [plan(gpus, layer_gib) for gpus in (1, 2, 4) for layer_gib in (1, 4)]


class PluginCluster:
    """Nodes whose kubelets pick GPUs, and an extender whose view is behind.

    `counts`: the scheduler counts GPUs, as the real one does, and the extender hears of pods late; else the extender
    does without that count, and hears of pods at once, but of profiles late.
    """

    def __init__(self, seed: int, *, counts: bool) -> None:
        self.counts = counts
        self.random = random.Random(seed)
        self.judge = Judge(refusal_on)
        self.allocated: dict[str, dict[int, str]] = {name: {} for name in NODES}
        self.pods: dict[str, dict] = {}  # all that exist
        self.plans: dict[str, PlanAnnotation] = {}
        self.serial = self.admitted = self.refused = 0
        self.restart()

    # The API server, the watches and the profiler.

    def profile(self, name: str) -> dict:
        devices = []
        for index, size in enumerate(NODES[name]):
            uid = self.allocated[name].get(index)
            taken = {"allocatedTo": {"podUID": uid}} if uid else {}
            devices.append({"index": index, "uuid": f"{name}-{index}", "memoryBytes": SIZES[size], **taken})
        return {"metadata": {"name": name}, "status": {"devices": devices}}

    def restart(self) -> None:
        """The extender starts anew, from full lists. The profiles are as they were last written."""
        self.snapshot = Snapshot()
        self.events: deque = deque()
        if not hasattr(self, "written"):
            self.written = {name: self.profile(name) for name in NODES}
        for each in self.written.values():
            self.snapshot.put_profile(each)
        for each in self.pods.values():
            self.snapshot.put_pod(each)

    def report(self, name: str) -> None:
        self.written[name] = self.profile(name)
        self.tell("profile", self.written[name])

    def tell(self, kind: str, obj) -> None:
        self.events.append((kind, obj))
        if not self.counts and kind != "profile":
            self.heed(*self.events.pop())

    def hear(self, count: int) -> None:
        for _ in range(min(count, len(self.events))):
            self.heed(*self.events.popleft())

    def heed(self, kind: str, obj) -> None:
        if kind == "profile":
            self.snapshot.put_profile(obj)
        elif kind == "pod":
            self.snapshot.put_pod(obj)
        else:
            self.snapshot.drop_pod(obj)

    # The scheduler and the kubelets.

    def schedule(self, *, times_out: bool) -> None:
        """One pod: the scheduler counts, the extender judges and ranks, the scheduler binds, the kubelet picks."""
        chosen, text = (each := self.random.choice(PLANS)), each.to_json()
        room = [name for name in NODES if not self.counts or len(NODES[name]) - self.bound(name) >= chosen.gpus]
        refused = self.judge.refusals(text, room, self.snapshot)
        passing = [name for name in room if name not in refused]
        self.refused += len(refused)
        ranked = scores(text, passing, self.snapshot)
        if times_out or not passing:
            return
        self.serial += 1
        name, uid = max(passing, key=lambda each: (ranked[each], each)), f"pod-{self.serial}"
        metadata = {"uid": uid, "annotations": {"uellm.io/plan": text}}
        self.pods[uid] = {"metadata": metadata, "spec": {"nodeName": name}, "status": {"phase": "Pending"}}
        self.plans[uid] = chosen
        self.tell("pod", self.pods[uid])

    def bound(self, name: str) -> int:
        """GPUs that the scheduler counts on a node. A pod that has ended needs none, though it is still there."""
        return sum(
            self.plans[uid].gpus
            for uid, pod in self.pods.items()
            if pod["spec"]["nodeName"] == name and pod["status"]["phase"] != "Succeeded"
        )

    def admit(self, uid: str) -> None:
        """The kubelet allocates devices, whichever."""
        pod = self.pods[uid]
        name = pod["spec"]["nodeName"]
        if pod["status"]["phase"] != "Pending":
            return
        free = [index for index in range(len(NODES[name])) if index not in self.allocated[name]]
        assert len(free) >= self.plans[uid].gpus, "a GPU was given twice"
        picked = self.random.sample(free, self.plans[uid].gpus)
        self.allocated[name] |= dict.fromkeys(picked, uid)
        self.pods[uid] = {**pod, "status": {"phase": "Running"}}
        self.tell("pod", self.pods[uid])
        self.admitted += 1
        # Where GPUs differ, one may have become free since; then the pod is moved, because its launcher refuses it.
        assert len(set(NODES[name])) > 1 or self.holds(uid, [NODES[name][index] for index in picked])

    def holds(self, uid: str, kinds: list[int]) -> bool:
        """Brute force: the layers are spread over the GPUs as they fit."""
        each = self.plans[uid].task
        rooms = sum((SIZES[kind] - each.fixed_bytes) // each.layer_bytes[0] for kind in kinds)
        return rooms >= LAYERS

    def end(self, uid: str, *, deleted: bool) -> None:
        pod = self.pods[uid]
        name = pod["spec"]["nodeName"]
        self.allocated[name] = {index: held for index, held in self.allocated[name].items() if held != uid}
        if deleted:
            del self.pods[uid], self.plans[uid]
            self.tell("gone", uid)
        else:
            self.pods[uid] = {**pod, "status": {"phase": "Succeeded"}}
            self.tell("pod", self.pods[uid])

    def step(self) -> None:
        kind = self.random.choices(
            ["schedule", "time out", "admit", "end", "delete", "report", "hear", "restart"],
            [8, 3, 10, 2, 4, 6, 12, 0.3],
        )[0]
        uid = self.random.choice(list(self.pods)) if self.pods else ""
        if kind in ("schedule", "time out"):
            self.schedule(times_out=kind == "time out")
        elif kind == "report":
            self.report(self.random.choice(list(NODES)))
        elif kind == "hear":
            self.hear(self.random.randint(1, 6))
        elif kind == "restart":
            self.restart()
        elif uid and kind == "admit":
            self.admit(uid)
        elif uid:
            self.end(uid, deleted=kind == "delete")

    def settle(self) -> None:
        """Every kubelet, profiler and watch has caught up."""
        for uid in list(self.pods):
            self.admit(uid)
        for name in NODES:
            self.report(name)
        self.hear(len(self.events))


@pytest.mark.parametrize("counts", [True, False], ids=["the scheduler counts", "the extender alone"])
def test_with_a_device_plugin_every_pod_gets_gpus_that_hold_its_plan_and_none_twice(counts):
    cluster = PluginCluster(int(counts), counts=counts)
    for number in range(STEPS):
        cluster.step()
        if number % 250 == 0:
            cluster.settle()
            for name, kinds in NODES.items():
                offer = cluster.snapshot.offer(name, GPU_RESOURCE)
                free = {index for index in range(len(kinds)) if index not in cluster.allocated[name]}
                assert (set(offer.free), offer.promised) == ({f"{name}-{index}" for index in free}, 0)
    # The steps were worth something.
    assert cluster.admitted > 400
    assert cluster.refused > 400
    for uid in list(cluster.pods):
        cluster.end(uid, deleted=True)
    cluster.settle()
    assert all(len(cluster.snapshot.offer(name, GPU_RESOURCE).free) == len(kinds) for name, kinds in NODES.items())
    snapshot = cluster.snapshot
    assert (snapshot._gone, snapshot._node_of, list(filter(None, snapshot._holdings.values()))) == ({}, {}, [])


class ClaimCluster:
    """A scheduler that allocates GPUs to claims, and the operator's cache, which follows it."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.gpus = {
            name: [Gpu(f"GPU-{name}-{index}", f"GPU {size}", SIZES[size]) for index, size in enumerate(kinds)]
            for name, kinds in NODES.items()
        }
        self.held: dict[str, tuple[str, ...]] = {}  # uuids by claim, as the scheduler has them
        self.claims: dict[str, dict] = {}
        self.served = [Commitment(2, (), (SIZES[1],) * 2, claims=(StageNeeds("GPU 1", SIZES[1]),) * 2)]
        self.serial = self.version = self.allocated = 0
        self.restart()

    def restart(self) -> None:
        self.cache = Cache()
        self.events: deque = deque()
        for name, gpus in self.gpus.items():
            self.cache.put(GPUNODEPROFILE, self.versioned(claim_profile(name, gpus)))
            self.cache.put(RESOURCESLICE, self.versioned(resource_slice(name, gpus)))
        for claim in self.claims.values():
            self.cache.put(RESOURCECLAIM, claim)

    def versioned(self, obj: dict) -> dict:
        self.version += 1
        metadata = {"uid": f"uid-{obj['metadata']['name']}", **obj["metadata"], "resourceVersion": str(self.version)}
        return {**obj, "metadata": metadata}

    def write(self, name: str, devices: list[tuple[str, int]], *, reserved: bool) -> None:
        results = [
            {"driver": DRA_DRIVER, "pool": node, "device": f"gpu-{index}", "request": f"stage-{at}"}
            for at, (node, index) in enumerate(devices)
        ]
        pods = [{"resource": "pods", "name": name, "uid": f"pod-{name}"}] if reserved else []
        claim = {
            "metadata": {"name": name, "namespace": "ns", "ownerReferences": [{"kind": "Pod", "uid": f"pod-{name}"}]}
        }
        status = {"allocation": {"devices": {"results": results}}, "reservedFor": pods} if devices else {}
        self.claims[name] = self.versioned({**claim, "status": status})
        self.events.append(("put", self.claims[name]))

    def allocate(self, *, times_out: bool) -> None:
        """The scheduler gives a claim free GPUs of one node and product; without a pod it takes them back."""
        taken = {uuid for uuids in self.held.values() for uuid in uuids}
        count, size = self.random.choice((1, 2, 4)), self.random.choice(SIZES)
        for node, gpus in self.gpus.items():
            able = [index for index, gpu in enumerate(gpus) if gpu.uuid not in taken and gpu.memory_bytes == size]
            if len(able) >= count:
                picked = self.random.sample(able, count)
                self.serial += 1
                name = f"claim-{self.serial}"
                self.held[name] = tuple(gpus[index].uuid for index in picked)
                self.write(name, [(node, index) for index in picked], reserved=not times_out)
                self.allocated += 1
                return

    def deallocate(self, name: str) -> None:
        """The pod did not start in time: the claim stays, and holds nothing."""
        self.held.pop(name, None)
        self.write(name, [], reserved=False)

    def delete(self, name: str) -> None:
        self.held.pop(name, None)
        self.events.append(("gone", self.claims.pop(name)))

    def hear(self, count: int) -> None:
        for _ in range(min(count, len(self.events))):
            kind, claim = self.events.popleft()
            if kind == "put":
                self.cache.put(RESOURCECLAIM, claim)
            else:
                self.cache.remove(RESOURCECLAIM, claim)

    def step(self) -> None:
        kinds = ["allocate", "time out", "deallocate", "delete", "hear", "restart"]
        kind = self.random.choices(kinds, [8, 2, 2, 5, 12, 0.2])[0]
        name = self.random.choice(list(self.claims)) if self.claims else ""
        if kind in ("allocate", "time out"):
            self.allocate(times_out=kind == "time out")
        elif kind == "hear":
            self.hear(self.random.randint(1, 6))
        elif kind == "restart":
            self.restart()
        elif name and kind == "deallocate":
            self.deallocate(name)
        elif name:
            self.delete(name)

    def check(self) -> None:
        self.hear(len(self.events))
        taken = [uuid for uuids in self.held.values() for uuid in uuids]
        assert len(taken) == len(set(taken))
        nodes = self.cache.profiled_nodes()
        shown = {uuid: holder for node in nodes for uuid, holder in node.holders.items()}
        assert shown == {uuid: f"pod-{name}" for name, uuids in self.held.items() for uuid in uuids}
        for name, uuids in self.held.items():
            assert self.cache.claimed(f"pod-{name}") == uuids
        # What a further service is offered: nothing that is held, and nothing that is kept for another one's replicas.
        everyone = {gpu.uuid for gpus in self.gpus.values() for gpu in gpus}
        for replicas in (0, 1, 3):
            offered = offers(nodes, [Claim(self.served[0], replicas, ())], ())
            free = [uuid for offer in offered for uuid in offer.free]
            assert len(free) == len(set(free))
            assert set(free) <= everyone - set(taken)
            withheld = everyone - set(taken) - set(free)
            assert all(self.size(uuid) == SIZES[1] for uuid in withheld)
            assert len(withheld) == 2 * min(replicas, self.pairs(set(taken)))

    def size(self, uuid: str) -> int:
        return next(gpu.memory_bytes for gpus in self.gpus.values() for gpu in gpus if gpu.uuid == uuid)

    def pairs(self, taken: set[str]) -> int:
        """Pairs of large GPUs that are free on one node."""
        return sum(
            sum(gpu.uuid not in taken and gpu.memory_bytes == SIZES[1] for gpu in gpus) // 2
            for gpus in self.gpus.values()
        )


def test_with_claims_no_gpu_is_held_or_offered_twice_and_none_stays_held_by_a_claim_that_has_gone():
    cluster = ClaimCluster(0)
    for number in range(STEPS):
        cluster.step()
        if number % 100 == 0:
            cluster.check()
    assert cluster.allocated > 1000
    for name in list(cluster.claims):
        cluster.delete(name)
    cluster.check()
    index = cluster.cache._claim_index
    assert (index._held, index._holders, dict(index._claims_of_pods)) == ({}, {}, {})
