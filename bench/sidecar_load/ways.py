"""The ways from client to upstream: straight, through nginx, the least relay, sidecar or gateway; each a process."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from subprocess import DEVNULL, PIPE, Popen
from urllib.request import urlopen

BENCH = Path(__file__).parent.parent
NO_NGINX = "nginx is not installed: without it there is nothing to compare with (Debian: apt-get install nginx-light)"

_NGINX = """
daemon off; master_process off; worker_processes 1; pid {folder}/pid; error_log {folder}/error.log;
events {{ worker_connections 4096; }}
http {{
  access_log /dev/null;
  client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
  keepalive_requests 1000000000;
  upstream engine {{ server 127.0.0.1:{engine}; keepalive 1024; keepalive_requests 1000000000; }}
  server {{
    listen 127.0.0.1:{port} backlog=4096;
    location / {{
      proxy_pass http://engine; proxy_http_version 1.1; proxy_set_header Connection "";
      proxy_buffering off; proxy_request_buffering on; client_body_buffer_size 64k;
    }}
  }}
}}
"""


@dataclass(frozen=True)
class Way:
    """Where to connect, and whose CPU time and memory count."""

    name: str
    port: int
    pid: int

    def cpu_s(self) -> float:
        """CPU time so far, in nanosecond steps: the sum of what the scheduler says of its threads."""
        threads = Path(f"/proc/{self.pid}/task").iterdir()
        return sum(int((thread / "schedstat").read_text().split()[0]) for thread in threads) / 1e9

    def resident_bytes(self) -> int:
        """Memory in use."""
        found = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{self.pid}/status").read_text())
        return int(found[1]) * 1024 if found else 0

    def metrics(self) -> str:
        """What the sidecar says of itself."""
        with urlopen(f"http://127.0.0.1:{self.port}/metrics", timeout=30) as answer:
            text: str = answer.read().decode()
            return text

    def figure(self, name: str) -> int:
        """One of the sidecar's figures, all of its series added up."""
        found = re.findall(rf"^{name}(?:{{[^}}]*}})? (\S+)$", self.metrics(), re.MULTILINE)
        return sum(int(float(value)) for value in found)

    def open_files(self) -> int:
        """File descriptors in use."""
        return len(list(Path(f"/proc/{self.pid}/fd").iterdir()))


@contextmanager
def upstream() -> Iterator[Way]:
    """The engine's process."""
    command = [sys.executable, "-m", "sidecar_load.upstream"]
    with Popen(command, stdout=PIPE, text=True, cwd=BENCH) as process, ExitStack() as stack:
        stack.callback(process.kill)
        yield Way("straight", int(process.stdout.readline()), process.pid)


@contextmanager
def nginx(engine_port: int) -> Iterator[Way | None]:
    """nginx with one worker and `proxy_buffering off`; None where there is no nginx."""
    program = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    if program is None:
        yield None
        return
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        port = free_port()
        config = Path(folder, "nginx.conf")
        config.write_text(_NGINX.format(folder=folder, engine=engine_port, port=port))
        command = [program, "-p", folder, "-c", str(config), "-e", f"{folder}/error.log"]
        process = stack.enter_context(Popen(command, stdout=DEVNULL, stderr=DEVNULL))
        stack.callback(process.kill)
        _wait_for(port)
        yield Way("nginx", port, process.pid)


@contextmanager
def least(engine_port: int) -> Iterator[Way]:
    """The least relay in Python."""
    command = [sys.executable, "-m", "sidecar_load.least", f"http://127.0.0.1:{engine_port}"]
    with Popen(command, stdout=PIPE, stderr=DEVNULL, text=True, cwd=BENCH) as process, ExitStack() as stack:
        stack.callback(process.kill)
        yield Way("least", int(process.stdout.readline()), process.pid)


@contextmanager
def sidecar(engine_port: int, mode: str = "straight") -> Iterator[Way]:
    """The sidecar; its access log goes to /dev/null."""
    command = [sys.executable, "-m", "sidecar_load.served", mode, f"http://127.0.0.1:{engine_port}"]
    process = Popen(command, stdout=PIPE, stderr=DEVNULL, text=True, cwd=BENCH)
    with process, ExitStack() as stack:
        stack.callback(process.kill)
        way = Way("sidecar", int(process.stdout.readline()), process.pid)
        while "uellm_engine_ready 1\n" not in way.metrics():
            time.sleep(0.05)
        yield way


@contextmanager
def gateway(models: list[str], *engine_ports: int) -> Iterator[Way]:
    """The gateway as `uellm gateway` runs it, in front of these replicas; its access log goes to /dev/null."""
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        port, services = free_port(), Path(folder, "services.yaml")
        replicas = [f"127.0.0.1:{engine_port}" for engine_port in engine_ports]
        service = {"name": "m", "aliases": models, "replicas": replicas}
        services.write_text(json.dumps({"services": [service]}))
        command = [sys.executable, "-m", "uellm.cli.main", "gateway", f"--listen=127.0.0.1:{port}"]
        process = stack.enter_context(Popen([*command, f"--static={services}"], stdout=DEVNULL, stderr=DEVNULL))
        stack.callback(process.kill)
        _wait_for(port)
        yield Way("gateway", port, process.pid)


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        port: int = holder.getsockname()[1]
        return port


def _wait_for(port: int) -> None:
    deadline_s = time.monotonic() + 10
    while time.monotonic() < deadline_s:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.02)
    raise subprocess.TimeoutExpired("nginx", 10)
