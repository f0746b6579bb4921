"""A model hub as a pod of a real cluster."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from helpers import hub_server
from uellm_devcluster import install
from uellm_devcluster.demo.cluster import SERVICE as DIRECTORY
from uellm_devcluster.demo.shell import Shell

HOLD = "/dev/shm/go"


@contextmanager
def hub_pod(shell: Shell, scratch: Path, *, token: str, holds: bool = False) -> Iterator[str]:
    """The address of pod `hub`, which serves the demo's model to whoever has the token, and Secret `hub` with it.

    `holds`: it sends one half of the weights, and the other half after `release`.
    """
    shell.run(f"kubectl create configmap hub --from-file={hub_server.__file__}")
    shell.run(f"kubectl create secret generic hub --from-literal=token={token}")
    operator = shell.json(f"kubectl get deployment/uellm-operator -n {install.NAMESPACE}")
    environment = {"HUB_TOKEN": token, **({"HUB_HOLD": HOLD} if holds else {})}
    container = {
        "name": "hub",
        "image": operator["spec"]["template"]["spec"]["containers"][0]["image"],
        "command": ["python3", "/hub/hub_server.py", f"/models/{DIRECTORY}"],
        "env": [{"name": name, "value": value} for name, value in environment.items()],
        "readinessProbe": {"tcpSocket": {"port": 8080}, "periodSeconds": 1},
        "volumeMounts": [{"name": "hub", "mountPath": "/hub"}, {"name": "models", "mountPath": "/models"}],
    }
    volumes = [
        {"name": "hub", "configMap": {"name": "hub"}},
        {"name": "models", "hostPath": {"path": install.NODE_MODELS_PATH}},
    ]
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "hub"}}
    path = scratch / "pod.json"
    path.write_text(json.dumps({**pod, "spec": {"containers": [container], "volumes": volumes}}))
    try:
        shell.run(f"kubectl apply -f {path}")
        shell.run("kubectl wait pod/hub --for=condition=Ready --timeout=60s")
        yield f"http://{shell.json('kubectl get pod/hub')['status']['podIP']}:8080"
    finally:
        shell.run("kubectl delete pod/hub secret/hub configmap/hub --ignore-not-found --grace-period=1")


def release(shell: Shell) -> None:
    """Let the hub send the other half."""
    shell.python("pod/hub", f"open({HOLD!r}, 'w')")
