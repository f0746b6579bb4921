"""One service behind the gateway's two replicas, on real kubelets with real engines: from none to three and back.

A client in the cluster keeps streams open all the while.
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from e2e.conftest import Service
from helpers import fleet_client
from helpers.pod_processes import processes
from uellm_devcluster import install
from uellm_devcluster.demo.shell import Shell

pytestmark = pytest.mark.timeout(3000)

MANY = 24
START_S = 420.0
"""Three engines that start beside a busy one on two cores take minutes."""
IDLE_S = 60.0


@dataclass
class Fleet:
    """The service, and a client in the cluster that goes through the gateway."""

    service: Service
    client: str

    @property
    def shell(self) -> Shell:
        return self.service.shell

    def ready(self) -> int:
        """Pods that are ready."""
        conditions = [pod["status"].get("conditions") or () for pod in self.service.pods()]
        return sum(any(each["type"] == "Ready" and each["status"] == "True" for each in some) for some in conditions)

    def clients(self, number: int) -> None:
        self.shell.python(self.client, f"open('/tmp/clients', 'w').write('{number}')")

    def report(self) -> dict[str, Any]:
        return dict(json.loads(self.shell.run(f"kubectl exec {self.client} -- cat /tmp/report")))

    def until(self, holds: Callable[[], bool], seconds: float) -> None:
        def state() -> str:
            status = self.service.get().get("status") or {}
            pods = [(pod["metadata"]["name"], pod["status"].get("phase")) for pod in self.service.pods()]
            return f"{pods}, {status.get('autoscaling')}, {self.service.condition('Scaling')}, {self.report()}"

        Service.until(holds, seconds, state)

    def answered_since(self, before: int, more: int) -> Callable[[], bool]:
        return lambda: self.report()["good"] >= before + more


@pytest.fixture
def fleet(new_service: Callable[[], Service]) -> Iterator[Fleet]:
    """A service of a model for one GPU that may run no pods, and its client."""
    service = new_service()
    spec = service.document["spec"]
    spec["model"]["config"]["num_hidden_layers"] = 2
    # The checkpoint on the node has eight layers, so the two have weights of no meaning.
    # Four sequences: most of the clients wait, as they would for a GPU that is full.
    args = ["--load-format=dummy", '--hf-overrides={"num_hidden_layers": 2}', "--max-num-seqs=4"]
    spec["engine"] = {"args": args}
    spec["autoscaling"] = {"minReplicas": 0, "maxReplicas": 3, "idleTimeout": f"{IDLE_S:.0f}s"}
    name = f"client-{service.name}"
    with service.applied():
        try:
            run_client(service.shell, name, service.name)
            yield Fleet(service, name)
        finally:
            service.shell.run(f"kubectl delete pod/{name} --force --grace-period=0 --ignore-not-found")


def run_client(shell: Shell, name: str, model: str) -> None:
    address = shell.json(f"kubectl get service/uellm-gateway --namespace {install.NAMESPACE}")["spec"]["clusterIP"]
    program = Path(fleet_client.__file__ or "").read_text()
    container = {"name": name, "image": "uellm.local/sidecar:dev", "imagePullPolicy": "Never"}
    container["command"] = ["python3", "-c", program, address, model]
    overrides = {"spec": {"nodeName": "node-2", "containers": [container]}}
    command = shell.arguments(f"kubectl run {name} --image=uellm.local/sidecar:dev --restart=Never")
    shell.call([*command, f"--overrides={json.dumps(overrides)}"])
    shell.run(f"kubectl wait pod/{name} --for=condition=Ready --timeout=60s")


def test_from_none_to_three_replicas_and_back_no_request_is_lost_whoever_is_killed(fleet: Fleet) -> None:
    """Each step begins where the one before it ended."""
    for step in (
        a_service_without_requests_ends_its_last_replica,
        the_first_request_waits_for_a_replica_and_is_answered,
        load_brings_three_replicas,
        a_gateway_that_is_killed_cuts_only_what_it_had_begun,
        a_replica_that_is_killed_cuts_only_what_it_had_begun,
        without_load_no_replica_stays,
    ):
        begun_s = time.monotonic()
        step(fleet)
        print(f"{step.__name__}: {time.monotonic() - begun_s:.0f} s, {fleet.report()}", flush=True)


def a_service_without_requests_ends_its_last_replica(fleet: Fleet) -> None:
    fleet.until(lambda: fleet.ready() == 1, START_S)
    fleet.until(lambda: not fleet.service.pods(), START_S)
    assert fleet.service.condition("Scaling")["reason"] == "ScaledToZero"


def the_first_request_waits_for_a_replica_and_is_answered(fleet: Fleet) -> None:
    fleet.clients(1)
    fleet.until(fleet.answered_since(0, 1), START_S)
    assert (fleet.report()["lost"], fleet.report()["cut"]) == ([], [])


def load_brings_three_replicas(fleet: Fleet) -> None:
    fleet.clients(MANY)
    fleet.until(lambda: fleet.ready() == 3, 3 * START_S)
    before = fleet.report()["good"]
    fleet.until(fleet.answered_since(before, 2 * MANY), START_S)
    assert (fleet.report()["lost"], fleet.report()["cut"]) == ([], [])


def a_gateway_that_is_killed_cuts_only_what_it_had_begun(fleet: Fleet) -> None:
    before = fleet.report()
    selector = "app.kubernetes.io/name=uellm-gateway"
    pods = fleet.shell.json(f"kubectl get pods --namespace {install.NAMESPACE} --selector {selector}")["items"]
    os.kill(processes(pods[0], "gateway")[0], signal.SIGKILL)
    fleet.until(fleet.answered_since(before["good"], 2 * MANY), START_S)
    after = fleet.report()
    assert after["lost"] == []
    assert len(after["cut"]) - len(before["cut"]) <= MANY


def a_replica_that_is_killed_cuts_only_what_it_had_begun(fleet: Fleet) -> None:
    before = fleet.report()
    pod = fleet.service.pods()[0]["metadata"]["name"]
    fleet.shell.run(f"kubectl delete pod/{pod} --force --grace-period=0")
    fleet.until(fleet.answered_since(before["good"], 2 * MANY), START_S)
    fleet.until(lambda: fleet.ready() == 3, 2 * START_S)
    after = fleet.report()
    assert after["lost"] == []
    assert len(after["cut"]) - len(before["cut"]) <= MANY


def without_load_no_replica_stays(fleet: Fleet) -> None:
    before = fleet.report()
    fleet.clients(0)
    fleet.until(lambda: not fleet.service.pods(), START_S)
    after = fleet.report()
    assert (after["lost"], after["cut"]) == (before["lost"], before["cut"])
    assert fleet.service.condition("Scaling")["reason"] == "ScaledToZero"
