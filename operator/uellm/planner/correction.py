"""Step times that were measured, by which later predictions are corrected.

A sidecar measures every step of its engine. It reports by which factors the steps with prompts and the others differ
from the prediction that was made without any correction. The factors are kept for the model, the GPU and the shape that
they were measured on. A prediction for the same model on such GPUs is multiplied by those of its shape, else by those
of the nearest shape that was measured: what is wrong with the rates of a GPU is wrong for every shape.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from uellm.hardware import Device
from uellm.planner import constants as c
from uellm.planner.cost.rates import flops_per_s
from uellm.planner.request import PlanRequest
from uellm.planner.shape import Shape
from uellm.step_basis import Correction, StepBasis


class Corrections(NamedTuple):
    """The corrections for one model."""

    model: str
    known: tuple[Correction, ...] = ()

    @classmethod
    def of(cls, request: PlanRequest) -> Corrections:
        """Those of the request that are for its model."""
        if not request.corrections:
            return cls("")
        model = model_digest(request)
        return cls(model, tuple(each for each in request.corrections if each.basis.model == model))

    def nearest(self, devices: Sequence[Device], shape: Shape) -> Correction | None:
        """The correction for a shape on these devices; None where none was measured, or they are not all alike."""
        if not self.known or (basis := _basis(self.model, devices, shape)) is None:
            return None
        alike = (each for each in self.known if _same_gpu(each.basis, basis))
        return min(alike, key=lambda each: (_distance(each.basis, shape), each.basis.shape), default=None)


def step_basis(request: PlanRequest, devices: Iterable[Device], shape: Shape) -> StepBasis | None:
    """What the step times of a plan on these devices are about; None where these are not measured or not alike."""
    return _basis(model_digest(request), tuple(devices), shape)


def model_digest(request: PlanRequest) -> str:
    """Digest of what the cost model reads of a model, its engine's arguments and the calibration."""
    model = request.architecture
    facts = (
        (model.name, model.hidden_size, model.dtype, model.quantization, model.layer_weight_bytes),
        (model.layer_kv_bytes_per_token, model.layer_flops_per_token, model.layer_window_tokens, model.lm_head_bytes),
        (model.layer_expert_bytes, model.experts, model.experts_per_token, model.linear_kernel, model.expert_kernel),
        request.engine.args,
        request.efficiency,
        # Only where there are any, so that what was measured of all other models is found again.
        *((model.layer_recent,) if model.layer_recent else ()),
        *((model.layer_read_again_bytes,) if any(model.layer_read_again_bytes) else ()),
    )
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:16]


def _basis(model: str, devices: Sequence[Device], shape: Shape) -> StepBasis | None:
    kinds = {(device.product, device.memory_bytes, device.mig) for device in devices}
    compute = [rate for device in devices if (rate := flops_per_s(device))]
    memory = [rate for device in devices if (rate := device.memory_bytes_per_s)]
    if len(kinds) != 1 or len(compute) < len(devices) or len(memory) < len(devices):
        return None
    first = devices[0]
    return StepBasis(model, first.product, first.memory_bytes, min(compute), min(memory), shape.tensor, shape.pipeline)


def is_alike(devices: Sequence[Device], basis: StepBasis) -> bool:
    """Whether these devices are of the kind that a basis is about, and as fast."""
    found = _basis(basis.model, devices, Shape(basis.tensor, basis.pipeline))
    return found is not None and _same_gpu(found, basis)


def _same_gpu(one: StepBasis, other: StepBasis) -> bool:
    if (one.product, one.memory_bytes) != (other.product, other.memory_bytes):
        return False
    rates = (one.flops_per_s, other.flops_per_s), (one.memory_bytes_per_s, other.memory_bytes_per_s)
    return all(abs(a - b) <= c.CORRECTED_RATE_TOLERANCE * max(a, b) for a, b in rates)


def _distance(basis: StepBasis, shape: Shape) -> float:
    """Doublings of tensor and pipeline between two shapes."""
    return abs(math.log2(basis.tensor / shape.tensor)) + abs(math.log2(basis.pipeline / shape.pipeline))
