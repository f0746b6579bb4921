"""A real cluster with UELLM installed by helm, once for the session; each test applies what it needs.

installed   session   a Shell (kubectl, helm) on a cluster of two real nodes with simulated GPUs and the chart installed
new_service session   makes a Service: the demo's LLMService under a name of its own, which it does not apply yet
service     module    such a service, without the model's configuration, ready, and removed afterwards
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import uuid
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from uellm_devcluster import install
from uellm_devcluster.demo import cluster
from uellm_devcluster.demo.shell import Shell
from uellm_devcluster.demo.story import Story

READY_TIMEOUT_S = 300.0
GONE_TIMEOUT_S = 180.0


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Every test in this directory needs kubelets or the engine and takes minutes, so it is marked accordingly."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.e2e)
            item.add_marker(pytest.mark.timeout(900))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A failure's report shows the cluster, which is removed afterwards."""
    report = yield
    service = getattr(item, "funcargs", {}).get("service")
    if call.when == "call" and report.failed and isinstance(service, Service):
        report.sections.append(("the cluster", cluster.diagnostics(service.shell, service.name)))
    return report


@pytest.fixture(scope="session")
def root() -> None:
    """Real nodes need root. Without it tests are skipped, except in CI."""
    if os.geteuid() != 0 and os.environ.get("CI") != "true":
        pytest.skip("real nodes in namespaces need root: run `sudo make test`")


@pytest.fixture(scope="session")
def installed(root: None) -> Iterator[Shell]:
    """The demo's first steps. The cluster is removed at the end in any case."""
    story = Story()
    try:
        shell = cluster.bring_up(story, cluster.find_programs(story))
        cluster.wait_for_profiles(shell)
        yield shell
    finally:
        cluster.down()


@pytest.fixture(scope="session")
def new_service(installed: Shell, tmp_path_factory: pytest.TempPathFactory) -> Callable[[], Service]:
    return lambda: Service(installed, f"tiny-{uuid.uuid4().hex[:6]}", tmp_path_factory.mktemp("service"))


@pytest.fixture(scope="module")
def service(new_service: Callable[[], Service]) -> Iterator[Service]:
    """The demo's LLMService, ready. A start takes a minute, so the tests of a module share it, in any order.

    Its configuration is not given, so a pod reads it from the node's disk.
    """
    own = new_service()
    del own.document["spec"]["model"]["config"]
    with own.applied():
        own.wait_ready(1)
        yield own


class Service:
    """One LLMService in the cluster, with the actions of a test."""

    def __init__(self, shell: Shell, name: str, scratch: Path) -> None:
        self.shell = shell
        self.name = name
        self.scratch = scratch
        self.document: dict[str, Any] = yaml.safe_load(cluster.SAMPLE.read_text())
        self.document["metadata"]["name"] = name

    def apply(self) -> None:
        path = self.scratch / "service.yaml"
        path.write_text(yaml.safe_dump(self.document))
        self.shell.run(f"kubectl apply -f {path}")

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Apply it, and delete it in the end. A failure shows the cluster."""
        self.apply()
        try:
            yield
        except BaseException:
            print(cluster.diagnostics(self.shell, self.name), flush=True)
            raise
        finally:
            self.delete()

    def condition(self, type_: str) -> dict[str, Any]:
        """A condition of its status; empty where it is not there yet."""
        found = (self.get().get("status") or {}).get("conditions") or ()
        return next((each for each in found if each["type"] == type_), {})

    def get(self) -> dict[str, Any]:
        found: dict[str, Any] = self.shell.json(f"kubectl get llmservice/{self.name}")
        return found

    def pods(self) -> list[dict[str, Any]]:
        return install.pods(self.shell, self.name)

    def wait_ready(self, replicas: int, starts: int = 1) -> None:
        """Wait until the given number of replicas serves. Replicas start one after the other."""
        self.until(
            lambda: cluster.is_ready(self.get(), replicas),
            READY_TIMEOUT_S * starts,
            lambda: json.dumps(self.get()["status"]),
        )

    @staticmethod
    def until(holds: Callable[[], bool], seconds: float, otherwise: Callable[[], str]) -> None:
        """Poll until `holds()`. A client of the cluster over HTTP has no better way to wait."""
        cluster.until(holds, seconds, otherwise)

    def delete(self) -> None:
        self.shell.run(f"kubectl delete llmservice/{self.name} --ignore-not-found --timeout=60s")
        self.until(lambda: not self.children(), GONE_TIMEOUT_S, lambda: f"still there: {self.children()}")

    def children(self) -> list[str]:
        return cluster.children(self.shell, self.name)


@pytest.fixture(scope="session")
def uellm() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run `uellm ...` as a person would."""
    program = str(Path(sys.executable).with_name("uellm"))

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([program, *arguments], capture_output=True, text=True, check=False)

    return run
