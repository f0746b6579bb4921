"""helm, and the chart rendered by it."""

from __future__ import annotations

import functools
import glob
import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from helpers.chart import CHART, Render

# libyaml if it is installed, because the CRDs are long.
YAML = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def _installed_helm() -> str | None:
    cache = Path(os.environ.get("UELLM_CACHE") or Path.home() / ".cache" / "uellm")
    cached = sorted(glob.glob(str(cache / "bin" / "helm-*" / "helm")))
    return os.environ.get("UELLM_HELM") or shutil.which("helm") or (cached[-1] if cached else None)


@pytest.fixture(scope="session")
def helm(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs helm with a home directory of its own, without the user's plugins and repositories."""
    program = _installed_helm()
    if program is None and os.environ.get("CI") != "true":
        pytest.skip("no helm: set UELLM_HELM, or run `make test`, which gets one")
    if program is None:
        from uellm_devcluster.binaries import ensure

        program = str(ensure({"helm"}) / "helm")
    home = tmp_path_factory.mktemp("helm")
    environment = {"PATH": os.environ["PATH"], "HOME": str(home)}

    def run(*args: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(program), *args], env=environment, capture_output=True, text=True, timeout=60, check=False
        )

    return run


@pytest.fixture(scope="session")
def render(helm: Callable[..., subprocess.CompletedProcess[str]], tmp_path_factory: pytest.TempPathFactory) -> Render:
    """The chart's objects for some values, as release `uellm` in namespace `uellm-system`."""
    directory = tmp_path_factory.mktemp("values")

    @functools.cache
    def output(values: str, simulated: bool, kube_version: str) -> str:
        file = directory / "values.yaml"
        file.write_text(values)
        simulation = ["--values", str(CHART / "values-simulated.yaml")] if simulated else []
        done = helm(
            *("template", "uellm", str(CHART), "--namespace", "uellm-system", "--kube-version", kube_version),
            *simulation,
            *("--values", str(file)),
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def rendered(
        values: dict[str, Any] | None = None, *, simulated: bool = False, kube_version: str = "v1.34.2-gke.100"
    ) -> list[dict[str, Any]]:
        text = output(json.dumps(values or {}), simulated, kube_version)
        return [document for document in yaml.load_all(text, YAML) if document]

    return rendered
