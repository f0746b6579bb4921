"""The micro-benchmarks on the CPU: the same code as on a GPU, with other results."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from uellm.api import parse
from uellm.api.gpunodeprofile import LinkProfile, Measured
from uellm.measuring import figures
from uellm.measuring.figures import Sizes

SMALL = {"copy_bytes": 2**16, "seconds": 0.01}
TOLERANCE = 0.15
SLOWER = {"numpy": TOLERANCE, "memcpy": 0.6}
"""By how much ours may be slower. memcpy does not read what it overwrites where a CPU lets it; PyTorch's copy does."""
COMPARISON = """
import ctypes, sys
import numpy, torch
from uellm.measuring import figures

torch.set_num_threads(1)
n, size, attempts, slower, faster = 512, 2**25, 100, float(sys.argv[2]), float(sys.argv[3])
arrays = [numpy.random.default_rng(seed).random((n, n), dtype=numpy.float32) for seed in range(3)]
source, target = numpy.ones(size, numpy.uint8), numpy.ones(size, numpy.uint8)
pairs = {
    "numpy": (
        figures.multiply(torch, *map(torch.from_numpy, arrays)),
        lambda: numpy.matmul(arrays[0], arrays[1], out=arrays[2]),
    ),
    "memcpy": (
        figures.copy(torch.from_numpy(source), torch.from_numpy(target)),
        lambda: ctypes.memmove(target.ctypes.data, source.ctypes.data, size),
    ),
}
ratios = []
for _ in range(attempts):
    ours, theirs = (figures.per_second(run, lambda: None, 0.05) for run in pairs[sys.argv[1]])
    ratios.append(ours / theirs)
    if 1 - slower <= ratios[-1] <= 1 + faster:
        sys.exit()
sys.exit(f"never between -{slower:.0%} and +{faster:.0%}: {[round(ratio, 2) for ratio in ratios]}")
"""


@pytest.fixture(scope="module")
def torch():
    return pytest.importorskip("torch")


@pytest.mark.timeout(300)
@pytest.mark.usefixtures("torch")
@pytest.mark.parametrize("other", ["numpy", "memcpy"])
def test_products_and_copies_are_as_fast_as_those_of(other):
    """In turn, on one thread and the same memory, until one comparison is undisturbed by the machine's other work."""
    command = [sys.executable, "-c", COMPARISON, other, str(SLOWER[other]), str(TOLERANCE)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr


def test_figures_of_a_device_are_those_of_the_profile(torch):
    found = figures.device_figures(torch, "cpu", matrix=64, **SMALL)
    parse(Measured, found)
    assert found["memoryBytesPerSecond"] > 2**16
    assert min(found["bf16GigaflopsPerSecond"], found["fp16GigaflopsPerSecond"]) >= 1


def test_a_format_without_a_kernel_has_no_figure(torch, monkeypatch):
    def refuses(*_args, **_options):
        raise RuntimeError("no kernel for this GPU")

    monkeypatch.setattr(torch, "_scaled_mm", refuses)
    found = figures.device_figures(torch, "cpu", matrix=64, **SMALL)
    assert "fp8GigaflopsPerSecond" not in found
    assert "bf16GigaflopsPerSecond" in found


def test_too_little_memory_is_no_missing_kernel(torch, monkeypatch):
    def is_full(*_args, **_options):
        raise RuntimeError("CUDA out of memory. Tried to allocate 128.00 MiB")

    monkeypatch.setattr(torch, "randn", is_full)
    with pytest.raises(RuntimeError, match="out of memory"):
        figures.device_figures(torch, "cpu", matrix=64, **SMALL)


def test_figures_of_a_link_are_those_of_the_profile(torch):
    found = figures.link_figures(torch, "cpu", "cpu", **SMALL)
    parse(LinkProfile, {"a": "GPU-a", "b": "GPU-b", **found})
    assert found["bytesPerSecond"] > 2**16
    assert found["latencyNanoseconds"] > 0


def test_copies_from_the_host_and_launches_have_figures_of_the_profile(torch):
    sizes = Sizes(64, 2**16, 0.01)
    found = figures.host_figures(torch, "cpu", sizes) | figures.launch_figures(torch, "cpu", sizes)
    parse(Measured, found)
    assert found["hostBytesPerSecond"] > 2**16
    assert 100 < found["launchNanoseconds"] < 10**9


def test_a_product_as_in_decoding_has_few_rows(torch):
    shapes = []

    class Recorded:
        def __getattr__(self, name):
            return getattr(torch, name)

        def randn(self, *shape, **options):
            shapes.append(shape)
            return torch.randn(*shape, **options)

    found = figures.product_figures(Recorded(), "cpu", "bf16", 32, Sizes(64, 2**16, 0.01), suffix="Decode")
    assert list(found) == ["bf16DecodeGigaflopsPerSecond"]
    assert shapes == [(32, 64), (64, 64)]


def test_a_rate_is_that_of_the_calls_and_not_of_starting_them(monkeypatch):
    """Each call takes 1 ms of a simulated clock, each synchronisation 10 ms. Batches hide the latter."""
    clock = [0.0]
    monkeypatch.setattr(figures.time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(figures, "BATCH_SECONDS", 5.0)

    def call() -> None:
        clock[0] += 1e-3

    def sync() -> None:
        clock[0] += 1e-2

    assert figures.per_second(call, sync, seconds=20.0) == pytest.approx(1000, rel=0.01)
