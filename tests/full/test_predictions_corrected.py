"""Real vLLM on the CPU, described by rates that are wrong by three: its step times correct the plan."""

from __future__ import annotations

import json
import sys
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean, median
from typing import Any

import pytest
import yaml

from helpers.real_engine import end, start, wait_for
from uellm.api.attainment_report import AttainmentReport, StepMeasurement
from uellm.hardware import Device, Node
from uellm.models import read_architecture
from uellm.planner import plan
from uellm.planner.handover.sidecar_prior import StepPrior, step_prior
from uellm.planner.request import NodeOffer, PlanRequest, Workload
from uellm.step_basis import Correction
from uellm_devcluster import tinymodel
from uellm_devcluster.local import free_port

PROMPT_TOKENS = 41
"""Of a word of the tiny model's vocabulary, one token, 40 times."""
OUTPUT_TOKENS = 65
WRONG_BY = 3.0
TOLERANCE = 0.15
ROUNDS = 5
"""Plans with what was measured before. More than one is needed only where the machine's speed changed meanwhile."""
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

    def measured(self) -> tuple[StepMeasurement, float]:
        """Traffic of one and of two requests at a time, until enough steps were measured.

        Returns the steps, and the mean time between tokens that the clients saw meanwhile.
        """
        deadline_s = time.monotonic() + LONGEST_S
        tpots_s: list[float] = []
        while (found := self.steps()) is None or found.observed < ENOUGH_STEPS:
            assert time.monotonic() < deadline_s, f"too few steps: {found}"
            for words in (("one",), ("two", "three")):
                with ThreadPoolExecutor(len(words)) as clients:
                    tpots_s += clients.map(self.ask, words)
        return found, mean(tpots_s)

    def ask(self, word: str) -> float:
        """A streamed answer. Returns the mean seconds between its tokens."""
        prompt = f"{word} " * (PROMPT_TOKENS - 1)
        body = {"model": "tiny", "prompt": prompt, "max_tokens": OUTPUT_TOKENS, "temperature": 0}
        raw = json.dumps(body | {"stream": True, "ignore_eos": True}).encode()
        request = urllib.request.Request(f"{self.url}/v1/completions", raw, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=60) as response:
            times = [time.monotonic() for line in response if line.startswith(b"data: {")]
        return (times[-1] - times[0]) / (OUTPUT_TOKENS - 1)


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
    workload = Workload(prompt_tokens_mean=PROMPT_TOKENS, output_tokens_mean=OUTPUT_TOKENS)
    offers = (NodeOffer(Node("cpu", (device,)), ("cpu-0",)),)
    return PlanRequest("default/tiny", architecture, 1024, offers, workload=workload)


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
    """What a plan is held to is measured while its correction is: these machines change their speed meanwhile."""
    for _ in range(3):
        served.ask("four")
    described = described_for(median(served.ask("five") for _ in range(5)) / WRONG_BY)
    first = plan(described)
    served.predict(prior_of(described))
    steps, tpot_s = served.measured()
    assert error_of(steps) > TOLERANCE

    basis = prior_of(described).basis
    assert basis is not None
    told = [f"steps took {error_of(steps):+.0%}, and {first.predicted.tpot_ms:.1f} ms was predicted"]
    for _ in range(ROUNDS):
        learned = replace(described, corrections=(Correction(basis, steps.factors, steps.observed),))
        corrected = plan(learned)
        assert any("measured steps of this model" in each for each in corrected.assumptions)
        off = corrected.predicted.tpot_ms / 1e3 / tpot_s - 1
        served.predict(prior_of(learned))
        former_tpot_s = tpot_s
        steps, tpot_s = served.measured()
        slower = tpot_s / former_tpot_s
        error = (1 + error_of(steps)) / slower - 1
        told.append(
            f"{corrected.predicted.tpot_ms:.1f} ms was {off:+.0%} off, steps {error:+.0%} "
            f"on a machine at {1 / slower:.0%} of its speed"
        )
        if abs(error) <= TOLERANCE and abs(off) <= TOLERANCE:
            break
    print("; then ".join(told))
    assert abs(error) <= TOLERANCE, told
    assert abs(off) <= TOLERANCE, told


def error_of(measured: StepMeasurement) -> float:
    return measured.mean_s / measured.expected_s - 1
