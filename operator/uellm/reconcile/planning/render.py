"""Renders a plan for its pods: plan.json, the annotation, step times. Milliseconds of CPU time for large clusters."""

from __future__ import annotations

from dataclasses import replace

from uellm.api.sidecar_document import SidecarStepFactors, SidecarStepSeconds, StepBasisDocument
from uellm.planner.handover.claim import claim_needs
from uellm.planner.handover.node_needs import node_needs
from uellm.planner.handover.publish import plan_annotation, plan_document
from uellm.planner.handover.revalidate import as_allocated
from uellm.planner.handover.sidecar_prior import step_prior
from uellm.planner.host_needs import host_memory_bytes, host_millicores
from uellm.planner.joining import as_joined
from uellm.planner.request import PlanRequest
from uellm.planner.result import Plan, Predicted
from uellm.planner.vllm.flags import SCHEDULING_POLICY, UserArgs
from uellm.reconcile.rendered_plan import RenderedPlan
from uellm.step_basis import StepBasis
from uellm.step_time import UNCORRECTED, StepFactors


def render(plan: Plan, request: PlanRequest) -> RenderedPlan:
    """The plan as its pods read it.

    It depends on the plan, the spec and the facts of the nodes, but not on which GPUs are free; and not on the plan's
    explanations, so that two plans that start the same pods are rendered to the same bytes.
    """
    plan, request = as_joined(plan, as_allocated(plan, request))
    document, annotation = plan_document(_bare(plan), request), plan_annotation(plan, request)
    prior, simulated = step_prior(plan, request), document.platform == "cpu"
    return RenderedPlan(
        node_needs=node_needs(plan, request, annotation.resource_name),
        gpus_per_pod=plan.gpus_per_replica // plan.nodes_per_replica,
        nodes=plan.nodes_per_replica,
        resource_name=annotation.resource_name,
        weight_bytes=request.architecture.weight_bytes,
        host_memory_bytes=host_memory_bytes(plan, request, simulated=simulated),
        host_millicores=host_millicores(plan, simulated=simulated),
        annotation=annotation.to_json(),
        plan_json=document.to_json(),
        max_model_len=request.max_model_len,
        max_num_seqs=plan.max_num_seqs,
        max_num_batched_tokens=plan.max_num_batched_tokens,
        task=request.task,
        priority_scheduling=UserArgs(document.engine.args).text(SCHEDULING_POLICY) == "priority",
        loads_adapters=document.engine.loads_adapters,
        step_seconds=None if prior is None else SidecarStepSeconds.model_validate(prior.step.to_dict()),
        step_factors=None if prior is None else _step_factors(prior.factors),
        step_basis=None if prior is None or prior.basis is None else _step_basis(prior.basis),
        claim=claim_needs(plan, request) if plan.claims else None,
    )


def _step_factors(factors: StepFactors) -> SidecarStepFactors | None:
    return None if factors == UNCORRECTED else SidecarStepFactors(prefill=factors.prefill, decode=factors.decode)


def _step_basis(basis: StepBasis) -> StepBasisDocument:
    return StepBasisDocument.model_validate(basis.rounded().to_dict())


def _bare(plan: Plan) -> Plan:
    """The plan without its reasons, alternatives and predictions: the launcher needs none of them."""
    return replace(
        plan,
        predicted=Predicted(plan.predicted.kv_cache_tokens),
        recommended_replicas=None,
        assumptions=(),
        alternatives=(),
        profile_hash="",
        node_classes=(),
        binding="",
        slo=None,
        search=None,
        reason="",
    )
