"""The rates of matrix kernels by number format, relative to the measured rates of the GPU.

A GPU without tensor cores for a format gets its weights unpacked to 16 bits inside the kernel (Marlin and the like): it
then reads fewer bytes, and computes as in 16 bits at most.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from uellm.hardware import Device
from uellm.models.kernels import Kernel

UNPACKED: Literal["unpacked"] = "unpacked"
KernelName = Kernel | Literal["unpacked"]


class KernelShare(NamedTuple):
    """The shares of a GPU's rates that a kernel reaches, relative to dense 16-bit matrices of the same engine."""

    compute: float
    """Of the rate for 16-bit products; of that for FP8 where the format is FP8."""
    memory: float


# Fitted together with the figures of constants.py (bench/published.py). A share of memory above 1 means that tokens
# choose the same experts more often than by chance, so that a step reads fewer of them.
LINEAR: Mapping[KernelName, KernelShare] = {
    "16-bit": KernelShare(1.0, 1.0),
    "fp8": KernelShare(0.997, 1.0),
    "fp8-block": KernelShare(0.719, 1.0),
    "nvfp4": KernelShare(2.84, 1.0),
    "mxfp4": KernelShare(2.84, 1.0),
    "unpacked": KernelShare(0.659, 1.0),
}
EXPERTS: Mapping[KernelName, KernelShare] = {
    "16-bit": KernelShare(0.622, 0.715),
    "fp8": KernelShare(0.339, 0.712),
    "fp8-block": KernelShare(0.339, 0.712),
    "nvfp4": KernelShare(1.53, 1.01),
    "mxfp4": KernelShare(1.5, 1.23),
    "unpacked": KernelShare(0.485, 0.829),
}
# The compute capability from which GPUs have tensor cores for a format; int4 is unpacked everywhere.
LEAST_CAPABILITY: Mapping[Kernel, tuple[int, int]] = {
    "fp8": (8, 9),
    "fp8-block": (8, 9),
    "nvfp4": (10, 0),
    "mxfp4": (10, 0),
    "int4": (99, 0),
}
# A GPU whose compute capability is unknown counts as Hopper.
ASSUMED_CAPABILITY = (9, 0)
# FP8 products are at least this many times as fast as 16-bit ones where they were not measured.
LEAST_FP8_RATIO = 1.4


@dataclass(frozen=True)
class Kernels:
    """The shares by format, of most matrices and of routed experts."""

    linear: Mapping[KernelName, KernelShare] = field(default_factory=lambda: LINEAR)
    experts: Mapping[KernelName, KernelShare] = field(default_factory=lambda: EXPERTS)

    def __hash__(self) -> int:
        return hash((*self.linear.items(), *self.experts.items()))

    def __reduce__(self) -> Any:
        # The defaults are one object in every process, so that what was worked out with them is found again.
        return "DEFAULT" if self is DEFAULT else (Kernels, (self.linear, self.experts))


DEFAULT = Kernels()


def kernel_name(device: Device, kernel: Kernel) -> KernelName:
    """The kernel that runs a format on a GPU."""
    least = LEAST_CAPABILITY.get(kernel)
    if least is None:
        return kernel
    major, _, minor = device.compute_capability.partition(".")
    own = (int(major), int(minor)) if major.isdecimal() and minor.isdecimal() else ASSUMED_CAPABILITY
    return kernel if own >= least else UNPACKED


def rates(
    device: Device, flops_per_s: float, share: Mapping[KernelName, KernelShare], kernel: Kernel
) -> tuple[float, float]:
    """FLOP/s and the share of the memory rate, given the rate of 16-bit products."""
    name = kernel_name(device, kernel)
    if name in ("fp8", "fp8-block"):
        flops_per_s = max(device.fp8_flops_per_s or 0.0, LEAST_FP8_RATIO * flops_per_s)
    return flops_per_s * share[name].compute, share[name].memory
