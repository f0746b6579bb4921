"""A real node of a native cluster, on which the node's parts of UELLM run as processes. For tests that need root."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from uellm_devcluster import binaries, native
from uellm_devcluster.state import State

NODE = "node-1"
WAIT_S = 60.0


class RealNode:
    """The node, its API server, and the description of its GPUs."""

    def __init__(self, state: State, image: str, scratch: Path) -> None:
        self._state = state
        self._image = image
        self._scratch = scratch
        self._kubeconfig = str(state.pki / "admin.kubeconfig")
        self._kubectl = [str(binaries.ensure({"kubectl"}) / "kubectl"), "--kubeconfig", self._kubeconfig]
        self.description = scratch / f"{NODE}.yaml"

    def describe(self, status: Mapping[str, Any]) -> None:
        """Replace the description, as the kubelet does with a ConfigMap: at once."""
        unfinished = self.description.with_suffix(".unfinished")
        unfinished.write_text(yaml.safe_dump(dict(status)))
        unfinished.rename(self.description)

    @contextmanager
    def running(self, command: str, *options: str) -> Iterator[subprocess.Popen[bytes]]:
        """`uellm COMMAND` on the node, until the end of the block."""
        process = self.start(command, *options)
        try:
            yield process
        finally:
            self.end(process)

    def start(self, command: str, *options: str) -> subprocess.Popen[bytes]:
        argv = [sys.executable, "-m", "uellm.cli.main", command, f"--node={NODE}", f"--simulate={self.description}"]
        if command != "device-plugin":
            argv.append(f"--kubeconfig={self._kubeconfig}")
        log = (self._scratch / f"{command}.log").open("ab")
        return subprocess.Popen(self.entering([*argv, *options]), stdout=log, stderr=log)

    @staticmethod
    def end(process: subprocess.Popen[bytes], number: signal.Signals = signal.SIGTERM) -> None:
        if process.poll() is None:
            process.send_signal(number)
        process.wait(timeout=30)

    def log(self, command: str) -> str:
        path = self._scratch / f"{command}.log"
        return path.read_text() if path.exists() else ""

    def entering(self, argv: list[str]) -> list[str]:
        """A command in the node's namespaces."""
        return native.entering(NODE, argv, state=self._state)

    def on_node(self, *argv: str) -> str:
        return subprocess.run(self.entering([*argv]), capture_output=True, text=True, check=False).stdout

    def kubectl(self, *arguments: str, given: str = "") -> str:
        argv = self.entering([*self._kubectl, *arguments])
        done = subprocess.run(argv, input=given, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{arguments}: {done.stderr}"
        return done.stdout

    def get(self, *what: str) -> dict[str, Any]:
        return dict(json.loads(self.kubectl("get", *what, "--output=json")))

    def apply(self, *documents: Mapping[str, Any]) -> None:
        self.kubectl("apply", "--filename=-", given=yaml.safe_dump_all([dict(each) for each in documents]))

    def pod(self, name: str, **spec: Any) -> dict[str, Any]:
        """A pod that writes the GPUs that it was given, and stays."""
        container = {
            "name": "main",
            "image": self._image,
            "args": ["sh", "-c", "echo $NVIDIA_VISIBLE_DEVICES; exec /bin/busybox sleep 3600"],
            "resources": spec.pop("resources", {}),
        }
        fields = {"terminationGracePeriodSeconds": 0, "restartPolicy": "Never", **spec, "containers": [container]}
        return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": fields}

    def phase(self, name: str) -> str:
        return str(self.get(f"pod/{name}")["status"].get("phase"))

    def wait_running(self, name: str) -> str:
        """Wait for the pod; its NVIDIA_VISIBLE_DEVICES."""
        self.until(lambda: self._runs(name), lambda: self.kubectl("describe", f"pod/{name}"))
        self.until(lambda: self.kubectl("logs", name).endswith("\n"), lambda: f"pod {name} writes nothing")
        return self.kubectl("logs", name).strip()

    def _runs(self, name: str) -> bool:
        if self.phase(name) == "Running":
            return True
        # A kubelet looks again at a pod that it could not start after a minute or two, or when the pod has changed.
        self.kubectl("annotate", f"pod/{name}", "--overwrite", f"test/now={time.time()}")
        return False

    def remove(self, *what: str) -> None:
        self.kubectl("delete", *what, "--ignore-not-found", "--wait=true", "--timeout=60s")

    def profile(self) -> dict[str, dict[str, Any]]:
        """The devices of the GPUNodeProfile by UUID; empty where there is none."""
        items = self.get("gpunodeprofiles")["items"]
        return {each["uuid"]: each for item in items for each in item.get("status", {}).get("devices", ())}

    def holders(self) -> dict[str, str]:
        """UID of the pod by UUID, by the profile."""
        return {uuid: each["allocatedTo"]["podUID"] for uuid, each in self.profile().items() if "allocatedTo" in each}

    def uid(self, pod: str) -> str:
        return str(self.get(f"pod/{pod}")["metadata"]["uid"])

    @staticmethod
    def until(holds: Callable[[], Any], otherwise: Callable[[], str], timeout_s: float = WAIT_S) -> None:
        """Poll until the condition holds."""
        deadline_s = time.monotonic() + timeout_s
        while not holds():
            assert time.monotonic() < deadline_s, otherwise()
            time.sleep(0.2)
