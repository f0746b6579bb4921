from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from uellm.cli.main import main
from uellm.evaluate.placement import compare, random_instance, stage_times
from uellm.planner.placement.solver import Instance, Placement

TWO = {
    "layers": 4,
    "layerBytes": 10,
    "devices": [
        {"id": "a", "memoryBytes": 30, "performance": 10.0},
        {"id": "b", "memoryBytes": 30, "performance": 5.0},
    ],
    "latencySeconds": [[0, 0.5], [0.25, 0]],
}


def test_a_token_takes_the_stages_and_their_hops_and_the_slowest_stage_sets_the_pace() -> None:
    instance = Instance.from_dict(TWO)

    whole_s, slowest_s = stage_times(instance, Placement(True, order=("b", "a"), layers=(1, 3)))

    assert whole_s == pytest.approx(2.0 + 0.25 + 3.0)
    assert slowest_s == pytest.approx(3.0)


def test_exact_policies_reach_the_least_cost_and_baselines_are_never_below_it() -> None:
    generator = random.Random(2)
    document = compare([random_instance(generator, 5) for _ in range(8)], "latency", lambda _line: None)

    by_policy = {result["policy"]: result for result in document["results"]}
    assert document["compared"] > 0
    assert by_policy["LR"]["latencyRatio"] <= by_policy["BGS"]["latencyRatio"]
    assert by_policy["HE"]["devices"] <= by_policy["HELR"]["devices"] + 1e-9
    assert all(
        result["latencyRatio"] >= 1 - 1e-9 and result["bottleneckRatio"] >= 1 - 1e-9 for result in document["results"]
    )


def test_the_same_seed_draws_the_same_clusters() -> None:
    assert random_instance(random.Random(5), 8) == random_instance(random.Random(5), 8)


def test_the_command_compares_given_instances(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "two.json"
    path.write_text(json.dumps(TWO))

    assert main(["evaluate", "placement", "--instance", str(path), "-o", "json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["clusters"], document["compared"]) == (1, 1)
    assert {result["placed"] for result in document["results"]} == {1.0}

    assert main(["evaluate", "placement", "--instance", str(path)]) == 0
    assert "1 clusters, 1 of which every policy could place" in capsys.readouterr().out


@pytest.mark.parametrize("options", [["--objective", "beauty"], ["--devices", "1"], ["--clusters", "0"]])
def test_wrong_options_are_refused(options: list[str]) -> None:
    assert main(["evaluate", "placement", *options]) == 2
