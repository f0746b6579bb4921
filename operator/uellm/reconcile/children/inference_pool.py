"""The InferencePool: the pods of a service, for Gateways with an endpoint picker."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from uellm.api import LLMService
from uellm.pod_interface import SIDECAR_PORT
from uellm.reconcile.names import child_metadata, picker_name, serving_selector


def inference_pool(document: Mapping[str, Any], service: LLMService, nodes: int = 1) -> dict[str, Any]:
    """The pool has the pods of the Service. `nodes`: that a replica spans.

    Its endpoint picker reads their metrics at the port that requests go to.
    """
    picker = service.spec.inference_pool.endpoint_picker
    return {
        "apiVersion": "inference.networking.k8s.io/v1",
        "kind": "InferencePool",
        "metadata": child_metadata(document, service.name),
        "spec": {
            "selector": {"matchLabels": serving_selector(service.name, nodes)},
            "targetPorts": [{"number": SIDECAR_PORT}],
            "endpointPickerRef": {
                "group": "",
                "kind": "Service",
                "name": picker_name(service),
                "port": {"number": picker.port},
                "failureMode": picker.failure_mode,
            },
        },
    }
