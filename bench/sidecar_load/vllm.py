"""Real vLLM on the CPU with a small model, and the sidecar as `uellm sidecar` runs it: each a process of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from sidecar_load.ways import free_port
from uellm_devcluster import tinymodel

READY_TIMEOUT_S = 600.0
ENVIRONMENT = {
    "VLLM_HOST_IP": "127.0.0.1",
    "GLOO_SOCKET_IFNAME": "lo",
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "WARNING",
}
PROGRAMS = Path(sys.executable).parent


@contextmanager
def running(command: list[Any], ready_url: str, log: Path) -> Iterator[int]:
    """Run the program while the block runs; yields its process id. Prints its log if it does not become ready."""
    with log.open("wb") as out:
        process = subprocess.Popen(
            list(map(str, command)),
            stdout=out,
            stderr=subprocess.STDOUT,
            env=os.environ | ENVIRONMENT,
            start_new_session=True,
        )
    try:
        _wait(process, ready_url, log)
        yield process.pid
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _wait(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    deadline_s = time.monotonic() + READY_TIMEOUT_S
    while time.monotonic() < deadline_s and process.poll() is None:
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except OSError:
            time.sleep(0.5)
    raise SystemExit(f"{url} does not answer:\n{log.read_text(errors='replace')[-3000:]}")


def engine_command(model: Path, port: int, *, chunk: int, sequences: int) -> list[Any]:
    # With equal priorities vLLM's priority policy is first come, first served, so one engine serves both cases.
    return [
        *(PROGRAMS / "vllm", "serve", model, "--served-model-name", "tiny", "--host", "127.0.0.1", "--port", port),
        *("--dtype", "float32", "-cc.mode=2", "-cc.backend=eager", "--kv-cache-memory-bytes", "256M"),
        *("--max-model-len", 1024, "--max-num-seqs", sequences, "--max-num-batched-tokens", chunk),
        *("--scheduling-policy", "priority", "--no-enable-prefix-caching"),
    ]


def sidecar_command(port: int, metrics_port: int, engine: str, config: Path) -> list[Any]:
    return [
        *(PROGRAMS / "uellm", "sidecar", "--listen", f"127.0.0.1:{port}"),
        *("--metrics-listen", f"127.0.0.1:{metrics_port}", "--engine", engine, "--config", config),
    ]


@dataclass(frozen=True)
class Served:
    """A running engine with the sidecar in front of it."""

    engine_port: int
    engine_pid: int
    sidecar_port: int
    sidecar_pid: int
    model: Path
    """The model's folder."""

    @property
    def engine(self) -> str:
        """The engine's address."""
        return f"http://127.0.0.1:{self.engine_port}"

    @property
    def sidecar(self) -> str:
        """The sidecar's address."""
        return f"http://127.0.0.1:{self.sidecar_port}"


@contextmanager
def engine_and_sidecar(
    config: Mapping[str, Any], *, chunk: int, sequences: int, flags: Sequence[str] = ()
) -> Iterator[Served]:
    """Both processes while the block runs. `config` is the sidecar's, `flags` are further ones of the engine's."""
    engine_port, sidecar_port, metrics_port = (free_port() for _ in range(3))
    engine = f"http://127.0.0.1:{engine_port}"
    with tempfile.TemporaryDirectory() as directory, ExitStack() as stack:
        scratch = Path(directory)
        model, file = scratch / "model", scratch / "sidecar.yaml"
        tinymodel.make(model)
        file.write_text(yaml.safe_dump(dict(config)))
        serve = [*engine_command(model, engine_port, chunk=chunk, sequences=sequences), *flags]
        engine_pid = stack.enter_context(running(serve, f"{engine}/health", scratch / "engine.log"))
        front = sidecar_command(sidecar_port, metrics_port, engine, file)
        ready = f"http://127.0.0.1:{metrics_port}/readyz"
        sidecar_pid = stack.enter_context(running(front, ready, scratch / "sidecar.log"))
        yield Served(engine_port, engine_pid, sidecar_port, sidecar_pid, model)
