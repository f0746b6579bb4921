from __future__ import annotations

import asyncio

import pytest

from uellm.kube import CONFIGMAP, LEASE, Fenced, Kube, Unavailable

MAP = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "m", "namespace": "n"}}


@pytest.fixture
async def fenced(kubeconfig):
    """A client, and how long it may write."""
    remaining = {"s": 60.0}
    async with await Kube.connect(kubeconfig=kubeconfig, writable_for=lambda: remaining["s"]) as kube:
        yield kube, remaining


async def test_within_the_time_it_writes(server, fenced, scripts):
    kube, _ = fenced
    server.script = [scripts.says(MAP)]
    assert await kube.create(MAP) == MAP


@pytest.mark.parametrize(
    "write",
    [
        lambda kube: kube.create(MAP),
        lambda kube: kube.apply(MAP, manager="m"),
        lambda kube: kube.apply_status(MAP, manager="m"),
        lambda kube: kube.delete(CONFIGMAP, "m", "n"),
        lambda kube: kube.bind("p", "n", "uid", "node"),
    ],
    ids=["create", "apply", "status", "delete", "bind"],
)
async def test_after_the_time_no_byte_of_any_write_is_sent(server, fenced, scripts, write):
    kube, remaining = fenced
    server.script = [scripts.says(MAP)]
    remaining["s"] = 0.0
    with pytest.raises(Fenced, match="lease may have been lost") as refused:
        await write(kube)
    assert refused.value.transient
    assert not server.requests


async def test_reads_go_on_after_the_time(server, fenced, scripts):
    kube, remaining = fenced
    server.script = [scripts.says({"kind": "Lease"})]
    remaining["s"] = 0.0
    assert await kube.get(LEASE, "l", "n") == {"kind": "Lease"}


@pytest.mark.parametrize("connections", [0, 1], ids=["a new connection", "a kept connection"])
@pytest.mark.parametrize("granted", [2, 3], ids=["stopped while it was queued", "stopped before its body was written"])
async def test_a_write_whose_time_ends_before_it_is_sent_is_not_sent(server, kubeconfig, scripts, connections, granted):
    asked = []

    def runs_out() -> float:
        asked.append(1)
        # It is asked twice before a write is queued, and a third time when the write has its connection.
        return 60.0 if len(asked) <= granted else 0.0

    server.script = [scripts.says(MAP)]
    async with await Kube.connect(kubeconfig=kubeconfig, writable_for=runs_out) as kube:
        for _ in range(connections):
            await kube.get(CONFIGMAP, "m", "n")
        with pytest.raises(Fenced):
            await kube.create(MAP)
    assert [request.method for request in server.requests] == ["GET"] * connections


async def test_a_write_without_an_answer_is_given_up_when_its_time_is_over(server, fenced):
    kube, remaining = fenced
    never = asyncio.Event()

    async def silent(_):
        await never.wait()

    server.script = [silent]
    remaining["s"] = 0.2
    with pytest.raises(Unavailable, match="no answer in time"):
        async with asyncio.timeout(5):
            await kube.create(MAP)
    never.set()
