"""What a change of each field of the spec does to running pods. The code reads it from here.

rolls     the pods are replaced, because their processes are started with it,
reloads   the sidecars reload it while they run,
neither   it concerns the plan, the number of pods or how they are replaced.

Adapters reload while the engines have room for them: the first one, a larger rank, more of them than there are slots,
and one on a claim that is not mounted yet replace the pods.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from uellm.api.llmservice import LLMService
from uellm.reconcile.adapter_claims import adapter_claims
from uellm.reconcile.drift import digest

Effect = Literal["rolls", "reloads", "neither"]

FIELD_EFFECTS: Mapping[str, Effect] = {
    "model.uri": "rolls",
    "model.revision": "rolls",
    "model.servedName": "rolls",
    "model.config": "rolls",
    "model.cache.claimName": "rolls",
    "model.cache.storageClassName": "rolls",
    "model.cache.size": "neither",
    "model.cache.accessModes": "rolls",
    "model.cache.nodeLocal": "rolls",
    "model.adapters[].name": "reloads",
    "model.adapters[].uri": "reloads",
    "model.adapters[].revision": "reloads",
    "model.tokenSecretRef.name": "rolls",
    "model.tokenSecretRef.key": "rolls",
    "model.trustRemoteCode": "rolls",
    "model.dtype": "rolls",
    "model.quantization": "rolls",
    "model.task": "rolls",
    "model.maxModelLen": "rolls",
    "slo.attainment": "neither",
    "slo.defaultClass": "reloads",
    "slo.classes[].name": "reloads",
    "slo.classes[].priority": "reloads",
    "slo.classes[].ttft": "reloads",
    "slo.classes[].tpot": "reloads",
    "slo.classes[].e2e": "reloads",
    "slo.classes[].onDeadline": "reloads",
    "slo.objective": "neither",
    "workload.requestsPerSecond": "neither",
    "workload.promptTokens.mean": "neither",
    "workload.promptTokens.p95": "neither",
    "workload.outputTokens.mean": "neither",
    "workload.outputTokens.p95": "neither",
    "parallelism.tensor": "rolls",
    "parallelism.pipeline": "rolls",
    "parallelism.layers": "rolls",
    "placement.policy": "rolls",
    "placement.gpus.min": "rolls",
    "placement.gpus.max": "rolls",
    "placement.allocation": "rolls",
    "placement.multiNode": "rolls",
    "placement.schedulerName": "rolls",
    "placement.replan": "neither",
    "scheduling.policy": "reloads",
    "scheduling.maxQueuedRequests": "reloads",
    "scheduling.predictor": "reloads",
    "http.idleTimeout": "reloads",
    "http.maxBodyBytes": "reloads",
    "http.routes[].path": "reloads",
    "http.routes[].maxBodyBytes": "reloads",
    "auth.apiKeysSecretRef.name": "rolls",
    "engine.image": "rolls",
    "engine.args": "rolls",
    "engine.env[].name": "rolls",
    "engine.env[].value": "rolls",
    "engine.resources.requests": "rolls",
    "engine.resources.limits": "rolls",
    "engine.startupTimeout": "rolls",
    "template.metadata": "rolls",
    "template.spec": "rolls",
    "rollout.maxSurge": "neither",
    "rollout.maxUnavailable": "neither",
    "autoscaling.minReplicas": "neither",
    "autoscaling.maxReplicas": "neither",
    "autoscaling.idleTimeout": "neither",
    "routing": "neither",
    "inferencePool.endpointPicker.name": "neither",
    "inferencePool.endpointPicker.port": "neither",
    "inferencePool.endpointPicker.failureMode": "neither",
    "inferencePool.gateways[].name": "neither",
    "inferencePool.gateways[].namespace": "neither",
    "inferencePool.gateways[].sectionName": "neither",
    "inferencePool.hostnames": "neither",
    "suspend": "neither",
    "replicas": "neither",
}
"""By path in the spec; `[]` means each entry of a list."""


def rolling_digest(service: LLMService) -> str:
    """Digest of the fields that roll. A field at its default counts as absent, so a new field changes no digest."""
    spec = service.spec.model_dump(by_alias=True, exclude_defaults=True, mode="json")
    rolling = _rolling(spec, "")
    claims = list(adapter_claims(service))
    return digest({**rolling, "adapterClaims": claims} if claims else rolling)


def _rolling(value: Any, path: str) -> Any:
    """The part of the spec at `path` that rolls; None for none."""
    if path in FIELD_EFFECTS:
        return value if FIELD_EFFECTS[path] == "rolls" else None
    if isinstance(value, list):
        parts = [_rolling(each, f"{path}[]") for each in value]
        return parts if any(part is not None for part in parts) else None
    if isinstance(value, Mapping):
        prefix = f"{path}." if path else ""
        kept = {name: _rolling(part, f"{prefix}{name}") for name, part in value.items()}
        return {name: part for name, part in kept.items() if part is not None} or None
    # A field without a row: the pods are replaced rather than left with an old value.
    return value
