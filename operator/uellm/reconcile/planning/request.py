"""The planner's request for an LLMService, given what the nodes offer."""

from __future__ import annotations

import dataclasses
import json
from functools import lru_cache
from typing import Any

from uellm.api.llmservice import LLMService, LLMServiceSpec, ModelSource
from uellm.errors import BadInput, PlanError
from uellm.hub import DraftFacts, ModelFacts
from uellm.models import Architecture, Task, needs_remote_code, read_architecture
from uellm.models.classes import group_of
from uellm.models.drafts import missing_class, read_draft
from uellm.models.shown import shown
from uellm.planner import request as planner
from uellm.planner.adapter_slots import AdapterSlots
from uellm.planner.vllm import flags
from uellm.planner.vllm.flags import UserArgs
from uellm.planner.vllm.model_flags import ModelSettings
from uellm.planner.vllm.refused_flags import DECIDED_ENVIRONMENT, REFUSED_ENVIRONMENT
from uellm.planner.vllm.speculation import DRAFT_MODEL, FLAG, method_by_config, speculation_of
from uellm.reconcile.draft import args_with_draft, draft_facts
from uellm.reconcile.engine_image import STOCK_ENGINE_IMAGE, is_stock
from uellm.reconcile.model_source import is_in_bucket, model_path, model_revision
from uellm.reconcile.planning.adapters import adapter_notes, adapter_slots, check_adapters
from uellm.reconcile.planning.calibration import efficiency_of
from uellm.reconcile.planning.model_settings import is_by_flag, is_lengthened, model_settings
from uellm.reconcile.planning.served_task import OVERRIDES, ServedTask, overridden, served_task
from uellm.step_basis import Correction

# What the planner may suggest where a model does not fit. The user has to provide such a checkpoint.
_QUANTIZATIONS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("fp8", {"quant_method": "fp8", "activation_scheme": "dynamic"}),
    ("awq (int4)", {"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": True, "version": "gemm"}),
)
_TRUST = "--trust-remote-code"


def has_own_image(service: LLMService, engine_image: str = STOCK_ENGINE_IMAGE) -> bool:
    """Whether its engine is not the stock one. `engine_image`: that of services which name none."""
    return service.spec.engine.image is not None or not is_stock(engine_image)


def architecture_of(service: LLMService, facts: ModelFacts | None = None, *, served: bool = True) -> Architecture:
    """The model's architecture. `facts`: those of its checkpoint where it can be read; they give the exact bytes.

    `served`: refuse what the stock engine does not start with.

    A configuration in the spec takes the place of that of `facts`. Raises PlanError ModelUnknown, InvalidModel,
    NeedsRemoteCode, TaskNotSupported, InvalidTargets, InvalidAdapter or InvalidOverride.
    """
    model = service.spec.model
    if model.config is None and facts is None:
        raise PlanError(
            "ModelUnknown",
            f"the architecture of {model.uri} is not known here: put the model's config.json into spec.model.config",
        )
    config = _config(service, facts)
    _check_is_no_draft(service, config)
    _check_remote_code(service, config)
    _check_loader(service)
    task = served_task(service, config).task
    overrides = UserArgs(service.spec.engine.args).text(OVERRIDES) is not None
    settings = model_settings(service, config)
    try:
        found = _read_architecture(model, settings, facts, config, task, overrides=overrides, served=served)
    except BadInput as error:
        if is_by_flag(service, error.field):
            raise PlanError("InvalidOverride", f"spec.engine.args: --{error}") from error
        where = f"{model.uri}: " if model.config is None else "spec.model."
        raise PlanError("InvalidModel", f"{where}{error}") from error
    check_adapters(service, facts, found)
    return _with_draft(service, facts, found)


def _read_architecture(
    model: ModelSource,
    settings: ModelSettings,
    facts: ModelFacts | None,
    config: dict[str, Any],
    task: Task,
    *,
    overrides: bool,
    served: bool,
) -> Architecture:
    _, dtype, quantization = settings
    if facts is None or (model.config is not None and facts.tensors is None):
        return _architecture(json.dumps(config, sort_keys=True), dtype, quantization, task, served)
    if model.config is None and not overrides:
        return _architecture_of_facts(facts, dtype, quantization, task, served)
    return read_architecture(
        config, dtype=dtype, quantization=quantization, tensors=facts.tensors, task=task, served=served
    )


def _with_draft(service: LLMService, facts: ModelFacts | None, model: Architecture) -> Architecture:
    """The model with what drafts for it, where that is known."""
    draft, speculation = draft_facts(service, facts), speculation_of(UserArgs(service.spec.engine.args))
    if draft is None or speculation is None:
        return model
    method = method_by_config(speculation, draft.facts.config)
    _check_draft_class(service, draft, method)
    try:
        dtype = model_settings(service, {}).dtype
        read = _draft(draft.facts, method, dtype, speculation.text("quantization") or "auto")
    except BadInput as error:
        raise PlanError("InvalidModel", f"draft model {speculation.model}: {error}") from error
    return dataclasses.replace(model, draft=read)


def _check_draft_class(service: LLMService, draft: DraftFacts, method: str) -> None:
    if missing := missing_class(draft.facts.config, method):
        raise PlanError(
            "InvalidOverride",
            f"spec.engine.args: {FLAG}: {draft.source} needs the class {missing}, which the engine does not have: take "
            "another method, or a head of a class that it has",
        )
    if method == DRAFT_MODEL and needs_remote_code(draft.facts.config) and not _trusts(service):
        raise PlanError(
            "NeedsRemoteCode",
            f"draft model {draft.source} brings code of its own: set spec.model.trustRemoteCode if you trust that code",
        )


@lru_cache(maxsize=256)
def _draft(facts: ModelFacts, method: str, dtype: str, quantization: str) -> Architecture:
    return read_draft(facts.config, method, dtype=dtype, quantization=quantization, tensors=facts.tensors)


def _config(service: LLMService, facts: ModelFacts | None) -> dict[str, Any]:
    given = service.spec.model.config
    return overridden(given if given is not None else facts.config if facts is not None else {}, service)


# Facts are compared by identity: as long as the same ones are known, their hundred thousand tensors are read once.
@lru_cache(maxsize=256)
def _architecture_of_facts(facts: ModelFacts, dtype: str, quantization: str, task: Task, served: bool) -> Architecture:
    return read_architecture(
        facts.config, dtype=dtype, quantization=quantization, tensors=facts.tensors, task=task, served=served
    )


@lru_cache(maxsize=256)
def _architecture(config: str, dtype: str, quantization: str, task: Task, served: bool) -> Architecture:
    return read_architecture(json.loads(config), dtype=dtype, quantization=quantization, task=task, served=served)


def _check_remote_code(service: LLMService, config: dict[str, Any]) -> None:
    if not needs_remote_code(config) or _trusts(service):
        return
    named = config.get("architectures")
    name = named[0] if isinstance(named, list) and named else config.get("model_type")
    raise PlanError(
        "NeedsRemoteCode",
        f"{shown(name)} is no class of the engine, and {service.spec.model.uri} brings code of its own for it: set "
        "spec.model.trustRemoteCode if you trust that code",
    )


def _trusts(service: LLMService) -> bool:
    return _TRUST in UserArgs(_engine_args(service)).flags


def _check_is_no_draft(service: LLMService, config: dict[str, Any]) -> None:
    named = config.get("architectures")
    name = str(named[0]) if isinstance(named, list) and named else ""
    if group_of(name) == "speculative_decoding" or "speculators_config" in config:
        raise PlanError(
            "InvalidModel",
            f"{service.spec.model.uri} drafts for another model and is none by itself: serve that model, and name this "
            f"one as `model` in {FLAG} of spec.engine.args",
        )


def _engine_args(service: LLMService) -> tuple[str, ...]:
    """The user's arguments for the engine, and the flag of `trustRemoteCode`."""
    args = service.spec.engine.args
    return (*args, _TRUST) if service.spec.model.trust_remote_code and _TRUST not in UserArgs(args).flags else args


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
    facts: ModelFacts | None = None,
    corrections: tuple[Correction, ...] = (),
    slots: AdapterSlots | None = None,
    engine_image: str = STOCK_ENGINE_IMAGE,
) -> planner.PlanRequest:
    """The whole request. `left_out`: profiled nodes and classes that the pods may not run on; `would_join`:
    classes of nodes that may join; `facts`: those that the architecture was read from; `corrections`: step times
    that were measured; `slots`: LoRA slots of engines that run, which are kept if they do;
    `engine_image`: that of services which name none.
    """
    spec = service.spec
    config = _config(service, facts)
    served = served_task(service, config)
    settings = model_settings(service, config)
    longest, notes = _max_model_len(settings.max_model_len, architecture)
    return planner.PlanRequest(
        service=f"{service.namespace}/{service.name}",
        architecture=architecture,
        max_model_len=longest,
        nodes=nodes,
        task=served.task,
        least_step_tokens=_least_step_tokens(served, config, longest),
        classes=tuple(planner.SloClass(each.name, each.ttft_s, each.tpot_s, each.e2e_s) for each in spec.slo.classes),
        objective=spec.slo.objective,
        workload=_workload(spec),
        overrides=planner.Overrides(spec.parallelism.tensor, spec.parallelism.pipeline, spec.parallelism.layers),
        policy=spec.placement.policy,
        gpus_min=spec.placement.gpus.min,
        gpus_max=spec.placement.gpus.max,
        allocation=spec.placement.allocation,
        multi_node=spec.placement.multi_node == "Allowed",
        engine=planner.EngineRequest(
            model=model_path(service, facts),
            # The path of a copy names its commit.
            revision=model_revision(service, facts) if spec.model.cache is None else "",
            served_name=service.served_name,
            args=args_with_draft(service, facts, _engine_args(service)),
            dtype=settings.dtype,
            quantization=settings.quantization,
            task_args=(*served.engine_args, *_loader_args(service)),
            lengthens=is_lengthened(service),
            own_image=has_own_image(service, engine_image),
            leaves_length=served.pools and settings.max_model_len is None,
        ),
        replicas=max(1, spec.replicas if spec.autoscaling is None else spec.autoscaling.min_replicas),
        efficiency=efficiency_of(service),
        variants=_variants(architecture, config, settings.dtype, served.task),
        left_out=left_out,
        notes=(*([served.note] if served.note else []), *notes, *_notes(facts), *adapter_notes(service, facts)),
        would_join=would_join,
        corrections=corrections,
        adapters=adapter_slots(service, facts, slots),
    )


def _check_loader(service: LLMService) -> None:
    own = UserArgs(service.spec.engine.args).text(flags.LOAD_FORMAT)
    if is_in_bucket(service) and own not in (None, "auto", *flags.STREAMING_FORMATS):
        raise PlanError(
            "InvalidOverride",
            f"spec.engine.args: {flags.LOAD_FORMAT} {own} cannot load {service.spec.model.uri}: leave it out, or take "
            f"one of {', '.join(flags.STREAMING_FORMATS)}",
        )


def _loader_args(service: LLMService) -> tuple[tuple[str, str], ...]:
    """How the engine loads a model of an object store."""
    return ((flags.LOAD_FORMAT, flags.STREAMING_FORMATS[0]),) if is_in_bucket(service) else ()


def _notes(facts: ModelFacts | None) -> tuple[str, ...]:
    if facts is None or facts.tensors is not None or not facts.files:
        return ()
    return (f"sized by its config.json: the headers of its {facts.files} files are too long to be kept",)


def _variants(
    architecture: Architecture, config: dict[str, Any], dtype: str, task: Task
) -> tuple[tuple[str, Architecture], ...]:
    """The model with its weights in 8 and in 4 bits; empty where they are quantised already."""
    if architecture.quantization != "none":
        return ()
    return _quantized(json.dumps(config, sort_keys=True), dtype, task)


@lru_cache(maxsize=256)
def _quantized(config: str, dtype: str, task: Task) -> tuple[tuple[str, Architecture], ...]:
    found = []
    for name, section in _QUANTIZATIONS:
        quantized = {**json.loads(config), "quantization_config": section}
        try:
            found.append((name, read_architecture(quantized, dtype=dtype, task=task)))
        except BadInput:
            continue  # this model cannot be quantised so
    return tuple(found)


def _max_model_len(given: int | None, architecture: Architecture) -> tuple[int, tuple[str, ...]]:
    if given is not None:
        return given, ()
    longest = architecture.max_position_embeddings
    return longest, (f"maxModelLen {longest}: the most that the model's config.json allows",)


def _least_step_tokens(served: ServedTask, config: dict[str, Any], longest: int) -> int:
    """The fewest tokens of a step: the engine cuts neither most embedders' prompts nor speech for an encoder."""
    frames = config.get("max_source_positions")
    if served.pools:
        return longest
    return max(longest, frames) if served.task == "Transcribe" and isinstance(frames, int) else 0


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
