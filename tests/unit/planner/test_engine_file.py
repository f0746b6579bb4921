"""The step-time model and the engine's file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from uellm.errors import BadInput
from uellm.planner.cost.engine_file import EngineFile
from uellm.step_time import StepTime

SCENARIO: dict[str, Any] = {
    "name": "8B on one H100 (guess)",
    "stepSeconds": {
        "floor": 5.5e-3,
        "perPrefillToken": 45e-6,
        "perKvToken": 44e-9,
        "perSequence": 15e-6,
        "overhead": 0.5e-3,
    },
    "stepFormula": "max(floor, perPrefillToken*prefillTokens) + perKvToken*kvTokens + perSequence*sequences + overhead",
    "kvBlocks": 24000,
    "blockTokens": 16,
    "maxNumSeqs": 256,
    "maxNumBatchedTokens": 8192,
    "maxModelLen": 16384,
}


def test_a_step_of_decodes_alone_costs_the_floor() -> None:
    step = EngineFile.from_dict(SCENARIO).step
    assert step.step_s(0, 10_000, 10) == pytest.approx(5.5e-3 + 44e-5 + 15e-5 + 0.5e-3)


def test_a_chunk_costs_only_what_it_takes_beyond_the_floor() -> None:
    step = EngineFile.from_dict(SCENARIO).step
    assert step.floor_tokens == pytest.approx(122.2, abs=0.1)
    assert step.step_s(122, 0, 1) == step.step_s(0, 0, 1)
    assert step.step_s(8192, 0, 1) == pytest.approx(8192 * 45e-6 + 15e-6 + 0.5e-3)


def test_a_file_comes_back_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "engine.json"
    path.write_text(json.dumps(SCENARIO))
    engine = EngineFile.read(path)
    assert engine.to_dict() == SCENARIO
    assert engine.kv_tokens == 384_000


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"kvBlocks": 0}, "engine.kvBlocks"),
        ({"maxNumSeqs": "256"}, "engine.maxNumSeqs"),
        ({"maxModelLen": None}, "engine.maxModelLen"),
        ({"stepSeconds": None}, "engine.stepSeconds"),
        ({"stepSeconds": {**SCENARIO["stepSeconds"], "floor": -1}}, "engine.stepSeconds.floor"),
        ({"stepSeconds": {**SCENARIO["stepSeconds"], "floor": float("nan")}}, "engine.stepSeconds.floor"),
        ({"stepSeconds": dict.fromkeys(SCENARIO["stepSeconds"], 0)}, "engine.stepSeconds"),
    ],
)
def test_an_invalid_engine_file_is_refused_by_field(change: dict[str, Any], field: str) -> None:
    with pytest.raises(BadInput) as caught:
        EngineFile.from_dict({**SCENARIO, **change})
    assert caught.value.field == field


def test_a_file_that_is_not_json_is_refused_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "engine.json"
    path.write_text("{")
    with pytest.raises(BadInput, match="is not JSON"):
        EngineFile.read(path)
    with pytest.raises(BadInput, match="cannot be read"):
        EngineFile.read(tmp_path / "absent.json")


def test_a_model_without_prefill_cost_has_no_least_chunk() -> None:
    assert StepTime(1.0, 0.0, 0.0, 0.0, 0.0).floor_tokens == float("inf")
