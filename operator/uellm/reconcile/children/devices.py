"""The ConfigMap of devices.json: facts of single GPUs, for the launcher. Advice: a change of it restarts nothing."""

from __future__ import annotations

from typing import Any

from uellm.pod_interface import DEVICES_FILE
from uellm.reconcile.children.desired_state import DesiredState
from uellm.reconcile.names import child_metadata, devices_name


def devices_configmap(desired: DesiredState) -> dict[str, Any]:
    """`devices.json`."""
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": child_metadata(desired.document, devices_name(desired.service.name)),
        "data": {DEVICES_FILE: desired.devices_json},
    }
