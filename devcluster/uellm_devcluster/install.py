"""Installs UELLM into a development cluster as a user would: images, then `helm upgrade --install`.

The demo and the end-to-end tests begin with it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from uellm_devcluster.demo.shell import Shell
from uellm_devcluster.images import CHECKOUT

RELEASE = "uellm"
NAMESPACE = "uellm-system"
PROFILER_NAMESPACE = "uellm-system-profiler"
CHART = CHECKOUT / "charts" / "uellm"
# Where the nodes see the engine's files (`uellm cluster up --mount`). The sample's volumes name the same paths.
NODE_ENGINE_PATH = "/var/lib/uellm/engine"
NODE_MODELS_PATH = "/var/lib/uellm/models"


def helm_command(*values: Path) -> str:
    """The installation command as a person would type it in the checkout. `values`: further files of values."""
    files = " ".join(f"--values {path}" for path in (CHART / "values-simulated.yaml", *values))
    return (
        f"helm upgrade --install {RELEASE} {CHART} --namespace {NAMESPACE} --create-namespace"
        f" {files} --wait --timeout 3m"
    )


def pods(shell: Shell, service: str, namespace: str = "default") -> list[dict[str, Any]]:
    """Names of the engine pods of an LLMService that are not being deleted."""
    found = shell.json(f"kubectl get pods --namespace {namespace} --selector uellm.io/service={service}")["items"]
    alive = [pod for pod in found if "deletionTimestamp" not in pod["metadata"]]
    return sorted(alive, key=lambda pod: pod["metadata"]["name"])
