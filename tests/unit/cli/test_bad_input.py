"""Input that a user may get wrong ends a command with one line, whichever part finds it."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from uellm.cli.main import COMMANDS, main
from uellm.errors import BadInput
from uellm.gateway.fleet import Fleet
from uellm.gateway.static_view import StaticView

LATIN = "name: k\u00fcche".encode("latin-1")
DESCRIPTION = {
    "source": "Simulated",
    "driverVersion": "simulated",
    "devices": [
        {"index": 0, "uuid": "GPU-0", "product": "L4", "memoryBytes": 24 << 30, "health": {"state": "Healthy"}}
    ],
}


@pytest.fixture
def described(tmp_path: Path) -> str:
    file = tmp_path / "node.yaml"
    file.write_text(json.dumps(DESCRIPTION))
    return str(file)


def one_line(capsys: pytest.CaptureFixture[str]) -> str:
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1, captured.err
    return captured.err


def test_bad_flags_are_one_line(capsys):
    for argv, words in (
        (["plan"], "uellm plan: the following arguments are required: -f/--file (see uellm plan --help)"),
        (["evaluate", "queue", "--speed", "0"], "uellm evaluate queue: argument --speed: must be above 0 (see "),
        (["sidecar", "--drain-seconds", "-1"], "uellm sidecar: argument --drain-seconds: "),
        (["nonsense"], "uellm: argument COMMAND: invalid choice"),
    ):
        with pytest.raises(SystemExit) as ended:
            main(argv)
        assert ended.value.code == 2
        assert one_line(capsys).startswith(words)


@pytest.mark.parametrize("command", [("plan", "-f", "{file}"), ("gateway", "--listen", ":0"), ("extender",)])
def test_a_kubeconfig_that_is_not_utf_8_is_named(command, tmp_path, capsys, monkeypatch):
    kubeconfig, service = tmp_path / "config", tmp_path / "service.yaml"
    kubeconfig.write_bytes(LATIN)
    monkeypatch.setenv("KUBECONFIG", str(kubeconfig))
    service.write_text("kind: LLMService\nmetadata: {name: llama}\n")
    assert main([part.format(file=service) for part in command]) == 2
    assert f"{kubeconfig}: not a kubeconfig that can be used" in one_line(capsys)


def test_a_file_of_services_that_is_not_utf_8_is_named(tmp_path):
    file = tmp_path / "services.yaml"
    file.write_bytes(LATIN)
    with pytest.raises(BadInput, match=r"services\.yaml: is not UTF-8 text"):
        StaticView(file, Fleet())


@pytest.mark.parametrize("place", ["file", "file/below"])
def test_crds_that_cannot_be_written_name_the_directory(place, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert main(["crds", "--output-dir", str(tmp_path / place)]) == 2
    assert f"--output-dir {tmp_path / place}: cannot be written: " in one_line(capsys)


@pytest.mark.parametrize(
    "text",
    [
        "kind: LLMService\nmetadata: {name: a}\nspec: &s {model: {uri: 'hf://o/m', config: *s}}\n",
        "&l\nkind: List\nitems: [*l]\n",
        f"kind: {'[' * 5000}{']' * 5000}\n",
    ],
)
def test_yaml_that_contains_itself_or_is_nested_without_end_is_one_line(text, tmp_path, capsys):
    file = tmp_path / "service.yaml"
    file.write_text(text)
    assert main(["plan", "-f", str(file), "--profiles", str(file)]) == 2
    assert "nested too deeply, or contains itself" in one_line(capsys)


def test_the_service_may_come_from_standard_input(monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"kind: Pod\n")))
    assert main(["plan", "-f", "-", "--profiles", "/nowhere"]) == 2
    assert one_line(capsys) == "uellm plan: -: must hold one LLMService; it holds 0\n"


@pytest.mark.parametrize("argv", [("plan", "-f", "-", "--profiles", "/nowhere"), ("predict", "-")])
def test_standard_input_that_is_no_text_or_is_closed_is_one_line(argv, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(LATIN), errors="surrogateescape"))
    assert main([*argv]) == 2
    assert one_line(capsys) == f"uellm {argv[0]}: -: cannot be read: is not UTF-8 text\n"
    monkeypatch.setattr(sys, "stdin", None)
    assert main([*argv]) == 2
    assert one_line(capsys) == f"uellm {argv[0]}: -: cannot be read: standard input is closed\n"


def test_a_hub_that_is_no_web_address_is_named(monkeypatch, capsys):
    monkeypatch.setenv("HF_ENDPOINT", "bogus")
    assert main(["model", "hf://org/model"]) == 2
    assert one_line(capsys) == "uellm model: HF_ENDPOINT: 'bogus' is no web address, such as https://huggingface.co\n"


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--class-name", "BAD_"), "--class-name: 'BAD_' is not a name of lower-case letters"),
        (("--label", "nvidia.com/gpu.count=99"), "--label: nvidia.com/gpu.count is '1' by the GPUs: leave it out"),
    ],
)
def test_a_class_that_the_api_server_would_refuse_or_that_says_otherwise_is_refused(described, flags, words, capsys):
    assert main(["profile", "--simulate", described, "-o", "class", *flags]) == 2
    assert words in one_line(capsys)


def test_a_label_that_the_gpus_have_anyway_may_be_given(described, capsys):
    given = ("--label", "nvidia.com/gpu.count=1", "--label", "pool=gpus")
    assert main(["profile", "--simulate", described, "-o", "class", *given]) == 0
    assert "pool: gpus" in capsys.readouterr().out


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_a_full_disk_under_standard_output_is_one_line():
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "uellm.cli.main", "crds"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": "operator"},
            check=False,
        )
    assert (done.returncode, done.stderr) == (
        1,
        "uellm crds: the output cannot be written: No space left on device\n",
    )


def test_an_interrupt_while_the_command_is_imported_is_status_130(monkeypatch, capsys):
    def interrupted(name: str) -> None:
        assert name == COMMANDS["plan"].module
        raise KeyboardInterrupt

    monkeypatch.setattr("importlib.import_module", interrupted)
    assert main(["plan", "-f", "x"]) == 130
    assert capsys.readouterr() == ("", "")
