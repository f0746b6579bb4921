"""`uellm predict`: its contract, its refusals, and what must hold between predictions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from helpers.models import LLAMA_8B
from uellm.cli.main import main
from uellm.hardware.products import BY_NAME

KEYS = {
    "tpotMilliseconds",
    "ttftMilliseconds",
    "outputTokensPerSecond",
    "requestsPerSecond",
    "weightBytesPerGpu",
    "kvBytesAvailable",
    "kvTokens",
}
POINT = {"id": "a", "config": LLAMA_8B, "gpu": "H100-80", "tensor": 1, "pipeline": 1}
POINT |= {"inputTokens": 1000, "outputTokens": 200, "concurrency": 16}


@pytest.fixture
def predict(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    def run(*points: dict[str, Any]) -> dict[str, Any]:
        (tmp_path / "points.json").write_text(json.dumps(points))
        assert main(["predict", str(tmp_path / "points.json"), "-o", "json"]) == 0
        return json.loads(capsys.readouterr().out)

    return run


def one(predict, **changes: Any) -> dict[str, Any]:
    return predict({**POINT, **changes})["a"]


@pytest.mark.parametrize("load", [{"concurrency": 4}, {"requestsPerSecond": 2.0}, {"decodeBatch": 32}])
def test_every_kind_of_load_has_every_figure(predict, load: dict[str, Any]) -> None:
    point = {key: value for key, value in POINT.items() if key != "concurrency"}
    found = predict({**point, **load})["a"]
    assert set(found) == KEYS
    assert all(value > 0 for value in found.values())


def test_an_8b_on_an_h100_is_about_what_everybody_measures(predict) -> None:
    found = one(predict, concurrency=1)
    assert 5 < found["tpotMilliseconds"] < 9
    assert found["weightBytesPerGpu"] == pytest.approx(16.06e9, rel=0.01)
    assert found["outputTokensPerSecond"] == pytest.approx(1e3 / found["tpotMilliseconds"], rel=0.1)


def test_more_clients_wait_longer_and_get_more_tokens(predict) -> None:
    few, many = one(predict, concurrency=4), one(predict, concurrency=64)
    assert many["ttftMilliseconds"] > few["ttftMilliseconds"]
    assert many["tpotMilliseconds"] > few["tpotMilliseconds"]
    assert many["outputTokensPerSecond"] > few["outputTokensPerSecond"]


def test_a_gpu_given_by_its_rates_is_the_product_with_these_rates(predict) -> None:
    h100 = BY_NAME["H100-80"]
    rates = {
        "bf16FlopsPerSecond": h100.bf16_flops_per_s,
        "fp8FlopsPerSecond": h100.fp8_flops_per_s,
        "memoryBytesPerSecond": h100.memory_bytes_per_s,
        "memoryBytes": h100.memory_bytes,
    }
    assert one(predict, gpu=rates) == one(predict)


def test_an_fp8_cache_holds_twice_the_tokens_and_eager_engines_decode_slower(predict) -> None:
    plain = one(predict)
    assert one(predict, kvCacheDtype="fp8")["kvTokens"] == pytest.approx(2 * plain["kvTokens"], rel=0.01)
    assert one(predict, enforceEager=True)["tpotMilliseconds"] > plain["tpotMilliseconds"] + 5


def test_versions_differ_in_sampler_and_graphs(predict) -> None:
    old, new = (one(predict, engineVersion=version)["kvBytesAvailable"] for version in ("0.11.0", "0.27.1"))
    assert new > old


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"gpu": "Voodoo2"}, "gpu: 'Voodoo2' is not known here; known are"),
        ({"gpu": {"bf16FlopsPerSecond": 1e15}}, "gpu.memoryBytesPerSecond: is missing"),
        ({"inputTokens": None}, "inputTokens: is missing"),
        ({"concurrency": None}, "concurrency: is missing: a point needs one of"),
        ({"concurrency": -3}, "concurrency: must be a number above 0, and is -3"),
        ({"gpuMemoryUtilization": 2}, "gpuMemoryUtilization: must be above 0 and at most 1, and is 2"),
        ({"config": 7}, "config: must be the model's config.json, as an object"),
        ({"tensor": 3}, "num_attention_heads"),
        ({"gpu": "T4"}, "leave no room for KV cache on a GPU"),
        ({"pipeline": 99}, "pipeline 99 is more than the model's 32 layers"),
    ],
)
def test_a_point_that_cannot_be_predicted_says_why_and_the_others_stand(predict, changes, says: str) -> None:
    found = predict(POINT, {**POINT, "id": "b", **changes})
    assert set(found["a"]) == KEYS
    assert says in found["b"]["error"]


def test_points_need_names_of_their_own_and_a_list(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "points.json"
    wrong = (([POINT, POINT], "'a' stands there twice"), ({}, "must be a list of points"), ([3], "must be an object"))
    for content, says in wrong:
        file.write_text(json.dumps(content))
        assert main(["predict", str(file)]) == 2
        assert says in capsys.readouterr().err


def test_the_table_has_a_line_for_each_point_and_the_reasons_below(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "points.json"
    file.write_text(json.dumps([POINT, {**POINT, "id": "b", "gpu": "none"}]))
    assert main(["predict", str(file)]) == 0
    header, line, reason = capsys.readouterr().out.splitlines()
    assert header.split()[:3] == ["ID", "TTFT", "ms"]
    assert line.startswith("a ")
    assert reason.startswith("b: gpu: 'none' is not known")


@pytest.mark.parametrize(
    "field", ["concurrency", "inputTokens", "outputTokens", "prompts", "requestsPerSecond", "decodeBatch", "maxNumSeqs"]
)
@pytest.mark.parametrize("value", [10**30, 10**400, float("inf")])
def test_a_number_without_measure_is_refused(predict, field: str, value: float) -> None:
    assert one(predict, **{field: value}) == {"error": f"{field}: must be at most 1e+09"}


@pytest.mark.parametrize(("value", "words"), [(10**400, "at most 1e+24"), (1e-300, "1 or more, and is 1e-300")])
def test_so_is_a_gpu_without_measure(predict, value: float, words: str) -> None:
    gpu = {"bf16FlopsPerSecond": 1e15, "memoryBytesPerSecond": 3e12, "memoryBytes": 80e9}
    for field in gpu:
        assert one(predict, gpu=gpu | {field: value}) == {"error": f"gpu.{field}: must be {words}"}


@pytest.mark.parametrize(
    "load", [{"concurrency": 10**8}, {"prompts": 10**8}, {"inputTokens": 10**9, "concurrency": 500}]
)
def test_a_load_of_more_steps_than_can_be_replayed_is_refused(predict, load: dict[str, Any]) -> None:
    assert "at most 10000000 are replayed: set prompts" in one(predict, **load)["error"]


def test_so_is_one_at_a_rate(predict) -> None:
    point = {key: value for key, value in POINT.items() if key != "concurrency"}
    found = predict({**point, "requestsPerSecond": 1.0, "prompts": 10**8})["a"]
    assert "at most 10000000 are replayed: set prompts" in found["error"]
