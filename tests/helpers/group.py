"""Launchers of one group as processes, with vLLM or a program in its place."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

from helpers.launch import plan_document

ADDRESS = "127.0.0.1"
GPUS = {"GPU-a": ("NVIDIA L4", 24), "GPU-b": ("NVIDIA L4", 24), "GPU-c": ("NVIDIA T4", 16), "GPU-tiny": ("Tiny", 4)}
# It tells what it was started with, and runs until a signal ends it. After SIGUSR2 it says that all is well.
ENGINE = """
import json, os, signal, sys
signal.signal(signal.SIGUSR2, lambda *_: sys.exit(0))
print("ENGINE " + json.dumps({"pid": os.getpid(), "argv": sys.argv[1:], "env": dict(os.environ)}), flush=True)
if os.environ.get("IGNORES_SIGNALS"):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    print("IGNORING", flush=True)
while True:
    signal.pause()
"""
OF_GROUP = {"gpusPerReplica": 2, "tensor": 1, "pipeline": 2, "layers": [5, 3], "nodes": 2}


def group_plan(**changes: Any) -> dict[str, Any]:
    """A plan of two stages on two nodes."""
    return plan_document(**{"plan": OF_GROUP, "layersOverride": None, **changes})


class Pod:
    """A pod of the group: its launcher, and what it has started."""

    def __init__(self, process: subprocess.Popen[str], directory: Path) -> None:
        self.process = process
        self._directory = directory

    def engine(self) -> dict[str, Any]:
        """What the engine was started with; waits until it was."""
        for line in self.process.stdout or ():
            if line.startswith("ENGINE "):
                started: dict[str, Any] = json.loads(line.removeprefix("ENGINE "))
                return started
        raise AssertionError(f"no engine: {self.report().get('error')}")

    def read_until(self, text: str) -> None:
        """Wait until the engine prints a line."""
        assert any(line.strip() == text for line in self.process.stdout or ())

    def until_refused(self) -> None:
        """Wait until the launcher says why there is no engine."""
        assert any(line.startswith("uellm launcher: Group") for line in self.process.stderr or ())

    @property
    def log(self) -> Path:
        """What vLLM printed."""
        return self._directory / "log"

    def report(self) -> dict[str, Any]:
        """The placement report."""
        report: dict[str, Any] = json.loads((self._directory / "placement.json").read_text())
        return report


class Group:
    """Starts launchers."""

    def __init__(self, directory: Path, ports: tuple[int, int]) -> None:
        self.ports = ports
        self._directory = directory
        self._pods: list[Pod] = []

    def start(
        self,
        index: int,
        gpus: str,
        *,
        plan: dict[str, Any] | None = None,
        version: str = "1.0",
        size: int = 2,
        timeout_s: float = 30,
        listen: str = f"{ADDRESS}:8001",
        **variables: str,
    ) -> Pod:
        """Start the launcher of pod `index`. `version`: of the program in the place of vLLM; empty for vLLM itself."""
        home = self._directory / f"pod-{len(self._pods)}"
        home.mkdir()
        if version:
            self._install_engine(home / "site", version)
        (home / "plan.json").write_text(json.dumps(plan or group_plan()))
        devices = [
            {"uuid": uuid, "index": number, "product": GPUS[uuid][0], "memoryBytes": GPUS[uuid][1] << 30}
            for number, uuid in enumerate(gpus.split(","))
        ]
        environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(home),
            "PYTHONPATH": os.pathsep.join([str(home / "site"), *sys.path]),
            "POD_NAME": f"llama-engine-0-{index}" if index else "llama-engine-0",
            "NODE_NAME": f"node-{index + 1}",
            "POD_IP": ADDRESS,
            "LWS_LEADER_ADDRESS": ADDRESS,
            "LWS_GROUP_SIZE": str(size),
            "LWS_WORKER_INDEX": str(index),
            "NVIDIA_VISIBLE_DEVICES": gpus,
            "UELLM_SIMULATED_DEVICES": json.dumps({"version": 1, "devices": devices, "links": []}),
            **variables,
        }
        command = [sys.executable, "-m", "uellm.launcher", f"--plan={home}/plan.json", f"--devices={home}/none"]
        command += [f"--placement={home}/placement.json", f"--group-timeout={timeout_s}"]
        command += [f"--listen={listen}", f"--group-port={self.ports[0]}", f"--group-master-port={self.ports[1]}"]
        output = (home / "log").open("wb") if not version else None
        with output or nullcontext(subprocess.PIPE) as stdout:
            # In a process group of its own: the engine outlives a launcher that is killed.
            process = subprocess.Popen(
                command, env=environment, stdout=stdout, stderr=stdout, text=True, start_new_session=True
            )
        pod = Pod(process, home)
        self._pods.append(pod)
        return pod

    def end(self) -> None:
        """End everything."""
        for pod in self._pods:
            with suppress(ProcessLookupError):
                os.killpg(pod.process.pid, signal.SIGKILL)
            pod.process.kill()
            pod.process.wait()
            for stream in filter(None, (pod.process.stdout, pod.process.stderr)):
                stream.close()

    @staticmethod
    def _install_engine(site: Path, version: str) -> None:
        package = site / "vllm" / "entrypoints" / "cli"
        package.mkdir(parents=True)
        for part in (package, *package.parents[:2]):
            (part / "__init__.py").write_text("")
        (package / "main.py").write_text(ENGINE)
        about = site / f"vllm-{version}.dist-info"
        about.mkdir()
        (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {version}\n")
