"""The ConfigMap: the sidecar's configuration and the plan with the facts of every candidate device.

Both are read from the mounted files, so that a change of content rolls no pod.
"""

from __future__ import annotations

from typing import Any

import yaml

from uellm.planner.handover.publish import plan_document
from uellm.planner.handover.sidecar_prior import step_time
from uellm.planner.vllm.flags import SCHEDULING_POLICY, UserArgs
from uellm.reconcile.children.pod import KEYS_DIRECTORY
from uellm.reconcile.children.wanted import Wanted
from uellm.reconcile.names import child_metadata, config_name

SIDECAR_FILE = "sidecar.yaml"
PLAN_FILE = "plan.json"


def configmap(wanted: Wanted) -> dict[str, Any]:
    """`sidecar.yaml` and `plan.json`."""
    plan = plan_document(wanted.plan, wanted.request)
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": child_metadata(wanted.document, config_name(wanted.service.name)),
        "data": {
            SIDECAR_FILE: yaml.safe_dump(_sidecar(wanted, UserArgs(plan.engine.args)), sort_keys=False),
            PLAN_FILE: plan.to_json(),
        },
    }


def _sidecar(wanted: Wanted, args: UserArgs) -> dict[str, Any]:
    spec = wanted.service.spec
    config: dict[str, Any] = {
        "model": wanted.service.served_name,
        "classes": [each.to_dict() for each in spec.slo.effective_classes],
        "defaultClass": spec.slo.effective_default_class,
        "scheduling": spec.scheduling.to_dict(),
    }
    by_priority = args.text(SCHEDULING_POLICY) == "priority" and spec.scheduling.policy != "FCFS"
    told = {
        "maxNumSeqs": wanted.plan.max_num_seqs,
        "maxNumBatchedTokens": wanted.plan.max_num_batched_tokens,
        "acceptsPriority": by_priority,
    }
    config["engine"] = {name: value for name, value in told.items() if value}
    if (step := step_time(wanted.plan, wanted.request)) is not None:
        config["engine"]["stepSeconds"] = step.to_dict()
    if spec.auth is not None:
        config["auth"] = {"keysDirectory": KEYS_DIRECTORY}
    return config
