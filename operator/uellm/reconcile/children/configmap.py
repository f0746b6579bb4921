"""The ConfigMap `NAME-config`: the part of the sidecar's configuration that it reloads, so no change restarts a pod."""

from __future__ import annotations

import json
from functools import lru_cache
from typing import Any

import yaml

from uellm.api.llmservice import LLMService
from uellm.api.sidecar_document import (
    NO_ADAPTERS,
    SidecarClass,
    SidecarDocument,
    SidecarHttp,
    SidecarQueue,
    ToldAdapters,
    content_digest,
)
from uellm.pod_interface import SIDECAR_FILE
from uellm.reconcile.children.desired_state import DesiredState
from uellm.reconcile.children.engine_origins import engine_origins
from uellm.reconcile.names import child_metadata, config_name


def configmap(desired: DesiredState) -> dict[str, Any]:
    """`sidecar.yaml`, and beside it what pods of a release without revisions still read."""
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": child_metadata(desired.document, config_name(desired.service.name)),
        "data": config_files(desired),
    }


def config_files(desired: DesiredState) -> dict[str, str]:
    """The files by name."""
    document = sidecar_document(desired.service, desired.adapters)
    if desired.former is None:
        return {SIDECAR_FILE: _yaml(document)}
    return desired.former.files(document, accepts_priority=desired.service.spec.scheduling.policy != "FCFS")


def config_digest(desired: DesiredState) -> str:
    """Digest of `sidecar.yaml`: the one that a sidecar reports once the file is in force."""
    return content_digest(config_files(desired)[SIDECAR_FILE].encode())


def sidecar_document(service: LLMService, told: ToldAdapters = NO_ADAPTERS) -> SidecarDocument:
    """`sidecar.yaml`: what the sidecar needs to know about the service, and the LoRA adapters to serve."""
    spec = service.spec
    return SidecarDocument(
        classes=tuple(SidecarClass.model_validate(each.to_dict()) for each in spec.slo.effective_classes),
        default_class=spec.slo.effective_default_class,
        scheduling=SidecarQueue.model_validate(spec.scheduling.to_dict()),
        service=f"{service.namespace}/{service.name}",
        adapters=told.adapters,
        revision_adapters=told.of_revisions,
        http=SidecarHttp.model_validate(
            spec.http.model_dump(by_alias=True, exclude_defaults=True, mode="json") | engine_origins(spec.engine.args)
        ),
    )


def _yaml(document: SidecarDocument) -> str:
    return _yaml_of(json.dumps(document.to_dict()))


# Every pass needs it, and writing YAML takes milliseconds.
@lru_cache(maxsize=1024)
def _yaml_of(document: str) -> str:
    """A document that is given as JSON, for that takes less memory than what it is parsed to."""
    text: str = yaml.safe_dump(json.loads(document), sort_keys=False)
    return text
