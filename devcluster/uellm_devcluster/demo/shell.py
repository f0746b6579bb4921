"""The demo's commands, run and printed as a person would type them."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
from pathlib import Path
from typing import Any

from uellm_devcluster.demo.story import StepFailed


class Shell:
    """Runs kubectl and helm against one cluster."""

    def __init__(self, programs: Path, kubeconfig: Path) -> None:
        self._programs = programs
        # The cluster's addresses are on this machine, so no proxy may be used.
        proxies = {"http_proxy", "https_proxy", "all_proxy", "no_proxy"}
        self._env = {name: value for name, value in os.environ.items() if name.lower() not in proxies}
        self._env["KUBECONFIG"] = str(kubeconfig)

    def show(self, command: str, *, timeout_s: float = 120) -> str:
        """Print the command and what it prints. Raises StepFailed where it fails."""
        print(f"$ {command}", flush=True)
        output = self.run(command, timeout_s=timeout_s)
        print(output, end="", flush=True)
        return output

    def run(self, command: str, *, timeout_s: float = 120) -> str:
        """The command's standard output. Raises StepFailed with its standard error where it fails."""
        return self._checked(command, self.attempt(command, timeout_s=timeout_s))

    def attempt(self, command: str, *, timeout_s: float = 120) -> subprocess.CompletedProcess[str]:
        """Run the command and ignore a failure."""
        return self._finish(self.arguments(command), timeout_s=timeout_s)

    def start(self, command: str) -> subprocess.Popen[str]:
        """Start the command; its standard output is a pipe."""
        return subprocess.Popen(
            self.arguments(command), env=self._env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )

    def call(self, arguments: list[str], *, timeout_s: float = 60) -> str:
        """Run a command given as a list of words; return its standard output."""
        return self._checked(" ".join(arguments[1:4]), self._finish(arguments, timeout_s=timeout_s))

    def python(self, where: str, program: str, *arguments: str) -> str:
        """Run a Python program in a container. `where` are the arguments of `kubectl exec` before `--`."""
        command = [*self.arguments(f"kubectl exec {where}"), "--", "python3", "-c", program, *arguments]
        return self.call(command, timeout_s=180)

    def json(self, command: str) -> Any:
        """The parsed output of `kubectl ... -o json`."""
        return json.loads(self.run(f"{command} -o json"))

    def arguments(self, command: str) -> list[str]:
        """Split the command, and replace its program by the full path."""
        name, *rest = shlex.split(command)
        return [str(self._programs / name), *rest]

    def _finish(self, arguments: list[str], *, timeout_s: float) -> subprocess.CompletedProcess[str]:
        try:
            return subprocess.run(
                arguments, env=self._env, capture_output=True, text=True, timeout=timeout_s, check=False
            )
        except subprocess.TimeoutExpired as error:
            raise StepFailed(f"{' '.join(arguments[1:4])}: not finished within {timeout_s:g} s") from error

    @staticmethod
    def _checked(command: str, done: subprocess.CompletedProcess[str]) -> str:
        if done.returncode:
            raise StepFailed(f"{command}: {done.stderr.strip() or done.stdout.strip() or done.returncode}")
        return done.stdout
