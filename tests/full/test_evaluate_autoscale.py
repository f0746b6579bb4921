"""The fast model of a replica against vLLM's own scheduler, and the whole command. No engine is started."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest

from uellm.cli.main import main
from uellm.evaluate.autoscale.pool import DayLoad, ReplicaPool, attainment
from uellm.evaluate.queue import Scenario, cells, run_cell
from uellm.evaluate.scenario import read_classes
from uellm.evaluate.traces import Trace, TraceRequest
from uellm.planner.cost.engine_file import EngineFile
from uellm.step_time import StepTime

ENGINE = EngineFile("e", StepTime(5.5e-3, 45e-6, 44e-9, 15e-6, 0.5e-3), 24_000, 16, 256, 8192, 16_384)
CLASSES = read_classes(
    {
        "classes": [
            {"name": "chat", "share": 0.5, "ttft": "1s", "tpot": "60ms"},
            {"name": "task", "share": 0.3, "e2e": "10s"},
            {"name": "batch", "share": 0.2, "e2e": "120s"},
        ],
        "predictor": {"kind": "noisy-oracle", "sigma": 0.7},
    },
    "classes",
)
CHUNK = 256


def poisson_trace(count: int, per_s: float, seed: int = 1) -> Trace:
    """Lognormal lengths, about those of public chat traces."""
    generator = random.Random(seed)
    now_s, requests = 0.0, []
    for _ in range(count):
        now_s += generator.expovariate(per_s)
        prompt = min(4000, int(generator.lognormvariate(6.7, 0.8)) + 1)
        requests.append(TraceRequest(now_s, prompt, min(900, int(generator.lognormvariate(4.9, 0.8)) + 1)))
    return Trace("poisson", tuple(requests))


def modelled(scenario: Scenario) -> dict[str, float]:
    jobs = scenario.jobs(1)
    names = [entry.name for entry in scenario.classes.classes]
    load = DayLoad(
        np.array([job.arrival_s for job in jobs]),
        np.array([job.prompt_tokens for job in jobs]),
        np.array([job.prompt_tokens for job in jobs]),
        np.array([job.output_tokens for job in jobs]),
        np.array([job.lengths.p80 if job.lengths else job.output_tokens for job in jobs]),
        np.array([names.index(job.request_class.name) for job in jobs]),
        scenario.classes.classes,
    )
    pool = ReplicaPool(load, ENGINE, CHUNK, 1, 60.0)
    pool.begin(1)
    pool.advance(float(load.arrival_s[-1]) + 600.0)
    return attainment(load, pool.outcomes, np.arange(len(load)))


@pytest.mark.timeout(300)
@pytest.mark.parametrize("per_s", [6.0, 11.0, 13.0, 15.0])
def test_the_model_attains_what_vllms_scheduler_behind_the_sidecar_does(per_s: float) -> None:
    scenario = Scenario(poisson_trace(1200, per_s), CLASSES, ENGINE)
    real = run_cell(scenario, cells(["SLO-ODBS"], [1.0], [1], CHUNK)[0])

    assert modelled(scenario)["all"] == pytest.approx(real["attainment"]["all"], abs=0.02)


@pytest.mark.timeout(300)
def test_what_a_full_pool_refuses_has_ended_and_is_told_with_its_prompt_tokens() -> None:
    count = 4000  # at once: the queues of the one replica hold half of them
    load = DayLoad(
        np.full(count, 1.0),
        np.full(count, 500),
        np.full(count, 400),
        np.full(count, 100),
        np.full(count, 100),
        np.zeros(count, np.int64),
        CLASSES.classes,
    )
    pool = ReplicaPool(load, ENGINE, CHUNK, 1, 60.0)
    pool.begin(1)
    pool.advance(15.0)
    found = pool.figures(15.0)

    refused = found.ended - found.answered
    assert refused > 1000
    assert found.arrived == count == found.ended + found.running + found.queued
    assert (found.prompt_tokens, found.output_tokens) == (400 * found.ended, 100 * found.answered)
    assert found.met <= found.answered

    pool.advance(3600.0)
    later = pool.figures(3585.0)

    assert later.ended == later.answered == found.running + found.queued
    assert (later.arrived, later.running, later.queued) == (0, 0, 0)


@pytest.mark.timeout(300)
def test_the_command_compares_every_policy(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = [f"{r.arrival_s},{r.prompt_tokens},{r.output_tokens}" for r in poisson_trace(2000, 1.0).requests]
    (tmp_path / "trace").write_text("\n".join(["arrival_s,input_tokens,output_tokens", *lines]))
    (tmp_path / "classes").write_text("classes: [{name: chat, ttft: 1s, tpot: 60ms}]")
    (tmp_path / "engine").write_text(json.dumps(ENGINE.to_dict()))
    options = [f"--{name}={tmp_path / name}" for name in ("trace", "classes", "engine")]

    assert main(["evaluate", "autoscale", *options, "--startup", "120", "--limit", "20000", "-o", "json"]) == 0
    document = json.loads(capsys.readouterr().out)

    assert [result["policy"] for result in document["results"]] == [
        "fixed",
        "clairvoyant",
        "curve",
        "hpa",
        "keda",
        "uellm",
    ]
    for result in document["results"]:
        assert result["startupSeconds"] == 120
        assert set(result["attainment"]) == {"all", "chat"}
        assert 0.99 < result["attainment"]["all"] <= 1.0
        assert 24.0 <= result["gpuHours"] <= 25.0
        assert {"peak", "mean", "changes"} <= set(result["replicas"])
        assert ("besideUellm" in result) == (result["policy"] in {"hpa", "keda"})
