"""The extender and a kube-scheduler that asks it, as processes beside a control plane."""

from __future__ import annotations

import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
import yaml

from uellm_devcluster.binaries import ensure
from uellm_devcluster.local import free_ports

SCHEDULER = "uellm-scheduler"
DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class Processes:
    """The extender and the scheduler that calls it."""

    def __init__(self, kubeconfig: str, directory: Path) -> None:
        self.url = f"http://127.0.0.1:{free_ports('extender')['extender']}"
        self._kubeconfig = kubeconfig
        self._directory = directory
        self.start_extender()
        self.scheduler = self._start("scheduler", *self._scheduler_command())

    def start_extender(self) -> None:
        listen = self.url.removeprefix("http://")
        command = (sys.executable, "-m", "uellm.cli.main", "extender", "--listen", listen)
        self.extender = self._start("extender", *command, "--kubeconfig", self._kubeconfig)
        deadline = time.monotonic() + 30
        while not self._extender_is_ready():
            if self.extender.poll() is not None or time.monotonic() > deadline:
                pytest.fail(f"the extender did not start:\n{(self._directory / 'extender.log').read_text()}")
            time.sleep(0.1)

    def _extender_is_ready(self) -> bool:
        try:
            with DIRECT.open(f"{self.url}/readyz", timeout=2):
                return True
        except OSError:
            return False

    def stop(self) -> None:
        for process in (self.scheduler, self.extender):
            process.terminate()
            process.wait(10)

    def _scheduler_command(self) -> list[str]:
        configuration = {
            "apiVersion": "kubescheduler.config.k8s.io/v1",
            "kind": "KubeSchedulerConfiguration",
            "clientConnection": {"kubeconfig": self._kubeconfig},
            "leaderElection": {"leaderElect": False},
            "percentageOfNodesToScore": 100,
            "profiles": [{"schedulerName": SCHEDULER}],
            "extenders": [
                {
                    "urlPrefix": self.url,
                    "filterVerb": "filter",
                    "prioritizeVerb": "prioritize",
                    "weight": 10,
                    "nodeCacheCapable": True,
                    "httpTimeout": "5s",
                }
            ],
        }
        path = self._directory / "scheduler.yaml"
        path.write_text(yaml.safe_dump(configuration))
        program = ensure({"kube-scheduler"}) / "kube-scheduler"
        return [
            str(program),
            f"--config={path}",
            "--secure-port=0",
            "--pod-max-in-unschedulable-pods-duration=2s",
        ]

    def _start(self, name: str, *command: str) -> subprocess.Popen[bytes]:
        log = (self._directory / f"{name}.log").open("ab")
        return subprocess.Popen(command, stdout=log, stderr=log)
