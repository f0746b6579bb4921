"""`uellm controller` as a process of its own, against the API server of a kubeconfig."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path

from uellm_devcluster.local import free_port

DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class Process:
    """`uellm controller` with its own health port. `enter`: a command that starts it elsewhere."""

    def __init__(
        self, kubeconfig: str, namespace: str, log: Path, *, listen: str = "127.0.0.1:", enter: Sequence[str] = ()
    ) -> None:
        self.log = log
        self.port = free_port()
        command = [*enter, str(Path(sys.executable).with_name("uellm")), "controller"]
        options = {"health-listen": f"{listen}{self.port}", "namespace": namespace}
        images = {"engine-image": "engine:1", "sidecar-image": "sidecar:1", "launcher-image": "launcher:1"}
        images["inspector-image"] = "operator:1"
        command += [f"--{name}={value}" for name, value in (options | images).items()]
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                command, env={**os.environ, "KUBECONFIG": kubeconfig}, stdout=output, stderr=output
            )

    def healthy(self) -> bool:
        return self._answers("/healthz")

    def ready(self) -> bool:
        return self._answers("/readyz")

    def _answers(self, path: str) -> bool:
        try:
            with DIRECT.open(f"http://127.0.0.1:{self.port}{path}", timeout=5) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            return False

    def stop(self) -> None:
        """Let it do nothing, as a process on a frozen machine, until `go_on`."""
        self._process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        self._process.send_signal(signal.SIGCONT)

    def end(self, number: int = signal.SIGTERM, *, timeout_s: float = 10.0) -> int:
        self._process.send_signal(number)
        return self._process.wait(timeout=timeout_s)

    def children(self) -> list[int]:
        """Ids of its child processes, including the planner's."""
        listed = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text()
        return [int(pid) for pid in listed.split()]

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def ended(self) -> bool:
        return self._process.poll() is not None

    def text(self) -> str:
        return self.log.read_text()
