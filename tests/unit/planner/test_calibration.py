"""Fitting the step-time model: known figures are recovered, noise changes little, useless input is refused."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from uellm.cli.main import main
from uellm.errors import BadInput
from uellm.planner.calibration.calibrate import calibrate
from uellm.planner.cost.engine_file import EngineFile
from uellm.planner.efficiency import Efficiency
from uellm.step_time import StepTime

TRUE = StepTime(5.5e-3, 45e-6, 44e-9, 15e-6, 0.5e-3)
LIMITS = {"kvBlocks": 24000, "blockTokens": 16, "maxNumSeqs": 256, "maxNumBatchedTokens": 8192, "maxModelLen": 16384}


def measured_steps(
    step: StepTime = TRUE, *, noise: float = 0.0, seed: int = 1, count: int = 120
) -> list[dict[str, Any]]:
    draw = random.Random(seed)
    rows = []
    for _ in range(count):
        prefill = draw.choice([0, 0, 0, 32, 100, 256, 512, 1024, 4096])
        sequences = draw.randint(1, 200)
        kv = sequences * draw.randint(100, 3000)
        seconds = step.step_s(prefill, kv, sequences) * max(0.2, draw.gauss(1.0, noise))
        rows.append({"prefillTokens": prefill, "kvTokens": kv, "sequences": sequences, "seconds": seconds})
    return rows


def measured_stages(truth: Efficiency, *, noise: float = 0.0) -> list[dict[str, Any]]:
    draw = random.Random(2)
    rows = []
    for _ in range(80):
        tokens, layers = draw.choice([1, 4, 16, 128, 512]), draw.randint(1, 40)
        flops, weights = tokens * layers * 4.4e8, layers * 4.4e8
        other = draw.randint(0, 200) * 1e6
        compute, memory = flops / (7e14 * truth.compute), weights / (2.9e12 * truth.memory)
        seconds = max(compute, memory) + other / (2.9e12 * truth.memory) + truth.step_overhead_s
        seconds += truth.per_sequence_s * tokens
        rows.append(
            {
                "flops": flops,
                "weightBytes": weights,
                "otherBytes": other,
                "sequences": tokens,
                "flopsPerSecond": 7e14,
                "memoryBytesPerSecond": 2.9e12,
                "seconds": seconds * draw.gauss(1.0, noise),
            }
        )
    return rows


def document(**changes: Any) -> dict[str, Any]:
    return {"name": "test", "limits": LIMITS, "steps": measured_steps(), **changes}


def test_exact_times_give_back_the_model() -> None:
    found = calibrate(document())
    for name, value in TRUE.to_dict().items():
        assert found.engine.step.to_dict()[name] == pytest.approx(value, rel=1e-3), name
    assert found.steps.median_error < 1e-6
    assert found.steps.rank_correlation == pytest.approx(1.0)


def test_five_percent_of_noise_and_some_hiccups_leave_the_model_recognisable() -> None:
    rows = measured_steps(noise=0.05, count=300)
    for row in rows[::25]:
        row["seconds"] *= 8  # the machine was busy with something else
    found = calibrate(document(steps=rows)).engine.step
    assert found.per_prefill_token_s == pytest.approx(TRUE.per_prefill_token_s, rel=0.03)
    assert found.per_kv_token_s == pytest.approx(TRUE.per_kv_token_s, rel=0.10)
    assert found.floor_s + found.overhead_s == pytest.approx(TRUE.floor_s + TRUE.overhead_s, rel=0.05)


def test_the_report_has_the_error_on_held_out_measurements() -> None:
    report = calibrate(document(steps=measured_steps(noise=0.05, count=200))).steps
    assert 0.02 < report.median_error < 0.05
    assert report.median_error * 0.9 < report.held_out_median_error < 0.06
    assert report.p90_error > report.median_error
    assert 0.95 < report.r_squared <= 1.0


def test_measured_stages_give_back_their_efficiencies() -> None:
    truth = Efficiency.calibrated(0.62, 0.85, 1.5e-3, 2e-5)
    found = calibrate(document(stages=measured_stages(truth, noise=0.02))).efficiency
    assert found is not None
    assert found.compute == pytest.approx(truth.compute, rel=0.03)
    assert found.memory == pytest.approx(truth.memory, rel=0.03)
    assert found.source == "test"
    assert "calibrated by measurements of test" in found.sentence


def test_no_figure_is_ever_negative() -> None:
    rows = measured_steps(StepTime(5e-3, 40e-6, 0.0, 0.0, 0.0), noise=0.1, count=60)
    assert min(calibrate(document(steps=rows)).engine.step.to_dict().values()) >= 0


def changed(index: int, **fields: Any) -> list[dict[str, Any]]:
    rows = measured_steps()
    rows[index] = {**rows[index], **fields}
    return rows


def with_all(**fields: Any) -> list[dict[str, Any]]:
    return [{**row, **fields} for row in measured_steps()]


STEPS = "measurements.steps"


@pytest.mark.parametrize(
    ("change", "field", "says"),
    [
        ({"steps": measured_steps()[:10]}, STEPS, "10 measurements are too few: give 15"),
        ({"steps": changed(3, seconds=-1.0)}, f"{STEPS}[3].seconds", "0 or more"),
        ({"steps": changed(3, seconds=0.0)}, f"{STEPS}[3].seconds", "above 0"),
        ({"steps": changed(4, seconds=float("nan"))}, f"{STEPS}[4].seconds", "and is nan"),
        ({"steps": changed(5, kvTokens=None)}, f"{STEPS}[5].kvTokens", "and is None"),
        ({"steps": [{**row, "kvTokens": 9 * row["sequences"]} for row in measured_steps()]}, STEPS, "only together"),
        ({"steps": with_all(sequences=4)}, STEPS, "sequences is the same in every step"),
        ({"steps": with_all(prefillTokens=0)}, STEPS, "no step computes tokens of a prompt"),
        ({"steps": with_all(prefillTokens=512)}, STEPS, "every step computes a large chunk"),
        ({"steps": {}}, STEPS, "must be a list"),
        ({"limits": None}, "measurements.limits", "must be an object"),
        ({"limits": {**LIMITS, "kvBlocks": 0}}, "measurements.limits.kvBlocks", "1 or more"),
        ({"stages": [{"flops": 1}] * 20}, "measurements.stages[0].weightBytes", "and is None"),
    ],
)
def test_useless_measurements_are_refused_in_one_line(change: dict[str, Any], field: str, says: str) -> None:
    with pytest.raises(BadInput, match=says.replace("[", r"\[")) as caught:
        calibrate(document(**change))
    assert caught.value.field == field
    assert "\n" not in str(caught.value)


def test_the_command_writes_an_engine_that_can_be_read_and_one_json_document(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given, engine = tmp_path / "measured.json", tmp_path / "engine.json"
    given.write_text(json.dumps(document(stages=measured_stages(Efficiency.calibrated(0.6, 0.8, 1e-3, 0.0)))))
    assert main(["calibrate", str(given), "-o", str(engine), "--format", "json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["report"]["steps"]["measurements"] == 120
    assert EngineFile.read(engine).step.floor_s == pytest.approx(5.5e-3, rel=1e-3)
    written = json.loads(engine.read_text())
    assert set(written) == {*json.loads(json.dumps(EngineFile.read(engine).to_dict())), "efficiency"}


def test_the_table_names_figures_and_errors(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = tmp_path / "measured.json"
    given.write_text(json.dumps(document()))
    assert main(["calibrate", str(given), "-o", str(tmp_path / "engine.json")]) == 0
    printed = capsys.readouterr().out
    assert {word for word in ("perPrefillToken", "held out", "chunk for free") if word in printed} == {
        "perPrefillToken",
        "held out",
        "chunk for free",
    }


def test_the_command_says_where_bad_input_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = tmp_path / "measured.json"
    given.write_text(json.dumps(document(steps=[])))
    assert main(["calibrate", str(given), "-o", str(tmp_path / "engine.json")]) == 2
    assert "steps: 0 measurements are too few" in capsys.readouterr().err
    assert not (tmp_path / "engine.json").exists()
