"""Micro-benchmarks with torch: matrix products, memory, copies from the host and to another GPU, launches.

The same code runs on a GPU and on the CPU.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

MATRIX = 8192
"""Rows and columns of the matrices: large enough that a product is bound by arithmetic on every current GPU."""
DECODE_ROWS = 32
"""Rows of the first matrix of a product as in decoding: one for each of 32 sequences. It is bound by memory."""
COPY_BYTES = 2**28
"""Larger than any GPU's cache."""
SECONDS = 0.5
"""How long each figure is measured."""
BATCH_SECONDS = 0.02
"""Calls are timed in batches of at least this long, so that starting a call does not count."""

Figures = dict[str, int]
Run = Callable[[], object]


@dataclass(frozen=True, slots=True)
class Sizes:
    """How large the benchmarks are, and how long each takes."""

    matrix: int = MATRIX
    copy_bytes: int = COPY_BYTES
    seconds: float = SECONDS


def device_figures(
    torch: Any, device: str, *, matrix: int = MATRIX, copy_bytes: int = COPY_BYTES, seconds: float = SECONDS
) -> Figures:
    """Rates of one device with the fields of `status.devices[].measured`: medians, not best cases.

    A number format for which the device or torch has no kernel has no figure.
    """
    sizes = Sizes(matrix, copy_bytes, seconds)
    figures: Figures = {}
    for name in PRODUCTS:
        figures |= product_figures(torch, device, name, matrix, sizes)
    return {**figures, **memory_figures(torch, device, sizes)}


def product_figures(torch: Any, device: str, name: str, rows: int, sizes: Sizes, *, suffix: str = "") -> Figures:
    """The rate of a product of `rows` rows in a number format; empty where there is no kernel for it.

    Raises RuntimeError where the device has too little free memory.
    """
    sync = synchroniser(torch, device)
    try:
        run = PRODUCTS[name](torch, device, sizes.matrix, rows)
        run()
        sync()
    except NO_KERNEL as error:
        if "out of memory" in str(error):
            raise
        return {}
    # rows x n results of n multiplications and additions each.
    flops_per_s = 2 * rows * sizes.matrix**2 * per_second(run, sync, sizes.seconds)
    return {f"{name}{suffix}GigaflopsPerSecond": max(1, round(flops_per_s / 1e9))}


def memory_figures(torch: Any, device: str, sizes: Sizes) -> Figures:
    """The bandwidth of a device's memory."""
    source = torch.empty(sizes.copy_bytes, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    copies_per_s = per_second(copy(source, target), synchroniser(torch, device), sizes.seconds)
    # A copy reads every byte and writes it.
    return {"memoryBytesPerSecond": max(1, round(2 * sizes.copy_bytes * copies_per_s))}


def host_figures(torch: Any, device: str, sizes: Sizes) -> Figures:
    """The bandwidth of copies from the host's memory, which is pinned where the device is a GPU."""
    on_gpu = torch.device(device).type == "cuda"
    source = torch.empty(sizes.copy_bytes, dtype=torch.uint8, pin_memory=on_gpu)
    target = torch.empty(sizes.copy_bytes, dtype=torch.uint8, device=device)
    copies_per_s = per_second(copy(source, target), synchroniser(torch, device), sizes.seconds)
    return {"hostBytesPerSecond": max(1, round(sizes.copy_bytes * copies_per_s))}


def launch_figures(torch: Any, device: str, sizes: Sizes) -> Figures:
    """How long the smallest kernel takes from its call until the host knows that it has ended."""
    one, sync = torch.zeros(1, device=device), synchroniser(torch, device)

    def launch() -> None:
        one.add_(1)
        sync()

    return {"launchNanoseconds": max(1, round(1e9 / per_second(launch, sync, sizes.seconds)))}


def link_figures(torch: Any, a: str, b: str, *, copy_bytes: int = COPY_BYTES, seconds: float = SECONDS) -> Figures:
    """Figures of the link from `a` to `b` with the fields of `status.links`."""
    source = torch.empty(copy_bytes, dtype=torch.uint8, device=a)
    target = torch.empty(copy_bytes, dtype=torch.uint8, device=b)
    sync_a, sync_b = synchroniser(torch, a), synchroniser(torch, b)

    def sync() -> None:
        sync_a()
        sync_b()

    def smallest_copy() -> None:
        target[:4].copy_(source[:4])
        sync()

    copies_per_s = per_second(copy(source, target), sync, seconds)
    smallest_per_s = per_second(smallest_copy, sync, seconds)
    return {
        "bytesPerSecond": max(1, round(copy_bytes * copies_per_s)),
        "latencyNanoseconds": round(1e9 / smallest_per_s),
    }


def bf16_product(torch: Any, device: str, matrix: int, rows: int | None = None) -> Run:
    """A product of two matrices in bfloat16: `rows` (default: square) times a square one."""
    return dense_product(torch, device, matrix, rows or matrix, torch.bfloat16)


def fp16_product(torch: Any, device: str, matrix: int, rows: int | None = None) -> Run:
    """The same in float16."""
    return dense_product(torch, device, matrix, rows or matrix, torch.float16)


def dense_product(torch: Any, device: str, matrix: int, rows: int, dtype: Any) -> Run:
    """The same in any number format."""
    a, b = _random(torch, device, rows, matrix, dtype), _random(torch, device, matrix, matrix, dtype)
    return multiply(torch, a, b, torch.empty(rows, matrix, device=device, dtype=dtype))


def multiply(torch: Any, a: Any, b: Any, product: Any) -> Run:
    """A product of two matrices into a third one."""
    return lambda: torch.mm(a, b, out=product)


def copy(source: Any, target: Any) -> Run:
    """A copy of one tensor into another."""
    return lambda: target.copy_(source, non_blocking=True)


def fp8_product(torch: Any, device: str, matrix: int, rows: int | None = None) -> Run:
    """The same in FP8 with a bfloat16 result, as vLLM's engines compute it."""
    fp8 = torch.float8_e4m3fn
    a, b = _random(torch, device, rows or matrix, matrix, fp8), _random(torch, device, matrix, matrix, fp8)
    scale = torch.ones((), device=device, dtype=torch.float32)
    # The kernel takes the second matrix column by column.
    return lambda: torch._scaled_mm(
        a, b.t(), scale_a=scale, scale_b=scale, out_dtype=torch.bfloat16, use_fast_accum=True
    )


def _random(torch: Any, device: str, rows: int, columns: int, dtype: Any) -> Any:
    # Random numbers, because a GPU draws less power with zeros, and then runs faster than it does in service.
    return torch.randn(rows, columns, device=device).to(dtype)


PRODUCTS: Mapping[str, Callable[..., Run]] = {"bf16": bf16_product, "fp16": fp16_product, "fp8": fp8_product}
"""The products that are measured, by number format."""
NO_KERNEL = (RuntimeError, NotImplementedError, ValueError, AttributeError)
"""What torch raises for a format that it cannot multiply on a device, or does not know."""


def per_second(run: Run, sync: Callable[[], None], seconds: float) -> float:
    """Calls per second: the median of batches, after a first call that does not count."""
    run()
    sync()
    batch, taken_s = 1, _timed(run, sync, 1)
    while taken_s < BATCH_SECONDS:
        batch *= 2
        taken_s = _timed(run, sync, batch)
    times_s = [taken_s]
    while sum(times_s) < seconds:
        times_s.append(_timed(run, sync, batch))
    return batch / statistics.median(times_s)


def _timed(run: Run, sync: Callable[[], None], times: int) -> float:
    start = time.perf_counter()
    for _ in range(times):
        run()
    sync()
    return time.perf_counter() - start


def synchroniser(torch: Any, device: str) -> Callable[[], None]:
    """Waits until a device has done what it was told; the CPU always has."""
    if torch.device(device).type != "cuda":
        return lambda: None
    return lambda: torch.cuda.synchronize(device)
