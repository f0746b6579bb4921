"""Whether the plan is predicted to meet the targets, and the best possible where it is not. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterator

from uellm.api import LLMService, ServiceClass
from uellm.planner.result import Plan
from uellm.reconcile.conditions import Condition

TYPE = "SLOFeasible"


def feasible(plan: Plan, service: LLMService) -> Condition | None:
    """The condition SLOFeasible; None where nothing is predicted, or there are neither targets nor a load."""
    predicted, spec = plan.predicted, service.spec
    if predicted.ttft_ms is None or predicted.tpot_ms is None:
        return None
    if not spec.slo.classes and spec.workload.requests_per_s is None:
        return None
    if plan.slo is not None and not plan.slo.feasible:
        return Condition(TYPE, "False", "TargetsTooTight", f"{plan.slo.constraint}; it takes {plan.slo.change}")
    # A plan by an older operator, which holds no verdict.
    if plan.slo is None and (missed := "; ".join(_missed(plan, service))):
        return Condition(TYPE, "False", "TargetsTooTight", f"the best that can be had: {missed}")
    if short := _too_few(plan, service):
        return Condition(TYPE, "False", "TooFewReplicas", short)
    message = f"predicted: TTFT {predicted.ttft_ms:.0f} ms, TPOT {predicted.tpot_ms:.0f} ms"
    return Condition(TYPE, "True", "Predicted", message)


def _missed(plan: Plan, service: LLMService) -> Iterator[str]:
    for each in service.spec.slo.classes:
        for name, predicted_s, target_s in _times(plan, service, each):
            if target_s is not None and predicted_s > target_s:
                yield f"{name} {predicted_s * 1e3:.0f} ms, class {each.name} asks for {target_s * 1e3:.0f} ms"


def _times(plan: Plan, service: LLMService, each: ServiceClass) -> Iterator[tuple[str, float, float | None]]:
    ttft_s, tpot_s = (plan.predicted.ttft_ms or 0.0) / 1e3, (plan.predicted.tpot_ms or 0.0) / 1e3
    yield "TTFT", ttft_s, each.ttft_s
    yield "TPOT", tpot_s, each.tpot_s
    output = service.spec.workload.output_tokens
    if output is not None and output.mean is not None:
        yield "end to end", ttft_s + output.mean * tpot_s, each.e2e_s


def _too_few(plan: Plan, service: LLMService) -> str:
    rate, each = service.spec.workload.requests_per_s, plan.predicted.requests_per_s
    replicas = service.spec.replicas
    if plan.recommended_replicas is not None and replicas >= plan.recommended_replicas:
        return ""
    if rate is None or not each or rate <= each * replicas or service.spec.suspend or not replicas:
        return ""
    needed = plan.recommended_replicas or math.ceil(rate / each)
    return (
        f"{rate:g} requests a second need {needed} replicas of {each:.2f} each, and spec.replicas is {replicas}: "
        f"kubectl scale llmservice/{service.name} --replicas={needed}"
    )
