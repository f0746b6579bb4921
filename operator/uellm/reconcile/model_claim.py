"""The claim, the image or the node's directory that holds the model of an LLMService."""

from __future__ import annotations

from typing import Any, NamedTuple

from uellm.api import LLMService
from uellm.reconcile.names import weights_name

MODEL_MOUNT = "/models"
"""Where the claim of a `pvc://` model is mounted, `spec.model.cache`, and the image of an `oci://` model."""


class NodeCache(NamedTuple):
    """Where nodes keep models."""

    path: str
    """A directory of every GPU node."""
    image: str
    """Of the container that copies, the operator's own."""


def is_on_nodes(service: LLMService) -> bool:
    """Whether the model is copied to the disks of the nodes."""
    cache = service.spec.model.cache
    return cache is not None and cache.node_local


def claim_name(service: LLMService) -> str | None:
    """The PersistentVolumeClaim of a `pvc://` model; None for any other."""
    scheme, _, rest = service.spec.model.uri.partition("://")
    return rest.partition("/")[0] if scheme == "pvc" else None


def cache_claim(service: LLMService) -> str | None:
    """The PersistentVolumeClaim of `spec.model.cache`; None for a service without."""
    cache = service.spec.model.cache
    if cache is None or cache.node_local:
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
