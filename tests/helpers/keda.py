"""The real KEDA beside a control plane: its operator and its server of metrics, as processes of this machine.

They may do what KEDA's own manifests let them do in a cluster.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import yaml

from helpers.metrics_api import register
from uellm_devcluster.binaries import KEDA_VERSION, ensure, module_files
from uellm_devcluster.demo.shell import Shell
from uellm_devcluster.local import free_ports
from uellm_devcluster.pki import Authority

MODULE = "github.com/kedacore/keda/v2"
NAMESPACE = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "keda"}}
ENVIRONMENT = {"WATCH_NAMESPACE": "", "POD_NAMESPACE": "keda", "KEDA_CLUSTER_OBJECT_NAMESPACE": "keda"}
MANIFESTS = ("config/crd/bases/*.yaml", "config/service_account/*.yaml", "config/rbac/*.yaml")


@contextmanager
def keda(shell: Shell, kubeconfig: Path, directory: Path) -> Iterator[list[Path]]:
    """KEDA at work, installed in the namespace `keda`; the logs of its processes."""
    programs = ensure({"keda-operator", "keda-adapter"})
    ports = free_ports("metrics_service", "operator_metrics", "health", "adapter", "adapter_metrics")
    own = _install(shell, kubeconfig, directory, ports["adapter"])
    server, client = _certificates(directory)
    environment = {**os.environ, **ENVIRONMENT, "KUBECONFIG": str(own), "no_proxy": "*"}
    commands = {
        "keda-operator": [
            f"--metrics-bind-address=127.0.0.1:{ports['operator_metrics']}",
            f"--health-probe-bind-address=127.0.0.1:{ports['health']}",
            f"--metrics-service-bind-address=127.0.0.1:{ports['metrics_service']}",
            f"--cert-dir={server}",
        ],
        "keda-adapter": [
            "--bind-address=127.0.0.1",
            f"--secure-port={ports['adapter']}",
            f"--port={ports['adapter_metrics']}",
            f"--metrics-service-address=localhost:{ports['metrics_service']}",
            f"--cert-dir={client}",
            f"--tls-cert-file={server / 'tls.crt'}",
            f"--tls-private-key-file={server / 'tls.key'}",
            *(f"--{purpose}-kubeconfig={own}" for purpose in ("lister", "authentication", "authorization")),
        ],
    }
    logs, processes = [], []
    for name, arguments in commands.items():
        logs.append(directory / f"{name}.log")
        with logs[-1].open("wb") as output:
            process = subprocess.Popen(
                [str(programs / name), *arguments], env=environment, stdout=output, stderr=output
            )
        processes.append(process)
    try:
        shell.run("kubectl wait apiservice/v1beta1.external.metrics.k8s.io --for=condition=Available --timeout=180s")
        yield logs
    except BaseException as error:
        error.add_note("\n".join(log.read_text()[-6000:] for log in logs))
        raise
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            try:
                process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                process.kill()


def _install(shell: Shell, kubeconfig: Path, directory: Path, adapter_port: int) -> Path:
    """KEDA's kinds, its account with its Roles, and its metrics as an API of the cluster. Its own kubeconfig."""
    paths = [path for each in MANIFESTS for path in module_files(MODULE, KEDA_VERSION, each)]
    paths += module_files(MODULE, KEDA_VERSION, "config/metrics-server/role*.yaml")
    manifests = directory / "keda.yaml"
    documents = [document for path in paths for document in yaml.safe_load_all(path.read_text())]
    documents = [NAMESPACE, *(each for each in documents if each["kind"] != "Kustomization")]
    manifests.write_text("---\n".join(map(yaml.safe_dump, documents)))
    shell.run(f"kubectl apply --server-side -f {manifests}")
    register(shell, directory, "external.metrics.k8s.io", "v1beta1", namespace="keda", port=adapter_port)
    shell.run("kubectl wait crd --all --for=condition=Established --timeout=30s")
    config = yaml.safe_load(kubeconfig.read_text())
    config["users"][0]["user"] = {"token": shell.run("kubectl create token keda-operator -n keda").strip()}
    own = directory / "keda.kubeconfig"
    own.write_text(yaml.safe_dump(config))
    return own


def _certificates(directory: Path) -> tuple[Path, Path]:
    """Directories with the certificates by which operator and adapter believe each other."""
    authority = Authority("keda")
    pairs = {
        "server": authority.server("keda", names=["localhost"], addresses=["127.0.0.1"]),
        "client": authority.client("keda"),
    }
    made = []
    for name, pair in pairs.items():
        made.append(directory / name)
        made[-1].mkdir()
        pair.write(made[-1], "tls")
        (made[-1] / "ca.crt").write_bytes(authority.pair.certificate)
    return made[0], made[1]
