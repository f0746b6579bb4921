"""A simulated node asks for its CPU to be measured: a pod does it in the engine's image, and yields to others."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from uellm.reconcile.times import moment
from uellm_devcluster import install
from uellm_devcluster.demo import cluster
from uellm_devcluster.demo.shell import Shell

NODE = "node-2"
CONFIGMAP = "uellm-simulated"
MEASURING_POD = f"measure-{NODE}"
MEASURED_TIMEOUT_S = 240.0
YIELD_S = 15.0
"""With what a busy machine takes for it. The measuring pod's own share is bounded by its grace period."""
WANTS_THE_GPU: dict[str, Any] = {
    "apiVersion": "v1",
    "kind": "Pod",
    "metadata": {"name": "wants-the-gpu"},
    "spec": {
        "nodeSelector": {"kubernetes.io/hostname": NODE},
        "terminationGracePeriodSeconds": 0,
        "containers": [
            {
                "name": "main",
                "image": "uellm.local/launcher:dev",
                "imagePullPolicy": "Never",
                "command": ["sh", "-c", "echo $NVIDIA_VISIBLE_DEVICES; sleep 600"],
                "resources": {"limits": {"nvidia.com/gpu": "1"}},
            }
        ],
    },
}


class World:
    """The cluster, and the node that is measured."""

    def __init__(self, shell: Shell, scratch: Path) -> None:
        self.shell = shell
        self._scratch = scratch
        self._text = self._configmap()["data"][f"{NODE}.yaml"]
        self._described = yaml.safe_load(self._text)
        self.rates = self._described["devices"][0]["measured"]
        self.predicted_as_described = self.predicted()

    def describe(self, **more: Any) -> None:
        """Change the node's description, and let the kubelet hand it to the profiler at once."""
        # Without a change it is the chart's text to the letter: helm would call another one a conflict.
        text = yaml.safe_dump({**self._described, **more}) if more else self._text
        patch = self._file("patch.json", json.dumps({"data": {f"{NODE}.yaml": text}}))
        namespace = install.PROFILER_NAMESPACE
        self.shell.run(f"kubectl patch configmap {CONFIGMAP} --namespace {namespace} --patch-file {patch}")
        selector = "app.kubernetes.io/name=uellm-profiler"
        # A changed annotation makes the kubelet look at the pod, and so at its volumes.
        self.shell.run(
            f"kubectl annotate pods --namespace {namespace} --selector {selector} --overwrite test/now={time.time()}"
        )

    def status(self) -> dict[str, Any]:
        return dict(self.shell.json(f"kubectl get gpunodeprofile/{NODE}")["status"])

    def measurement(self) -> dict[str, Any]:
        return dict(self.status().get("measurement") or {})

    def measured(self) -> dict[str, Any]:
        return dict(self.status()["devices"][0].get("measured") or {})

    def pod(self, name: str, namespace: str = "default") -> dict[str, Any]:
        """A pod; empty where there is none."""
        found = self.shell.json(f"kubectl get pods --namespace {namespace}")["items"]
        return next((each for each in found if each["metadata"]["name"] == name), {})

    def measuring_pod(self) -> dict[str, Any]:
        return self.pod(MEASURING_POD, install.PROFILER_NAMESPACE)

    def measures(self) -> bool:
        """Whether the program runs."""
        statuses = (self.measuring_pod().get("status") or {}).get("containerStatuses") or ()
        return any("running" in each["state"] for each in statuses)

    def predicted(self) -> dict[str, Any]:
        """What `uellm plan` predicts on the node's profile for a model that its one GPU holds."""
        document = yaml.safe_load(cluster.SAMPLE.read_text())
        document["spec"]["model"]["config"]["num_hidden_layers"] = 2
        profiles = self._file("profiles.yaml", self.shell.run(f"kubectl get gpunodeprofile/{NODE} -o yaml"))
        service = self._file("service.yaml", yaml.safe_dump(document))
        command = [str(Path(sys.executable).with_name("uellm")), "plan", "-f", service, "--profiles", profiles]
        done = subprocess.run([*command, "-o", "json"], capture_output=True, text=True, check=False)
        return dict(json.loads(done.stdout)["predicted"])

    def apply(self, document: dict[str, Any]) -> None:
        self.shell.run(f"kubectl apply -f {self._file('pod.yaml', yaml.safe_dump(document))}")

    def until(self, holds: Callable[[], Any], timeout_s: float = MEASURED_TIMEOUT_S) -> None:
        def state() -> str:
            pod = json.dumps(self.measuring_pod().get("status") or {})
            return f"measurement {self.measurement()}, measured {self.measured()}, pod {pod}"

        cluster.until(holds, timeout_s, state)

    def _configmap(self) -> dict[str, Any]:
        return self.shell.json(f"kubectl get configmap/{CONFIGMAP} --namespace {install.PROFILER_NAMESPACE}")

    def _file(self, name: str, text: str) -> str:
        path = self._scratch / name
        path.write_text(text)
        return str(path)


@pytest.fixture(scope="module")
def world(installed: Shell, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """The node, measured once. Its description has its own rates again at the end."""
    made = World(installed, tmp_path_factory.mktemp("measuring"))
    assert made.measurement() == {}
    try:
        made.describe(measurement={"on": "CPU"})
        made.until(lambda: made.measurement().get("finished"))
        made.until(lambda: not made.measuring_pod())
        yield made
    finally:
        made.describe()
        made.until(lambda: made.measured() == made.rates)


def test_a_simulated_nodes_cpu_is_measured_where_asked_and_plans_predict_by_it(world: World) -> None:
    found, measured = world.measurement(), world.measured()
    assert found["on"] == "CPU"
    assert found["torchVersion"]
    assert found.get("failures", []) == []
    assert measured["measuredAt"]
    assert measured["memoryBytesPerSecond"] > 10**8
    assert measured["bf16GigaflopsPerSecond"] != world.rates["bf16GigaflopsPerSecond"]
    assert world.predicted() != world.predicted_as_described


def test_a_pod_that_wants_the_gpus_gets_them_soon_and_the_measuring_goes_on_later(world: World) -> None:
    world.shell.run(f"kubectl annotate gpunodeprofile/{NODE} uellm.io/measure=again --overwrite")
    world.until(world.measures)
    world.apply(WANTS_THE_GPU)
    name = WANTS_THE_GPU["metadata"]["name"]
    try:
        world.until(lambda: (world.pod(name).get("status") or {}).get("phase") == "Running", 60)
        pod = world.pod(name)
        created = moment(pod["metadata"]["creationTimestamp"])
        # The kubelet has admitted it, and with that given it the GPU.
        assert (moment(pod["status"]["startTime"]) - created).total_seconds() <= YIELD_S
        uuid = world.status()["devices"][0]["uuid"]
        assert world.shell.run(f"kubectl logs {name}").strip() == uuid
        world.until(lambda: world.status()["devices"][0].get("allocatedTo") == {"podUID": pod["metadata"]["uid"]})
        world.until(lambda: not world.measuring_pod(), 30)
    finally:
        world.shell.run(f"kubectl delete pod {name} --ignore-not-found")
    world.until(lambda: world.measurement().get("request") == "again" and world.measurement().get("finished"))
    assert world.measured()["measuredAt"]
