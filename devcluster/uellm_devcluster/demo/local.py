"""The demo without a cluster: the same LLMService through `uellm run` on this machine."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.error
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import yaml

from uellm_devcluster import tinymodel
from uellm_devcluster.demo import cluster, readback, traffic
from uellm_devcluster.demo.story import StepFailed, Story
from uellm_devcluster.install import CHART
from uellm_devcluster.local import free_port

_READY_TIMEOUT_S = 240.0
_END_TIMEOUT_S = 60.0


def why_no_cluster() -> str:
    """Why neither provider can work here; empty where one can."""
    if shutil.which("docker") and shutil.which("kind"):
        return ""
    if not sys.platform.startswith("linux"):
        return "real nodes without Docker need Linux"
    if os.geteuid() != 0:
        return "real nodes without Docker need root (or install Docker and kind)"
    return ""


def run(story: Story) -> None:
    """Plan, launch, serve and send requests, all in child processes of `uellm run`."""
    with story.step("a small random-weight Llama"):
        tinymodel.make(cluster.MODELS / cluster.SERVICE)
    with tempfile.TemporaryDirectory() as scratch:
        service, node = _documents(Path(scratch))
        port = free_port()
        with _running(service, node, port):
            with story.step("engine ready, by `uellm run`"):
                _until_ready(port)
            _ask(story, port)


def _documents(scratch: Path) -> tuple[Path, Path]:
    """The sample with this machine's path of the model, and the first simulated node of the chart's values."""
    service = yaml.safe_load(cluster.SAMPLE.read_text())
    service["spec"]["model"]["uri"] = f"file://{cluster.MODELS / cluster.SERVICE}"
    service["spec"].pop("template", None)
    values = yaml.safe_load((CHART / "values-simulated.yaml").read_text())
    status = {"observedAt": "1970-01-01T00:00:00Z", **values["simulated"]["nodes"]["node-1"]}
    node = {
        "apiVersion": "uellm.io/v1alpha1",
        "kind": "GPUNodeProfile",
        "metadata": {"name": "node-1"},
        "status": status,
    }
    paths = scratch / "service.yaml", scratch / "node-1.yaml"
    for path, document in zip(paths, (service, node), strict=True):
        path.write_text(yaml.safe_dump(document))
    return paths


@contextmanager
def _running(service: Path, node: Path, port: int) -> Iterator[None]:
    uellm = str(Path(sys.executable).with_name("uellm"))
    arguments = ["run", "-f", str(service), "--simulate", str(node), "--port", str(port)]
    print(f"$ uellm {' '.join(arguments)}", flush=True)
    process = subprocess.Popen([uellm, *arguments])
    try:
        yield
    finally:
        process.terminate()
        process.wait(_END_TIMEOUT_S)


def _until_ready(port: int) -> None:
    deadline_s = time.monotonic() + _READY_TIMEOUT_S
    while time.monotonic() < deadline_s:
        try:
            readback.fetch(f"http://127.0.0.1:{port}/v1/models")
        except (urllib.error.URLError, OSError):
            time.sleep(3)  # each request is a line of the sidecar's log
        else:
            return
    raise StepFailed(f"the engine is not ready within {_READY_TIMEOUT_S:g} s")


def _ask(story: Story, port: int) -> None:
    with story.step("a streamed chat completion") as step:
        answer = traffic.stream_chat(port, cluster.SERVICE, "Tell me about placement.", max_tokens=32, show=True)
        step.note = f"{answer.tokens} tokens, first after {answer.ttft_s * 1e3:.0f} ms"
    with story.step("requests of two SLO classes") as step:
        answers = traffic.of_two_classes(port, cluster.SERVICE, ("interactive", "batch"))
        print(traffic.answers_table(answers))
        step.note = f"{len(answers)} answered"
