"""The ConfigMap: the sidecar's configuration and the launcher's plan.

Both are read from mounted files, so a change of their content restarts no pod.
"""

from __future__ import annotations

from typing import Any

import yaml

from uellm.api.sidecar_document import SidecarAuth, SidecarClass, SidecarDocument, SidecarEngine, SidecarQueue
from uellm.reconcile.children.desired_state import DesiredState
from uellm.reconcile.children.pod import KEYS_DIRECTORY
from uellm.reconcile.names import child_metadata, config_name

SIDECAR_FILE = "sidecar.yaml"
PLAN_FILE = "plan.json"


def configmap(desired: DesiredState) -> dict[str, Any]:
    """`sidecar.yaml` and `plan.json`."""
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": child_metadata(desired.document, config_name(desired.service.name)),
        "data": {
            SIDECAR_FILE: yaml.safe_dump(sidecar_document(desired).to_dict(), sort_keys=False),
            PLAN_FILE: desired.plan.plan_json,
        },
    }


def sidecar_document(desired: DesiredState) -> SidecarDocument:
    """What the sidecar has to know of the service and its engine."""
    spec, plan = desired.service.spec, desired.plan
    engine = {
        "max_num_seqs": plan.max_num_seqs,
        "max_num_batched_tokens": plan.max_num_batched_tokens,
        "accepts_priority": plan.priority_scheduling and spec.scheduling.policy != "FCFS",
        "step_seconds": plan.step_seconds,
    }
    auth = {} if spec.auth is None else {"keys_directory": KEYS_DIRECTORY}
    return SidecarDocument(
        model=desired.service.served_name,
        classes=tuple(SidecarClass.model_validate(each.to_dict()) for each in spec.slo.effective_classes),
        default_class=spec.slo.effective_default_class,
        scheduling=SidecarQueue.model_validate(spec.scheduling.to_dict()),
        engine=SidecarEngine.model_validate({name: value for name, value in engine.items() if value}),
        auth=SidecarAuth.model_validate(auth),
    )
