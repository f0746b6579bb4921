"""`uellm fetch` as a process: by hand, and as the download pod runs it."""

from __future__ import annotations

import json
import os
import re
import resource
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import contextmanager
from pathlib import Path
from threading import Event

import pytest

from helpers.files import contents
from helpers.hub_server import COMMIT, hub_server, tensor_file
from uellm.cli.main import main
from uellm.hub import LookUpRefusal
from uellm.hub.copy_document import from_document
from uellm.hub.copy_locks import is_in_use
from uellm.hub.copy_state import Copied, Progress
from uellm.hub.directory import read_directory_facts

DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))
UELLM = str(Path(sys.executable).with_name("uellm"))


@pytest.fixture
def hub():
    with hub_server() as server:
        server.files = {"config.json": b'{"hidden_size": 8}', "model.safetensors": tensor_file({"a": [4096, 16]})}
        yield server


def environment(hub, **more):
    return {**os.environ, "HF_ENDPOINT": hub.url, "HF_TOKEN": "", "no_proxy": "*", **more}


def fetch(hub, *arguments, model="hf://org/model", **options):
    command = [UELLM, "fetch", model, *arguments]
    return subprocess.run(command, env=environment(hub), capture_output=True, text=True, timeout=60, **options)


@contextmanager
def fetching(hub, *arguments):
    """The process, and its port once it serves."""
    command = [UELLM, "fetch", "hf://org/model@main", *arguments, "--listen", "127.0.0.1:0"]
    process = subprocess.Popen(command, env=environment(hub), stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        line = next(each for each in process.stderr if "serving on port" in each)
        yield process, int(re.findall(r"port (\d+)", line)[0])
    finally:
        process.kill()
        process.wait()
        process.stderr.close()


def get(port):
    with DIRECT.open(f"http://127.0.0.1:{port}/uellm/download", timeout=10) as answer:
        return from_document(json.load(answer))


def status(port, path):
    try:
        with DIRECT.open(f"http://127.0.0.1:{port}{path}", timeout=10) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code


def wait_until(condition):
    """Ask until it holds; each time is a request."""
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline


class Held(dict):
    """Files of which the weights are sent only after `go_on`."""

    def __init__(self, files):
        super().__init__(files)
        self.asked, self.go_on, self.listed = Event(), Event(), False

    def __getitem__(self, name):
        if name == "model.safetensors":
            if self.listed:
                self.asked.set()
                self.go_on.wait(30)
            self.listed = True  # the list asks first
        return super().__getitem__(name)


def test_by_hand_it_prints_the_directory_of_the_copy(hub, tmp_path):
    done = fetch(hub, str(tmp_path))
    assert (done.returncode, done.stdout) == (0, f"{tmp_path}/org/model/{COMMIT}\n")
    assert done.stderr == f"2 files of 131 kB, commit {COMMIT}\n"
    assert contents(tmp_path / "org/model" / COMMIT) == hub.files


def test_a_copy_that_was_made_by_hand_is_a_model_on_a_volume(hub, tmp_path):
    directory = Path(fetch(hub, str(tmp_path)).stdout.strip())
    facts = read_directory_facts(directory, tmp_path, "pvc://models")
    assert (facts.config, set(facts.tensors)) == ({"hidden_size": 8}, {"a"})


def test_by_hand_a_refusal_is_one_line_and_a_status(hub, tmp_path):
    hub.token = "hf_secret"
    done = fetch(hub, str(tmp_path))
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert "is gated: accept its terms on that page, and give a token of that account (HF_TOKEN)" in done.stderr


def test_a_disk_that_takes_no_more_is_told_in_one_line_and_what_it_took_is_kept(hub, tmp_path):
    limit = 50_000

    def little_room():
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    done = fetch(hub, str(tmp_path), "--called", "claim models", preexec_fn=little_room)
    assert done.returncode == 1
    assert done.stderr == (
        "uellm fetch: claim models is too small: File too large: enlarge it (spec.model.cache.size where the operator "
        "has made it), or remove what is not needed from it\n"
    )
    assert (tmp_path / "org/model" / COMMIT / "model.safetensors.part").stat().st_size == limit
    assert fetch(hub, str(tmp_path)).returncode == 0
    assert contents(tmp_path / "org/model" / COMMIT) == hub.files


def test_in_a_pod_it_serves_its_progress_and_then_the_result_until_it_is_told_to_end(hub, tmp_path):
    held = hub.files = Held(hub.files)
    with fetching(hub, str(tmp_path)) as (process, port):
        assert held.asked.wait(20)
        found = get(port)
        assert isinstance(found, Progress)
        assert (found.of_bytes, found.waits) == (sum(map(len, held.values())), False)
        held.go_on.set()
        assert "2 files of 131 kB" in next(process.stderr)
        assert get(port) == Copied(COMMIT, f"org/model/{COMMIT}", 2, found.of_bytes)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=20) == 0


def test_adapters_are_copied_beside_their_model_and_a_refusal_names_the_adapter(hub, tmp_path):
    # The hub has one repository: it stands for both.
    found = fetch(hub, str(tmp_path), "--adapter", "sql=hf://org/model")
    assert (found.returncode, found.stdout) == (0, f"{tmp_path}/org/model/{COMMIT}\n")
    assert "4 files of 262 kB" in found.stderr
    refused = fetch(hub, str(tmp_path), "--adapter", "sql=hf://other/sql")
    assert refused.returncode == 1
    assert "adapter sql: " in refused.stderr
    assert "other/sql" in refused.stderr


def test_in_a_pod_it_makes_a_directory_for_compiled_code(hub, tmp_path):
    with fetching(hub, str(tmp_path), "--compiled", "llama") as (process, port):
        assert "2 files" in next(process.stderr)
        assert get(port).compiled == ".compiled/llama"
    assert (tmp_path / ".compiled" / "llama").stat().st_mode & 0o777 == 0o770


def test_a_link_in_place_of_the_directory_for_compiled_code_is_not_followed(hub, tmp_path):
    volume, outside = tmp_path / "volume", tmp_path / "outside"
    volume.mkdir()
    outside.mkdir(mode=0o755)
    (volume / ".compiled").symlink_to(outside)
    with fetching(hub, str(volume), "--compiled", "llama") as (process, port):
        assert "2 files" in next(process.stderr)
        assert get(port).compiled == ""


def test_in_a_pod_a_refusal_names_the_field_of_the_service(hub, tmp_path):
    hub.token = "hf_secret"
    with fetching(hub, str(tmp_path)) as (process, port):
        assert "Gated: " in next(process.stderr)
        found = get(port)
    assert (found.reason, "(spec.model.tokenSecretRef)" in found.message) == ("Gated", True)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_process_that_is_ended_in_the_middle_is_continued_by_the_next_one(hub, tmp_path, number):
    whole = hub.files["model.safetensors"]
    hub.cut_bytes = 60_000
    held = hub.files = Held(hub.files)
    with fetching(hub, str(tmp_path)) as (process, _):
        assert held.asked.wait(20)
        process.send_signal(number)
        process.wait(timeout=20)
        held.go_on.set()
    part = tmp_path / "org/model" / COMMIT / "model.safetensors.part"
    part.write_bytes(whole[:100_000])
    hub.asked.clear()
    assert fetch(hub, str(tmp_path)).returncode == 0
    assert contents(tmp_path / "org/model" / COMMIT) == dict(held)
    assert f"bytes=100000-{len(whole) - 1}" in [headers["range"] for path, headers in hub.asked]


@pytest.mark.parametrize(("model", "said"), [("org/model", "must be hf://owner/name"), ("hf://a@b@c", "must be hf://")])
def test_another_form_of_a_name_is_refused(tmp_path, capsys, model, said):
    assert main(["fetch", model, str(tmp_path)]) == 2
    assert f"uellm fetch: {model}: {said}" in capsys.readouterr().err


def test_a_directory_that_is_not_there_is_refused(tmp_path, capsys):
    assert main(["fetch", "hf://org/model", str(tmp_path / "none")]) == 2
    assert capsys.readouterr().err == f"uellm fetch: {tmp_path}/none: is no directory\n"


def test_on_a_node_it_holds_the_copy_until_it_is_ended(hub, tmp_path):
    with fetching(hub, str(tmp_path), "--hold", "--limit", "1Gi", "--seconds", "0.1") as (process, port):
        wait_until(lambda: status(port, "/readyz") == 200)
        assert isinstance(get(port), Copied)
        copy = tmp_path / "org" / "model" / COMMIT
        assert is_in_use(copy)
        process.terminate()
        process.wait()
        assert not is_in_use(copy)


def test_on_a_node_a_refusal_is_told_for_a_while_and_ends_the_process(hub, tmp_path):
    with fetching(hub, str(tmp_path), "--hold", "--limit", "1Ki", "--seconds", "1") as (process, port):
        wait_until(lambda: isinstance(get(port), LookUpRefusal))
        assert get(port).reason == "VolumeFull"
        assert status(port, "/readyz") == 503
        assert process.wait(30) == 0


def test_on_a_node_the_limit_is_the_one_that_is_written_down_there(hub, tmp_path):
    (tmp_path / ".limit").write_text("1Ki\n")
    with fetching(hub, str(tmp_path), "--hold", "--seconds", "1") as (_, port):
        wait_until(lambda: isinstance(get(port), LookUpRefusal))
        assert "raise the limit (modelCache.limit" in get(port).message
    (tmp_path / ".limit").write_text("1Gi")
    with fetching(hub, str(tmp_path), "--hold") as (_, port):
        wait_until(lambda: isinstance(get(port), Copied))


def test_a_limit_that_is_no_size_is_refused(tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(["fetch", "hf://org/model", str(tmp_path), "--limit", "much"])
    assert "'much' is not a quantity" in capsys.readouterr().err
