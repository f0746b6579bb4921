"""`uellm run` with the real engine on this machine: two simulated GPUs, an uneven split, two processes."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import yaml

from uellm_devcluster import tinymodel
from uellm_devcluster.local import free_port

READY_TIMEOUT_S = 300.0
END_TIMEOUT_S = 60.0


def gpu(index: int) -> dict[str, Any]:
    return {"index": index, "uuid": f"GPU-sim-{index}", "product": f"Simulated {index}", "memoryBytes": 2 << 30}


def processes() -> Iterator[tuple[int, int, int]]:
    """Pid, parent and session of every process that is not a zombie."""
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent, _, session = path.read_text().rpartition(")")[2].split()[:4]
        except OSError:
            continue
        if state not in "ZX":
            yield int(path.parent.name), int(parent), int(session)


def members(sessions: set[int]) -> set[int]:
    return {pid for pid, _, session in processes() if session in sessions}


class Run:
    """A running `uellm run`: its output lines, and the sessions of its children."""

    def __init__(self, service: Path, description: Path, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self.lines: list[str] = []
        self._told = threading.Condition()
        command = [sys.executable, "-m", "uellm.cli.main", "run", "-f", str(service), "--simulate", str(description)]
        self.process = subprocess.Popen(
            [*command, "--port", str(port)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with self._told:
                self.lines.append(line.rstrip())
                self._told.notify_all()
        with self._told:
            self.lines.append("(end)")
            self._told.notify_all()

    def until(self, text: str) -> str:
        """The first line that contains the text."""

        def found() -> str | None:
            return next((line for line in self.lines if text in line or line == "(end)"), None)

        with self._told:
            line = self._told.wait_for(found, READY_TIMEOUT_S)
        assert line, f"no {text!r} within {READY_TIMEOUT_S:g} s:\n" + "\n".join(self.lines[-20:])
        assert line != "(end)", "it ended:\n" + "\n".join(self.lines[-20:])
        return line

    def sessions(self) -> set[int]:
        """The sessions of its children while they are alive."""
        parents = {pid: (parent, session) for pid, parent, session in processes()}
        return {session for parent, session in parents.values() if parent == self.process.pid}

    def get(self, url: str) -> Any:
        with urllib.request.urlopen(url, timeout=10) as answer:
            return json.loads(answer.read())

    def chat(self, **options: Any) -> list[str]:
        """The pieces of text of a streamed chat completion."""
        body = {"model": "tiny", "stream": True, "max_tokens": 16, "temperature": 0, **options}
        body["messages"] = [{"role": "user", "content": "How does the import statement work?"}]
        request = urllib.request.Request(
            f"{self.url}/v1/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            events = [line[6:].strip() for line in answer.read().decode().splitlines() if line.startswith("data: ")]
        assert events[-1] == "[DONE]"
        deltas = [json.loads(event)["choices"][0]["delta"] for event in events[:-1]]
        return [delta["content"] for delta in deltas if delta.get("content")]


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Run]:
    model = tinymodel.make(tmp_path / "model")
    service = {
        "apiVersion": "uellm.io/v1alpha1",
        "kind": "LLMService",
        "metadata": {"name": "tiny"},
        "spec": {
            "model": {"uri": f"file://{tmp_path}/model", "config": model, "maxModelLen": 1024},
            "parallelism": {"tensor": 1, "pipeline": 2, "layers": [5, 3]},
        },
    }
    description = {"source": "Simulated", "devices": [gpu(0), gpu(1)]}
    (tmp_path / "service.yaml").write_text(yaml.safe_dump(service))
    (tmp_path / "description.yaml").write_text(yaml.safe_dump(description))
    run = Run(tmp_path / "service.yaml", tmp_path / "description.yaml", free_port())
    yield run
    if run.process.poll() is None:  # after a failed test
        for pid in (*members(run.sessions()), run.process.pid):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    run.process.wait()


def test_tokens_come_out_and_ctrl_c_leaves_no_process(running: Run):
    print(running.until("ready after"))
    metrics = running.until("uellm   | metrics").split()[-1].removesuffix("/metrics")
    report = running.get(f"{metrics}/uellm/placement")
    assert report["layers"] == [5, 3]
    assert sorted(device["uuid"] for device in report["devices"]) == ["GPU-sim-0", "GPU-sim-1"]
    engine = members(running.sessions())
    environments = [Path(f"/proc/{pid}/environ").read_bytes().split(b"\0") for pid in engine]
    assert any(b"VLLM_PP_LAYER_PARTITION=5,3" in environment for environment in environments)
    first = running.chat()
    assert "".join(first)
    assert running.chat() == first

    sessions = running.sessions()
    watched = [os.pidfd_open(pid) for pid in members(sessions)]
    assert len(watched) >= 5  # sidecar, API server, scheduler, two workers
    os.killpg(running.process.pid, signal.SIGINT)  # as a terminal does: to the foreground's process group
    assert running.process.wait(END_TIMEOUT_S) == 0
    for descriptor in watched:
        assert select.select([descriptor], [], [], 5)[0], "a process is left"
        os.close(descriptor)
    assert members(sessions) == set()
