"""A running `uellm run` with simulated GPUs, which a test talks to."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import yaml

from uellm_devcluster.local import free_port

READY_TIMEOUT_S = 300.0
END_TIMEOUT_S = 60.0
DEVICE = {"index": 0, "uuid": "GPU-sim-0", "product": "Simulated", "memoryBytes": 2 << 30}


class LocalRun:
    """A service on this machine: its addresses, and the lines that `uellm run` printed."""

    def __init__(self, process: subprocess.Popen[str], port: int) -> None:
        self.process = process
        self.url = f"http://127.0.0.1:{port}"
        self.lines: list[str] = []
        self._news = threading.Condition()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._add(line.rstrip())
        self._add("(end)")

    def _add(self, line: str) -> None:
        with self._news:
            self.lines.append(line)
            self._news.notify_all()

    def until(self, text: str) -> str:
        """The first line that contains the text; fails if it ends or takes too long."""

        def found() -> str | None:
            return next((line for line in self.lines if text in line or line == "(end)"), None)

        with self._news:
            line = self._news.wait_for(found, READY_TIMEOUT_S)
        assert line is not None, f"no {text!r}:\n" + "\n".join(self.lines[-30:])
        assert line != "(end)", "it ended:\n" + "\n".join(self.lines[-30:])
        return line

    @property
    def metrics(self) -> str:
        """The base of the sidecar's metrics address."""
        return self.until("uellm   | metrics").split()[-1].removesuffix("/metrics")

    @property
    def command(self) -> list[str]:
        """The engine's command line: that of the child that serves a model."""
        for child in Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split():
            words = Path(f"/proc/{child}/cmdline").read_bytes().decode().split("\0")
            if "serve" in words:
                return words
        raise AssertionError("no engine runs")

    @property
    def engine(self) -> str:
        """The engine's own address, behind the sidecar."""
        return f"http://127.0.0.1:{self.command[self.command.index('--port') + 1]}"


def post(url: str, body: dict[str, Any], headers: dict[str, str] | None = None) -> tuple[int, bytes]:
    """The status and the body of the answer."""
    given = {"Content-Type": "application/json", **(headers or {})}
    request = urllib.request.Request(url, json.dumps(body).encode(), given)
    try:
        with urllib.request.urlopen(request, timeout=120) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


@contextmanager
def local_run(scratch: Path, spec: dict[str, Any], name: str = "tiny") -> Iterator[LocalRun]:
    """The service on one simulated GPU, ended as a terminal does."""
    service = {"apiVersion": "uellm.io/v1alpha1", "kind": "LLMService", "metadata": {"name": name}, "spec": spec}
    (scratch / "service.yaml").write_text(yaml.safe_dump(service))
    (scratch / "gpus.yaml").write_text(yaml.safe_dump({"source": "Simulated", "devices": [DEVICE]}))
    port = free_port()
    command = [sys.executable, "-m", "uellm.cli.main", "run", "-f", str(scratch / "service.yaml")]
    command += ["--simulate", str(scratch / "gpus.yaml"), "--port", str(port)]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    try:
        yield LocalRun(process, port)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGINT)
        try:
            process.wait(END_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
