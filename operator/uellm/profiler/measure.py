"""Measures GPUs with torch: matrix products, memory bandwidth, and copies to another GPU.

    python -m uellm.profiler.measure UUID          {"bf16GigaflopsPerSecond": .., "fp16GigaflopsPerSecond": ..,
                                                    "fp8GigaflopsPerSecond": .., "memoryBytesPerSecond": ..}
    python -m uellm.profiler.measure UUID UUID     {"bytesPerSecond": .., "latencyNanoseconds": ..}

A process of its own, because a process that has used CUDA keeps the driver open and half a gigabyte on each GPU until
it ends. bench.py starts it, for one idle GPU or link at a time.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

MATRIX = 8192
"""Rows and columns of the matrices: large enough that a product is bound by arithmetic on every current GPU."""
COPY_BYTES = 2**28
"""Larger than any GPU's cache."""
SECONDS = 0.5
"""How long each figure is measured."""
BATCH_SECONDS = 0.02
"""Calls are timed in batches of at least this long, so that starting a call does not count."""


def device_figures(
    torch: Any, device: str, *, matrix: int = MATRIX, copy_bytes: int = COPY_BYTES, seconds: float = SECONDS
) -> dict[str, int]:
    """Figures of one device with the fields of `status.devices[].measured`: medians, not best cases.

    A number format for which the device or torch has no kernel has no figure.
    """
    sync = _synchroniser(torch, device)
    figures = {}
    for name, product in PRODUCTS.items():
        run = product(torch, device, matrix)
        if _runs(run, sync):
            # n^2 results of n multiplications and additions each.
            flops_per_s = 2 * matrix**3 * _per_second(run, sync, seconds)
            figures[f"{name}GigaflopsPerSecond"] = max(1, round(flops_per_s / 1e9))
    source = torch.empty(copy_bytes, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    copies_per_s = _per_second(lambda: target.copy_(source), sync, seconds)
    # A copy reads every byte and writes it.
    return {**figures, "memoryBytesPerSecond": max(1, round(2 * copy_bytes * copies_per_s))}


def bf16_product(torch: Any, device: str, matrix: int) -> Callable[[], object]:
    """A product of two square matrices in bfloat16."""
    return _product(torch, device, matrix, torch.bfloat16)


def fp16_product(torch: Any, device: str, matrix: int) -> Callable[[], object]:
    """A product of two square matrices in float16."""
    return _product(torch, device, matrix, torch.float16)


def _product(torch: Any, device: str, matrix: int, dtype: Any) -> Callable[[], object]:
    # Random numbers, because a GPU draws less power with zeros, and then runs faster than it does in service.
    a, b = (torch.randn(matrix, matrix, device=device).to(dtype) for _ in range(2))
    product = torch.empty_like(a)
    return lambda: torch.mm(a, b, out=product)


def fp8_product(torch: Any, device: str, matrix: int) -> Callable[[], object]:
    """A product of two square matrices in FP8 with a bfloat16 result, as vLLM's engines compute it."""
    a, b = (torch.randn(matrix, matrix, device=device).to(torch.float8_e4m3fn) for _ in range(2))
    scale = torch.ones((), device=device, dtype=torch.float32)
    # The kernel takes the second matrix column by column.
    return lambda: torch._scaled_mm(
        a, b.t(), scale_a=scale, scale_b=scale, out_dtype=torch.bfloat16, use_fast_accum=True
    )


PRODUCTS: Mapping[str, Callable[[Any, str, int], Callable[[], object]]] = {
    "bf16": bf16_product,
    "fp16": fp16_product,
    "fp8": fp8_product,
}
"""The products that are measured, by number format."""
NO_KERNEL = (RuntimeError, NotImplementedError, ValueError)
"""What torch raises for a format that it cannot multiply on a device."""


def _runs(run: Callable[[], object], sync: Callable[[], None]) -> bool:
    try:
        run()
        sync()
    except NO_KERNEL:
        return False
    return True


def link_figures(
    torch: Any, a: str, b: str, *, copy_bytes: int = COPY_BYTES, seconds: float = SECONDS
) -> dict[str, int]:
    """Figures of the link from `a` to `b` with the fields of `status.links`."""
    source = torch.empty(copy_bytes, dtype=torch.uint8, device=a)
    target = torch.empty(copy_bytes, dtype=torch.uint8, device=b)
    sync_a, sync_b = _synchroniser(torch, a), _synchroniser(torch, b)

    def sync() -> None:
        sync_a()
        sync_b()

    def smallest_copy() -> None:
        target[:4].copy_(source[:4])
        sync()

    copies_per_s = _per_second(lambda: target.copy_(source), sync, seconds)
    smallest_per_s = _per_second(smallest_copy, sync, seconds)
    return {
        "bytesPerSecond": max(1, round(copy_bytes * copies_per_s)),
        "latencyNanoseconds": round(1e9 / smallest_per_s),
    }


def _per_second(run: Callable[[], object], sync: Callable[[], None], seconds: float) -> float:
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


def _timed(run: Callable[[], object], sync: Callable[[], None], times: int) -> float:
    start = time.perf_counter()
    for _ in range(times):
        run()
    sync()
    return time.perf_counter() - start


def _synchroniser(torch: Any, device: str) -> Callable[[], None]:
    if torch.device(device).type != "cuda":
        return lambda: None
    return lambda: torch.cuda.synchronize(device)


def main(uuids: Sequence[str]) -> int:
    """Measure the devices that CUDA_VISIBLE_DEVICES names, which are those of the arguments."""
    import torch

    if torch.cuda.device_count() < len(uuids):
        print(f"torch {torch.__version__} sees {torch.cuda.device_count()} of {', '.join(uuids)}", file=sys.stderr)
        return 1
    figures = device_figures(torch, "cuda:0") if len(uuids) == 1 else link_figures(torch, "cuda:0", "cuda:1")
    print(json.dumps(figures))
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
