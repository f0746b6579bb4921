"""The claim or the image that holds the model of an LLMService."""

from __future__ import annotations

from typing import Any

from uellm.api import LLMService
from uellm.reconcile.names import weights_name

MODEL_MOUNT = "/models"
"""Where the claim of a `pvc://` model is mounted, the one of `spec.model.cache`, and the image of an `oci://` model."""


def claim_name(service: LLMService) -> str | None:
    """The PersistentVolumeClaim of a `pvc://` model; None for any other."""
    scheme, _, rest = service.spec.model.uri.partition("://")
    return rest.partition("/")[0] if scheme == "pvc" else None


def cache_claim(service: LLMService) -> str | None:
    """The PersistentVolumeClaim of `spec.model.cache`; None for a service without."""
    cache = service.spec.model.cache
    if cache is None:
        return None
    return cache.claim_name or weights_name(service.name)


def image_of(service: LLMService) -> str | None:
    """The image that holds an `oci://` model; None for any other."""
    scheme, _, rest = service.spec.model.uri.partition("://")
    return rest.partition("#")[0] if scheme == "oci" else None


def image_volume(name: str, image: str) -> dict[str, Any]:
    """The volume that an image is mounted by, read-only."""
    return {"name": name, "image": {"reference": image}}


def mounted_claim(service: LLMService) -> str | None:
    """The PersistentVolumeClaim that the engine mounts at MODEL_MOUNT; None for none."""
    return claim_name(service) or cache_claim(service)
