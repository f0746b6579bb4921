"""The engine's parent downloads LoRA adapters, by huggingface_hub from a hub on real sockets, for the sidecar alone."""

from __future__ import annotations

import http.client
import json
import threading
from collections.abc import Iterator
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from helpers.hub_server import COMMIT, HubServer, hub_server, tensor_file
from uellm.launcher import probes
from uellm.launcher.adapters import AdapterDownloads
from uellm.pod_interface import ADAPTER_PATH, ADAPTER_TOKEN_FILE, ADAPTER_TOKEN_HEADER

CONFIG = b'{"r": 8}'


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[HubServer]:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "HF_HUB_OFFLINE", "HF_TOKEN"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    with hub_server() as server:
        server.repository = "org/sql"
        server.files = {
            "adapter_config.json": CONFIG,
            "adapter_model.safetensors": tensor_file({"a": [2, 2]}),
            "optimizer.pt": b"not needed",
        }
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
        yield server


@pytest.fixture
def parent(tmp_path: Path) -> Iterator[ThreadingHTTPServer]:
    downloads = AdapterDownloads(tmp_path)
    downloads.publish()
    server = probes.listen(0, ("127.0.0.1", 1), ("127.0.0.1", 1), downloads)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def ask(server: ThreadingHTTPServer, body: Any, token: str) -> tuple[int, dict[str, str]]:
    connection = http.client.HTTPConnection("127.0.0.1", server.server_address[1], timeout=60)
    try:
        connection.request("POST", ADAPTER_PATH, json.dumps(body), {ADAPTER_TOKEN_HEADER: token})
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())
    finally:
        connection.close()


def wanted(commit: str = COMMIT, repository: str = "org/sql") -> dict[str, str]:
    return {"repository": repository, "commit": commit}


def test_an_adapter_comes_at_its_commit_without_files_that_nobody_reads(hub, parent, tmp_path):
    token = (tmp_path / ADAPTER_TOKEN_FILE).read_text()
    status, answer = ask(parent, wanted(), token)
    assert (status, answer.get("error")) == (200, None)
    directory = Path(answer["path"])
    assert directory.name == COMMIT
    assert sorted(each.name for each in directory.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
    assert (directory / "adapter_config.json").read_bytes() == CONFIG


def test_the_hubs_reason_is_told_in_one_line(hub, parent, tmp_path):
    hub.failure = (401, {"X-Error-Code": "RepoNotFound"})
    status, answer = ask(parent, wanted(), (tmp_path / ADAPTER_TOKEN_FILE).read_text())
    assert status == 502
    assert answer["error"].startswith(f"org/sql at {COMMIT} was not downloaded: RepositoryNotFoundError")
    assert "\n" not in answer["error"]


@pytest.mark.parametrize("token", ["", "wrong", "ü"])
def test_nobody_without_the_pods_secret_may_ask(hub, parent, token):
    assert ask(parent, wanted(), token)[0] == 403
    assert hub.asked == []


@pytest.mark.parametrize(
    "body", [{}, [], wanted(repository="../etc"), wanted(repository="--help"), wanted(commit="-x"), {"commit": 5}]
)
def test_what_is_no_repository_at_a_commit_is_refused(hub, parent, tmp_path, body):
    assert ask(parent, body, (tmp_path / ADAPTER_TOKEN_FILE).read_text())[0] == 400
    assert hub.asked == []
