"""The HTTPRoute: attaches the InferencePool to Gateways."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from uellm.api import LLMService
from uellm.api.inference_pool import ParentGateway
from uellm.reconcile.names import child_metadata


def http_route(document: Mapping[str, Any], service: LLMService) -> dict[str, Any]:
    """Every request to the hostnames goes to the pool."""
    pool = service.spec.inference_pool
    backend = {"group": "inference.networking.k8s.io", "kind": "InferencePool", "name": service.name}
    rule = {
        "matches": [{"path": {"type": "PathPrefix", "value": "/"}}],
        "backendRefs": [backend],
        # Answers may take long, and streams longer: the sidecar itself ends what takes too long.
        "timeouts": {"request": "0s"},
    }
    return {
        "apiVersion": "gateway.networking.k8s.io/v1",
        "kind": "HTTPRoute",
        "metadata": child_metadata(document, service.name),
        "spec": {
            "parentRefs": [_parent(gateway) for gateway in pool.gateways],
            **({"hostnames": list(pool.hostnames)} if pool.hostnames else {}),
            "rules": [rule],
        },
    }


def _parent(gateway: ParentGateway) -> dict[str, Any]:
    return {"group": "gateway.networking.k8s.io", "kind": "Gateway", **gateway.to_dict()}
