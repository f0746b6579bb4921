"""The Service: the address that clients use."""

from __future__ import annotations

from typing import Any

from uellm.pod_interface import SERVICE_PORT
from uellm.reconcile.children.desired_state import DesiredState
from uellm.reconcile.children.pod import HTTP_PORT_NAME
from uellm.reconcile.names import child_metadata, serving_selector


def service(desired: DesiredState) -> dict[str, Any]:
    """Port 80 to the sidecars of all pods that are ready; of a replica that spans nodes, its leader has the sidecar."""
    name = desired.service.name
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": child_metadata(desired.document, name),
        "spec": {
            "type": "ClusterIP",
            "selector": serving_selector(name, desired.nodes),
            "ports": [{"name": "http", "port": SERVICE_PORT, "protocol": "TCP", "targetPort": HTTP_PORT_NAME}],
        },
    }
