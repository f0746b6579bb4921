"""Replicas that span nodes and wait in a queue, on the real API server with the real CRD of LeaderWorkerSet.

The test plays Kueue: it gates pods, says why they wait, and lets no set change its queue, or where its pods may run.
`tests/full/test_kueue_groups.py` has the real one.
"""

from __future__ import annotations

import subprocess

import pytest
import yaml

from cluster.controller.test_groups import crd, grouped, install
from cluster.controller.test_queues import GATE, NO_QUOTA, QUEUE, admit, label, say
from uellm.kube.kinds import POD
from uellm.reconcile.children.leader_worker_set import HOW_TO_MAKE_ANEW
from uellm_devcluster.binaries import ensure

pytestmark = pytest.mark.timeout(600)

__all__ = ["admit", "crd", "grouped", "install", "say"]

ANEW = (
    "no LeaderWorkerSet in a queue can be changed so: set spec.suspend to true, and then to false, and it is made anew"
)
HELD_BACK = {"template": {"spec": {"schedulingGates": [{"name": GATE}]}}}
NAME = "keeps-queue"
_LEADER = "spec.leaderWorkerTemplate.leaderTemplate.spec"
_LABEL = "metadata.labels[?'kueue.x-k8s.io/queue-name']"
_RULES = {
    "metadata.labels[kueue.x-k8s.io/queue-name]": f"object.{_LABEL} == oldObject.{_LABEL}",
    "spec.leaderWorkerTemplate.leaderTemplate.spec.nodeSelector": (
        f"object.{_LEADER}.?nodeSelector == oldObject.{_LEADER}.?nodeSelector"
    ),
}


def webhook():
    """What Kueue's webhook refuses, as far as it is asked here."""
    matched = {"apiGroups": ["leaderworkerset.x-k8s.io"], "apiVersions": ["v1"], "resources": ["leaderworkersets"]}
    rules = [
        {"expression": rule, "message": f"{field}: field is immutable", "reason": "Forbidden"}
        for field, rule in _RULES.items()
    ]
    api = {"apiVersion": "admissionregistration.k8s.io/v1"}
    constraints = {"resourceRules": [{**matched, "operations": ["UPDATE"]}]}
    return [
        {
            **api,
            "kind": "ValidatingAdmissionPolicy",
            "metadata": {"name": NAME},
            "spec": {"matchConstraints": constraints, "failurePolicy": "Fail", "validations": rules},
        },
        {
            **api,
            "kind": "ValidatingAdmissionPolicyBinding",
            "metadata": {"name": NAME},
            "spec": {"policyName": NAME, "validationActions": ["Deny"]},
        },
    ]


@pytest.fixture
def kubectl(kubeconfig):
    def run(*words, text=""):
        command = [str(ensure({"kubectl"}) / "kubectl"), "--kubeconfig", kubeconfig, *words]
        return subprocess.run(command, input=text, text=True, check=False, capture_output=True, timeout=30)

    return run


@pytest.fixture
async def keeps(kubectl, eventually):
    """`await keeps(namespace)`: Kueue's webhook is at work."""

    async def start(namespace):
        assert kubectl("apply", "--filename", "-", text=yaml.safe_dump_all(webhook())).returncode == 0
        change = ["label", "--overwrite", "leaderworkerset/llama-engine", "--dry-run=server"]

        async def refuses():
            tried = kubectl(*change, "--namespace", namespace, "kueue.x-k8s.io/queue-name=probe")
            return "field is immutable" in tried.stderr

        await eventually(refuses, timeout_s=60)

    yield start
    kubectl("delete", "--ignore-not-found", *(f"{each['kind']}/{NAME}".lower() for each in webhook()))


async def own_pods(groups):
    return [pod for name, pod in (await groups.pods()).items() if name.startswith("llama-engine")]


async def uid_of(groups):
    return (await groups.live())["metadata"]["uid"]


async def test_the_labels_of_a_queue_are_those_of_the_set_and_roll_nothing_themselves(grouped, kube):
    llama, watching, groups = await grouped()
    before = await groups.live()
    await label(kube, llama, {**QUEUE, "team": "a"})
    await watching.write_out("llama")
    after = await groups.live()
    assert after["metadata"]["labels"] == {**before["metadata"]["labels"], **QUEUE}
    assert after["spec"] == before["spec"]
    assert await watching.step("llama") == []
    await label(kube, llama, {})
    await watching.write_out("llama")
    assert (await groups.live())["metadata"]["labels"] == before["metadata"]["labels"]


async def test_a_group_that_is_held_back_is_queued_with_the_words_about_all_of_it_and_is_in_nobodys_way(
    grouped, operator, service, say, admit, kube, eventually
):
    llama, watching, groups = await grouped(**HELD_BACK)
    await groups.make_pods()
    for pod in await own_pods(groups):
        named = {"kueue.x-k8s.io/pod-group-name": "workload-of-group-0", "kueue.x-k8s.io/queue-name": "team"}
        metadata = {"name": pod["metadata"]["name"], "namespace": llama.namespace, "labels": named}
        await kube.apply({"apiVersion": "v1", "kind": "Pod", "metadata": metadata}, manager="kueue")
    await say({"metadata": {"name": "x", "uid": "of-another"}}, "of another", name="workload-of-group-1")
    await say({"metadata": {"name": "x", "uid": await uid_of(groups)}}, NO_QUOTA, name="workload-of-group-0")
    watching.later(120)
    await watching.write_out("llama")
    told = f"0 of 1 replicas serve; pod llama-engine-0 waits in the queue team: {NO_QUOTA}"
    assert await llama.condition("Ready") == ("False", "Queued", told)
    # Its two GPUs of four are promised to nobody.
    other = await service("other", placement={"schedulerName": "default-scheduler", "gpus": {"min": 4, "max": 4}})
    alone = operator()
    await alone.write_out("other")
    assert (await other.condition("Planned"))[:2] == ("True", "Planned")
    await other.delete()
    for pod in await own_pods(groups):
        admit(pod)

    async def bound():
        return all(pod["spec"].get("nodeName") for pod in await own_pods(groups))

    # The other service's pod has to end first.
    await eventually(bound, timeout_s=90)
    await watching.write_out("llama")
    assert (await llama.condition("Ready"))[1] == "EngineStarting"
    assert "podFailures" not in await llama.status()


async def test_a_set_that_keeps_its_queue_is_made_anew_where_nothing_serves(grouped, keeps, kube, operator, killed):
    llama, watching, groups = await grouped()
    await label(kube, llama, QUEUE)
    await watching.write_out("llama")
    await keeps(llama.namespace)
    before = await uid_of(groups)
    await label(kube, llama, {**QUEUE, "kueue.x-k8s.io/queue-name": "other"})
    # An operator that dies on the way is continued.
    for writes in range(1, 12):
        dying = operator(nodes_per_replica=2)
        dying.kube.die_after = writes
        try:
            await dying.write_out("llama")
        except killed:
            continue
        break
    assert await uid_of(groups) != before
    assert (await groups.live())["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "other"
    assert await operator(nodes_per_replica=2).step("llama") == []
    again = await uid_of(groups)
    await llama.change(lambda spec: spec.update(template={"spec": {"nodeSelector": {"kubernetes.io/os": "linux"}}}))
    await watching.write_out("llama")
    assert await uid_of(groups) != again


async def test_while_a_group_serves_its_set_stays_and_it_says_how_it_is_made_anew(grouped, keeps, kube, eventually):
    llama, watching, groups = await grouped()
    await label(kube, llama, QUEUE)
    await watching.write_out("llama")
    await groups.serve(eventually)
    await keeps(llama.namespace)
    before, pods = await groups.live(), set(await groups.pods())
    await llama.change(lambda spec: spec.update(template={"spec": {"nodeSelector": {"kubernetes.io/os": "linux"}}}))
    await watching.write_out("llama")
    status, reason, message = await llama.condition("Ready")
    assert (status, reason) == ("False", "Forbidden")
    assert "nodeSelector: field is immutable" in message
    assert message.endswith(f"; {HOW_TO_MAKE_ANEW}")
    assert (await groups.live())["spec"] == before["spec"]
    assert set(await groups.pods()) == pods
    await llama.change(lambda spec: spec.update(suspend=True))
    await watching.write_out("llama")
    assert (await groups.live())["spec"]["replicas"] == 0
    assert await uid_of(groups) == before["metadata"]["uid"]
    for name in pods:
        await kube.delete(POD, name, llama.namespace, grace_s=0)
    await groups.report(replicas=0, updatedReplicas=0, readyReplicas=0)
    await watching.write_out("llama")
    assert await uid_of(groups) != before["metadata"]["uid"]
    assert (await llama.condition("Ready"))[1] == "Suspended"
    await llama.change(lambda spec: spec.update(suspend=False))
    await watching.write_out("llama")
    live = (await groups.live())["spec"]
    assert live["replicas"] == 1
    assert live["leaderWorkerTemplate"]["leaderTemplate"]["spec"]["nodeSelector"] == {"kubernetes.io/os": "linux"}


async def test_what_no_set_may_have_does_not_cost_the_one_that_is_there(grouped, keeps, kube):
    llama, watching, groups = await grouped()
    await label(kube, llama, QUEUE)
    await watching.write_out("llama")
    await keeps(llama.namespace)
    before = await uid_of(groups)
    engine = {"name": "engine", "volumeMounts": [{"name": "nowhere", "mountPath": "/nowhere"}]}
    await llama.change(lambda spec: spec.update(template={"spec": {"containers": [engine]}}))
    await watching.write_out("llama")
    assert (await llama.condition("Ready"))[1] == "InvalidTemplate"
    assert await uid_of(groups) == before


async def test_groups_of_another_size_are_a_set_of_their_own_for_kueue_has_counted_their_pods(grouped, kube):
    llama, watching, groups = await grouped()
    await label(kube, llama, QUEUE)
    await watching.write_out("llama")
    before = await uid_of(groups)
    watching.worker.nodes_per_replica = 4
    await llama.change(lambda spec: spec["parallelism"].update(pipeline=4))
    await watching.write_out("llama")
    live = await groups.live()
    assert live["spec"]["leaderWorkerTemplate"]["size"] == 4
    assert live["metadata"]["uid"] != before
