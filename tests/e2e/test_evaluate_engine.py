"""The virtual engine against vLLM's unmodified scheduler, and the whole command with it. No engine is started."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from uellm.cli.main import main
from uellm.evaluate import engine as engine_module
from uellm.evaluate.engine import VirtualEngine, Work
from uellm.evaluate.traces import PREFIX_BLOCK_TOKENS
from uellm.evaluate.vllm_scheduler import FCFS, PRIORITY
from uellm.planner.cost.engine_file import EngineFile
from uellm.step_time import StepTime

STEP = StepTime(5.5e-3, 45e-6, 44e-9, 15e-6, 0.5e-3)
ENGINE = EngineFile(
    "small", STEP, kv_blocks=200, block_tokens=16, max_num_seqs=12, max_num_batched_tokens=256, max_model_len=2048
)

FIGURES = {
    *("attainment", "goodputPerSecond", "ttftSeconds", "tpotSeconds", "e2eSeconds", "outputTokensPerSecond"),
    *("shed", "preempted", "jain", "schedulerMicroseconds"),
}


def works(count: int, seed: int) -> list[Work]:
    generator = random.Random(seed)
    arrival_s, some = 0.0, []
    for key in range(count):
        arrival_s += generator.expovariate(12.0)
        blocks = tuple(generator.sample([[1, 2], [1, 3], [4]], 1)[0])
        prompt, output = generator.randint(1, 900), generator.randint(1, 250)
        some.append(Work(key, arrival_s, prompt, output, generator.randint(0, 9), blocks))
    return some


def run(policy: str, some: list[Work], *, leaping: bool) -> tuple[dict[int, list[float]], int]:
    """The times of each request's tokens, and the number of preemptions."""
    engine = VirtualEngine(ENGINE, policy)
    came: dict[int, list[float]] = {work.key: [] for work in some}
    todo, now_s = list(some), 0.0
    while todo or engine.busy:
        if not engine.busy:
            now_s = max(now_s, todo[0].arrival_s)
        while todo and todo[0].arrival_s <= now_s:
            engine.add(todo.pop(0))
        ends, keys = engine.leap(now_s, todo[0].arrival_s if todo else float("inf")) if leaping else ([], [])
        if not ends:
            step = engine.step(now_s)
            ends, keys = [step.end_s], step.tokens
        for key in keys:
            came[key] += ends
        now_s = ends[-1]
    return came, engine.preemptions


@pytest.fixture
def unhurried(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Disables the shortcut past `allocate_slots`."""
    return lambda: monkeypatch.setattr(engine_module, "_in_place", lambda manager, _tokens: manager.allocate_slots)


@pytest.mark.parametrize("policy", [FCFS, PRIORITY])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_leaps_and_short_ways_change_no_token_by_a_digit(policy: str, seed: int, unhurried: Callable[[], None]) -> None:
    some = works(120, seed)

    quick, preempted = run(policy, some, leaping=True)
    unhurried()
    plain, preempted_plainly = run(policy, some, leaping=False)

    assert quick == plain
    assert preempted == preempted_plainly
    assert preempted > 0, "the KV cache was never short: the test says nothing about preemption"
    assert [len(times) for times in quick.values()] == [work.output_tokens for work in some]


def test_a_prefix_that_was_computed_is_not_computed_again() -> None:
    def first_token_s(blocks: tuple[int, ...]) -> float:
        engine = VirtualEngine(ENGINE, max_num_batched_tokens=2048)
        engine.add(Work(1, 0.0, 2 * PREFIX_BLOCK_TOKENS + 50, 1, blocks=(7, 8, 9)))
        now_s = engine.step(0.0).end_s
        engine.add(Work(2, 0.0, 2 * PREFIX_BLOCK_TOKENS + 50, 1, blocks=blocks))
        return engine.step(now_s).end_s - now_s

    whole, half, none = first_token_s((7, 8, 10)), first_token_s((7, 11, 12)), first_token_s(())

    saved_s = PREFIX_BLOCK_TOKENS * STEP.per_prefill_token_s
    assert none - half == pytest.approx(saved_s)
    assert whole == pytest.approx(STEP.step_s(50, 2 * PREFIX_BLOCK_TOKENS + 50, 1))


def test_a_client_that_leaves_frees_the_engine() -> None:
    engine = VirtualEngine(ENGINE)
    engine.add(Work(1, 0.0, 100, 50))
    engine.step(0.0)

    engine.abort(1)

    assert not engine.busy
    assert engine.kv_used_share == 0.0


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    """A trace of two bursts, classes and an engine, as the command's arguments."""
    rows = [f"{i * 0.02 + (5 if i >= 40 else 0):.2f},{i % 3},{100 + i * 7},{10 + i % 30}" for i in range(80)]
    (tmp_path / "trace.csv").write_text("\n".join(["arrival_s,client,input_tokens,output_tokens", *rows]))
    (tmp_path / "engine.json").write_text(json.dumps(ENGINE.to_dict()))
    (tmp_path / "classes.yaml").write_text(
        "classes: [{name: chat, share: 0.6, ttft: 300ms, tpot: 20ms}, {name: task, share: 0.4, e2e: 3s}]\n"
        "predictor: {kind: noisy-oracle, sigma: 0.7}\n"
    )
    return [
        f"--{name}={tmp_path / file}"
        for name, file in (("trace", "trace.csv"), ("classes", "classes.yaml"), ("engine", "engine.json"))
    ]


def test_the_command_prints_one_document_with_every_figure(
    files: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    plot = tmp_path / "plot.svg"
    arguments = [
        "--speed",
        "1",
        "4",
        "--policy",
        "engine-FCFS",
        "SLO-ODBS",
        "--seed",
        "1",
        "2",
        "--bound",
        "--jobs",
        "2",
        "-o",
        "json",
    ]

    assert main(["evaluate", "queue", *files, *arguments, "--max-batched-tokens", "auto", "--plot", str(plot)]) == 0

    document: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert (document["trace"], document["requests"]) == ("trace.csv", 80)
    assert [(r["speed"], r["policy"], r["seed"]) for r in document["results"]] == [
        (speed, policy, seed) for speed in (1, 4) for policy in ("engine-FCFS", "SLO-ODBS") for seed in (1, 2)
    ]
    for result in document["results"]:
        assert set(result["attainment"]) == {"all", "chat", "task"}
        assert set(result) == {"policy", "speed", "seed", "maxBatchedTokens", *FIGURES}
        assert set(result["ttftSeconds"]) == {"p50", "p90", "p99"}
        assert result["attainment"]["all"] <= document["bound"][f"{result['speed']:g}"] <= 1
        assert (result["schedulerMicroseconds"] > 0) == (result["policy"] == "SLO-ODBS")
    assert plot.read_text().startswith("<?xml")


def test_the_same_command_prints_the_same_table_in_one_process_and_in_two(
    files: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    def printed(processes: str) -> list[list[str]]:
        arguments = ["--speed", "4", "--policy", "engine-EDF", "engine-SJF", "FCFS", "--jobs", processes]
        assert main(["evaluate", "queue", *files, *arguments]) == 0
        # All columns except the last, which is measured.
        return [line.split()[:-1] for line in capsys.readouterr().out.splitlines()]

    assert printed("1") == printed("2")


def test_a_fleet_of_one_has_the_figures_of_a_queue(files: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    def results(*command: str) -> list[dict[str, Any]]:
        arguments = ["--speed", "4", "--policy", "SLO-ODBS", "--jitter", "0.1", "-o", "json"]
        assert main(["evaluate", *command, *files, *arguments]) == 0
        found: list[dict[str, Any]] = json.loads(capsys.readouterr().out)["results"]
        # The scheduler's CPU time is measured.
        return [{key: value for key, value in result.items() if key != "schedulerMicroseconds"} for result in found]

    alone = results("queue")[0]

    for result in results("fleet", "--replicas", "1", "--route", "random", "auto"):
        assert result.pop("requestsByReplica") == [80]
        assert result.pop("retried") == 0
        assert result.pop("route") in {"random", "auto"}
        assert result == alone
