"""Renders a plan for its pods: plan.json, the annotation, step times. Milliseconds of CPU time for large clusters."""

from __future__ import annotations

import json
from typing import Any

from uellm.api.sidecar_document import SidecarStepSeconds
from uellm.planner.handover.annotation import annotation
from uellm.planner.handover.document import plan_document
from uellm.planner.handover.sidecar_prior import step_time
from uellm.planner.request import PlanRequest
from uellm.planner.result import Plan
from uellm.planner.vllm.flags import SCHEDULING_POLICY, UserArgs
from uellm.reconcile.rendered_plan import RenderedPlan


def render(plan: Plan, request: PlanRequest) -> RenderedPlan:
    """The plan as its pods read it.

    It depends on the plan, the spec and the facts of the nodes, but not on which GPUs are free.
    """
    document, note = plan_document(plan, request), annotation(plan, request)
    step = step_time(plan, request)
    return RenderedPlan(
        shape=shape_of(plan),
        nodes=plan.nodes,
        gpus_per_replica=plan.gpus_per_replica,
        resource_name=note["resourceName"],
        annotation=_json(note),
        plan_json=_json(document, ensure_ascii=False),
        max_num_seqs=plan.max_num_seqs,
        max_num_batched_tokens=plan.max_num_batched_tokens,
        priority_scheduling=UserArgs(document["engine"]["args"]).text(SCHEDULING_POLICY) == "priority",
        step_seconds=None if step is None else SidecarStepSeconds.model_validate(step.to_dict()),
    )


def shape_of(plan: Plan) -> str:
    """The part of a plan that pods are built from, in a form that every version of the operator writes alike."""
    layers = ",".join(str(count) for count in plan.layers)
    return f"tp{plan.tensor} pp{plan.pipeline} layers {layers} on {','.join(plan.nodes)}"


def _json(document: dict[str, Any], *, ensure_ascii: bool = True) -> str:
    # Without spaces: the devices of many nodes have to fit into one object of at most 1 MiB.
    return json.dumps(document, separators=(",", ":"), ensure_ascii=ensure_ascii)
