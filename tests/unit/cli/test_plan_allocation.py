"""`uellm plan` gives pods their GPUs in the ways that the operator has in the same cluster."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest

from helpers.children import CONFIG
from helpers.dra import Gpu, device_class, profile, resource_slice
from helpers.sizes import GIB
from uellm.api import parse_service
from uellm.cli.main import main
from uellm.errors import PlanError
from uellm.hardware import DEVICE_PLUGIN
from uellm.kube import NotFound
from uellm.kube.kinds import (
    DEVICECLASS,
    LLMSERVICE,
    RESOURCECLAIM,
    RESOURCECLAIMTEMPLATE,
    RESOURCESLICE,
    kind_of,
)
from uellm.planner import plan
from uellm.reconcile.cache import Cache
from uellm.reconcile.names import Key
from uellm.reconcile.observe import observe
from uellm.reconcile.optional_kinds import Availability
from uellm.reconcile.planning.promises import Promises
from uellm.reconcile.planning.request import architecture_of

CLAIMED_KINDS = (DEVICECLASS, RESOURCESLICE, RESOURCECLAIM)
GPUS = [Gpu("GPU-0", "NVIDIA Large", 24 * GIB), Gpu("GPU-1", "NVIDIA Small", GIB)]
"""The model fits on the first one only, and a device plugin gives any."""
PROFILE = profile("node-1", GPUS)
DRIVER = [device_class(), resource_slice("node-1", GPUS)]
ELSEWHERE = [device_class(), resource_slice("node-2", [GPUS[0]._replace(uuid="GPU-2")])]
LARGE_CLASS = {
    "apiVersion": "uellm.io/v1alpha1",
    "kind": "GPUNodeClass",
    "metadata": {"name": "large"},
    "spec": {
        "labels": {"pool": "large"},
        "simulated": True,
        "devices": [{"index": 0, "product": "NVIDIA Large", "computeCapability": "8.0", "memoryBytes": 24 * GIB}],
    },
}


class Cluster:
    """The objects of a cluster. `serves_claims`: it has `resource.k8s.io/v1`."""

    def __init__(self, objects: list[dict[str, Any]], *, serves_claims: bool) -> None:
        self.objects = copy.deepcopy(objects)
        for each in self.objects:
            each["metadata"] |= {"resourceVersion": "1", "uid": each["metadata"]["name"]}
        self.serves_claims = serves_claims

    async def __aenter__(self) -> Cluster:
        return self

    async def __aexit__(self, *_: object) -> None:
        pass

    async def list(self, kind, **_: Any) -> list[dict[str, Any]]:
        if kind in CLAIMED_KINDS and not self.serves_claims:
            raise NotFound(f"GET {kind.plural}", 404, "no such kind")
        return [each for each in self.objects if kind_of(each) == kind]

    def cache(self) -> Cache:
        """As the operator has it."""
        cache = Cache()
        for each in self.objects:
            cache.put(kind_of(each), each)
        state = Availability.SERVED if self.serves_claims else Availability.NOT_INSTALLED
        cache.available.update(dict.fromkeys((*CLAIMED_KINDS, RESOURCECLAIMTEMPLATE), state))
        return cache


def service(allocation: str) -> dict[str, Any]:
    placement = {"allocation": allocation, "gpus": {"max": 1}}
    return {
        "apiVersion": "uellm.io/v1alpha1",
        "kind": "LLMService",
        "metadata": {"name": "llama", "namespace": "ns"},
        "spec": {"model": {"uri": "file:///m", "config": CONFIG}, "placement": placement},
    }


@pytest.fixture
def planned(tmp_path, monkeypatch, capsys):
    """What `uellm plan` prints for a service in this cluster."""

    def ask(cluster: Cluster, allocation: str) -> dict[str, Any]:
        async def connect(**_: Any) -> Cluster:
            return cluster

        monkeypatch.setattr("uellm.kube.Kube.connect", connect)
        file = tmp_path / "service.json"
        file.write_text(json.dumps(service(allocation)))
        main(["plan", "-f", str(file), "-o", "json"])
        return json.loads(capsys.readouterr().out)

    return ask


def planned_by_operator(cluster: Cluster, allocation: str) -> dict[str, Any]:
    cache, document = cluster.cache(), service(allocation)
    document["metadata"] |= {"uid": "llama", "generation": 1, "resourceVersion": "1"}
    cache.put(LLMSERVICE, document)
    observed = observe(cache, Key("ns", "llama"))
    assert observed is not None
    request = Promises(cache).request(observed, architecture_of(parse_service(document)))
    try:
        return plan(request).to_dict()
    except PlanError as error:
        return {"error": {"reason": error.reason, "message": str(error)}}


@pytest.mark.parametrize(
    ("driver", "serves_claims", "outcome"),
    [
        (DRIVER, True, "DRA"),
        ([], False, "NeedsExactDevices"),
        ([], True, "NeedsExactDevices"),
        (ELSEWHERE, True, "NeedsExactDevices"),
    ],
)
def test_auto_is_device_plugin_where_no_driver_publishes_the_gpus(planned, driver, serves_claims, outcome):
    cluster = Cluster([PROFILE, *driver], serves_claims=serves_claims)
    found = planned(cluster, "Auto")
    assert outcome == (found["allocation"] if "allocation" in found else found["error"]["reason"])
    assert found == planned_by_operator(cluster, "Auto")


def test_claims_go_to_no_node_where_none_is_published(planned):
    cluster = Cluster([PROFILE, *ELSEWHERE], serves_claims=True)
    found = planned(cluster, "DRA")
    assert found["error"]["reason"] == "NoFit"
    assert "no DRA driver publishes its GPUs" in found["error"]["message"]
    assert found == planned_by_operator(cluster, "DRA")


def test_no_plan_with_claims_waits_for_a_node_to_join(planned):
    cluster = Cluster([profile("node-1", GPUS[1:]), *ELSEWHERE, LARGE_CLASS], serves_claims=True)
    assert planned(cluster, "DRA")["error"]["reason"] == "NoFit"
    waiting = planned(cluster, DEVICE_PLUGIN)
    assert waiting["nodeClasses"] == ["large"]
    assert waiting == planned_by_operator(cluster, DEVICE_PLUGIN)


def test_a_file_of_profiles_does_not_tell_so_claims_are_possible(tmp_path, capsys):
    files = {"service.json": service("DRA"), "nodes.json": PROFILE}
    for name, content in files.items():
        (tmp_path / name).write_text(json.dumps(content))
    given = ["plan", "-f", str(tmp_path / "service.json"), "--profiles", str(tmp_path / "nodes.json"), "-o", "json"]
    assert main(given) == 0
    assert json.loads(capsys.readouterr().out)["allocation"] == "DRA"
