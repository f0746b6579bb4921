"""Real vLLM on the CPU, described by rates that are wrong by three: its step times correct the plan."""

from __future__ import annotations

import json
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from helpers.real_engine import end, free_port, start, wait_for
from uellm.api.attainment_report import AttainmentReport, StepMeasurement
from uellm.hardware import Device, Node
from uellm.models import read_architecture
from uellm.planner import plan
from uellm.planner.handover.sidecar_prior import StepPrior, step_prior
from uellm.planner.request import NodeOffer, PlanRequest
from uellm.step_basis import Correction
from uellm_devcluster import tinymodel

WRONG_BY = 3.0
TOLERANCE = 0.15
ROUNDS = 3
"""Plans with what was measured before. More than one is needed only where the machine became faster or slower."""
ENOUGH_STEPS = 600
LONGEST_S = 120.0


@dataclass
class Served:
    """An engine behind a sidecar whose configuration can be written."""

    url: str
    metrics: str
    config: Path

    def steps(self) -> StepMeasurement | None:
        with urllib.request.urlopen(f"{self.metrics}/uellm/slo", timeout=10) as response:
            return AttainmentReport.from_dict(json.load(response)).steps

    def predict(self, prior: StepPrior) -> None:
        """Tell the sidecar these step times, and wait until it measures anew."""
        factors = {"prefill": prior.factors.prefill, "decode": prior.factors.decode}
        engine = {"stepSeconds": prior.step.to_dict(), "stepFactors": factors}
        replacement = self.config.with_suffix(".new")
        replacement.write_text(yaml.safe_dump({"model": "tiny", "classes": [], "engine": engine}))
        replacement.rename(self.config)
        deadline_s = time.monotonic() + LONGEST_S
        while self.steps() is not None or self.gauge("uellm_scheduler_decode_factor") != pytest.approx(
            prior.factors.decode
        ):
            assert time.monotonic() < deadline_s, "the sidecar does not read its file"
            time.sleep(0.2)

    def gauge(self, name: str) -> float:
        with urllib.request.urlopen(f"{self.metrics}/metrics", timeout=10) as response:
            lines = response.read().decode().splitlines()
        return next(float(line.rpartition(" ")[2]) for line in lines if line.startswith(name + " "))

    def measured(self) -> StepMeasurement:
        """Traffic of one and of two requests at a time, until enough steps were measured."""
        deadline_s = time.monotonic() + LONGEST_S
        while (found := self.steps()) is None or found.observed < ENOUGH_STEPS:
            assert time.monotonic() < deadline_s, f"too few steps: {found}"
            self.ask("one")
            pair = [threading.Thread(target=self.ask, args=(word,)) for word in ("two", "three")]
            for each in pair:
                each.start()
            for each in pair:
                each.join()
        return found

    def ask(self, word: str) -> float:
        """A streamed answer of 65 tokens. Returns the mean seconds between them."""
        body = {"model": "tiny", "prompt": f"{word} " * 40, "max_tokens": 65, "temperature": 0}
        raw = json.dumps(body | {"stream": True, "ignore_eos": True}).encode()
        request = urllib.request.Request(f"{self.url}/v1/completions", raw, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=60) as response:
            times = [time.monotonic() for line in response if line.startswith(b"data: {")]
        return (times[-1] - times[0]) / 64


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    tinymodel.make(tmp_path / "model")
    engine, sidecar, metrics = (f"127.0.0.1:{free_port()}" for _ in range(3))
    config = tmp_path / "sidecar.yaml"
    config.write_text(yaml.safe_dump({"model": "tiny", "classes": []}))
    programs = Path(sys.executable).parent
    serve = [programs / "vllm", "serve", tmp_path / "model", "--served-model-name", "tiny", "--host", "127.0.0.1"]
    serve += ["--port", engine.rpartition(":")[2], "--dtype", "float32", "-cc.mode=2", "-cc.backend=eager"]
    serve += ["--kv-cache-memory-bytes", "128M", "--max-model-len", "1024", "--max-num-seqs", "16"]
    front = [programs / "uellm", "sidecar", "--listen", sidecar, "--engine", f"http://{engine}"]
    front += ["--config", config, "--metrics-listen", metrics]
    processes = []
    try:
        for name, command in (("engine", serve), ("sidecar", front)):
            processes.append(start(command, tmp_path / f"{name}.log"))
        wait_for(f"http://{engine}/health", processes[0], tmp_path / "engine.log")
        wait_for(f"http://{metrics}/readyz", processes[1], tmp_path / "sidecar.log")
        yield Served(f"http://{sidecar}", f"http://{metrics}", config)
    finally:
        for process in processes[::-1]:
            end(process)


def request_of(memory_bytes_per_s: float) -> PlanRequest:
    """The tiny model on a device that stands for this CPU, described by this memory rate."""
    facts: dict[str, Any] = {"product": "CPU", "memory_bytes": 8 << 30, "bf16_flops_per_s": 20 * memory_bytes_per_s}
    device = Device(uuid="cpu-0", index=0, memory_bytes_per_s=memory_bytes_per_s, **facts)
    architecture = read_architecture(tinymodel.config(), dtype="float32")
    return PlanRequest("default/tiny", architecture, 1024, (NodeOffer(Node("cpu", (device,)), ("cpu-0",)),))


def prior_of(request: PlanRequest) -> StepPrior:
    found = step_prior(plan(request), request)
    assert found is not None
    return found


def described_for(step_s: float) -> PlanRequest:
    """The device whose rates predict steps without prompts of this time."""
    slow, fast = 1e4, 1e14
    for _ in range(60):
        middle = (slow * fast) ** 0.5
        slow, fast = (middle, fast) if prior_of(request_of(middle)).step.step_s(0, 60, 1) > step_s else (slow, middle)
    return request_of(slow)


def test_rates_that_are_wrong_by_three_are_corrected_by_traffic(served: Served) -> None:
    for _ in range(3):
        served.ask("warm")
    true_s = sorted(served.ask("alone") for _ in range(5))[2]
    described = described_for(true_s / WRONG_BY)
    first = plan(described)
    served.predict(prior_of(described))
    wrong = served.measured()
    assert wrong.mean_s / wrong.expected_s > 2

    basis = prior_of(described).basis
    assert basis is not None
    told = [f"steps took {error_of(wrong):+.0%}, and {first.predicted.tpot_ms:.1f} ms was predicted"]
    for _ in range(ROUNDS):
        learned = replace(described, corrections=(Correction(basis, wrong.factors, wrong.observed),))
        corrected = plan(learned)
        assert any("measured steps of this model" in each for each in corrected.assumptions)
        served.predict(prior_of(learned))
        wrong = served.measured()
        alone_s = sorted(served.ask("alone") for _ in range(5))[2]
        error, off = error_of(wrong), corrected.predicted.tpot_ms / 1e3 / alone_s - 1
        told.append(f"steps {error:+.0%}, and {corrected.predicted.tpot_ms:.1f} ms was {off:+.0%} off")
        if abs(error) <= TOLERANCE and abs(off) <= TOLERANCE:
            break
    print("; then ".join(told))
    assert abs(error) <= TOLERANCE, told
    assert abs(off) <= TOLERANCE, told


def error_of(measured: StepMeasurement) -> float:
    return measured.mean_s / measured.expected_s - 1
