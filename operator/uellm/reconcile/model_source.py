"""Where the engine finds the model of an LLMService: the path or name that vLLM gets."""

from __future__ import annotations

from uellm.api import LLMService
from uellm.hub import ModelFacts
from uellm.hub.copy_state import copy_path
from uellm.reconcile.model_claim import MODEL_MOUNT

IN_BUCKET = ("s3", "gs")
"""Schemes of object stores, from which the engine itself loads."""


def is_in_bucket(service: LLMService) -> bool:
    """Whether the model is in an object store."""
    return service.spec.model.uri.partition("://")[0] in IN_BUCKET


def model_path(service: LLMService, facts: ModelFacts | None = None) -> str:
    """What `vllm serve` is given: a Hugging Face id, a path in the container, or the URI of an object store.

    `facts`: where it was looked up.
    """
    scheme, _, rest = service.spec.model.uri.partition("://")
    if scheme == "hf":
        if service.spec.model.cache is None:
            return rest
        return f"{MODEL_MOUNT}/{copy_path(rest, model_revision(service, facts))}"
    if scheme == "file":
        return rest.rstrip("/")
    if scheme in IN_BUCKET:
        return service.spec.model.uri.rstrip("/")
    if scheme == "oci":
        return f"{MODEL_MOUNT}/{rest.partition('#')[2]}".rstrip("/")
    _, _, path = rest.strip("/").partition("/")
    return f"{MODEL_MOUNT}/{path}".rstrip("/")


def model_revision(service: LLMService, facts: ModelFacts | None = None) -> str:
    """The revision of an `hf://` model, by its commit where it was looked up; empty for any other."""
    if not service.spec.model.uri.startswith("hf://"):
        return ""
    return (facts.commit if facts is not None else "") or service.spec.model.revision


def repository(service: LLMService) -> str:
    """The repository of an `hf://` model, with its owner."""
    return service.spec.model.uri.removeprefix("hf://")
