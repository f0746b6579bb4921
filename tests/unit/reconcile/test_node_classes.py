"""Classes of nodes that may join: which count for a service, and what a node that joined does to the plan."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

import pytest

from helpers.models import LLAMA_8B
from helpers.sizes import GIB
from uellm.api import parse_service
from uellm.hardware import NodeNeeds
from uellm.kube.kinds import DEPLOYMENT, GPUNODECLASS, GPUNODEPROFILE, LLMSERVICE, NODE, POD
from uellm.reconcile.cache import Cache
from uellm.reconcile.names import Key
from uellm.reconcile.node_class import node_class
from uellm.reconcile.observe import observe
from uellm.reconcile.obstacle import Obstacle
from uellm.reconcile.planning.answer import answer
from uellm.reconcile.planning.choose import Choice
from uellm.reconcile.planning.node_classes import doubts, less_than_its_class, would_join
from uellm.reconcile.planning.plan_status import plan_status
from uellm.reconcile.planning.planning import Planning
from uellm.reconcile.planning.render import render
from uellm.reconcile.profiled_node import profiled_node
from uellm.reconcile.revisions import inputs_of
from uellm.reconcile.status.decide import decide

INSTANCE = {"node.kubernetes.io/instance-type": "p5"}
RATES = {"bf16GigaflopsPerSecond": 700_000, "memoryBytesPerSecond": 2_900_000_000_000}


def class_document(name="p5", memory_gib=80, count=1, *, version="1", **spec):
    device = {"product": "H100", "memoryBytes": memory_gib * GIB, "computeCapability": "9.0", "measured": RATES}
    return {
        "apiVersion": "uellm.io/v1alpha1",
        "kind": "GPUNodeClass",
        "metadata": {"name": name, "uid": f"uid-{name}", "resourceVersion": version},
        "spec": {"labels": INSTANCE, "devices": [{"index": index, **device} for index in range(count)], **spec},
    }


def profile(name="n1", memory_gib=80, count=1, *, version="1", holder=None):
    device = {"product": "H100", "memoryBytes": memory_gib * GIB, "computeCapability": "9.0", "measured": RATES}
    held = {"allocatedTo": {"podUID": holder}} if holder else {}
    devices = [{"index": index, "uuid": f"{name}-{index}", **device, **held} for index in range(count)]
    return {
        "kind": "GPUNodeProfile",
        "metadata": {"name": name, "uid": f"uid-{name}", "resourceVersion": version},
        "status": {"devices": devices},
    }


def node(name="n1", labels=INSTANCE, version="1"):
    gpus = {"uellm.io/gpu.count": "1"}
    metadata = {"name": name, "uid": f"uid-{name}", "resourceVersion": version, "labels": {**labels, **gpus}}
    return {"metadata": metadata, "spec": {}}


def service(**spec):
    model = {"uri": "file:///m", "config": LLAMA_8B, "maxModelLen": 4096}
    return {
        "apiVersion": "uellm.io/v1alpha1",
        "kind": "LLMService",
        "metadata": {"name": "llama", "namespace": "ns", "uid": "service-uid", "generation": 1, "resourceVersion": "1"},
        "spec": {"model": model, "replicas": 1, **spec},
    }


class InProcess:
    """The planner, without a process of its own."""

    async def answer(self, question):
        return answer(question)

    async def render(self, plan, request):
        return render(plan, request)


class World:
    """A cluster in the cache and the real planner."""

    def __init__(self, make):
        self.make = make
        self.cache = Cache()
        self.planning = Planning(self.cache, InProcess())
        self.now = datetime(2026, 1, 1, tzinfo=UTC)
        self.version = 10
        self.document = service()

    def put(self, kind, obj):
        self.version += 1
        self.cache.put(kind, {**obj, "metadata": {**obj["metadata"], "resourceVersion": str(self.version)}})

    def remove(self, kind, name):
        self.cache.remove(kind, self.cache.get(kind, name))

    async def choice(self, **spec):
        """The choice of a pass, whose plan is written into the status."""
        if spec:
            self.document["spec"] |= spec
        self.put(LLMSERVICE, self.document)
        planned = await self.planning.plan(self.observed(), self.now)
        if planned.choice.plan is not None:
            self.document["status"] = {"plan": plan_status(planned.choice.plan)}
            self.put(LLMSERVICE, self.document)
        return planned.choice

    def observed(self):
        return built(self.make, observe(self.cache, Key("ns", "llama")))


def built(make, found):
    """What was observed, of a service whose pods were made for its spec as it is."""
    revision = make.revision(found.spec_mark)
    return replace(found, children={DEPLOYMENT: make.deployment()}, revisions={revision.name: revision})


@pytest.fixture
def world(make):
    return World(make)


async def test_an_empty_cluster_is_planned_on_a_class(world):
    world.put(GPUNODECLASS, class_document())
    plan = (await world.choice()).plan
    assert plan.node_classes == ("p5",)
    assert "class p5" in plan.assumptions[0]


async def test_a_class_that_appears_is_planned_on_and_without_it_nothing_is(world):
    choice = await world.choice()
    assert (choice.plan, choice.failure.reason) == (None, "NoProfile")
    assert world.planning.waiting() == [Key("ns", "llama")]
    world.put(GPUNODECLASS, class_document())
    assert (await world.choice()).plan.node_classes == ("p5",)


async def test_a_node_that_joins_as_its_class_says_takes_the_plan_over_without_a_change_of_the_pods(world):
    world.put(GPUNODECLASS, class_document())
    before = (await world.choice()).plan
    world.put(NODE, node())
    world.put(GPUNODEPROFILE, profile())
    choice = await world.choice()
    assert (choice.plan.nodes, choice.plan.node_classes, choice.why) == (("n1",), (), "")
    assert inputs_of(choice.plan) == inputs_of(before)


async def test_a_node_that_joins_smaller_than_its_class_calls_for_another_plan_with_the_reason(world):
    world.put(GPUNODECLASS, class_document())
    assert (await world.choice()).plan.gpus_per_replica == 1
    world.put(NODE, node())
    world.put(GPUNODEPROFILE, profile(memory_gib=14, count=2))
    choice = await world.choice()
    assert (choice.plan.nodes, choice.plan.gpus_per_replica) == (("n1",), 2)
    assert choice.why == (
        "the former plan was for a node that has not joined: class p5: node n1 carries its labels and has 2 x H100 "
        "(14.0 GiB) instead of 1 x H100 (80.0 GiB)"
    )
    assert choice.plan.reason == choice.why


async def test_where_the_smaller_node_holds_no_plan_the_service_has_none_and_the_condition_says_why(world):
    world.put(GPUNODECLASS, class_document())
    await world.choice()
    world.put(NODE, node())
    world.put(GPUNODEPROFILE, profile(memory_gib=2))
    choice = await world.choice()
    assert (choice.plan, choice.failure.reason) == (None, "NoFit")
    assert "class p5: node n1 carries its labels and has 1 x H100 (2.0 GiB) instead of" in choice.failure.message
    # With the node, the doubt about the class goes.
    world.remove(GPUNODEPROFILE, "n1")
    assert (await world.choice()).plan.node_classes == ("p5",)


async def test_the_plan_goes_with_its_class(world):
    world.put(GPUNODECLASS, class_document())
    await world.choice()
    world.remove(GPUNODECLASS, "p5")
    choice = await world.choice()
    assert (choice.plan, choice.failure.reason) == (None, "NoProfile")
    assert choice.why == "the former plan was for a node that has not joined: class p5 is gone"


async def test_while_a_node_may_be_on_its_way_a_smaller_class_does_not_replace_the_plan(world):
    world.put(GPUNODECLASS, class_document("p5", 80, 8))
    before = (await world.choice()).plan
    world.put(GPUNODECLASS, class_document("g6", 48, labels={"node.kubernetes.io/instance-type": "g6"}))
    assert (await world.choice()).plan == before


async def test_gpus_that_become_free_are_used_at_once(world):
    world.put(NODE, node(labels={}))
    world.put(GPUNODEPROFILE, profile(holder="somebody-else"))
    world.put(GPUNODECLASS, class_document())
    plan = (await world.choice()).plan
    assert plan.node_classes == ("p5",)
    assert "1 in use" in plan.assumptions[0]
    assert world.planning.waiting() == [Key("ns", "llama")]
    world.put(GPUNODEPROFILE, profile())
    assert (await world.choice()).plan.nodes == ("n1",)


async def test_a_pod_on_a_node_whose_profile_is_yet_to_come_keeps_its_plan(world):
    world.put(GPUNODECLASS, class_document())
    before = (await world.choice()).plan
    world.put(NODE, node())
    bound = {
        "metadata": {"name": "a", "namespace": "ns", "uid": "uid-a", "labels": {"uellm.io/service": "llama"}},
        "spec": {"nodeName": "n1"},
        "status": {"phase": "Pending"},
    }
    world.put(POD, bound)
    assert (await world.choice()).plan == before
    world.put(GPUNODEPROFILE, profile(holder="uid-a"))
    assert (await world.choice()).plan.nodes == ("n1",)


async def test_a_restarted_operator_keeps_a_plan_that_waits(world):
    world.put(GPUNODECLASS, class_document())
    before = (await world.choice()).plan
    restarted = Planning(world.cache, InProcess())
    restarted.promises.restore()
    planned = await restarted.plan(world.observed(), world.now)
    assert planned.choice.plan == before
    assert planned.rendered.node_needs == NodeNeeds(
        "nvidia.com/gpu", 1, planned.rendered.node_needs.memory_mib, planned.rendered.node_needs.smallest_mib, (7, 5)
    )


def joining(document, wanted):
    classes = [node_class(document)]
    return would_join(classes, doubts(classes, []), wanted)


@pytest.mark.parametrize(
    ("spec", "template", "reason"),
    [
        ({}, {"nodeSelector": {"zone": "a"}}, "spec.template.spec.nodeSelector wants zone=a"),
        (
            {"taints": [{"key": "team", "value": "x", "effect": "NoSchedule"}]},
            {},
            "taint team:NoSchedule is not tolerated by spec.template.spec.tolerations",
        ),
        ({"links": [{"a": 0, "b": 3}]}, {}, "spec.links: must name only indices of devices"),
    ],
)
def test_a_class_that_the_pods_may_not_use_or_that_cannot_be_read_is_left_out_in_one_line(spec, template, reason):
    wanted = parse_service(service(template={"spec": template}))
    offers, left_out = joining(class_document(**spec), wanted)
    assert offers == ()
    assert tuple(map(str, left_out)) == (f"class p5: {reason}",)


def test_the_taint_of_gpu_nodes_is_tolerated_and_the_selector_matched_on_the_labels_of_the_class():
    taint = {"key": "nvidia.com/gpu", "effect": "NoSchedule"}
    wanted = parse_service(service(template={"spec": {"nodeSelector": INSTANCE}}))
    offers, left_out = joining(class_document(taints=[taint]), wanted)
    assert [offer.node_class for offer in offers] == ["p5"]
    assert left_out == ()


@pytest.mark.parametrize(
    ("has", "labels", "less"),
    [
        ({"memory_gib": 80, "count": 2}, INSTANCE, False),
        ({"memory_gib": 79, "count": 2}, INSTANCE, False),  # within what the driver keeps for itself
        ({"memory_gib": 40, "count": 2}, INSTANCE, True),
        ({"memory_gib": 80, "count": 1}, INSTANCE, True),
        ({"memory_gib": 80, "count": 8}, INSTANCE, False),
        ({"memory_gib": 40, "count": 1}, {"node.kubernetes.io/instance-type": "other"}, False),
    ],
)
def test_a_node_of_the_class_is_told_by_labels_and_held_to_what_the_class_says(has, labels, less):
    doubted = less_than_its_class(
        node_class(class_document(count=2)), [(profiled_node(profile(**has)), node(labels=labels))]
    )
    assert bool(doubted) == less


def test_a_class_with_labels_of_gpus_alone_is_told_by_those():
    only_gpus = node_class(class_document(labels={"nvidia.com/gpu.count": "1"}))
    assert only_gpus.is_class_of({"nvidia.com/gpu.count": "1", "a": "b"})
    assert not only_gpus.is_class_of({"nvidia.com/gpu.count": "2"})
    assert not node_class(class_document(labels={})).is_class_of({"a": "b"})


class TestStatus:
    """What the conditions say while a service waits for a node."""

    def decided(self, make, plan, *, failure=None, pods=(), classes=None):
        observed = observe_with(make, plan, pods, [class_document()] if classes is None else classes)
        choice = Choice(None if failure else plan, failure)
        decision = decide(observed, choice, refusal=None, now=datetime(2026, 1, 1, tzinfo=UTC))
        return {entry["type"]: entry for entry in decision.status["conditions"]}, decision.status

    def test_ready_says_for_which_node_it_waits_and_with_which_labels(self, make):
        plan = replace(make.plan(), nodes=(), node_classes=("p5", "p4"))
        conditions, status = self.decided(make, plan, pods=[make.unschedulable()])
        assert conditions["Ready"]["reason"] == "WaitingForNode"
        assert conditions["Ready"]["message"] == (
            "no node that is there can hold a replica: it waits for a node of class p5 to join, with the labels "
            "node.kubernetes.io/instance-type=p5; one of class p4 would do, too"
        )
        assert conditions["Reconciling"]["status"] == "True"
        assert conditions["Planned"]["message"].endswith("on a node of class p5 that has not joined")
        assert status["summary"]["nodes"] == "(class p5)"
        assert status["plan"]["nodeClasses"] == ["p5", "p4"]

    def test_a_pod_with_a_node_waits_for_no_other(self, make):
        plan = replace(make.plan(), nodes=(), node_classes=("p5",))
        conditions, _ = self.decided(make, plan, pods=[make.pod()])
        assert conditions["Ready"]["reason"] == "EngineStarting"

    def test_pods_whose_class_is_gone_are_told_why_there_is_no_plan(self, make):
        plan = replace(make.plan(), nodes=(), node_classes=("p5",))
        gone = Obstacle("NoProfile", "no node has a GPUNodeProfile yet")
        conditions, _ = self.decided(make, plan, failure=gone, pods=[make.unschedulable()], classes=[])
        assert (conditions["Ready"]["reason"], conditions["Planned"]["reason"]) == ("NoProfile", "NoProfile")


def observe_with(make, plan, pods, classes):
    cache = Cache()
    cache.put(LLMSERVICE, make.service(status={"plan": plan_status(plan)}))
    for document in classes:
        cache.put(GPUNODECLASS, document)
    for pod in pods:
        cache.put(POD, pod)
    return built(make, observe(cache, Key("ns", "llama")))
