"""Memory of each stage of a real vLLM with an uneven split over two CPU processes, against the planner's budget."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from uellm.models import read_architecture
from uellm.planner.memory.footprint import footprint
from uellm.planner.memory.kv_cache import tokens_of_flag
from uellm.planner.shape import Shape, Steps
from uellm.planner.vllm.flags import UserArgs
from uellm_devcluster import tinymodel
from uellm_devcluster.measured_engine import KV_CACHE_BYTES

LAYERS = (2, 6)
ENGINE_TIMEOUT_S = 400.0


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> dict:
    config = tmp_path_factory.mktemp("model") / "config.json"
    config.write_text(json.dumps(tinymodel.config()))
    command = [sys.executable, "-m", "uellm_devcluster.measured_engine", str(config), "--layers", "2,6"]
    done = subprocess.run(
        [*command, "--loads", '[["warm", 4, 64, 8], ["filled", 8, 64, 16]]'],
        capture_output=True,
        text=True,
        timeout=ENGINE_TIMEOUT_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


def test_every_stages_weights_and_kv_cache_are_what_the_plan_says(measured: dict) -> None:
    model = read_architecture(tinymodel.config(), dtype="float32")
    budget = footprint(model, Shape(1, 2), Steps(256, 16), 1024, UserArgs(()))
    first = sum(budget.layer_bytes[: LAYERS[0]]) + budget.embedding_bytes
    last = sum(budget.layer_bytes[LAYERS[0] :]) + budget.head_bytes
    assert [stage["weights"] for stage in measured["memory"]] == pytest.approx([first, last], rel=0.01)

    per_token = [sum(budget.layer_kv_bytes_per_token[: LAYERS[0]]), sum(budget.layer_kv_bytes_per_token[LAYERS[0] :])]
    tokens = tokens_of_flag(KV_CACHE_BYTES, per_token)
    assert measured["kvTokens"] == tokens
    assert [stage["kv"] for stage in measured["memory"]] == [tokens * each for each in per_token]


def test_the_stage_with_most_layers_takes_most_of_the_time(measured: dict) -> None:
    filled = next(entry for entry in measured["rounds"] if entry["name"] == "filled")
    short, long = (sum(step["seconds"] for step in stage) for stage in filled["steps"])
    assert long > short
