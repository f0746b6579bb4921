"""What a deleted service of the same name has left behind, as it is told of the new one."""

from __future__ import annotations

from typing import Any

import pytest

from uellm.api import parse_service
from uellm.kube.kinds import PVC, Kind
from uellm.reconcile.apply import Applier
from uellm.reconcile.cache import Cache
from uellm.reconcile.download.claim import claim_manifest
from uellm.reconcile.observe import Observed

STILL = "PersistentVolumeClaim llama-weights of the deleted LLMService ns/llama is still being deleted: "


class Server:
    """An API server with the claim of the former service, and these pods."""

    def __init__(self, former: dict[str, Any], *pods: dict[str, Any]) -> None:
        self.former, self.pods = former, pods

    async def get(self, kind: Kind, *_: object) -> dict[str, Any] | None:
        return self.former if kind == PVC else None

    async def list(self, *_: object) -> list[dict[str, Any]]:
        return list(self.pods)


@pytest.fixture
def refusal(make):
    """What is told of the claim while there are these pods, each with its node, its phase and the claim it mounts."""
    document = make.service(
        model={"uri": "hf://org/model", "cache": {"size": "10Gi", "accessModes": ["ReadWriteMany"]}}
    )
    service = parse_service(document)
    wanted = claim_manifest(document, service)
    former = {**document, "metadata": {**document["metadata"], "uid": "former"}}

    async def told(*pods):
        made = [
            {
                "metadata": {"name": name},
                "spec": {"nodeName": node, "volumes": [{"persistentVolumeClaim": {"claimName": claim}}]},
                "status": {"phase": phase},
            }
            for name, node, phase, claim in pods
        ]
        server = Server(claim_manifest(former, service), *made)
        return await Applier(server, Cache()).refusal(Observed(document, service), [wanted])

    return told


async def test_a_claim_of_a_deleted_namesake_is_told_with_the_pods_that_mount_it(refusal):
    found = await refusal(("b", "n", "Running", "llama-weights"), ("a", "n", "Pending", "llama-weights"))
    assert found.reason == "LeftBehind"
    assert found.message == (
        f"{STILL}it is mounted by a, b, and goes when nothing mounts it any more: wait, or delete what does"
    )


async def test_pods_that_do_not_hold_the_claim_are_not_named(refusal):
    other = ("a", "n", "Running", "other")
    ended, waiting = ("b", "n", "Succeeded", "llama-weights"), ("c", "", "Pending", "llama-weights")
    assert (await refusal(other, ended, waiting)).message == f"{STILL}wait; if it stays, look at its finalizers"
