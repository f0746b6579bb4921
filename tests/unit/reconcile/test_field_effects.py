"""What a change of each field does: every field of the schema has a row, and the rows are what the code goes by."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from uellm.api import parse_service
from uellm.api.crd import DEFINITIONS, render
from uellm.api.sidecar_document import ToldAdapters
from uellm.reconcile.adapters import entries
from uellm.reconcile.children.configmap import sidecar_document
from uellm.reconcile.field_effects import FIELD_EFFECTS, rolling_digest


def spec_schema() -> dict[str, Any]:
    definition = next(each for each in DEFINITIONS if each.model.__name__ == "LLMService")
    schema: dict[str, Any] = render(definition)["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    return schema["properties"]["spec"]


def leaves(schema: dict[str, Any], path: str = "") -> Iterator[str]:
    """Every field that has no fields of its own."""
    for name, field in schema.get("properties", {}).items():
        below = f"{path}{name}"
        items = field.get("items", {})
        if items.get("properties"):
            yield from leaves(items, f"{below}[].")
        elif field.get("properties"):
            yield from leaves(field, f"{below}.")
        else:
            yield below


def test_every_field_of_the_schema_has_a_row_and_every_row_is_a_field():
    assert set(leaves(spec_schema())) == set(FIELD_EFFECTS)


# For each row another value than in `BEFORE`.
CHANGES: dict[str, Any] = {
    "model.uri": "hf://org/other",
    "model.revision": "1" * 40,
    "model.servedName": "other",
    "model.config": {"architectures": ["LlamaForCausalLM"], "hidden_size": 8},
    "model.cache.claimName": "other",
    "model.cache.storageClassName": "fast",
    "model.cache.size": "2Ti",
    "model.cache.accessModes": ["ReadWriteOnce"],
    "model.cache.nodeLocal": True,
    "model.adapters[].name": "other",
    "model.adapters[].uri": "hf://org/other",
    "model.adapters[].revision": "v2",
    "model.tokenSecretRef.name": "other",
    "model.tokenSecretRef.key": "other",
    "model.trustRemoteCode": True,
    "model.dtype": "float16",
    "model.quantization": "fp8",
    "model.task": "Embed",
    "model.maxModelLen": 1024,
    "slo.attainment": "95%",
    "slo.defaultClass": "batch",
    "slo.classes[].name": "talk",
    "slo.classes[].priority": 7,
    "slo.classes[].ttft": "2s",
    "slo.classes[].tpot": "90ms",
    "slo.classes[].e2e": "90s",
    "slo.classes[].onDeadline": "Reject",
    "slo.objective": "Latency",
    "workload.requestsPerSecond": "9",
    "workload.promptTokens.mean": 9,
    "workload.promptTokens.p95": 99,
    "workload.outputTokens.mean": 9,
    "workload.outputTokens.p95": 99,
    "parallelism.tensor": 2,
    "parallelism.pipeline": 2,
    "parallelism.layers": [3, 5],
    "placement.policy": "LR",
    "placement.gpus.min": 2,
    "placement.gpus.max": 4,
    "placement.allocation": "DevicePlugin",
    "placement.multiNode": "Allowed",
    "placement.schedulerName": "default-scheduler",
    "placement.replan": "WhenBetter",
    "scheduling.policy": "FCFS",
    "scheduling.maxQueuedRequests": 7,
    "scheduling.predictor": "Off",
    "http.idleTimeout": "10m",
    "http.maxBodyBytes": 1000,
    "http.routes[].path": "/v1/audio/translations",
    "http.routes[].maxBodyBytes": 2000,
    "auth.apiKeysSecretRef.name": "other",
    "engine.image": "other:1",
    "engine.args": ["--seed", "7"],
    "engine.env[].name": "OTHER",
    "engine.env[].value": "other",
    "engine.resources.requests": {"cpu": "2"},
    "engine.resources.limits": {"cpu": "4"},
    "engine.startupTimeout": "10m",
    "template.metadata": {"labels": {"team": "b"}},
    "template.spec": {"priorityClassName": "high"},
    "rollout.maxSurge": 2,
    "rollout.maxUnavailable": 2,
    "autoscaling.minReplicas": 0,
    "autoscaling.maxReplicas": 9,
    "autoscaling.idleTimeout": "5m",
    "routing": "InferencePool",
    "inferencePool.endpointPicker.name": "other",
    "inferencePool.endpointPicker.port": 9,
    "inferencePool.endpointPicker.failureMode": "FailClose",
    "inferencePool.gateways[].name": "other",
    "inferencePool.gateways[].namespace": "other",
    "inferencePool.gateways[].sectionName": "other",
    "inferencePool.hostnames": ["other.example"],
    "suspend": True,
    "replicas": 5,
}
BEFORE: dict[str, Any] = {
    "model": {
        "uri": "hf://org/model",
        "revision": "0" * 40,
        "config": {"architectures": ["LlamaForCausalLM"]},
        "cache": {"claimName": "models"},
        "tokenSecretRef": {"name": "hf", "key": "token"},
    },
    "slo": {"classes": [{"name": "chat", "ttft": "1s"}, {"name": "batch", "e2e": "60s"}], "defaultClass": "chat"},
    "workload": {"requestsPerSecond": "1", "promptTokens": {"mean": 8, "p95": 80}},
    "http": {"routes": [{"path": "/v1/audio/transcriptions", "maxBodyBytes": 1000}]},
    "auth": {"apiKeysSecretRef": {"name": "keys"}},
    "engine": {"env": [{"name": "A", "value": "1"}]},
    "rollout": {"maxSurge": 1, "maxUnavailable": 1},
    "autoscaling": {"minReplicas": 1, "maxReplicas": 4},
    "inferencePool": {"gateways": [{"name": "public"}]},
}
MADE_CACHE = {
    **BEFORE,
    "model": {**BEFORE["model"], "cache": {"size": "1Ti", "accessModes": ["ReadWriteMany"]}},
}

ON_NODES = {**BEFORE, "model": {**BEFORE["model"], "cache": {"nodeLocal": True}}}

WITH_ADAPTERS = {
    **BEFORE,
    "model": {"uri": "hf://org/model", "adapters": [{"name": "sql", "uri": "hf://org/sql", "revision": "v1"}]},
}


def start_of(path: str) -> dict[str, Any]:
    """A spec in which the field can be changed."""
    if path.startswith("model.adapters"):
        return WITH_ADAPTERS
    if path == "model.cache.nodeLocal":
        return ON_NODES
    return MADE_CACHE if path.startswith("model.cache.") and path != "model.cache.claimName" else BEFORE


def changed(spec: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    """A copy of the spec in which the field at `path` has this value; in a list, of the last entry."""
    name, _, rest = path.partition(".")
    listed = name.endswith("[]")
    name = name.removesuffix("[]")
    if not rest:
        return {**spec, name: value}
    if listed:
        *others, last = spec[name]
        return {**spec, name: [*others, changed(last, rest, value)]}
    return {**spec, name: changed(spec.get(name) or {}, rest, value)}


def service(spec: dict[str, Any]):
    metadata = {"name": "llama", "namespace": "ns"}
    return parse_service({"apiVersion": "uellm.io/v1alpha1", "kind": "LLMService", "metadata": metadata, "spec": spec})


def told(of):
    """What its sidecars are told."""
    return sidecar_document(of, ToldAdapters(entries(of, None)))


@pytest.mark.parametrize(("path", "effect"), FIELD_EFFECTS.items(), ids=list(FIELD_EFFECTS))
def test_a_field_does_what_its_row_says(path, effect):
    start = start_of(path)
    before, after = service(start), service(changed(start, path, CHANGES[path]))
    if before == after:
        assert path in ("placement.allocation", "model.cache.nodeLocal"), "which have one value alone"
        return
    rolls = rolling_digest(after) != rolling_digest(before)
    reloads = told(after) != told(before)
    assert (rolls, reloads) == (effect == "rolls", effect == "reloads")


def test_an_adapter_on_a_claim_that_is_not_mounted_yet_rolls():
    on_claim = [{"name": "sql", "uri": "pvc://others/sql"}]
    added = service(changed(BEFORE, "model.adapters", on_claim))
    assert rolling_digest(added) != rolling_digest(service(BEFORE))
    on_models = service(changed(BEFORE, "model.adapters", [{"name": "sql", "uri": "pvc://models/sql"}]))
    assert rolling_digest(on_models) == rolling_digest(service(BEFORE))


def test_a_field_at_its_default_counts_as_absent():
    spelled_out = changed(changed(BEFORE, "model.dtype", "auto"), "engine.startupTimeout", "30m")
    assert rolling_digest(service(spelled_out)) == rolling_digest(service(BEFORE))


def test_a_field_without_a_row_rolls(monkeypatch):
    rows = {path: effect for path, effect in FIELD_EFFECTS.items() if path != "suspend"}
    monkeypatch.setattr("uellm.reconcile.field_effects.FIELD_EFFECTS", rows)
    assert rolling_digest(service({**BEFORE, "suspend": True})) != rolling_digest(service(BEFORE))
