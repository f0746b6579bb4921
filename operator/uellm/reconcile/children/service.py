"""The Service: the address that clients use."""

from __future__ import annotations

from typing import Any

from uellm.reconcile.children.pod import HTTP_PORT_NAME
from uellm.reconcile.children.wanted import Wanted
from uellm.reconcile.names import child_metadata, selector

PORT = 80


def service(wanted: Wanted) -> dict[str, Any]:
    """Port 80 to the sidecars of all pods that are ready."""
    name = wanted.service.name
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": child_metadata(wanted.document, name),
        "spec": {
            "type": "ClusterIP",
            "selector": selector(name),
            "ports": [{"name": "http", "port": PORT, "protocol": "TCP", "targetPort": HTTP_PORT_NAME}],
        },
    }
