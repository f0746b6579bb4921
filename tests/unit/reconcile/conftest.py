"""Objects as the API server returns them: a service, its Deployment, its pods, the nodes' profiles; and plans."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import pytest

from helpers.children import CONFIG, IMAGES
from helpers.planning_world import PlanningWorld
from helpers.sizes import GIB
from uellm.api import parse_service
from uellm.planner import plan
from uellm.planner.result import Plan
from uellm.reconcile.children import DesiredState, Revision, children, config_files, make_revision
from uellm.reconcile.planning.ledger import offers
from uellm.reconcile.planning.render import render
from uellm.reconcile.planning.request import architecture_of, plan_request
from uellm.reconcile.profiled_node import ProfiledNode, profiled_node

UID = "service-uid"
REVISION = "0123456789"


class Make:
    """Builders of objects; every argument overrides a default."""

    @staticmethod
    def service(name: str = "llama", *, status: dict[str, Any] | None = None, **spec: Any) -> dict[str, Any]:
        model = {"uri": "file:///models/llama", "config": {"architectures": ["LlamaForCausalLM"]}}
        return {
            "apiVersion": "uellm.io/v1alpha1",
            "kind": "LLMService",
            "metadata": {"name": name, "namespace": "ns", "uid": UID, "generation": 1, "resourceVersion": "1"},
            "spec": {"model": model, "replicas": 1, **spec},
            **({"status": status} if status else {}),
        }

    @staticmethod
    def plan(
        layers: tuple[int, ...] = (5, 3), nodes: tuple[str, ...] = ("node-1",), devices: tuple[str, ...] = ("g0", "g1")
    ) -> Plan:
        entry = {
            "gpusPerReplica": len(layers),
            "tensor": 1,
            "pipeline": len(layers),
            "layers": list(layers),
            "maxNumBatchedTokens": 512,
            "maxNumSeqs": 64,
            "stages": [{"devices": [device], "requires": {"memoryBytes": 4}} for device in devices[: len(layers)]],
            "nodes": list(nodes),
            "predicted": {"kvCacheTokens": 100},
        }
        return Plan.from_dict(entry)

    @staticmethod
    def revision(spec_mark: str, inputs: str = "") -> Revision:
        """A revision whose content nobody looks at."""
        return Revision(REVISION, {}, spec_mark, inputs)

    @staticmethod
    def deployment(
        replicas: int = 1, *, ready: int = 0, observed: bool = True, revision: str = REVISION
    ) -> dict[str, Any]:
        return {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": {
                "name": "llama-engine",
                "namespace": "ns",
                "uid": "deployment-uid",
                "generation": 2,
                "resourceVersion": "5",
                "annotations": {},
                "ownerReferences": [{"kind": "LLMService", "name": "llama", "uid": UID, "controller": True}],
            },
            "spec": {
                "replicas": replicas,
                "template": {
                    "metadata": {"labels": {"uellm.io/revision": revision}},
                    "spec": {"containers": [{"name": "engine"}]},
                },
            },
            "status": {
                "observedGeneration": 2 if observed else 1,
                "replicas": replicas,
                "updatedReplicas": replicas,
                "readyReplicas": ready,
                "availableReplicas": ready,
            },
        }

    @staticmethod
    def refused(deployment: dict[str, Any], replicas: int, since: str = "2026-01-01T00:00:00Z") -> dict[str, Any]:
        """The same Deployment where the API server lets it have so many replicas."""
        condition = {
            "type": "ReplicaFailure",
            "status": "True",
            "reason": "FailedCreate",
            "message": 'pods "llama-engine-x" is forbidden: exceeded quota: gpus',
            "lastTransitionTime": since,
        }
        status = {**deployment["status"], "replicas": replicas, "conditions": [condition]}
        return {**deployment, "status": status}

    @staticmethod
    def pod(name: str = "llama-engine-a", *, node: str | None = "node-1", **status: Any) -> dict[str, Any]:
        return {
            "gpus": 2,
            "metadata": {
                "name": name,
                "namespace": "ns",
                "uid": f"uid-{name}",
                "labels": {"uellm.io/service": "llama"},
                "resourceVersion": "1",
            },
            "spec": {"schedulerName": "uellm-scheduler", **({"nodeName": node} if node else {})},
            "status": {"phase": "Running" if node else "Pending", **status},
        }

    @staticmethod
    def unschedulable(name: str = "llama-engine-a", since: str = "2026-01-01T00:00:00Z") -> dict[str, Any]:
        condition = {
            "type": "PodScheduled",
            "status": "False",
            "reason": "Unschedulable",
            "message": "0/2 nodes are available: 2 Insufficient nvidia.com/gpu.",
            "lastTransitionTime": since,
        }
        return Make.pod(name, node=None, conditions=[condition])

    @staticmethod
    def profile(name: str, holders: tuple[str | None, ...], *, version: str = "1", **device: Any) -> dict[str, Any]:
        """One device for each entry: `<name>-g<index>`, held by the pod with this uid, or free."""
        devices = [
            {
                "index": index,
                "uuid": f"{name}-g{index}",
                "product": "Simulated",
                "memoryBytes": 1000,
                **({"allocatedTo": {"podUID": holder}} if holder else {}),
                **copy.deepcopy(device),
            }
            for index, holder in enumerate(holders)
        ]
        return {
            "apiVersion": "uellm.io/v1alpha1",
            "kind": "GPUNodeProfile",
            "metadata": {"name": name, "uid": f"uid-{name}", "resourceVersion": version},
            "status": {"source": "Simulated", "devices": devices},
        }

    @staticmethod
    def profiled_node(name: str, *holders: str | None) -> ProfiledNode:
        return profiled_node(Make.profile(name, holders))


@pytest.fixture
def make() -> type[Make]:
    return Make


@pytest.fixture
def made(make):
    """The children of a service with this spec, by kind."""

    def build(
        *,
        replicas=1,
        uri="hf://org/model",
        model=None,
        holders=(None, None),
        device=None,
        source="Simulated",
        compiled="",
        span=1,
        **spec,
    ):
        document = make.service(model={"uri": uri, "config": CONFIG, **(model or {})}, **spec)
        service = parse_service(document)
        profile = make.profile("node-1", holders, **{"memoryBytes": 24 * GIB, **(device or {})})
        profile["status"]["source"] = source
        nodes = [profiled_node(profile)]
        request = plan_request(service, architecture_of(service), offers(nodes, [], []))
        # The planner's plan for one node, as if it were for several.
        rendered = render(dataclasses.replace(plan(request), nodes_per_replica=span), request)
        desired = DesiredState(document, service, rendered, IMAGES, replicas, "1/digest", compiled=compiled)
        revision = make_revision(desired)
        made = children(dataclasses.replace(desired, revision=revision))
        files = {**config_files(desired), **revision.files}
        kinds = {("Revision" if child.get("immutable") else child["kind"]): child for child in made}
        return kinds | {"files": files}

    return build


@pytest.fixture
def world(make: Make) -> PlanningWorld:
    """A cluster in the cache, and a planner."""
    return PlanningWorld(make)
