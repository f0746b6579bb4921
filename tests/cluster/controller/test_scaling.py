"""The number of replicas by load: on the real API server, with sidecars that the test plays."""

from __future__ import annotations

from datetime import timedelta

import pytest

from helpers.sizes import GIB
from uellm.api.names import WANTED_AT_ANNOTATION
from uellm.kube import LLMSERVICE
from uellm.reconcile.names import Key
from uellm.reconcile.scaling.scalings import EVERY_S
from uellm.reconcile.times import timestamp

IDLE_MINUTES = 10
"""The default of `idleTimeout`."""
BY_KWOK = {"placement": {"schedulerName": "default-scheduler"}, "parallelism": {"tensor": 1, "pipeline": 1}}


class Load:
    """What the sidecars count; requests are spread over the pods that there are."""

    def __init__(self, watching) -> None:
        self.watching = watching
        self.counted: dict[str, int] = {}

    async def minutes(self, minutes: float, requests_per_s: float) -> None:
        """Serve so many requests while time goes by, and settle at the end."""
        for _ in range(round(60 * minutes / EVERY_S)):
            self._later(requests_per_s)
            await self.watching.step("llama")
        await self.watching.settle("llama")

    def _later(self, requests_per_s: float) -> None:
        watching = self.watching
        watching.later(EVERY_S)
        watching.measured_at_s += EVERY_S
        addresses = [pod["status"].get("podIP") for pod in watching.cache.pods(Key(watching.namespace, "llama"))]
        known = [address for address in addresses if address]
        for address in known:
            ended = self.counted.get(address, 0) + round(requests_per_s * EVERY_S / len(known))
            self.counted[address] = ended
            counts = {"ended": ended, "missed": 0, "promptTokens": 900 * ended, "outputTokens": 200 * ended}
            load = {**counts, "running": int(requests_per_s > 0), "queued": 0, "cachedShare": 0}
            watching.measurements[address] = {"version": 1, "classes": [], "load": load}


@pytest.fixture
async def scaled(operator, service, gpu_node):
    """A factory of services with these bounds, and an operator that serves them."""

    async def make(least: int, most: int, gpus: int = 4, **spec):
        await gpu_node([24 * GIB] * gpus)
        llama = await service(**BY_KWOK, autoscaling={"minReplicas": least, "maxReplicas": most}, **spec)
        watching = operator()
        await watching.serve("llama")
        return llama, watching, Load(watching)

    return make


async def number(llama) -> int:
    return (await llama.deployment())["spec"]["replicas"]


async def test_replicas_follow_the_load_up_at_once_and_down_later(scaled):
    llama, _, load = await scaled(1, 3)
    assert await number(llama) == 1
    await load.minutes(4, 40.0)
    assert await number(llama) == 3
    assert (await llama.condition("Scaling"))[:2] == ("False", "ScalingLimited")
    assert "raise spec.autoscaling.maxReplicas" in (await llama.condition("Scaling"))[2]
    await load.minutes(2, 0.5)
    assert await number(llama) == 3
    await load.minutes(30, 0.5)
    assert await number(llama) == 1
    assert (await llama.condition("Scaling"))[:2] == ("True", "AsNeeded")


async def test_the_spec_is_never_written_and_its_replicas_are_not_looked_at(scaled):
    llama, watching, load = await scaled(1, 3, replicas=3)
    assert await number(llama) == 1
    await load.minutes(4, 40.0)
    assert (await llama.get())["spec"]["replicas"] == 3
    assert (await llama.condition("Scaling"))[2].endswith("; spec.replicas is not looked at")
    await llama.change(lambda spec: spec.update(replicas=2))
    await watching.settle("llama")
    assert await number(llama) == 3


async def test_a_restarted_operator_keeps_the_number(scaled, operator):
    llama, watching, load = await scaled(1, 3)
    await load.minutes(4, 40.0)
    restarted = operator()
    restarted.now = watching.now
    restarted.measurements = watching.measurements
    await restarted.settle("llama")
    assert await number(llama) == 3
    await Load(restarted).minutes(3, 0.5)
    assert await number(llama) == 3


async def test_where_a_sidecar_does_not_report_the_number_stays(scaled):
    llama, watching, load = await scaled(1, 3)
    await load.minutes(4, 40.0)
    watching.measurements.clear()
    watching.later(3600)
    watching.measured_at_s += 3600
    await watching.settle("llama")
    assert await number(llama) == 3
    assert (await llama.condition("Scaling"))[:2] == ("Unknown", "NotReported")


async def test_a_service_without_requests_runs_no_pods_until_one_waits_at_the_gateway(scaled):
    llama, watching, load = await scaled(0, 3)
    assert await number(llama) == 1
    await load.minutes(IDLE_MINUTES + 1, 0.0)
    assert await number(llama) == 0
    assert (await llama.condition("Ready"))[:2] == ("True", "ScaledToZero")
    assert (await llama.condition("Scaling"))[:2] == ("True", "ScaledToZero")
    wanted = {WANTED_AT_ANNOTATION: timestamp(watching.now - timedelta(seconds=1))}
    document = await llama.get()
    assert await watching.kube.annotate(
        LLMSERVICE, "llama", watching.namespace, wanted, uid=document["metadata"]["uid"]
    )
    await watching.settle("llama")
    assert await number(llama) == 1
    await load.minutes(2, 1.0)
    assert await number(llama) == 1


async def test_an_old_wish_or_one_of_the_future_wakes_nobody(scaled):
    llama, watching, load = await scaled(0, 3)
    await load.minutes(IDLE_MINUTES + 1, 0.0)
    document = await llama.get()
    for seconds in (-61, 3600):
        wanted = {WANTED_AT_ANNOTATION: timestamp(watching.now + timedelta(seconds=seconds))}
        uid = document["metadata"]["uid"]
        assert await watching.kube.annotate(LLMSERVICE, "llama", watching.namespace, wanted, uid=uid)
        await watching.settle("llama")
        assert await number(llama) == 0


async def test_a_suspended_service_runs_no_pods_and_keeps_its_number(scaled):
    llama, watching, load = await scaled(1, 3)
    await load.minutes(4, 40.0)
    await llama.change(lambda spec: spec.update(suspend=True))
    await watching.settle("llama")
    assert await number(llama) == 0
    await llama.change(lambda spec: spec.update(suspend=False))
    await watching.settle("llama")
    assert await number(llama) == 3


async def test_missing_gpus_are_told(scaled):
    llama, _, load = await scaled(1, 3, gpus=1)
    await load.minutes(4, 7.0)
    held, reason, message = await llama.condition("Scaling")
    assert (held, reason) == ("False", "ScalingLimited")
    assert "find no node with free GPUs" in message or "maxReplicas" in message


async def test_the_number_in_force_stays_when_the_operator_takes_over(operator, service, gpu_node):
    await gpu_node([24 * GIB] * 4)
    llama = await service(**BY_KWOK, replicas=2)
    watching = operator()
    await watching.settle("llama")
    await llama.change(lambda spec: spec.update(autoscaling={"minReplicas": 1, "maxReplicas": 3}))
    await watching.settle("llama")
    assert await number(llama) == 2
