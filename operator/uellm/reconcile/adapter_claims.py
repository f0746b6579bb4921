"""Where the engine finds the LoRA adapters of an LLMService, and the claims that are mounted for them. Pure."""

from __future__ import annotations

from uellm.api import LLMService
from uellm.api.adapter import AdapterSpec
from uellm.reconcile.model_claim import MODEL_MOUNT, mounted_claim

HF, PVC = "hf://", "pvc://"
ADAPTERS_MOUNT = "/adapters"
"""Below it, claims of `pvc://` adapters that the engine mounts for nothing else, by name."""


def source_of(adapter: AdapterSpec) -> str:
    """What identifies an adapter's files, as far as the spec tells."""
    return f"{adapter.uri}@{adapter.revision}" if adapter.uri.startswith(HF) else adapter.uri


def claim_of(adapter: AdapterSpec) -> str | None:
    """The PersistentVolumeClaim of a `pvc://` adapter."""
    return adapter.uri.removeprefix(PVC).partition("/")[0] if adapter.uri.startswith(PVC) else None


def adapter_claims(service: LLMService) -> dict[str, str]:
    """Claims that are mounted for adapters alone, and where."""
    claims = sorted({claim for each in service.spec.model.adapters if (claim := claim_of(each))})
    return {claim: f"{ADAPTERS_MOUNT}/{claim}" for claim in claims if claim != mounted_claim(service)}


def adapter_path(service: LLMService, adapter: AdapterSpec) -> str:
    """The adapter's directory in the engine's container, as far as the spec tells; empty for one of a hub."""
    if adapter.uri.startswith(HF):
        return ""
    claim = claim_of(adapter)
    if claim is None:
        return adapter.uri.removeprefix("file://").rstrip("/")
    _, _, path = adapter.uri.removeprefix(PVC).strip("/").partition("/")
    return f"{adapter_claims(service).get(claim, MODEL_MOUNT)}/{path}".rstrip("/")
