"""Children that are deleted, edited, added to or taken over are restored. Objects of others are left unchanged."""

from __future__ import annotations

from contextlib import suppress

import pytest

from helpers.sizes import GIB
from uellm.kube import Conflict
from uellm.kube.kinds import CONFIGMAP, DEPLOYMENT, PDB, SERVICE, Kind
from uellm.reconcile.apply import WriteRefused

RESOURCE_QUOTA = Kind("v1", "ResourceQuota", "resourcequotas", True)
KINDS = pytest.mark.parametrize("kind", [CONFIGMAP, SERVICE, PDB, DEPLOYMENT], ids=lambda kind: kind.kind)


@pytest.fixture
async def settled(operator, service, gpu_node):
    await gpu_node([24 * GIB])
    llama = await service()
    watching = operator()
    await watching.settle("llama")
    return llama, watching


async def edited(kube, child, manager="somebody"):
    """Apply a change as another field manager and take over the fields."""
    kept = {name: child["metadata"][name] for name in ("name", "namespace", "uid")}
    return await kube.apply(
        {
            **{name: value for name, value in child.items() if name not in ("metadata", "status")},
            "metadata": {**kept, **child["metadata"].get("changed", {})},
        },
        manager=manager,
    )


@KINDS
async def test_a_deleted_child_comes_back(settled, kube, kind, eventually):
    llama, watching = settled
    before = await llama.child(kind)
    await kube.delete(kind, before["metadata"]["name"], llama.namespace)

    async def gone():
        found = await llama.child(kind)
        return found is None or found["metadata"]["uid"] != before["metadata"]["uid"]

    await eventually(gone)
    await watching.settle("llama")
    assert (await llama.child(kind))["metadata"]["uid"] != before["metadata"]["uid"]


@pytest.mark.parametrize(
    ("kind", "edit"),
    [
        (CONFIGMAP, lambda child: child["data"].update({"sidecar.yaml": "{}"})),
        (SERVICE, lambda child: child["spec"].update(selector={"app": "other"})),
        (PDB, lambda child: child["spec"].update(maxUnavailable=5)),
        (DEPLOYMENT, lambda child: child["spec"].update(replicas=3)),
        (DEPLOYMENT, lambda child: child["spec"]["template"]["spec"]["containers"][0].update(image="other:1")),
        (DEPLOYMENT, lambda child: child["spec"]["template"]["spec"].update(schedulerName="other")),
    ],
    ids=["configuration", "selector", "budget", "replicas", "image", "scheduler"],
)
async def test_an_edited_child_is_put_right(settled, kube, kind, edit):
    llama, watching = settled
    before = await llama.state()
    child = await llama.child(kind)
    edit(child)
    await edited(kube, child)
    assert await llama.state() != before
    await watching.settle("llama")
    after = await llama.state()
    for state in (before, after):
        # The repair of the pod template counts as a change, and so do its reasons.
        for annotation in ("deployment.kubernetes.io/revision", "uellm.io/rollout"):
            state["Deployment"]["metadata"]["annotations"].pop(annotation, None)
        state.pop("status")
        # How replicas are replaced depends on what is free when it is decided.
        state["Deployment"]["metadata"]["annotations"].pop("uellm.io/rollout", None)
        state["Deployment"]["spec"].pop("strategy")
    assert after == before


STRATEGIC = "application/strategic-merge-patch+json"


def in_engine(**fields):
    return {"spec": {"template": {"spec": {"containers": [{"name": "engine", **fields}]}}}}


@pytest.mark.parametrize(
    ("kind", "addition"),
    [
        (SERVICE, {"spec": {"selector": {"tier": "none"}}}),
        (SERVICE, {"spec": {"ports": [{"name": "debug", "port": 81, "targetPort": 9}]}}),
        (PDB, {"spec": {"maxUnavailable": None, "minAvailable": 1}}),
        (DEPLOYMENT, {"spec": {"paused": True}}),
        (DEPLOYMENT, {"spec": {"minReadySeconds": 600}}),
    ],
    ids=["selector", "port", "budget", "pause", "patience"],
)
async def test_what_somebody_adds_to_a_child_is_taken_out_again(settled, kube, kind, addition, eventually):
    llama, watching = settled
    before = (await llama.child(kind))["spec"]
    path = kind.path(namespace=llama.namespace, name=(await llama.child(kind))["metadata"]["name"])
    await kube._transport.call("PATCH", path, body=addition, content_type=STRATEGIC)
    assert (await llama.child(kind))["spec"] != before

    async def taken_out():
        with suppress(Conflict):  # the Deployment controller writes too; the queue tries again, as this does
            await watching.settle("llama")
            return True

    await eventually(taken_out)
    assert (await llama.child(kind))["spec"] == before
    assert await watching.step("llama") == []


@pytest.mark.parametrize(
    ("addition", "field"),
    [
        ({"spec": {"template": {"spec": {"nodeSelector": {"tier": "none"}}}}}, "template.spec.nodeSelector"),
        (in_engine(env=[{"name": "VLLM_USE_V1", "value": "0"}]), "template.spec.containers.0.env.0"),
        (in_engine(args=["--enforce-eager"]), "template.spec.containers.0.args"),
    ],
    ids=["nodes", "variable", "argument"],
)
async def test_what_somebody_adds_to_the_pods_stays_and_is_told(settled, kube, addition, field):
    llama, watching = settled
    path = DEPLOYMENT.path(namespace=llama.namespace, name="llama-engine")
    await kube._transport.call("PATCH", path, body=addition, content_type=STRATEGIC)
    after = (await llama.deployment())["spec"]["template"]
    await watching.settle("llama")
    assert (await llama.deployment())["spec"]["template"] == after
    told = f"; somebody has added {field} to the Deployment llama-engine: put it into spec.template, or take it out"
    assert (await llama.condition("Ready"))[2].endswith(told)


async def test_a_restart_by_hand_and_a_foreign_label_stay(settled, kube):
    llama, watching = settled
    addition = {
        "metadata": {"labels": {"team": "search"}},
        "spec": {"template": {"metadata": {"annotations": {"kubectl.kubernetes.io/restartedAt": "now"}}}},
    }
    path = DEPLOYMENT.path(namespace=llama.namespace, name="llama-engine")
    await kube._transport.call("PATCH", path, body=addition, content_type=STRATEGIC)
    await watching.settle("llama")
    after = await llama.deployment()
    assert after["metadata"]["labels"]["team"] == "search"
    assert after["spec"]["template"]["metadata"]["annotations"]["kubectl.kubernetes.io/restartedAt"] == "now"


@KINDS
async def test_a_child_whose_labels_were_changed_is_put_right(settled, kube, kind):
    llama, watching = settled
    child = await llama.child(kind)
    child["metadata"]["changed"] = {"labels": {"uellm.io/service": "other"}}
    await edited(kube, child)
    await watching.settle("llama")
    assert (await llama.child(kind))["metadata"]["labels"]["uellm.io/service"] == "llama"


@KINDS
async def test_a_child_whose_owner_was_removed_is_owned_again(settled, kube, kind):
    llama, watching = settled
    child = await llama.child(kind)
    orphan = {**child, "metadata": {**child["metadata"], "changed": {"ownerReferences": []}}}
    # Only the manager that set the reference can remove it by applying.
    await edited(kube, orphan, manager="uellm")
    assert not (await llama.child(kind))["metadata"].get("ownerReferences")
    child["metadata"]["changed"] = {"annotations": child["metadata"]["annotations"]}
    await edited(kube, child, manager="somebody")
    await watching.settle("llama")
    (owner,) = (await llama.child(kind))["metadata"]["ownerReferences"]
    assert owner["name"] == "llama"


@KINDS
async def test_a_foreign_object_with_a_childs_name_is_never_touched(operator, service, gpu_node, kube, namespace, kind):
    await gpu_node([24 * GIB])
    foreign = await kube.create(FOREIGN[kind.kind](namespace))
    llama = await service()
    watching = operator()
    await watching.settle("llama")
    assert (await llama.condition("Ready"))[:2] == ("False", "NameTaken")
    assert foreign["metadata"]["name"] in (await llama.condition("Ready"))[2]
    assert (await llama.condition("Stalled"))[0] == "True"
    assert await llama.children() == [kind.kind]
    assert content(await llama.child(kind)) == content(foreign)
    await kube.delete(kind, foreign["metadata"]["name"], namespace)
    await watching.settle("llama")
    assert len(await llama.children()) == 4


async def test_a_child_that_a_quota_refuses_is_reported_and_made_later(
    operator, service, gpu_node, kube, namespace, eventually
):
    await gpu_node([24 * GIB])
    quota = {"metadata": {"name": "none"}, "spec": {"hard": {"count/poddisruptionbudgets.policy": "0"}}}
    await kube._transport.call("POST", RESOURCE_QUOTA.path(namespace=namespace), body=quota)
    llama = await service()
    watching = operator()
    with pytest.raises(WriteRefused, match="forbids the PodDisruptionBudget"):
        await watching.settle("llama")
    await watching.settle("llama")
    assert (await llama.condition("Ready"))[:2] == ("False", "Forbidden")
    assert "the API server forbids the PodDisruptionBudget" in (await llama.condition("Ready"))[2]
    assert await llama.child(DEPLOYMENT) is None
    await kube.delete(RESOURCE_QUOTA, "none", namespace)

    async def made():
        await watching.settle("llama")
        return len(await llama.children()) == 4

    await eventually(made)


async def test_a_service_named_like_anothers_child_is_a_service_of_its_own(operator, service, gpu_node):
    await gpu_node([24 * GIB, 24 * GIB])
    for name in ("llama", "llama-config"):
        await service(name)
    watching = operator()
    await watching.settle("llama", "llama-config")
    assert await watching.step("llama") == []


def content(obj):
    return {name: value for name, value in obj.items() if name != "status"} | {
        "metadata": {
            name: value
            for name, value in obj["metadata"].items()
            if name not in ("resourceVersion", "generation", "annotations", "managedFields")
        }
    }


def _foreign(api_version, kind, name, **body):
    return lambda namespace: {
        "apiVersion": api_version,
        "kind": kind,
        "metadata": {"name": name, "namespace": namespace},
        **body,
    }


_LABELS = {"app": "foreign"}
_POD = {"metadata": {"labels": _LABELS}, "spec": {"containers": [{"name": "x", "image": "x:1"}]}}
FOREIGN = {
    "ConfigMap": _foreign("v1", "ConfigMap", "llama-config", data={"a": "1"}),
    "Service": _foreign("v1", "Service", "llama", spec={"selector": _LABELS, "ports": [{"port": 1}]}),
    "PodDisruptionBudget": _foreign(
        "policy/v1", "PodDisruptionBudget", "llama", spec={"selector": {"matchLabels": _LABELS}, "minAvailable": 1}
    ),
    "Deployment": _foreign(
        "apps/v1",
        "Deployment",
        "llama-engine",
        spec={"replicas": 0, "selector": {"matchLabels": _LABELS}, "template": _POD},
    ),
}
