"""`uellm inspect` as a process: it looks up, and serves what it found on a real socket until it is told to end."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from contextlib import contextmanager
from pathlib import Path
from threading import Event

import pytest

from helpers.hub_server import COMMIT, hub_server, tensor_file
from uellm.cli.main import main
from uellm.hub.document import from_document

DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))


@contextmanager
def inspecting(*arguments, **environment):
    """The process, and its port once it serves."""
    command = [str(Path(sys.executable).with_name("uellm")), "inspect", *arguments, "--listen", "127.0.0.1:0"]
    process = subprocess.Popen(command, env={**os.environ, **environment}, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        line = next(each for each in process.stderr if "serving on port" in each)
        yield process, int(re.findall(r"port (\d+)", line)[0])
    finally:
        process.kill()
        process.wait()
        process.stderr.close()


def get(port):
    try:
        with DIRECT.open(f"http://127.0.0.1:{port}/uellm/model", timeout=10) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def result(process, port):
    """What is served once the look-up is done, which the log tells."""
    next(process.stderr)
    status, document = get(port)
    assert status == 200
    return from_document(document)


@pytest.fixture
def hub():
    with hub_server() as server:
        server.files = {"config.json": b'{"hidden_size": 8}', "model.safetensors": tensor_file({"a": [4]})}
        yield server


def test_it_serves_the_facts_again_and_again_until_it_is_told_to_end(hub):
    with inspecting("hf://org/model@main", HF_ENDPOINT=hub.url) as (process, port):
        found = result(process, port)
        assert (found.commit, found.config, set(found.tensors)) == (COMMIT, {"hidden_size": 8}, {"a"})
        assert get(port)[0] == 200
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=20) == 0


def test_a_refusal_names_the_field_of_the_service(hub):
    hub.token = "hf_secret"
    with inspecting("hf://org/model", HF_ENDPOINT=hub.url, HF_TOKEN="") as (process, port):
        found = result(process, port)
    assert (found.reason, "(spec.model.tokenSecretRef)" in found.message) == ("Gated", True)


def test_a_draft_is_looked_up_after_the_model(hub, tmp_path):
    directory = tmp_path / "draft"
    directory.mkdir()
    (directory / "config.json").write_text('{"hidden_size": 4}')
    (directory / "model.safetensors").write_bytes(tensor_file({"b": [2]}))
    for uri, source in (("hf://org/model@main",) * 2, (f"{directory},{tmp_path}", str(directory))):
        with inspecting("hf://org/model", f"--draft={uri}", HF_ENDPOINT=hub.url) as (process, port):
            found = result(process, port)
        assert (found.config, found.draft.source) == ({"hidden_size": 8}, source)
    assert (found.draft.facts.config, set(found.draft.facts.tensors)) == ({"hidden_size": 4}, {"b"})


def test_a_refusal_of_a_draft_says_so(hub):
    with inspecting("/models", "--only-adapters", "--draft=hf://org/small", HF_ENDPOINT=hub.url) as (process, port):
        found = result(process, port)
    assert found.reason == "NoSuchRepository"
    assert found.message.startswith(f"draft model: {hub.url}/org/small does not exist, or is private")


def test_while_it_reads_it_says_so_and_can_be_ended(hub):
    asked, go_on = Event(), Event()

    class Slow(dict):
        def __contains__(self, name):
            asked.set()
            go_on.wait(20)
            return super().__contains__(name)

    hub.files = Slow(hub.files)
    with inspecting("hf://org/model", HF_ENDPOINT=hub.url) as (process, port):
        assert asked.wait(20)
        assert get(port) == (503, {"reading": True})
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=20) == 0
        go_on.set()


def test_it_ends_by_itself_when_nobody_ends_it(tmp_path):
    (tmp_path / "config.json").write_text("[]")
    with inspecting(str(tmp_path), "--seconds", "0.1", "--called", "pvc://claim/m") as (process, _):
        line = next(process.stderr)
        assert process.wait(timeout=20) == 0
    assert line.endswith("InvalidAnswer: pvc://claim/m cannot be read: config.json is no JSON object\n")


def test_a_directory_is_read_within_its_volume(tmp_path):
    (tmp_path / "volume").mkdir()
    (tmp_path / "secret").write_text('{"hidden_size": 8}')
    (tmp_path / "volume" / "config.json").symlink_to("../secret")
    with inspecting(str(tmp_path / "volume"), "--volume", str(tmp_path / "volume")) as (process, port):
        assert "leads out of the volume" in result(process, port).message


@pytest.mark.parametrize("model", ["hf://", "models/llama", "https://x/y"])
def test_another_form_of_a_model_is_refused(model, capsys):
    assert main(["inspect", model]) == 2
    assert f"uellm inspect: {model}: must be hf://owner/name" in capsys.readouterr().err
