"""Replicas that span nodes, with the real CRD of LeaderWorkerSet. Its controller is played by the tests.

So is the search for plans over several nodes: the planner's plan for two GPUs of a node is taken for one of two nodes.
"""

from __future__ import annotations

import copy

import pytest
import yaml

from helpers.sizes import GIB
from uellm.kube import CRD, GPUNODEPROFILE, NotFound
from uellm.kube.kinds import DEPLOYMENT, LEADERWORKERSET, POD, SERVICE
from uellm.reconcile.children.revision import GROUP_FILE
from uellm_devcluster.binaries import LEADER_WORKER_SET_VERSION, module_files

pytestmark = pytest.mark.timeout(600)

NAME = "leaderworkersets.leaderworkerset.x-k8s.io"
SPEC = {
    "parallelism": {"tensor": 1, "pipeline": 2},
    "placement": {"multiNode": "Allowed", "schedulerName": "default-scheduler"},
}
LABELS = "leaderworkerset.sigs.k8s.io"


@pytest.fixture(scope="session")
def crd():
    (path,) = module_files("sigs.k8s.io/lws", LEADER_WORKER_SET_VERSION, "config/crd/bases/*_leaderworkersets.yaml")
    found = yaml.safe_load(path.read_text())
    return {name: found[name] for name in ("apiVersion", "kind", "metadata", "spec")}


@pytest.fixture
async def install(kube, crd, eventually):
    """`await install()` installs the CRD; `await install(remove=True)` removes it with all of its objects."""

    async def served(wanted):
        try:
            await kube.list(LEADERWORKERSET)
        except NotFound:
            return not wanted
        return wanted

    async def change(*, remove=False):
        if remove:
            await kube.delete(CRD, NAME)
        else:
            await kube.apply(crd, manager="uellm-tests")
        await eventually(lambda: served(not remove), timeout_s=90)

    yield change
    await change(remove=True)


@pytest.fixture
async def grouped(install, operator, service, gpu_node):
    """`await grouped(**spec)`: a service whose replicas span two nodes, its operator, and its groups."""

    async def make(**spec):
        await install()
        await gpu_node([24 * GIB] * 4)
        llama = await service(**{**SPEC, **spec})
        watching = operator(nodes_per_replica=2)
        await watching.settle("llama")
        return llama, watching, Groups(llama)

    return make


class Groups:
    """LeaderWorkerSet's controller and webhooks, as far as the operator sees what they do."""

    def __init__(self, llama):
        self.llama = llama
        self.kube = llama.kube

    async def live(self):
        return await self.kube.get(LEADERWORKERSET, "llama-engine", self.llama.namespace)

    async def make_pods(self, group=0):
        template = (await self.live())["spec"]["leaderWorkerTemplate"]
        for index, name in enumerate(("leaderTemplate", "workerTemplate")):
            await self._make_pod(copy.deepcopy(template[name]), group, index)

    async def _make_pod(self, template, group, index):
        name = f"llama-engine-{group}" + (f"-{index}" if index else "")
        labels = {"name": "llama-engine", "group-index": str(group), "worker-index": str(index)}
        metadata = template["metadata"] | {"name": name, "namespace": self.llama.namespace}
        metadata["labels"] |= {f"{LABELS}/{label}": value for label, value in labels.items()}
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": template["spec"]}
        await self.kube.create(pod)

    async def report(self, **status):
        live = await self.live()
        metadata = {name: live["metadata"][name] for name in ("name", "namespace")}
        document = {"apiVersion": LEADERWORKERSET.api_version, "kind": LEADERWORKERSET.kind, "metadata": metadata}
        await self.kube.apply_status({**document, "status": status}, manager="lws")

    async def pods(self):
        return {pod["metadata"]["name"]: pod for pod in await self.kube.list(POD, self.llama.namespace)}

    async def serve(self, eventually):
        """Both pods of the only group run and are ready."""
        await self.make_pods()

        async def ready():
            found = (await self.pods()).values()
            return (
                len(found) == 2
                and all(
                    {"type": "Ready", "status": "True"}.items() <= each.items()
                    for pod in found
                    for each in pod["status"].get("conditions", ())
                    if each["type"] == "Ready"
                )
                and all(pod["status"].get("podIP") for pod in found)
            )

        await eventually(ready, timeout_s=60)
        await self.report(replicas=1, updatedReplicas=1, readyReplicas=1)


async def test_the_api_server_takes_the_set_and_a_second_pass_writes_nothing(grouped):
    llama, watching, groups = await grouped()
    live = await groups.live()
    assert live["spec"]["leaderWorkerTemplate"]["size"] == 2
    assert await llama.child(DEPLOYMENT) is None
    assert (await llama.plan())["nodesPerReplica"] == 2
    assert GROUP_FILE in (await llama.revision())["data"]
    assert await watching.step("llama") == []
    selector = (await llama.child(SERVICE))["spec"]["selector"]
    assert selector == {"uellm.io/service": "llama", f"{LABELS}/worker-index": "0"}


async def test_without_leader_worker_set_it_says_what_is_missing_and_goes_on_once_it_is_there(
    operator, service, gpu_node, install
):
    await gpu_node([24 * GIB] * 4)
    llama = await service(**SPEC)
    watching = operator(nodes_per_replica=2)
    await watching.write_out("llama")
    assert await llama.condition("Ready") == (
        "False",
        "NeedsLeaderWorkerSet",
        "a replica spans 2 nodes, and the cluster has no LeaderWorkerSet (leaderworkerset.x-k8s.io/v1): install "
        "LeaderWorkerSet 0.8 or later, and the pods are made within seconds; or set spec.placement.multiNode to Never",
    )
    assert (await llama.condition("Stalled"))[0] == "True"
    await install()
    await watching.write_out("llama")
    assert await Groups(llama).live() is not None
    assert (await llama.condition("Ready"))[1] == "EngineStarting"


async def test_a_replica_is_ready_once_its_group_is(grouped, eventually):
    llama, watching, groups = await grouped()
    await groups.serve(eventually)
    await groups.report(replicas=1, updatedReplicas=1, readyReplicas=0)
    await watching.write_out("llama")
    assert (await llama.condition("Ready"))[0] == "False"
    await groups.report(replicas=1, updatedReplicas=1, readyReplicas=1)
    await watching.write_out("llama")
    assert await llama.condition("Ready") == ("True", "Ready", "1 of 1 replicas serve")
    status = await llama.status()
    assert (status["replicas"], status["readyReplicas"], status["summary"]["ready"]) == (1, 1, "1/1")
    assert status["selector"] == f"uellm.io/service=llama,{LABELS}/worker-index=0"


async def test_placements_are_told_pod_by_pod_from_the_leaders_report(grouped, eventually):
    llama, watching, groups = await grouped()
    await groups.serve(eventually)
    plan = await llama.plan()
    devices = [uuid for stage in plan["stages"] for uuid in stage["devices"]]
    leader = (await groups.pods())["llama-engine-0"]
    watching.reports[leader["status"]["podIP"]] = {
        "version": 1,
        "devices": [{"uuid": uuid} for uuid in devices],
        "layers": plan["layers"],
        "tensor": 1,
        "pipeline": 2,
    }
    watching.later(5)
    await watching.write_out("llama")
    told = {each["pod"]: each for each in (await llama.status())["placements"]}
    assert set(told) == {"llama-engine-0", "llama-engine-0-1"}
    for index, name in enumerate(sorted(told)):
        assert told[name]["actual"] == told[name]["planned"] == [devices[index]]
        assert told[name]["layers"] == [plan["layers"][index]]
        assert told[name]["matchesPlan"] == "True"
    assert (await llama.condition("PlacementVerified"))[1] == "AsPlanned"


async def test_scaling_and_suspending_write_the_replicas_of_the_set(grouped):
    llama, watching, groups = await grouped()
    await llama.change(lambda spec: spec.update(replicas=3))
    await watching.write_out("llama")
    assert (await groups.live())["spec"]["replicas"] == 3
    await llama.change(lambda spec: spec.update(suspend=True))
    await watching.write_out("llama")
    assert (await groups.live())["spec"]["replicas"] == 0
    assert (await llama.condition("Ready"))[1] == "Suspended"


async def test_a_changed_spec_makes_one_revision_and_rolls_both_templates(grouped):
    llama, watching, groups = await grouped()
    before = (await llama.status())["revision"]
    await llama.change(lambda spec: spec.update(engine={"args": ["--seed=7"]}))
    await watching.write_out("llama")
    after = (await llama.status())["revision"]
    assert after != before
    template = (await groups.live())["spec"]["leaderWorkerTemplate"]
    for name in ("leaderTemplate", "workerTemplate"):
        assert template[name]["metadata"]["labels"]["uellm.io/revision"] == after


async def test_what_somebody_changes_is_repaired(grouped):
    llama, watching, groups = await grouped()
    live = await groups.live()
    metadata = {name: live["metadata"][name] for name in ("name", "namespace")}
    template = {**live["spec"]["leaderWorkerTemplate"], "size": 3, "restartPolicy": "None"}
    document = {name: live[name] for name in ("apiVersion", "kind")} | {"metadata": metadata}
    spec = {**live["spec"], "replicas": 5, "leaderWorkerTemplate": template}
    await llama.kube.apply({**document, "spec": spec}, manager="somebody")
    await watching.write_out("llama")
    repaired = (await groups.live())["spec"]
    assert (repaired["replicas"], repaired["leaderWorkerTemplate"]["size"]) == (1, 2)
    assert repaired["leaderWorkerTemplate"]["restartPolicy"] == "RecreateGroupOnPodRestart"
    await llama.kube.delete(LEADERWORKERSET, "llama-engine", llama.namespace)
    await watching.write_out("llama")
    assert await groups.live() is not None


async def test_a_change_to_one_node_and_back_leaves_one_kind_of_object(grouped):
    llama, watching, groups = await grouped()
    watching.worker.nodes_per_replica = 1
    await llama.change(lambda spec: spec["placement"].update(multiNode="Never"))
    await watching.write_out("llama")
    assert await groups.live() is None
    assert (await llama.deployment())["spec"]["replicas"] == 1
    assert (await llama.child(SERVICE))["spec"]["selector"] == {"uellm.io/service": "llama"}
    watching.worker.nodes_per_replica = 2
    await llama.change(lambda spec: spec["placement"].update(multiNode="Allowed"))
    await watching.write_out("llama")
    assert await groups.live() is not None
    assert await llama.child(DEPLOYMENT) is None


async def test_an_operator_that_dies_between_the_two_objects_is_continued(grouped, operator, killed):
    llama, _, groups = await grouped()
    await llama.change(lambda spec: spec["placement"].update(multiNode="Never"))
    for writes in range(1, 12):
        dying = operator(nodes_per_replica=1)
        dying.kube.die_after = writes
        try:
            await dying.step("llama")
        except killed:
            continue
        break
    await operator(nodes_per_replica=1).write_out("llama")
    assert await groups.live() is None
    assert await llama.child(DEPLOYMENT) is not None


async def test_a_template_that_no_pod_can_have_is_refused_before_it_is_written(grouped):
    llama, watching, groups = await grouped()
    before = (await groups.live())["spec"]
    # The CRD has no rule against it; that of pods has.
    engine = {"name": "engine", "volumeMounts": [{"name": "nowhere", "mountPath": "/nowhere"}]}
    await llama.change(lambda spec: spec.update(template={"spec": {"containers": [engine]}}))
    await watching.write_out("llama")
    status, reason, message = await llama.condition("Ready")
    assert (status, reason) == ("False", "InvalidTemplate")
    assert 'Not found: "nowhere"' in message
    assert (await groups.live())["spec"] == before


async def test_a_set_of_somebody_else_is_left_alone(install, operator, service, gpu_node, kube, namespace):
    await install()
    await gpu_node([24 * GIB] * 4)
    worker = {"metadata": {}, "spec": {"containers": [{"name": "a", "image": "a:1"}]}}
    spec = {"replicas": 0, "startupPolicy": "LeaderCreated", "leaderWorkerTemplate": {"workerTemplate": worker}}
    metadata = {"name": "llama-engine", "namespace": namespace}
    kind = {"apiVersion": LEADERWORKERSET.api_version, "kind": LEADERWORKERSET.kind}
    await kube.create({**kind, "metadata": metadata, "spec": {**spec, "rolloutStrategy": {"type": "RollingUpdate"}}})
    llama = await service(**SPEC)
    await operator(nodes_per_replica=2).write_out("llama")
    assert (await llama.condition("Ready"))[1] == "NameTaken"
    assert "ownerReferences" not in (await Groups(llama).live())["metadata"]


async def test_a_group_that_did_not_agree_is_told_and_its_pod_removed_later(grouped, eventually):
    llama, watching, groups = await grouped()
    await groups.serve(eventually)
    leader = (await groups.pods())["llama-engine-0"]
    line = "uellm launcher: GroupDiffers: pod llama-engine-0-1 on node b has vLLM 2, and its leader has 1\n"
    ended = {"exitCode": 1, "message": line, "reason": "Error", "startedAt": None, "finishedAt": None}
    engine = {"name": "engine", "image": "engine:1", "imageID": "", "ready": False, "restartCount": 1}
    metadata = {name: leader["metadata"][name] for name in ("name", "namespace")}
    status = {"containerStatuses": [{**engine, "lastState": {"terminated": ended}}]}
    await llama.kube.apply_status(
        {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "status": status}, manager="kubelet"
    )
    await groups.report(replicas=1, updatedReplicas=1, readyReplicas=0)
    await watching.step("llama")
    failures = (await llama.status())["podFailures"]
    assert failures["reason"] == "GroupDiffers"
    assert "has vLLM 2, and its leader has 1" in failures["message"]


async def test_deleting_the_service_leaves_no_set(grouped, eventually):
    llama, _, groups = await grouped()
    await llama.delete()

    async def gone():
        return await groups.live() is None

    await eventually(gone, timeout_s=150)


async def test_a_measured_network_changes_neither_a_plan_in_use_nor_its_pods_and_counts_in_the_next_prediction(
    operator, service, gpu_node, install, kube, eventually
):
    await install()
    nodes = [await gpu_node([12 * GIB], source="NVML") for _ in range(2)]
    llama = await service(placement=SPEC["placement"])
    watching = operator()
    await watching.settle("llama")
    groups = Groups(llama)
    await groups.serve(eventually)
    await watching.settle("llama")
    before, assumed, revision = await groups.live(), await llama.plan(), (await llama.revision())["metadata"]["name"]
    assert assumed["nodesPerReplica"] == 2
    assert any("the network between nodes is not measured" in each for each in assumed["assumptions"])

    document = await kube.get(GPUNODEPROFILE, nodes[0])
    measured = {"node": nodes[1], "bytesPerSecond": 200_000_000, "roundTripNanoseconds": 4_000_000}
    status = {**document["status"], "network": [{**measured, "measuredAt": "2026-01-01T00:00:00Z"}]}
    head = {"apiVersion": document["apiVersion"], "kind": document["kind"], "metadata": {"name": nodes[0]}}
    await kube.apply_status({**head, "status": status}, manager="uellm-tests")
    await watching.settle("llama")
    after = await groups.live()
    assert after["metadata"]["generation"] == before["metadata"]["generation"]
    assert after["spec"] == before["spec"]
    assert (await llama.revision())["metadata"]["name"] == revision
    assert await llama.plan() == assumed

    await llama.change(lambda spec: spec.update(slo={"classes": [{"name": "chat", "tpot": "1s"}]}))
    await watching.settle("llama")
    predicted = [plan["predicted"]["tpotMilliseconds"] for plan in (assumed, await llama.plan())]
    assert predicted[1] > predicted[0]
    assert (await groups.live())["spec"] == before["spec"]
