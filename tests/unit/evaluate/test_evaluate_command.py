from __future__ import annotations

import json
from pathlib import Path

import pytest

from uellm.cli.main import main
from uellm.planner.cost.engine_file import EngineFile
from uellm.step_time import StepTime

ENGINE = EngineFile("e", StepTime(5.5e-3, 45e-6, 44e-9, 15e-6, 0.5e-3), 24_000, 16, 256, 8192, 16_384)


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    paths = {name: tmp_path / f"{name}.txt" for name in ("trace", "classes", "engine")}
    paths["trace"].write_text("arrival_s,input_tokens,output_tokens\n0,10,10\n")
    paths["classes"].write_text("classes: [{name: chat, ttft: 1s}]")
    paths["engine"].write_text(json.dumps(ENGINE.to_dict()))
    return paths


def status(files: dict[str, Path], *options: str) -> int:
    return main(["evaluate", "queue", *(f"--{name}={path}" for name, path in files.items()), *options])


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--policy", "LIFO"], "--policy: 'LIFO' is none of engine-FCFS"),
        (["--guards", "no-luck"], "--guards: 'no-luck' is not a guard: give gate"),
        (["--max-batched-tokens", "some"], "--max-batched-tokens: must be a number of tokens or auto"),
        (["--max-batched-tokens", "0"], "--max-batched-tokens: must be a number of tokens or auto"),
        (["--plot", "plot.doc"], "--plot: plot.doc must end in .svg, .png, .pdf"),
        (["--plot", "/nowhere/at/all/plot.svg"], "--plot: /nowhere/at/all/plot.svg cannot be written"),
    ],
)
def test_a_wrong_option_is_refused_in_one_line(
    files: dict[str, Path], options: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert status(files, *options) == 2
    error = capsys.readouterr().err
    assert says in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--route", "nearest"], "--route: 'nearest' is none of random, round-robin, fewest-requests"),
        (["--replicas", "0"], "--replicas: must be between 1 and 256, and is 0"),
        (["--replicas", "2", "--replica-speed", "1", "1", "1"], "--replica-speed: gives 3 speeds for 2 replicas"),
        (["--kill", "1"], "--kill: '1' is not a replica and a time: write for example 1@30"),
        (["--kill", "4@30"], "--kill: there is no replica 4: they are numbered 0 to 3"),
        (["--silence", "-1@30"], "--silence: '-1@30' is not a replica and a time"),
        (["--lying", "9", "--join", "5"], "--lying: there is no replica 9: they are numbered 0 to 4"),
    ],
)
def test_a_wrong_fleet_is_refused_in_one_line(
    files: dict[str, Path], options: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [f"--{name}={path}" for name, path in files.items()]
    options = [f"{options[0]}={options[1]}", *options[2:]]
    assert main(["evaluate", "fleet", *arguments, *options]) == 2
    error = capsys.readouterr().err
    assert says in error
    assert error.count("\n") == 1


def test_an_overhead_is_a_duration(files: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as error:
        status(files, "--request-overhead", "10")
    assert error.value.code == 2
    assert "argument --request-overhead: '10' is not a duration: write for example 500ms" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("trace", "a,b\n1,2\n", "has no column 'timestamp'"),
        ("classes", "classes: [", "is not YAML"),
        ("classes", "classes: []", "classes.txt.classes: must be a list"),
        ("engine", "{}", "engine.txt.stepSeconds: must be an object"),
        ("engine", "{", "is not JSON"),
        ("engine", '{"a":' * 20_000, "is not JSON"),
    ],
    ids=["trace", "classes", "no classes", "no times", "cut", "deep"],
)
def test_a_wrong_file_is_refused_in_one_line(
    files: dict[str, Path], name: str, text: str, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    files[name].write_text(text)

    assert status(files) == 2
    error = capsys.readouterr().err
    assert says in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("name", ["trace", "classes", "engine"])
def test_a_missing_file_is_refused_in_one_line(
    files: dict[str, Path], name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    files[name].unlink()

    assert status(files) == 2
    assert capsys.readouterr().err == f"uellm evaluate: {files[name]}: cannot be read: No such file or directory\n"


def test_a_trace_of_longer_requests_than_allowed_cannot_be_replayed(files: dict[str, Path]) -> None:
    assert status(files, "--max-tokens-per-request", "15") == 1


@pytest.mark.parametrize(
    "options", [["--speed", "0"], ["--speed", "fast"], ["--limit", "-1"], ["--length-sigma", "-1"]]
)
def test_a_number_that_makes_no_sense_is_refused(files: dict[str, Path], options: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        status(files, *options)

    assert ended.value.code == 2
