"""Whether the plan is predicted to meet the targets, and the best possible where it is not. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterator

from uellm.api import LLMService, ServiceClass
from uellm.planner.result import Plan
from uellm.reconcile.conditions import Condition

TYPE = "SLOFeasible"


def feasible(plan: Plan | None, service: LLMService | None, *, no_plan: str = "") -> Condition:
    """The condition SLOFeasible; Unknown where nothing is predicted. `no_plan`: why there is no plan."""
    if service is None or plan is None:
        return _unknown("NoPlan", f"there is no plan to predict from: {no_plan or 'none was made'}")
    predicted, spec = plan.predicted, service.spec
    if not spec.slo.classes and spec.workload.requests_per_s is None:
        return _unknown(
            "NothingAsked",
            "neither a target nor a load is given: set spec.slo.classes or spec.workload.requestsPerSecond",
        )
    if predicted.ttft_ms is None:
        return _unknown(
            "NotMeasured",
            "the speed of the planned GPUs is not measured, so no time can be predicted: look at "
            "status.devices[].measured of the GPUNodeProfile",
        )
    if plan.slo is not None and not plan.slo.feasible:
        return Condition(TYPE, "False", "TargetsTooTight", f"{plan.slo.constraint}; it takes {plan.slo.change}")
    # A plan by an older operator, which holds no verdict.
    if plan.slo is None and (missed := "; ".join(_missed(plan, service))):
        return Condition(TYPE, "False", "TargetsTooTight", f"the best possible: {missed}")
    if needed := missing_replicas(plan, service):
        return Condition(TYPE, "False", "TooFewReplicas", _too_few(needed, service))
    message = f"predicted: TTFT {predicted.ttft_ms:.0f} ms"
    message += "" if predicted.tpot_ms is None else f", TPOT {predicted.tpot_ms:.0f} ms"
    return Condition(TYPE, "True", "Predicted", message)


def missing_replicas(plan: Plan, service: LLMService) -> int:
    """The number of replicas that the load needs, where the spec allows fewer; else 0.

    A service that is to run no pods is short of none.
    """
    rate, replicas = service.spec.workload.requests_per_s, allowed_replicas(service)
    if rate is None or service.spec.suspend or not replicas:
        return 0
    needed = plan.recommended_replicas
    if needed is None:  # a plan by an older operator
        each_per_s = plan.predicted.requests_per_s
        needed = math.ceil(rate / each_per_s) if each_per_s else 0
    return needed if needed > replicas else 0


def allowed_replicas(service: LLMService) -> int:
    """`spec.replicas`, or the largest number where the operator chooses it."""
    autoscaling = service.spec.autoscaling
    return service.spec.replicas if autoscaling is None else autoscaling.max_replicas


def _unknown(reason: str, message: str) -> Condition:
    return Condition(TYPE, "Unknown", reason, message)


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


def _too_few(needed: int, service: LLMService) -> str:
    rate, replicas = service.spec.workload.requests_per_s or 0.0, allowed_replicas(service)
    targets = " within the targets" if service.spec.slo.classes else ""
    if service.spec.autoscaling is not None:
        return (
            f"{rate:g} requests a second need {needed} replicas{targets}, and spec.autoscaling.maxReplicas is "
            f"{replicas}: raise it to {needed}"
        )
    return (
        f"{rate:g} requests a second need {needed} replicas{targets}, and spec.replicas is {replicas}: "
        f"kubectl scale llmservice/{service.name} --replicas={needed}"
    )
