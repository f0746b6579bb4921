"""Measures GPUs with torch: matrix products, memory bandwidth, and copies to another GPU.

    python -m uellm.profiler.measure UUID          {"bf16GigaflopsPerSecond": .., "memoryBytesPerSecond": ..}
    python -m uellm.profiler.measure UUID UUID     {"bytesPerSecond": .., "latencyNanoseconds": ..}

A process of its own, because a process that has used CUDA keeps the driver open and half a gigabyte on each GPU until
it ends. bench.py starts it, for one idle GPU or link at a time.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
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
    """Figures of one device with the fields of `status.devices[].measured`: medians, not best cases."""
    a, b = (torch.randn(matrix, matrix, dtype=torch.bfloat16, device=device) for _ in range(2))
    product = torch.empty_like(a)
    source = torch.empty(copy_bytes, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    sync = _synchroniser(torch, device)
    products_per_s = _per_second(lambda: torch.mm(a, b, out=product), sync, seconds)
    copies_per_s = _per_second(lambda: target.copy_(source), sync, seconds)
    return {
        # n^2 results of n multiplications and additions each.
        "bf16GigaflopsPerSecond": max(1, round(2 * matrix**3 * products_per_s / 1e9)),
        # A copy reads every byte and writes it.
        "memoryBytesPerSecond": max(1, round(2 * copy_bytes * copies_per_s)),
    }


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
