"""Where the engine finds the model of an LLMService: the path or name that vLLM gets, and the claim to mount."""

from __future__ import annotations

from uellm.api import LLMService

MODEL_MOUNT = "/models"
"""Where the claim of a `pvc://` model is mounted."""


def model_path(service: LLMService) -> str:
    """What `vllm serve` is given: a Hugging Face id, or a path in the container."""
    scheme, _, rest = service.spec.model.uri.partition("://")
    if scheme == "hf":
        return rest
    if scheme == "file":
        return rest.rstrip("/")
    _, _, path = rest.strip("/").partition("/")
    return f"{MODEL_MOUNT}/{path}".rstrip("/")


def model_revision(service: LLMService) -> str:
    """The revision of an `hf://` model; empty for any other."""
    return service.spec.model.revision if service.spec.model.uri.startswith("hf://") else ""


def claim_name(service: LLMService) -> str | None:
    """The PersistentVolumeClaim of a `pvc://` model; None for any other."""
    scheme, _, rest = service.spec.model.uri.partition("://")
    return rest.partition("/")[0] if scheme == "pvc" else None
