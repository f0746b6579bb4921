"""Checks whether a GPU can run a service at all, by its compute capability and by how its driver shares it.

Minimum capabilities are vLLM's own (get_min_capability of vllm/model_executor/layers/quantization/*.py;
supported_dtypes of vllm/platforms/cuda.py). A GPU whose capability is unknown passes; the engine checks it when it
starts. Where the engine's image is another one than vLLM's own, the kernels of the latter decide nothing.
"""

from __future__ import annotations

from dataclasses import replace

from uellm.hardware import Device
from uellm.models import Architecture
from uellm.models.classes import breaks_in_float16
from uellm.planner.refusals.devices import (
    Bfloat16Unsupported,
    CapabilityTooLow,
    DeviceRefusal,
    Float32Needed,
    Int8Unsupported,
    QuantizationUnsupported,
    SparseAttentionUnsupported,
    TimeSlicedShare,
    version,
)
from uellm.planner.request import PlanRequest
from uellm.planner.units import size
from uellm.planner.vllm.flags import UTILIZATION, UserArgs
from uellm.text import and_more

# The oldest capability for which vLLM's CUDA kernels are built (README of its releases). Its images are built with
# CUDA 13, which knows no GPU older than Turing.
LEAST_CAPABILITY = (7, 0)
LEAST_FOR_IMAGE = (7, 5)
LEAST_FOR_BFLOAT16 = (8, 0)
# By vLLM's name of the quantization method. Other methods run wherever vLLM runs. So does
# compressed-tensors: what it lacks below 7.5 are kernels, which an image that is built for such a GPU has.
LEAST_FOR_QUANTIZATION = {
    "fp8": (7, 5),
    "fp8_per_tensor": (7, 5),
    "fp8_per_block": (7, 5),
    "int8_per_channel_weight_only": (7, 5),
    "fbgemm_fp8": (8, 0),
    "awq": (7, 5),
    "awq_marlin": (7, 5),
    "gptq_marlin": (7, 5),
    "mxfp4": (8, 0),
    "mxfp8": (8, 0),
    "experts_int8": (8, 0),
    "modelopt": (8, 0),
    "torchao": (7, 5),
    "fp_quant": (10, 0),
}
# Sparse MLA: supports_compute_capability of vllm/v1/attention/backends/mla/*sparse*.py and vllm/models/deepseek_v4.
SPARSE_ATTENTION_MAJORS = (9, 10, 12)
# vLLM takes CUTLASS for INT8 on every GPU, and CUTLASS has no such kernel from Blackwell on; Triton has.
INT8_BELOW = (10, 0)
LINEAR_BACKEND = "--linear-backend"
# Below this, FP8 weights are unpacked to 16 bits for every product. That saves memory, but no time. Quark's are not.
NATIVE_FP8 = (8, 9)
# A profile says to how many pods a GPU is lent. One that was written by hand may name the shares themselves:
# NVIDIA's plugin names those of a time-sliced GPU `<uuid>::<n>`, and its resource `....shared`.
SHARE_MARK = "::"
SHARED_RESOURCE = ".shared"


def capability(device: Device) -> tuple[int, int] | None:
    """Major and minor version; None if it is unknown."""
    major, dot, minor = device.compute_capability.partition(".")
    return (int(major), int(minor)) if dot and major.isdecimal() and minor.isdecimal() else None


def device_refusal(device: Device, request: PlanRequest) -> DeviceRefusal | None:
    """Why the device cannot run the service; None if it can."""
    if device.shares > 1 or SHARE_MARK in device.uuid or device.resource_name.endswith(SHARED_RESOURCE):
        return TimeSlicedShare(device.uuid)
    own = capability(device)
    if own is None or own[0] == 0:
        return None
    return _capability_refusal(device.product or device.uuid, own, request)


def least_capability(request: PlanRequest) -> tuple[int, int]:
    """The least compute capability of a GPU that `device_refusal` does not refuse."""
    model = request.architecture
    least = [_least_built(request), _least_for_quantization(model)]
    if _needs_sparse_kernel(request):
        least.append((min(SPARSE_ATTENTION_MAJORS), 0))
    if model.dtype == "bfloat16" and (request.engine.dtype != "auto" or breaks_in_float16(model.name)):
        least.append(LEAST_FOR_BFLOAT16)
    return max(least)


def capability_bound(request: PlanRequest) -> tuple[int, int] | None:
    """The compute capability below which a GPU must be; None: any."""
    return INT8_BELOW if _needs_int8_kernel(request) else None


def _least_built(request: PlanRequest) -> tuple[int, int]:
    return LEAST_CAPABILITY if request.engine.own_image else LEAST_FOR_IMAGE


def _least_for_quantization(model: Architecture) -> tuple[int, int]:
    return NATIVE_FP8 if model.fp8_products_only else LEAST_FOR_QUANTIZATION.get(model.quantization, LEAST_CAPABILITY)


def _needs_sparse_kernel(request: PlanRequest) -> bool:
    return request.architecture.sparse_attention and not request.engine.own_image


def _needs_int8_kernel(request: PlanRequest) -> bool:
    """Whether products in INT8 take vLLM's first choice of a kernel."""
    if request.engine.own_image or not request.architecture.int8_products:
        return False
    return UserArgs(request.engine.args).text(LINEAR_BACKEND) != "triton"


def _capability_refusal(name: str, own: tuple[int, int], request: PlanRequest) -> DeviceRefusal | None:
    if own < (built := _least_built(request)):
        return CapabilityTooLow(name, own, built, by_image=own >= LEAST_CAPABILITY)
    return _kernel_refusal(name, own, request) or _number_refusal(name, own, request)


def _kernel_refusal(name: str, own: tuple[int, int], request: PlanRequest) -> DeviceRefusal | None:
    """Of kernels that vLLM's own image lacks."""
    if _needs_sparse_kernel(request) and own[0] not in SPARSE_ATTENTION_MAJORS:
        return SparseAttentionUnsupported(name, own, SPARSE_ATTENTION_MAJORS, request.architecture.name)
    bound = capability_bound(request)
    return Int8Unsupported(name, own, bound) if bound is not None and own >= bound else None


def _number_refusal(name: str, own: tuple[int, int], request: PlanRequest) -> DeviceRefusal | None:
    """Of the formats of weights and activations."""
    model = request.architecture
    least = _least_for_quantization(model)
    if own < least:
        return QuantizationUnsupported(name, own, least, model.quantization)
    if model.dtype == "bfloat16" and own < LEAST_FOR_BFLOAT16:
        if request.engine.dtype != "auto":
            return Bfloat16Unsupported(name, own, LEAST_FOR_BFLOAT16)
        if breaks_in_float16(model.name):
            return Float32Needed(name, own, model.name)
    return None


def remarks(devices: list[Device], request: PlanRequest) -> list[str]:
    """How the engine will run differently on these devices, a sentence each."""
    model, notes = request.architecture, _held(devices, request)
    old = _products(devices, LEAST_FOR_BFLOAT16)
    if old and model.dtype == "bfloat16":
        notes.append(f"{old} cannot compute in bfloat16: vLLM computes in float16 there, with the same sizes")
    notes += _trusted_image(devices, request)
    slow = _products(devices, NATIVE_FP8)
    if slow and model.quantization in ("fp8", "fp8_per_tensor", "fp8_per_block"):
        notes.append(
            f"{slow} cannot multiply in FP8 (it needs compute capability {version(NATIVE_FP8)}): vLLM keeps the "
            "weights in FP8 and computes in 16 bits"
        )
    return notes


def _trusted_image(devices: list[Device], request: PlanRequest) -> list[str]:
    """What another image is taken to have, where vLLM's own has it not."""
    if not request.engine.own_image:
        return []
    default = replace(request, engine=replace(request.engine, own_image=False))
    lacking = sorted({device.product for device in devices if device_refusal(device, default) is not None})
    if not lacking:
        return []
    return [
        f"the engine's image is taken to have the kernels that the model needs on {', '.join(lacking)}: "
        "vLLM's own image lacks them"
    ]


def _held(devices: list[Device], request: PlanRequest) -> list[str]:
    """Memory that is not planned on, as a sentence."""
    held = [f"{size(each.memory_held_bytes)} of {each.uuid}" for each in devices if each.memory_held_bytes]
    if not held:
        return []
    engine = f"the engine is started with a lower {UTILIZATION}"
    if UTILIZATION in UserArgs(request.engine.args).flags:
        engine = f"see that {UTILIZATION} in spec.engine.args does too"
    return [f"{and_more(held, 3, 'GPU')} in use by something outside the cluster: the plan does without, and {engine}"]


def _products(devices: list[Device], least: tuple[int, int]) -> str:
    """The products below a capability, as a list in words."""
    below = {
        device.product or device.uuid
        for device in devices
        if (own := capability(device)) is not None and own[0] and own < least
    }
    return ", ".join(sorted(below))
