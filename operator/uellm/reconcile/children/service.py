"""The Service: the address that clients use."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from uellm.pod_interface import SERVICE_PORT
from uellm.reconcile.children.pod import HTTP_PORT_NAME
from uellm.reconcile.names import child_metadata, serving_selector


def service(document: Mapping[str, Any], nodes: int) -> dict[str, Any]:
    """Port 80 to the sidecars of all pods that are ready; of a replica that spans nodes, its leader has the sidecar."""
    name = document["metadata"]["name"]
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": child_metadata(document, name),
        "spec": {
            "type": "ClusterIP",
            "selector": serving_selector(name, nodes),
            "ports": [{"name": "http", "port": SERVICE_PORT, "protocol": "TCP", "targetPort": HTTP_PORT_NAME}],
        },
    }
