"""`uellm model` and `uellm plan` with a model's name on the hub."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from helpers.hub_server import COMMIT, hub_server
from uellm.cli.main import main
from uellm_devcluster import tinymodel


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    directory: Path = tmp_path_factory.mktemp("tiny")
    tinymodel.make(directory)
    return directory


@pytest.fixture
def hub(checkpoint, monkeypatch):
    with hub_server() as server:
        server.files = {name: (checkpoint / name).read_bytes() for name in ("config.json", "model.safetensors")}
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        monkeypatch.delenv("HF_TOKEN", raising=False)
        yield server


@pytest.fixture
def command(capsys):
    def run(*args: Any) -> tuple[int, str, str]:
        status = main([str(arg) for arg in args])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return run


def test_a_model_on_the_hub_is_sized_as_its_directory_is(command, hub, checkpoint):
    status, found, said = command("model", "hf://org/model@main", "-o", "json")
    assert (status, said) == (0, f"hf://org/model at {COMMIT}\n")
    assert json.loads(found) == json.loads(command("model", checkpoint, "-o", "json")[1])
    assert json.loads(found)["source"] == "safetensors"


def test_a_plan_stands_on_the_headers_of_the_hub(command, hub, tmp_path):
    given = {
        "apiVersion": "uellm.io/v1alpha1",
        "kind": "LLMService",
        "metadata": {"name": "tiny"},
        "spec": {"model": {"uri": "hf://org/model"}},
    }
    device = {
        "index": 0,
        "uuid": "GPU-0",
        "product": "L4",
        "memoryBytes": 24 << 30,
        "measured": {"bf16GigaflopsPerSecond": 100_000, "memoryBytesPerSecond": 300_000_000_000},
    }
    profile = {
        "apiVersion": "uellm.io/v1alpha1",
        "kind": "GPUNodeProfile",
        "metadata": {"name": "n"},
        "status": {"devices": [device]},
    }
    (tmp_path / "service.yaml").write_text(json.dumps(given))
    (tmp_path / "profiles.yaml").write_text(json.dumps(profile))
    files = ("-f", tmp_path / "service.yaml", "--profiles", tmp_path / "profiles.yaml", "-o", "json")
    status, found, _ = command("plan", *files, "--model-config", "hf://org/model")
    assert (status, json.loads(found)["layers"]) == (0, [8])


def test_a_token_of_the_environment_opens_a_gated_model(command, hub, monkeypatch):
    hub.token = "hf_secret"
    status, _, said = command("model", "hf://org/model")
    assert (status, f"{hub.url}/org/model is gated: accept its terms on that page" in said) == (1, True)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    assert command("model", "hf://org/model")[0] == 0


@pytest.mark.parametrize("uri", ["hf://", "hf://../secret", "hf://org/model@", "hf://org/model@a b", "hf://a/b/c"])
def test_another_form_of_a_name_is_refused_before_anything_is_asked(command, hub, uri):
    status, _, said = command("model", uri)
    if uri.endswith("@"):
        assert (status, hub.asked[0][0]) == (0, "/org/model/resolve/main/config.json")
        return
    assert (status, said) == (2, f"uellm model: {uri}: must be hf://owner/name, with @revision if it is not main\n")
    assert hub.asked == []
