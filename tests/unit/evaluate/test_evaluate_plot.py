from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from uellm.errors import BadInput
from uellm.evaluate.plot import check, plot

matplotlib = pytest.importorskip("matplotlib")


def result(policy: str, speed: float, seed: int, attained: float, p99_s: float | None) -> dict[str, Any]:
    times = {"p50": p99_s, "p90": p99_s, "p99": p99_s}
    return {
        "policy": policy,
        "speed": speed,
        "seed": seed,
        "maxBatchedTokens": 512,
        "attainment": {"all": attained},
        **dict.fromkeys(("ttftSeconds", "tpotSeconds", "e2eSeconds"), times),
    }


def test_the_plot_shows_every_policy_and_the_bound_over_the_load(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(matplotlib.rcParams, "svg.fonttype", "none")
    results = [
        result(policy, speed, seed, 0.5, 1.0 if speed < 4 else None)
        for policy in ("engine-FCFS", "SLO-ODBS")
        for speed in (1.0, 2.0, 4.0)
        for seed in (1, 2)
    ]

    plot({"trace": "azure.csv", "requests": 80, "results": results, "bound": {"1": 1.0, "4": 0.7}}, tmp_path / "p.svg")

    drawn = (tmp_path / "p.svg").read_text()
    for text in (
        *("engine-FCFS", "SLO-ODBS", "upper bound", "azure.csv, 80 requests", "load: speed-up of the trace"),
        *("share of requests that meet every target", "p99 TTFT, seconds", "p99 TPOT, seconds", "p99 E2E, seconds"),
    ):
        assert f">{text}<" in drawn


def test_the_plot_distinguishes_chunk_sizes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(matplotlib.rcParams, "svg.fonttype", "none")
    results = [result("FCFS", 1.0, 1, 0.5, 1.0) | {"maxBatchedTokens": chunk} for chunk in (512, 8192)]

    plot({"trace": "t", "requests": 1, "results": results}, tmp_path / "p.svg")

    assert ">FCFS, chunk 512<" in (tmp_path / "p.svg").read_text()


@pytest.mark.parametrize("name", ["p", "p.doc", "absent/p.svg"])
def test_a_plot_that_cannot_be_written_is_refused_before_the_replay(tmp_path: Path, name: str) -> None:
    with pytest.raises(BadInput, match="--plot: "):
        check(tmp_path / name)
    check(tmp_path / "p.PDF")
