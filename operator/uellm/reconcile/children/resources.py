"""What the pod's containers request besides GPUs, from the bytes of the model and the number of GPUs. Pure.

A pod that requests nothing is the first to be evicted when its node runs short, and a quota refuses it. What the user
sets, in `spec.engine.resources` or in the pod template, wins name by name.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from uellm.api import LLMService
from uellm.reconcile.children.claim_template import CLAIM_NAME
from uellm.reconcile.children.desired_state import DesiredState

MIB = 1 << 20
# Compiled kernels, torch's caches, logs and temporary files.
_SCRATCH_BYTES = 1 << 30
# Configuration and tokenizer come with the weights.
_DOWNLOAD_SHARE = 1.02
_CACHE_VOLUME = "cache"

LAUNCHER = {
    "requests": {"cpu": "10m", "memory": "16Mi", "ephemeral-storage": "16Mi"},
    "limits": {"cpu": "1", "memory": "128Mi", "ephemeral-storage": "256Mi"},
}
# The bodies of requests may take 256 MiB (uellm.http.Budget), and each stream 256 KiB.
SIDECAR = {
    "requests": {"cpu": "100m", "memory": "128Mi", "ephemeral-storage": "64Mi"},
    "limits": {"cpu": "2", "memory": "2Gi", "ephemeral-storage": "1Gi"},
}


def engine_resources(desired: DesiredState) -> dict[str, Any]:
    """Requests and limits of the engine's container."""
    claims = desired.plan.claim is not None
    gpus = {} if claims else {desired.plan.resource_name: str(desired.plan.gpus_per_pod)}
    own = desired.service.spec.engine.resources
    requests, limits = dict((own and own.requests) or {}), dict((own and own.limits) or {})
    # A limit without a request is the request too, and ours might be above it.
    limited = {*limits, *_template_limits(desired.service)} - requests.keys()
    ours = {name: value for name, value in _needed(desired).items() if name not in limited}
    claimed = {"claims": [{"name": CLAIM_NAME}]} if claims else {}
    return {"requests": {**ours, **requests, **gpus}, "limits": {**limits, **gpus}, **claimed}


def _needed(desired: DesiredState) -> dict[str, str]:
    plan = desired.plan
    return {
        "cpu": f"{plan.host_millicores}m",
        "memory": _mebibytes(plan.host_memory_bytes),
        "ephemeral-storage": _mebibytes(_SCRATCH_BYTES + _download_bytes(desired)),
    }


def _download_bytes(desired: DesiredState) -> float:
    """Bytes of the model that the engine downloads to the node's disk."""
    elsewhere = any(each.get("name") == _CACHE_VOLUME for each in _entries(desired.service, "volumes"))
    model = desired.service.spec.model
    if elsewhere or model.cache is not None or not model.uri.startswith("hf://"):
        return 0.0
    return desired.plan.weight_bytes * _DOWNLOAD_SHARE


def _template_limits(service: LLMService) -> set[str]:
    limits: set[str] = set()
    for each in _entries(service, "containers"):
        resources = each.get("resources")
        of_engine = resources.get("limits") if each.get("name") == "engine" and isinstance(resources, Mapping) else None
        limits |= set(of_engine) if isinstance(of_engine, Mapping) else set()
    return limits


def _entries(service: LLMService, field: str) -> list[Mapping[str, Any]]:
    """A list of the user's pod template. What is malformed is left to the API server, which names the field."""
    entries = (service.spec.template.spec or {}).get(field)
    return [each for each in entries if isinstance(each, Mapping)] if isinstance(entries, list) else []


def _mebibytes(size_bytes: float) -> str:
    return f"{math.ceil(size_bytes / MIB)}Mi"
