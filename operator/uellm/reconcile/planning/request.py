"""The planner's request for an LLMService, given what the nodes offer."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from uellm.api.llmservice import LLMService, LLMServiceSpec
from uellm.errors import BadInput, PlanError
from uellm.models import Architecture, Tensor, read_architecture
from uellm.planner import request as planner
from uellm.planner.vllm.refused_flags import DECIDED_ENVIRONMENT, REFUSED_ENVIRONMENT
from uellm.reconcile.model_source import model_path, model_revision
from uellm.reconcile.planning.calibration import efficiency_of

# What the planner may suggest where a model does not fit. The user has to provide such a checkpoint.
_QUANTIZATIONS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("fp8", {"quant_method": "fp8", "activation_scheme": "dynamic"}),
    ("awq (int4)", {"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": True, "version": "gemm"}),
)


def architecture_of(service: LLMService, tensors: Mapping[str, Tensor] | None = None) -> Architecture:
    """The model's architecture. `tensors`: those of its checkpoint where it can be read; they give the exact bytes.

    Raises PlanError ModelConfigMissing or InvalidModel.
    """
    model = service.spec.model
    if model.config is None:
        raise PlanError(
            "ModelConfigMissing",
            f"the architecture of {model.uri} is not known, and the operator downloads nothing: put the model's "
            "config.json into spec.model.config",
        )
    try:
        if tensors is None:
            return _architecture(json.dumps(model.config, sort_keys=True), model.dtype, model.quantization)
        return read_architecture(model.config, dtype=model.dtype, quantization=model.quantization, tensors=tensors)
    except BadInput as error:
        raise PlanError("InvalidModel", f"spec.model.{error}") from error


@lru_cache(maxsize=256)
def _architecture(config: str, dtype: str, quantization: str) -> Architecture:
    return read_architecture(json.loads(config), dtype=dtype, quantization=quantization)


def check_environment(service: LLMService) -> None:
    """Raise PlanError InvalidOverride for a variable that the launcher would refuse or override in the pod."""
    refused = {**REFUSED_ENVIRONMENT, **DECIDED_ENVIRONMENT}
    for each in service.spec.engine.env:
        if each.value and (instead := refused.get(each.name)):
            raise PlanError("InvalidOverride", f"spec.engine.env: {each.name} is not allowed: {instead}")


def plan_request(
    service: LLMService,
    architecture: Architecture,
    nodes: tuple[planner.NodeOffer, ...],
    *,
    left_out: tuple[planner.LeftOut, ...] = (),
    would_join: tuple[planner.NodeOffer, ...] = (),
) -> planner.PlanRequest:
    """The whole request. `left_out`: profiled nodes and classes that the pods may not run on; `would_join`:
    classes of nodes that may join.
    """
    spec = service.spec
    longest, notes = _max_model_len(service, architecture)
    return planner.PlanRequest(
        service=f"{service.namespace}/{service.name}",
        architecture=architecture,
        max_model_len=longest,
        nodes=nodes,
        classes=tuple(planner.SloClass(each.name, each.ttft_s, each.tpot_s, each.e2e_s) for each in spec.slo.classes),
        objective=spec.slo.objective,
        workload=_workload(spec),
        overrides=planner.Overrides(spec.parallelism.tensor, spec.parallelism.pipeline, spec.parallelism.layers),
        policy=spec.placement.policy,
        gpus_min=spec.placement.gpus.min,
        gpus_max=spec.placement.gpus.max,
        allocation=spec.placement.allocation,
        engine=planner.EngineRequest(
            model=model_path(service),
            revision=model_revision(service),
            served_name=service.served_name,
            args=spec.engine.args,
            dtype=spec.model.dtype,
            quantization=spec.model.quantization,
        ),
        replicas=max(1, spec.replicas),
        efficiency=efficiency_of(service),
        variants=_variants(service, architecture),
        left_out=left_out,
        notes=notes,
        would_join=would_join,
    )


def _variants(service: LLMService, architecture: Architecture) -> tuple[tuple[str, Architecture], ...]:
    """The model with its weights in 8 and in 4 bits; empty where they are quantised already."""
    if architecture.quantization != "none":
        return ()
    return _quantized(json.dumps(service.spec.model.config, sort_keys=True), service.spec.model.dtype)


@lru_cache(maxsize=256)
def _quantized(config: str, dtype: str) -> tuple[tuple[str, Architecture], ...]:
    found = []
    for name, section in _QUANTIZATIONS:
        try:
            found.append((name, read_architecture({**json.loads(config), "quantization_config": section}, dtype=dtype)))
        except BadInput:
            continue  # this model cannot be quantised so
    return tuple(found)


def _max_model_len(service: LLMService, architecture: Architecture) -> tuple[int, tuple[str, ...]]:
    if service.spec.model.max_model_len is not None:
        return service.spec.model.max_model_len, ()
    longest = architecture.max_position_embeddings
    return longest, (f"maxModelLen {longest}: the most that the model's config.json allows",)


def _workload(spec: LLMServiceSpec) -> planner.Workload:
    workload = spec.workload
    prompt, output = workload.prompt_tokens, workload.output_tokens
    return planner.Workload(
        requests_per_s=workload.requests_per_s,
        prompt_tokens_mean=prompt.mean if prompt else None,
        prompt_tokens_p95=prompt.p95 if prompt else None,
        output_tokens_mean=output.mean if output else None,
        output_tokens_p95=output.p95 if output else None,
    )
