"""What a deleted service of the same name has left behind, as it is told of the new one."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from uellm.api import parse_service
from uellm.kube import Unavailable
from uellm.kube.kinds import PVC, Kind
from uellm.reconcile.apply import Applier
from uellm.reconcile.cache import Cache
from uellm.reconcile.download.claim import claim_manifest
from uellm.reconcile.left_behind import READ_EVERY_S, Rechecks
from uellm.reconcile.names import Key
from uellm.reconcile.observe import Observed
from uellm.reconcile.obstacle import Obstacle

STILL = "PersistentVolumeClaim llama-weights of the deleted LLMService ns/llama is still being deleted: "


class Server:
    """An API server with the claim of the former service, and these pods."""

    def __init__(self, former: dict[str, Any], *pods: dict[str, Any]) -> None:
        self.former, self.pods = former, pods
        self.lists = 0
        self.broken = False

    async def get(self, kind: Kind, *_: object) -> dict[str, Any] | None:
        return self.former if kind == PVC else None

    async def list(self, *_: object, cached: bool) -> list[dict[str, Any]]:
        assert cached, "a list of all pods of a namespace is to cost the database nothing"
        self.lists += 1
        if self.broken:
            raise Unavailable(503, "ServiceUnavailable", "etcd is away")
        return list(self.pods)


class Service:
    """The service that was made anew, and how it is told of the claim as time goes on."""

    def __init__(self, server: Server, observed: Observed, wanted: dict[str, Any]) -> None:
        self.server, self.now_s = server, 0.0
        self._applier = Applier(server, Cache(), clock=lambda: self.now_s)
        self._observed, self._wanted = observed, wanted

    async def refusal(self) -> Obstacle | None:
        """What a pass finds."""
        return await self._applier.refusal(self._observed, [self._wanted])


@pytest.fixture
def service(make):
    """The service, where there are these pods, each with its node, its phase and the claim it mounts."""
    document = make.service(
        model={"uri": "hf://org/model", "cache": {"size": "10Gi", "accessModes": ["ReadWriteMany"]}}
    )
    parsed = parse_service(document)
    former = {**document, "metadata": {**document["metadata"], "uid": "former"}}

    def made_anew(*pods):
        made = [
            {
                "metadata": {"name": name},
                "spec": {"nodeName": node, "volumes": [{"persistentVolumeClaim": {"claimName": claim}}]},
                "status": {"phase": phase},
            }
            for name, node, phase, claim in pods
        ]
        server = Server(claim_manifest(former, parsed), *made)
        return Service(server, Observed(document, parsed), claim_manifest(document, parsed))

    return made_anew


HOLDER = ("a", "n", "Running", "llama-weights")
PLAIN = f"{STILL}wait; if it stays, look at its finalizers"
HELD = f"{STILL}it is mounted by a, and goes when nothing mounts it any more: wait, or delete what does"


async def test_a_claim_of_a_deleted_namesake_is_told_with_the_pods_that_mount_it(service):
    found = await service(("b", "n", "Running", "llama-weights"), ("a", "n", "Pending", "llama-weights")).refusal()
    assert found.reason == "LeftBehind"
    assert found.message == (
        f"{STILL}it is mounted by a, b, and goes when nothing mounts it any more: wait, or delete what does"
    )


async def test_pods_that_do_not_hold_the_claim_are_not_named(service):
    other = ("a", "n", "Running", "other")
    ended, waiting = ("b", "n", "Succeeded", "llama-weights"), ("c", "", "Pending", "llama-weights")
    assert (await service(other, ended, waiting).refusal()).message == PLAIN


async def test_the_pods_of_the_namespace_are_read_once_a_minute_at_most(service):
    anew = service(HOLDER)
    for _ in range(2):
        assert (await anew.refusal()).message == HELD
        anew.now_s += READ_EVERY_S - 1
    assert anew.server.lists == 1
    anew.server.pods = ()
    assert (await anew.refusal()).message == PLAIN
    assert anew.server.lists == 2


async def test_pods_that_cannot_be_read_leave_the_words_as_they_were_and_are_not_read_again_at_once(service):
    anew = service(HOLDER)
    anew.server.broken = True
    for _ in range(2):
        assert (await anew.refusal()).message == PLAIN
    assert anew.server.lists == 1
    anew.server.broken = False
    anew.now_s += READ_EVERY_S
    assert (await anew.refusal()).message == HELD
    anew.server.broken = True
    anew.now_s += READ_EVERY_S
    assert (await anew.refusal()).message == HELD


def test_what_stays_for_long_is_looked_at_once_a_minute():
    rechecks, key, start = Rechecks(), Key("ns", "llama"), datetime(2026, 1, 1, tzinfo=UTC)
    after = [rechecks.due_in_s(key, start + timedelta(seconds=passed)) for passed in (0, 5, 20, 86_400)]
    assert after == [5, 5, 20, 60]
    rechecks.forget(key)
    assert rechecks.due_in_s(key, start + timedelta(days=2)) == 5
