"""Clusters with real nodes, for tests that need root. No other cluster on the machine is touched.

commands  session   `uellm cluster` with a state directory of its own, and the state of this machine
web       module    a cluster of two real nodes and a simulated one, with a web server on each real one
real_node module    a cluster of one real node, with the CRDs
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from helpers.real_node import RealNode
from uellm_devcluster import binaries, import_images, packages, processes
from uellm_devcluster.archive import write_image
from uellm_devcluster.errors import ClusterError
from uellm_devcluster.network import check_ranges_free, routes
from uellm_devcluster.nodefiles import KERNEL_SETTINGS, mount_points
from uellm_devcluster.state import State

NAME = "native-test"
IMAGE = "uellm.local/busybox:test"
CRDS = Path(__file__).parents[3] / "manifests" / "crds"
SHOWN = "/opt/uellm-test/shown"
# Everything that containerd, kubelet and kube-proxy would create on a machine of their own.
THEIR_PATHS = [
    *mount_points([]),
    "/run/nri",
    "/run/xtables.lock",
    "/opt/containerd",
    "/opt/uellm-test",
    "/usr/libexec/kubernetes",
]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.timeout(300))
            item.add_marker(pytest.mark.skipif(os.geteuid() != 0, reason="real nodes need root"))


class Commands:
    """`uellm cluster ...`, and the state of the machine around it."""

    def __init__(self, directory: Path) -> None:
        self.environment = {**os.environ, "UELLM_CLUSTER_DIR": str(directory), "UELLM_CLUSTER_NAME": NAME}
        self.state = State(NAME, base=directory)
        self._argv = [sys.executable, "-m", "uellm.cli.main", "cluster"]

    def __call__(self, *arguments: str, expect: int = 0) -> subprocess.CompletedProcess[str]:
        argv = [*self._argv, *arguments]
        done = subprocess.run(argv, env=self.environment, capture_output=True, text=True, check=False)
        assert done.returncode == expect, done.stderr
        return done

    def status(self) -> dict[str, Any]:
        argv = [*self._argv, "status", "-o", "json"]
        done = subprocess.run(argv, env=self.environment, capture_output=True, text=True, check=False)
        return json.loads(done.stdout)

    def interrupt_up(self, moment: str, number: signal.Signals) -> int:
        """Send `up` a signal when it announces the step that begins with `moment`; return its exit status."""
        argv = [*self._argv, "up"]
        with subprocess.Popen(argv, env=self.environment, stderr=subprocess.PIPE, text=True) as process:
            assert process.stderr
            for line in process.stderr:
                if line.strip().startswith(f"> {moment}"):
                    process.send_signal(number)
                    return process.wait()
        raise AssertionError(f"`up` never came to {moment!r}")

    def world(self) -> dict[str, set[str]]:
        """Everything that a cluster could leave on this machine, by kind."""
        routes = subprocess.run(
            ["ip", "-4", "route", "show", "table", "all"], capture_output=True, text=True, check=True
        )
        mounts = {line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()}
        return {
            "links": set(os.listdir("/sys/class/net")),
            "routes": set(routes.stdout.splitlines()),
            "mounts": {mount for mount in mounts if mount.startswith((str(self.state.directory), *THEIR_PATHS))},
            "control groups": {str(path) for path in Path("/sys/fs/cgroup").glob(f"**/uellm-{NAME}")},
            "processes": {str(pid) for pid in processes.marked(self.state.directory)},
            "kernel settings": {f"{path}: {Path(path).read_text().strip()}" for path in KERNEL_SETTINGS},
            "paths": {path for path in THEIR_PATHS if os.path.exists(path)},
        }


@pytest.fixture(scope="session")
def commands(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Commands]:
    packages.ensure(["busybox-static", "iproute2"])
    try:
        check_ranges_free(routes())
    except ClusterError as error:
        # A developer may want to keep a cluster that runs. In CI nothing is skipped.
        if os.environ.get("CI") != "true":
            pytest.skip(str(error))
    made = Commands(tmp_path_factory.mktemp("clusters"))
    yield made
    made("down")


class Web:
    """A cluster with a web server on each of two nodes that answers with the node's name."""

    def __init__(self, commands: Commands, shown: Path) -> None:
        self.up_arguments = ("up", "--nodes", "2", "--kwok", "1", "--mount", f"{shown}:{SHOWN}")
        commands(*self.up_arguments)
        self._kubectl = [str(binaries.ensure({"kubectl"}) / "kubectl")]
        self._kubectl += ["--kubeconfig", commands("kubeconfig").stdout.strip()]

    def kubectl(self, *arguments: str, given: str = "") -> str:
        done = subprocess.run([*self._kubectl, *arguments], input=given, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{arguments}: {done.stderr}"
        return done.stdout

    def sh(self, pod: str, script: str) -> str:
        """Output of a shell script in the pod."""
        return self.kubectl("exec", pod, "--container", "web", "--", "/bin/busybox", "sh", "-c", script).strip()

    @staticmethod
    def until(done: Callable[[], bool], timeout_s: float = 60.0) -> None:
        """Poll until the condition holds."""
        deadline_s = time.monotonic() + timeout_s
        while not done():
            assert time.monotonic() < deadline_s
            time.sleep(0.05)

    def serves(self) -> bool:
        """Whether both pods have logs and reach both pods by the Service.

        A restarted kubelet and kube-proxy's rules are slightly behind the API server.
        """
        ask = "for i in 1 2 3 4 5 6 7 8 9 10 11 12; do /bin/busybox wget -q -O - http://10.96.0.80/; done"
        try:
            pods = self.pods()
            return len(pods) == 2 and all(
                self.kubectl("logs", pod, "--container", "web").strip() and set(self.sh(pod, ask).split()) == set(pods)
                for pod in pods.values()
            )
        except AssertionError:  # output of a kubectl that failed
            return False

    def pods(self) -> dict[str, str]:
        """The pod on each node."""
        items = json.loads(self.kubectl("get", "pods", "--selector=app=web", "--output=json"))["items"]
        return {item["spec"]["nodeName"]: item["metadata"]["name"] for item in items}


@pytest.fixture(scope="module")
def busybox(commands: Commands, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An archive with the image."""
    image = tmp_path_factory.mktemp("images") / "busybox.tar"
    write_image(image, IMAGE, {"bin/busybox": Path("/bin/busybox").read_bytes()}, entrypoint=["/bin/busybox"])
    return image


@pytest.fixture(scope="module")
def real_node(commands: Commands, busybox: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealNode]:
    try:
        commands("up", "--nodes", "1")
        import_images([busybox], state=commands.state)
        node = RealNode(commands.state, IMAGE, tmp_path_factory.mktemp("node"))
        node.kubectl("apply", "--server-side", f"--filename={CRDS}")
        yield node
    finally:
        commands("down")


@pytest.fixture(scope="module")
def web(commands: Commands, busybox: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Web]:
    shown = tmp_path_factory.mktemp("shown")
    (shown / "greeting").write_text("hello from the host\n")
    before = commands.world()
    try:
        made = Web(commands, shown)
        import_images([busybox], state=commands.state)
        made.kubectl("apply", "--filename", "-", given=yaml.safe_dump_all([web_deployment(), web_service()]))
        made.kubectl("rollout", "status", "deployment/web", "--timeout=60s")
        made.until(made.serves)
        yield made
    finally:
        commands("down")
    assert commands.world() == before


def web_deployment() -> dict[str, Any]:
    serve = "echo $NODE > /tmp/index.html; echo serving on $NODE; exec /bin/busybox httpd -f -p 8080 -h /tmp"
    labels = {"app": "web"}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "web"},
        "spec": {
            "replicas": 2,
            "selector": {"matchLabels": labels},
            "template": {
                "metadata": {"labels": labels},
                "spec": {
                    "topologySpreadConstraints": [
                        {
                            "maxSkew": 1,
                            "topologyKey": "kubernetes.io/hostname",
                            "whenUnsatisfiable": "DoNotSchedule",
                            "labelSelector": {"matchLabels": labels},
                            "nodeTaintsPolicy": "Honor",
                        }
                    ],
                    "initContainers": [
                        {"name": "beside", "image": IMAGE, "restartPolicy": "Always", "args": ["sleep", "3600"]}
                    ],
                    "containers": [
                        {
                            "name": "web",
                            "image": IMAGE,
                            "args": ["sh", "-c", serve],
                            "env": [{"name": "NODE", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}}],
                            "readinessProbe": {"httpGet": {"port": 8080, "path": "/"}, "periodSeconds": 1},
                            "volumeMounts": [{"name": "shown", "mountPath": "/shown", "readOnly": True}],
                        }
                    ],
                    "volumes": [{"name": "shown", "hostPath": {"path": SHOWN, "type": "Directory"}}],
                },
            },
        },
    }


def web_service() -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "web"},
        "spec": {"clusterIP": "10.96.0.80", "selector": {"app": "web"}, "ports": [{"port": 80, "targetPort": 8080}]},
    }
