"""Deleting an LLMService at any point leaves nothing of it."""

from __future__ import annotations

import pytest

from helpers.sizes import GIB
from uellm.kube import LLMSERVICE, POD, REPLICASET
from uellm.reconcile.cache import CHILD_KINDS
from uellm.reconcile.names import Key

# The garbage collector takes up a new kind every 30 s, and with backoff what it found before.
GARBAGE_COLLECTED_S = 150

pytestmark = pytest.mark.timeout(300)


@pytest.fixture
def nothing_left(kube, namespace, eventually):
    async def check():
        async def gone():
            kinds = (LLMSERVICE, *CHILD_KINDS, REPLICASET, POD)
            left = [obj["metadata"]["name"] for kind in kinds for obj in await kube.list(kind, namespace)]
            return not [name for name in left if name != "kube-root-ca.crt"]

        await eventually(gone, timeout_s=GARBAGE_COLLECTED_S)

    return check


@pytest.mark.parametrize("writes", range(1, 6))
async def test_deleted_in_the_middle_of_the_first_pass(operator, service, gpu_node, killed, nothing_left, writes):
    await gpu_node([24 * GIB])
    llama = await service()
    dying = operator()
    dying.kube.die_after = writes
    with pytest.raises(killed):
        await dying.settle("llama")
    await llama.delete()
    await operator().step("llama")
    await nothing_left()


async def test_deleted_while_a_pass_is_under_way(operator, service, gpu_node, nothing_left):
    await gpu_node([24 * GIB])
    llama = await service()
    watching = operator()
    await watching.observe()
    await llama.delete()
    # This operator has not seen the deletion yet and continues.
    await watching.reconciler.reconcile(Key(llama.namespace, "llama"))
    await watching.step("llama")
    await nothing_left()


async def test_deleted_while_its_pods_run(operator, service, gpu_node, kube, namespace, eventually, nothing_left):
    await gpu_node([24 * GIB])
    llama = await service(placement={"schedulerName": "default-scheduler"})
    watching = operator()

    async def ready():
        await watching.step("llama")
        return (await llama.condition("Ready"))[0] == "True"

    await eventually(ready)
    await llama.delete()
    await watching.step("llama")
    await nothing_left()


async def test_deleted_and_made_again_at_once_it_waits_for_its_namesakes_children_to_go(
    operator, service, gpu_node, eventually
):
    await gpu_node([24 * GIB])
    first = await service()
    watching = operator()
    await watching.settle("llama")
    await first.delete()
    second = await service()
    uid = (await second.get())["metadata"]["uid"]

    async def own_children():
        await watching.step("llama")
        children = [child for kind in CHILD_KINDS if (child := await second.child(kind)) is not None]
        if [child["metadata"]["ownerReferences"][0]["uid"] for child in children] == [uid] * 4:
            return True
        document = await second.get()
        assert document["status"]["observedGeneration"] == document["metadata"]["generation"]
        return False

    await eventually(own_children, timeout_s=GARBAGE_COLLECTED_S)
