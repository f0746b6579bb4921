"""LeaderWorkerSet's manager with its webhooks, as a process beside a control plane."""

from __future__ import annotations

import os
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import yaml

from helpers.kueue import apply, define, end, serving, webhooks_at
from uellm.kube import Kube
from uellm_devcluster import ControlPlane
from uellm_devcluster.binaries import LEADER_WORKER_SET_VERSION, ensure, module_files
from uellm_devcluster.local import free_ports
from uellm_devcluster.pki import Authority

_MODULE = "sigs.k8s.io/lws"
# Of LeaderWorkerSet's pods alone, as its own installation says.
_PODS = {"matchExpressions": [{"key": "leaderworkerset.sigs.k8s.io/name", "operator": "Exists"}]}


@asynccontextmanager
async def running(plane: ControlPlane, kube: Kube, directory: Path) -> AsyncIterator[None]:
    """LeaderWorkerSet at work."""
    await define(plane, kube, module_files(_MODULE, LEADER_WORKER_SET_VERSION, "config/crd/bases/*.yaml"))
    authority, log = Authority("lws"), directory / "lws.log"
    ports = free_ports("webhook", "health")
    certificates = directory / "lws-certificates"
    certificates.mkdir()
    authority.server("lws", names=["localhost"], addresses=["127.0.0.1"]).write(certificates, "tls")
    configuration = directory / "lws.yaml"
    configuration.write_text(yaml.safe_dump(_configuration(ports, certificates)))
    process = _started(plane, configuration, log)
    try:
        await serving(process, log)
        (published,) = module_files(_MODULE, LEADER_WORKER_SET_VERSION, "config/webhook/manifests.yaml")
        documents = list(yaml.safe_load_all(published.read_text()))
        for webhook in (each for document in documents for each in document["webhooks"]):
            if webhook["rules"][0]["resources"] == ["pods"]:
                webhook["objectSelector"] = _PODS
        url = f"https://127.0.0.1:{ports['webhook']}"
        apply(plane.kubeconfig, *webhooks_at(documents, url, authority, "lws", {"leaderworkersets", "pods"}))
        yield
    finally:
        end(process)


def _started(plane: ControlPlane, configuration: Path, log: Path) -> subprocess.Popen[bytes]:
    command = [str(ensure({"lws-manager"}) / "lws-manager"), f"--config={configuration}"]
    command += [f"--kubeconfig={plane.kubeconfig}", "--metrics-bind-address=0"]
    with log.open("wb") as output:
        environment = {"no_proxy": "*", "PATH": os.environ["PATH"]}
        return subprocess.Popen(command, env=environment, stdout=output, stderr=output)


def _configuration(ports: dict[str, int], certificates: Path) -> dict[str, Any]:
    return {
        "apiVersion": "config.lws.x-k8s.io/v1alpha1",
        "kind": "Configuration",
        "health": {"healthProbeBindAddress": f"127.0.0.1:{ports['health']}"},
        "webhook": {"host": "127.0.0.1", "port": ports["webhook"], "certDir": str(certificates)},
        "leaderElection": {"leaderElect": False},
        "internalCertManagement": {"enable": False},
    }
