"""LoRA adapters with a real vLLM on the CPU: loaded at its start, added, replaced and removed while it runs."""

from __future__ import annotations

import json
import os
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from helpers import real_engine
from helpers.adapters import make_adapter
from uellm.api.sidecar_document import SidecarDocument, content_digest
from uellm.cli.local.machine import described_machine
from uellm.cli.local.prepare import WrittenFiles, prepare
from uellm_devcluster import tinymodel
from uellm_devcluster.local import free_port

PROMPT = "How does the import statement work?"
TAKE_OVER_S = 60.0


def post(url: str, body: dict[str, Any], headers: dict[str, str] | None = None) -> tuple[int, Any]:
    request = urllib.request.Request(
        url, json.dumps(body).encode(), {"Content-Type": "application/json", **(headers or {})}
    )
    try:
        with urllib.request.urlopen(request, timeout=120) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


def completion(url: str, model: str) -> str:
    body = {"model": model, "prompt": PROMPT, "max_tokens": 12, "temperature": 0}
    status, answer = post(f"{url}/v1/completions", body)
    assert status == 200, answer
    assert answer["model"] == model
    return str(answer["choices"][0]["text"])


def get(url: str) -> Any:
    with urllib.request.urlopen(url, timeout=10) as answer:
        return json.loads(answer.read())


class Pod:
    """The launcher that becomes the engine, and the sidecar, started as in a pod."""

    def __init__(self, directory: Path, service: dict[str, Any]) -> None:
        self.directory = directory
        (directory / "service.yaml").write_text(yaml.safe_dump(service))
        device = {"index": 0, "uuid": "GPU-sim-0", "product": "Simulated", "memoryBytes": 4 << 30}
        (directory / "gpus.yaml").write_text(yaml.safe_dump({"source": "Simulated", "devices": [device]}))
        self.files: WrittenFiles = self._prepare()
        self.engine_port, self.metrics_port, port = (free_port() for _ in range(3))
        self.url, self.metrics = f"http://127.0.0.1:{port}", f"http://127.0.0.1:{self.metrics_port}"
        command = [sys.executable, "-m", "uellm.cli.main", "sidecar", "--listen", f"127.0.0.1:{port}"]
        command += ["--engine", f"http://127.0.0.1:{self.engine_port}", "--config", str(self.files.sidecar)]
        command += ["--engine-config", str(self.files.engine), "--metrics-listen", f"127.0.0.1:{self.metrics_port}"]
        self.sidecar_log = directory / "sidecar.log"
        self.sidecar = real_engine.start(command, self.sidecar_log)
        self.start_engine()

    def _prepare(self) -> WrittenFiles:
        prepared = prepare(str(self.directory / "service.yaml"), described_machine(str(self.directory / "gpus.yaml")))
        return prepared.write(self.directory)

    def start_engine(self) -> None:
        self.engine_log = self.directory / "engine.log"
        command = [sys.executable, "-m", "uellm.launcher", "--plan", self.files.plan, "--devices", self.files.devices]
        command += ["--placement", self.directory / "placement.json", "--listen", f"127.0.0.1:{self.engine_port}"]
        os.environ["NVIDIA_VISIBLE_DEVICES"] = "GPU-sim-0"
        self.engine = real_engine.start(command, self.engine_log)

    def wait_until_ready(self) -> None:
        real_engine.wait_for(f"{self.metrics}/readyz", self.engine, self.engine_log)

    def configure(self, adapters: list[dict[str, str]], *, missing: Sequence[str] = ()) -> dict[str, Any]:
        """Write sidecar.yaml as the operator does when adapters change; wait until all but `missing` are served."""
        document = SidecarDocument.from_dict(yaml.safe_load(self.files.sidecar.read_text())).to_dict()
        part = self.files.sidecar.with_suffix(".part")
        content = yaml.safe_dump({**document, "adapters": adapters})
        part.write_text(content)
        part.replace(self.files.sidecar)
        names, digest = {each["name"] for each in adapters} - set(missing), content_digest(content.encode())

        def holds(report: dict[str, Any]) -> bool:
            failed = set(report.get("failedAdapters", ()))
            return (
                report["configDigest"] == digest and set(report.get("adapters", ())) == names and failed == set(missing)
            )

        return self.wait_for_report(holds)

    def wait_for_report(self, holds: Any) -> dict[str, Any]:
        deadline_s = time.monotonic() + TAKE_OVER_S
        while not holds(report := get(f"{self.metrics}/uellm/running")):
            assert time.monotonic() < deadline_s, f"{report}\n{self.sidecar_log.read_text()[-2000:]}"
            time.sleep(0.2)
        return dict(report)

    def served(self) -> list[str]:
        return [each["id"] for each in get(f"{self.url}/v1/models")["data"]]

    def end(self) -> None:
        for process in (self.engine, self.sidecar):
            if process.poll() is None:
                real_engine.end(process)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    directory = tmp_path_factory.mktemp("model")
    return directory, tinymodel.make(directory)


@pytest.fixture
def pod(tmp_path: Path, model: tuple[Path, dict[str, Any]]) -> Iterator[Pod]:
    directory, config = model
    for seed, name in enumerate(("sql", "chat", "other"), start=1):
        make_adapter(tmp_path / name, config, seed=seed)
    spec = {
        "model": {
            "uri": f"file://{directory}",
            "maxModelLen": 512,
            "adapters": [{"name": "sql", "uri": f"file://{tmp_path}/sql"}],
        }
    }
    metadata = {"name": "tiny"}
    started = Pod(
        tmp_path, {"apiVersion": "uellm.io/v1alpha1", "kind": "LLMService", "metadata": metadata, "spec": spec}
    )
    yield started
    started.end()


def directly(directory: Path, adapters: dict[str, Path], log: Path) -> dict[str, str]:
    """The text of each adapter by vLLM alone, which was given them at its start."""
    port = free_port()
    modules = [f"{name}={path}" for name, path in adapters.items()]
    command = [sys.executable, "-m", "vllm.entrypoints.cli.main", "serve", directory, "--served-model-name", "tiny"]
    command += ["--dtype", "float32", "--max-model-len", 512, "--enable-lora", "--max-loras", 2, "--max-lora-rank", 8]
    command += ["-cc.mode=2", "-cc.backend=eager", "--kv-cache-memory-bytes", "128M"]
    command += ["--lora-modules", *modules, "--port", port, "--host", "127.0.0.1", "--max-num-seqs", 8]
    engine = real_engine.start(command, log)
    try:
        real_engine.wait_for(f"http://127.0.0.1:{port}/health", engine, log)
        return {name: completion(f"http://127.0.0.1:{port}", name) for name in ("tiny", *adapters)}
    finally:
        real_engine.end(engine)


def test_adapters_are_served_by_name_changed_without_a_restart_and_loaded_again_after_one(
    pod: Pod, model: tuple[Path, dict[str, Any]], tmp_path: Path
):
    paths = {name: tmp_path / name for name in ("sql", "chat", "other")}
    entries = {name: {"name": name, "source": f"file://{path}", "path": str(path)} for name, path in paths.items()}
    pod.wait_until_ready()
    assert pod.served() == ["tiny", "sql"]
    texts = {name: completion(pod.url, name) for name in ("tiny", "sql")}
    assert texts["tiny"] != texts["sql"]
    first_engine = pod.engine.pid

    # Added, while the engine runs.
    pod.configure([entries["sql"], entries["chat"]])
    assert pod.served() == ["tiny", "sql", "chat"]
    texts["chat"] = completion(pod.url, "chat")
    assert len(set(texts.values())) == 3

    # Another directory under the same name.
    pod.configure([{**entries["other"], "name": "sql"}, entries["chat"]])
    texts["other"] = completion(pod.url, "sql")
    assert texts["other"] not in (texts["sql"], texts["tiny"])

    # Removed; an unknown name is the engine's own error.
    pod.configure([entries["sql"]])
    assert pod.served() == ["tiny", "sql"]
    status, answer = post(f"{pod.url}/v1/completions", {"model": "chat", "prompt": PROMPT, "max_tokens": 1})
    assert (status, answer["error"]["type"]) == (404, "NotFoundError")
    assert completion(pod.url, "sql") == texts["sql"]
    assert pod.engine.pid == first_engine
    assert pod.engine.poll() is None

    # Twenty, of which the engine has slots for four and room in host memory for sixteen.
    many = [{**entries["sql" if number % 2 else "chat"], "name": f"a{number}"} for number in range(20)]
    pod.configure([entries["sql"], *many])
    for number in (0, 19, 7, 4, 1):
        assert completion(pod.url, f"a{number}") == texts["sql" if number % 2 else "chat"]
    pod.configure([entries["sql"]])
    assert pod.served() == ["tiny", "sql"]

    # Clients load and unload nothing.
    for path in ("/v1/load_lora_adapter", "/v1/%75nload_lora_adapter", "/adapters"):
        body = {"lora_name": "sql", "name": "sql", "lora_path": str(paths["chat"]), "src": str(paths["chat"])}
        assert post(f"{pod.url}{path}", body)[0] == 403

    # One that is not there: told with the engine's reason, and the others are served.
    missing = {"name": "gone", "source": "file:///nowhere", "path": "/nowhere"}
    report = pod.configure([entries["sql"], missing, entries["chat"]], missing=("gone",))
    assert "gone" in report["failedAdapters"]["gone"]
    pod.configure([entries["sql"], entries["chat"]])

    # Killed: ready again only with its adapters.
    real_engine.end(pod.engine)
    pod.wait_for_report(lambda _: not ready(pod))
    pod.start_engine()
    pod.wait_until_ready()
    assert pod.served() == ["tiny", "sql", "chat"]
    assert {name: completion(pod.url, name) for name in ("tiny", "sql", "chat")} == {
        name: texts[name] for name in ("tiny", "sql", "chat")
    }
    pod.end()

    alone = directly(model[0], paths, tmp_path / "alone.log")
    assert alone == texts


def ready(pod: Pod) -> bool:
    try:
        return bool(get(f"{pod.metrics}/readyz"))
    except urllib.error.HTTPError:
        return False
