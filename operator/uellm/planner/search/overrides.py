"""Checks of a user's overrides: tensor, pipeline, layers, GPUs, length. Raises PlanError that names the field."""

from __future__ import annotations

from uellm.errors import PlanError
from uellm.placement_policies import PLACEMENT_POLICIES
from uellm.planner.refusals.sentences import sentence
from uellm.planner.request import ALLOCATIONS, OBJECTIVES, PlanRequest
from uellm.planner.search.shapes import indivisible_size
from uellm.planner.vllm.drafting import check_drafting, uncut_because
from uellm.planner.vllm.flags import ALLOW_LONG, BATCHED_TOKENS, MODEL_LENGTH, UserArgs, check_args

LENGTHENING = frozenset({"--hf-overrides", "--rope-scaling", "--rope-theta"})
"""Flags that extend a model's length beyond that in its config.json."""


def check(request: PlanRequest) -> None:
    """Refuse impossible overrides before the search. Raises PlanError InvalidOverride naming the field."""
    for value, known, field in (
        (request.policy, PLACEMENT_POLICIES, "spec.placement.policy"),
        (request.objective, OBJECTIVES, "spec.slo.objective"),
        (request.allocation, ALLOCATIONS, "spec.placement.allocation"),
    ):
        if value not in known:
            raise PlanError("InvalidOverride", f"{field}: {value!r} is not one of {', '.join(known)}")
    check_args(request.engine.args)
    check_drafting(request.architecture, UserArgs(request.engine.args))
    _check_layers(request)
    _check_tensor(request)
    _check_gpus(request)
    _check_length(request)
    _check_step(request)


def _check_layers(request: PlanRequest) -> None:
    own, layers = request.overrides, request.architecture.layers
    if own.layers is not None:
        shown = ",".join(str(count) for count in own.layers)
        if not own.layers or min(own.layers) < 1:
            _refuse("layers", f"[{shown}]: every stage needs at least one layer")
        if sum(own.layers) != layers:
            _refuse("layers", f"[{shown}] add up to {sum(own.layers)}; the model has {layers} layers")
        if own.pipeline is not None and own.pipeline != len(own.layers):
            _refuse("pipeline", f"{own.pipeline} is not the number of stages in layers [{shown}], {len(own.layers)}")
    stages = len(own.layers) if own.layers is not None else own.pipeline or 1
    if stages > 1 and not request.architecture.supports_pipeline:
        _refuse("pipeline", f"{stages}: vLLM cannot split {request.architecture.name} into stages; leave it out")
    if stages > 1 and (why := uncut_because(request.architecture, UserArgs(request.engine.args))):
        _refuse("pipeline", f"{stages}: not with the speculation in spec.engine.args, for {why}; leave one of them out")
    if own.pipeline is not None and own.pipeline > layers:
        _refuse("pipeline", f"{own.pipeline} stages are more than the model's {layers} layers")


def _check_tensor(request: PlanRequest) -> None:
    tensor = request.overrides.tensor
    if tensor is not None and (refusal := indivisible_size(request.architecture, tensor)) is not None:
        _refuse("tensor", sentence(refusal))


def _check_gpus(request: PlanRequest) -> None:
    own = request.overrides
    stages = len(own.layers) if own.layers is not None else own.pipeline
    least = (own.tensor or 1) * (stages or 1)
    if request.gpus_max is not None and least > request.gpus_max:
        _refuse(
            "",
            f"tensor {own.tensor or 1} x pipeline {stages or 1} is {least} GPUs; placement.gpus.max allows "
            f"{request.gpus_max}: raise it or ask for less",
        )
    if own.tensor is not None and stages is not None and least < request.gpus_min:
        _refuse(
            "",
            f"tensor {own.tensor} x pipeline {stages} is {least} GPUs; placement.gpus.min asks for "
            f"{request.gpus_min}: lower it or ask for more",
        )


def _check_length(request: PlanRequest) -> None:
    longest, user = request.architecture.max_position_embeddings, UserArgs(request.engine.args)
    if request.max_model_len > longest and not (request.engine.lengthens or LENGTHENING & user.flags):
        field = f"spec.engine.args: {MODEL_LENGTH}" if MODEL_LENGTH in user.flags else "spec.model.maxModelLen"
        raise PlanError(
            "InvalidOverride",
            f"{field} {request.max_model_len} is more than the {longest} positions of the model's "
            f"config.json: lower it, or set {ALLOW_LONG}=1 in spec.engine.env if the model is known to do well there",
        )


def _check_step(request: PlanRequest) -> None:
    own, least = UserArgs(request.engine.args).number(BATCHED_TOKENS), request.least_step_tokens
    # A decoder's prompts may be cut where the last token's state is the vector.
    if own is None or own >= least or (request.pools and request.architecture.kv_bytes_per_token):
        return
    remedy = "raise it, or lower spec.model.maxModelLen" if request.pools else "raise it"
    raise PlanError(
        "InvalidOverride",
        f"spec.engine.args: {BATCHED_TOKENS} {own} is less than the {least} tokens of this model's longest input, "
        f"which the engine does not cut: {remedy}",
    )


def _refuse(field: str, message: str) -> None:
    raise PlanError("InvalidOverride", f"spec.parallelism{'.' if field else ''}{field}: {message}")
