"""One engine under one load, as a file describes it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from uellm.errors import BadInput
from uellm.hardware.products import BY_NAME, PRODUCTS, Product, nearest, product_of
from uellm.models import Architecture, read_architecture
from uellm.planner import constants as c

LOADS = ("concurrency", "requestsPerSecond", "decodeBatch")
GPU_FIELDS = ("bf16FlopsPerSecond", "memoryBytesPerSecond", "memoryBytes")


@dataclass(frozen=True, slots=True)
class Point:
    """An engine on GPUs of one product, and its load."""

    model: Architecture
    gpu: Product
    tensor: int
    pipeline: int
    prompt_tokens: float
    output_tokens: float
    concurrency: int | None
    """Clients that each wait for their answer."""
    requests_per_s: float | None
    decode_batch: int | None
    """Sequences of a single step without prompts."""
    prompts: int | None
    """Requests in all."""
    batched_tokens: int | None
    sequences: int | None
    kv_cache_dtype: str
    utilization: str | None
    eager: bool
    engine_version: str

    @property
    def engine_args(self) -> tuple[str, ...]:
        """The flags of the engine that memory depends on."""
        args: tuple[str, ...] = () if self.utilization is None else ("--gpu-memory-utilization", self.utilization)
        args += ("--kv-cache-dtype", self.kv_cache_dtype) if self.kv_cache_dtype else ()
        return (*args, "--enforce-eager") if self.eager else args


def read_point(data: Mapping[str, Any]) -> Point:
    """A point of the file. Raises BadInput, with the field."""
    config = data.get("config")
    if not isinstance(config, Mapping):
        raise BadInput("config", "must be the model's config.json, as an object")
    loads = [name for name in LOADS if data.get(name) is not None]
    if not loads:
        raise BadInput("concurrency", f"is missing: a point needs one of {', '.join(LOADS)}")
    utilization = _number(data, "gpuMemoryUtilization")
    if utilization is not None and utilization > 1:
        raise BadInput("gpuMemoryUtilization", f"must be above 0 and at most 1, and is {utilization:g}")
    return Point(
        model=read_architecture(config),
        gpu=_gpu(data.get("gpu")),
        tensor=_count(data, "tensor") or 1,
        pipeline=_count(data, "pipeline") or 1,
        prompt_tokens=_needed(data, "inputTokens"),
        output_tokens=_needed(data, "outputTokens"),
        concurrency=_count(data, "concurrency"),
        requests_per_s=_number(data, "requestsPerSecond"),
        decode_batch=_count(data, "decodeBatch"),
        prompts=_count(data, "prompts"),
        batched_tokens=_count(data, "maxNumBatchedTokens"),
        sequences=_count(data, "maxNumSeqs"),
        kv_cache_dtype=str(data.get("kvCacheDtype") or ""),
        utilization=None if utilization is None else f"{utilization:.9f}".rstrip("0").rstrip("."),
        eager=bool(data.get("enforceEager")),
        engine_version=str(data.get("engineVersion") or ""),
    )


def _gpu(given: Any) -> Product:
    if isinstance(given, str):
        found = product_of(given)
        if found is None:
            raise BadInput("gpu", f"{given!r} is not known here; known are {', '.join(BY_NAME)}, or give its rates")
        return found
    if not isinstance(given, Mapping):
        raise BadInput("gpu", f"must be the name of a product, or an object of {', '.join(GPU_FIELDS)}")
    flops, memory, size = (_needed(given, name, "gpu.", least=1, most=c.MOST_RATE) for name in GPU_FIELDS)
    fp8 = _number(given, "fp8FlopsPerSecond", "gpu.", zero=True, most=c.MOST_RATE)
    alike = PRODUCTS if fp8 is None else [each for each in PRODUCTS if bool(each.fp8_flops_per_s) == bool(fp8)]
    like = nearest(flops, memory, int(size), alike)
    return replace(
        like,
        name=str(given.get("name") or like.name),
        memory_bytes=int(size),
        bf16_flops_per_s=flops,
        fp8_flops_per_s=like.fp8_flops_per_s and (fp8 or like.fp8_flops_per_s / like.bf16_flops_per_s * flops),
        memory_bytes_per_s=memory,
    )


def _number(
    data: Mapping[str, Any],
    name: str,
    prefix: str = "",
    *,
    zero: bool = False,
    least: float = 0,
    most: float = c.MOST_COUNTED,
) -> float | None:
    value = data.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not value >= 0:
        raise BadInput(f"{prefix}{name}", f"must be a number above 0, and is {value!r}")
    if not value and not zero:
        raise BadInput(f"{prefix}{name}", "must be above 0")
    if value > most:
        raise BadInput(f"{prefix}{name}", f"must be at most {most:g}")
    if value < least:
        raise BadInput(f"{prefix}{name}", f"must be {least:g} or more, and is {value:g}")
    return float(value)


def _needed(
    data: Mapping[str, Any], name: str, prefix: str = "", *, least: float = 0, most: float = c.MOST_COUNTED
) -> float:
    value = _number(data, name, prefix, least=least, most=most)
    if value is None:
        raise BadInput(f"{prefix}{name}", "is missing")
    return value


def _count(data: Mapping[str, Any], name: str) -> int | None:
    value = _number(data, name, least=1)
    return None if value is None else round(value)
