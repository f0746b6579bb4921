"""The micro-benchmarks on the CPU: the same code as on a GPU, with other results."""

from __future__ import annotations

import pytest

from uellm.api import parse
from uellm.api.gpunodeprofile import LinkProfile, Measured
from uellm.profiler import measure

SMALL = {"copy_bytes": 2**16, "seconds": 0.01}


@pytest.fixture(scope="module")
def torch():
    return pytest.importorskip("torch")


def test_figures_of_a_device_are_those_of_the_profile(torch):
    figures = measure.device_figures(torch, "cpu", matrix=64, **SMALL)
    parse(Measured, figures)
    assert figures["memoryBytesPerSecond"] > 2**16
    assert min(figures["bf16GigaflopsPerSecond"], figures["fp16GigaflopsPerSecond"]) >= 1


def test_a_format_without_a_kernel_has_no_figure(torch, monkeypatch):
    def refuses(*_args, **_options):
        raise RuntimeError("no kernel for this GPU")

    monkeypatch.setattr(torch, "_scaled_mm", refuses)
    figures = measure.device_figures(torch, "cpu", matrix=64, **SMALL)
    assert "fp8GigaflopsPerSecond" not in figures
    assert "bf16GigaflopsPerSecond" in figures


def test_figures_of_a_link_are_those_of_the_profile(torch):
    figures = measure.link_figures(torch, "cpu", "cpu", **SMALL)
    parse(LinkProfile, {"a": "GPU-a", "b": "GPU-b", **figures})
    assert figures["bytesPerSecond"] > 2**16
    assert figures["latencyNanoseconds"] > 0


def test_without_its_gpus_the_process_reports_what_it_sees(torch, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert measure.main(["GPU-a"]) == 1
    assert "sees 0 of GPU-a" in capsys.readouterr().err


def test_a_rate_is_that_of_the_calls_and_not_of_starting_them(monkeypatch):
    """Each call takes 1 ms of a simulated clock, each synchronisation 10 ms. Batches hide the latter."""
    clock = [0.0]
    monkeypatch.setattr(measure.time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(measure, "BATCH_SECONDS", 5.0)

    def call() -> None:
        clock[0] += 1e-3

    def sync() -> None:
        clock[0] += 1e-2

    assert measure._per_second(call, sync, seconds=20.0) == pytest.approx(1000, rel=0.01)
