"""Why a GPU cannot run a service, whatever its memory. Capabilities are compute capabilities: major, minor."""

from __future__ import annotations

from dataclasses import dataclass

from uellm.planner.refusals.kinds import PlanRefusal


class DeviceRefusal(PlanRefusal):
    """A refusal of one GPU."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class TimeSlicedShare(DeviceRefusal):
    """The device is lent to several pods at once, by time-slicing, MPS or HAMi: its memory is not its own."""

    uuid: str


@dataclass(frozen=True, slots=True)
class CapabilityTooLow(DeviceRefusal):
    """vLLM does not support the GPU."""

    gpu: str
    """Product, or the UUID of a GPU without one. The same holds below."""
    capability: tuple[int, int]
    needed: tuple[int, int]
    by_image: bool
    """Whether vLLM's images are built without it, and another image may do."""


@dataclass(frozen=True, slots=True)
class QuantizationUnsupported(DeviceRefusal):
    """vLLM does not support the model's quantization on the GPU."""

    gpu: str
    capability: tuple[int, int]
    needed: tuple[int, int]
    quantization: str


@dataclass(frozen=True, slots=True)
class SparseAttentionUnsupported(DeviceRefusal):
    """vLLM has no kernel for sparse attention on the GPU."""

    gpu: str
    capability: tuple[int, int]
    majors: tuple[int, ...]
    """The major versions for which it has one."""
    model: str


@dataclass(frozen=True, slots=True)
class Int8Unsupported(DeviceRefusal):
    """The kernel that vLLM takes for products in INT8 does not run on the GPU."""

    gpu: str
    capability: tuple[int, int]
    below: tuple[int, int]


@dataclass(frozen=True, slots=True)
class Bfloat16Unsupported(DeviceRefusal):
    """The user sets dtype bfloat16, which vLLM refuses on the GPU."""

    gpu: str
    capability: tuple[int, int]
    needed: tuple[int, int]


@dataclass(frozen=True, slots=True)
class Float32Needed(DeviceRefusal):
    """The GPU has no bfloat16 and the model no float16: vLLM would compute in float32."""

    gpu: str
    capability: tuple[int, int]
    model: str


def version(capability: tuple[int, int]) -> str:
    """A compute capability in words, such as 8.0."""
    return f"{capability[0]}.{capability[1]}"
