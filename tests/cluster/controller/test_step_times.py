"""Step times that pods measured: in the status, in the ConfigMap of the cluster, and in the next plan."""

from __future__ import annotations

import json

import pytest
import yaml

from helpers.sizes import GIB
from uellm.controller.step_keeper import StepKeeper
from uellm.kube.kinds import CONFIGMAP
from uellm.reconcile.names import Key
from uellm.reconcile.step_times.store import CONFIGMAP_NAME, FILE, StepStore

BY_KWOK = {"placement": {"schedulerName": "default-scheduler"}}
STEPS = {"observed": 5000, "prefillFactor": 2.0, "decodeFactor": 3.0, "meanSeconds": 0.03, "expectedSeconds": 0.01}
REAL = {
    "source": "NVML",
    "product": "L4",
    "measured": {"bf16GigaflopsPerSecond": 100_000, "memoryBytesPerSecond": 300_000_000_000},
}


@pytest.fixture
async def serving(operator, service, gpu_node):
    await gpu_node([24 * GIB] * 2, **REAL)
    llama = await service(**BY_KWOK, parallelism={"tensor": 1, "pipeline": 1})
    watching = operator()
    await watching.serve("llama")
    return llama, watching


async def measure(watching, **steps) -> None:
    """The pod's sidecar reports step times, and its launcher the GPU that the profile gives it."""
    (pod,) = watching.cache.pods(Key(watching.namespace, "llama"))
    address, node = pod["status"]["podIP"], watching.cache.profiled_node(pod["spec"]["nodeName"])
    device = node.facts.devices[0]
    watching.measurements[address] = {"classes": [], "steps": {**STEPS, **steps}}
    watching.reports[address] = {
        "devices": [{"uuid": device.uuid, "index": device.index}],
        "layers": [7],
        "tensor": 1,
        "pipeline": 1,
    }
    watching.measured_at_s += 400
    watching.later(400)
    await watching.settle("llama")


async def stored(kube, namespace):
    found = await kube.get(CONFIGMAP, CONFIGMAP_NAME, namespace)
    return None if found is None else json.loads(found["data"][FILE])["entries"]


async def test_measured_times_stand_beside_the_prediction_and_roll_nothing(serving):
    llama, watching = serving
    before = await llama.status()
    await measure(watching)
    status = await llama.status()
    assert status["measured"] == {
        "steps": 5000,
        "tpotMicroseconds": 30000,
        "predictedTpotMicroseconds": 10000,
        "errorPercent": 200,
        "prefillFactor": "2.0",
        "decodeFactor": "3.0",
    }
    held, reason, message = await llama.condition("PredictionsHold")
    assert (held, reason) == ("False", "MeasuredOtherwise")
    assert "takes 30 ms, and 10 ms was predicted" in message
    assert (status["plan"], status["revision"]) == (before["plan"], before["revision"])
    assert (await llama.condition("Ready"))[0] == "True"


async def test_they_are_kept_in_the_cluster_and_the_next_plan_uses_them(serving, operator, kube, namespace):
    llama, watching = serving
    before = await llama.plan()
    await measure(watching)
    keeper = StepKeeper(watching.kube, watching.steps, namespace)
    assert await keeper.step()
    (entry,) = await stored(kube, namespace)
    assert (entry["decodeFactor"], entry["prefillFactor"], entry["steps"]) == (3.0, 2.0, 5000)
    assert await stored(kube, namespace) == await stored(kube, namespace)

    restarted = operator()
    assert await StepKeeper(restarted.kube, restarted.steps, namespace).step()
    await restarted.settle("llama")
    assert (await llama.plan())["layers"] == before["layers"]
    await llama.change(lambda spec: spec.update(engine={"env": [{"name": "A", "value": "1"}]}))
    await restarted.settle("llama")
    plan = await llama.plan()
    assert plan["predicted"]["tpotMilliseconds"] > 2 * before["predicted"]["tpotMilliseconds"]
    assert any("5000 measured steps of this model" in each for each in plan["assumptions"])
    engine = yaml.safe_load((await llama.revision())["data"]["engine.yaml"])["engine"]
    assert engine["stepFactors"] == {"prefill": 2.0, "decode": 3.0}


async def test_what_was_measured_with_the_correction_does_not_count_twice(serving, operator, kube, namespace):
    llama, watching = serving
    await measure(watching)
    await llama.change(lambda spec: spec.update(engine={"env": [{"name": "A", "value": "1"}]}))
    await watching.settle("llama")
    plan = await llama.plan()
    await measure(watching, expectedSeconds=0.03)
    assert (await llama.condition("PredictionsHold"))[:2] == ("True", "AsPredicted")
    (known,) = watching.steps.corrections()
    assert known.factors.decode == 3.0
    await llama.change(lambda spec: spec.update(engine={"env": [{"name": "A", "value": "2"}]}))
    await watching.settle("llama")
    assert (await llama.plan())["predicted"] == plan["predicted"]


async def test_a_degraded_gpu_teaches_nothing(serving, apply_profile):
    llama, watching = serving
    (pod,) = watching.cache.pods(Key(watching.namespace, "llama"))
    health = {"state": "Quarantined", "reason": "Slow", "message": "slower than its twins"}
    await apply_profile(pod["spec"]["nodeName"], [24 * GIB] * 2, **REAL, health=health)
    await measure(watching)
    assert watching.steps.corrections() == ()
    assert (await llama.status())["measured"]["errorPercent"] == 200


async def test_junk_in_the_configmap_is_skipped_and_written_over(serving, kube, namespace):
    _, watching = serving
    metadata = {"name": CONFIGMAP_NAME, "namespace": namespace}
    junk = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": {FILE: '{"entries": [1, {}]}'}}
    await kube.apply(junk, manager="somebody")
    keeper = StepKeeper(watching.kube, watching.steps, namespace)
    assert await keeper.step()
    assert watching.steps.corrections() == ()
    await measure(watching)
    assert await keeper.step()
    assert len(await stored(kube, namespace)) == 1
    await kube.delete(CONFIGMAP, CONFIGMAP_NAME, namespace)
    assert await keeper.step()
    assert watching.steps.corrections() == ()
    assert await stored(kube, namespace) is None


async def test_nothing_is_written_before_anything_was_measured(kube, namespace):
    assert await StepKeeper(kube, StepStore(), namespace).step()
    assert await stored(kube, namespace) is None
