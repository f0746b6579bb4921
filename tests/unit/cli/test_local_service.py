"""`uellm run` with everything real except the engine: a package named vllm answers in its place."""

from __future__ import annotations

import asyncio
import copy
import json
import os
import signal
import socket
import textwrap
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from safetensors.numpy import save_file

from uellm.cli.local import prepare as preparing
from uellm.cli.local.machine import described_machine, profiled_machine
from uellm.cli.local.prepare import Prepared, prepare
from uellm.cli.local.serve import Ports, choose_ports, serve
from uellm.errors import BadInput, CannotBeDone, PlanError
from uellm_devcluster import tinymodel
from uellm_devcluster.local import free_port

CONFIG = tinymodel.config()
FAKE_ENGINE = """
    import http.server, json, os, sys

    class Engine(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            body = json.dumps({"partition": os.environ.get("VLLM_PP_LAYER_PARTITION")}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    port = int(sys.argv[sys.argv.index("--port") + 1])
    print("fake engine serves", sys.argv[2], flush=True)
    http.server.ThreadingHTTPServer(("127.0.0.1", port), Engine).serve_forever()
"""
DYING_ENGINE = "print('no kernel image'); raise SystemExit(7)"


@pytest.fixture
def service(tmp_path: Path) -> dict[str, Any]:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text(json.dumps(CONFIG))
    return {
        "apiVersion": "uellm.io/v1alpha1",
        "kind": "LLMService",
        "metadata": {"name": "tiny"},
        "spec": {
            "model": {"uri": f"file://{tmp_path}/model", "config": CONFIG, "maxModelLen": 1024},
            "slo": {"classes": [{"name": "interactive", "ttft": "2s"}]},
            "parallelism": {"tensor": 1, "pipeline": 2, "layers": [5, 3]},
        },
    }


@pytest.fixture
def prepared(tmp_path: Path, service: dict[str, Any]) -> Any:
    """Plan a changed copy of the service on two simulated GPUs."""

    def plan(**changes: Any) -> Prepared:
        document = copy.deepcopy(service)
        for path, value in changes.items():
            *parents, last = path.split("__")
            part = document["spec"]
            for name in parents:
                part = part.setdefault(name, {})
            part[last] = value
        devices = [
            {"index": index, "uuid": f"GPU-sim-{index}", "product": "Simulated", "memoryBytes": 2 << 30}
            for index in range(2)
        ]
        (tmp_path / "service.yaml").write_text(yaml.safe_dump(document))
        (tmp_path / "node.yaml").write_text(yaml.safe_dump({"source": "Simulated", "devices": devices}))
        return prepare(str(tmp_path / "service.yaml"), described_machine(str(tmp_path / "node.yaml")))

    return plan


@pytest.fixture
def engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Put a package named vllm first on the path; its main is the given program."""

    def install(program: str) -> None:
        package = tmp_path / "site" / "vllm" / "entrypoints" / "cli"
        package.mkdir(parents=True)
        for part in (package, *package.parents[:2]):
            (part / "__init__.py").write_text("")
        (package / "main.py").write_text(textwrap.dedent(program))
        monkeypatch.setenv("PYTHONPATH", str(tmp_path / "site"))

    return install


@pytest.fixture
def ports() -> Ports:
    return choose_ports(free_port())


def test_the_pods_own_documents_are_written_for_the_processes(prepared, tmp_path):
    service = prepared()
    files = service.write(tmp_path)
    plan = json.loads(files.plan.read_text())
    assert plan["platform"] == "cpu"
    assert plan["plan"]["layers"] == [5, 3]
    assert plan["engine"]["model"] == f"{tmp_path}/model"
    found = json.loads(files.devices.read_text())["devices"]
    assert [each["uuid"] for each in found] == list(service.plan.devices)
    assert [each["name"] for each in yaml.safe_load(files.sidecar.read_text())["classes"]] == ["interactive"]
    assert yaml.safe_load(files.engine.read_text())["model"] == service.service.served_name


def test_the_sidecar_starts_from_what_the_measured_gpus_make_of_a_step(prepared, tmp_path, monkeypatch):
    measured = {"bf16GigaflopsPerSecond": 100_000, "memoryBytesPerSecond": 500_000_000_000}
    devices = [
        {"index": index, "uuid": f"GPU-{index}", "product": "NVIDIA L4", "memoryBytes": 22 << 30, "measured": measured}
        for index in range(2)
    ]
    played = prepared()
    profile = {"apiVersion": "uellm.io/v1alpha1", "kind": "GPUNodeProfile", "metadata": {"name": "desk"}}
    (tmp_path / "profile.yaml").write_text(yaml.safe_dump(profile | {"status": {"source": "NVML", "devices": devices}}))
    monkeypatch.setattr(preparing.importlib.metadata, "version", lambda name: "0.32.0")
    served = prepare(str(tmp_path / "service.yaml"), profiled_machine(str(tmp_path / "profile.yaml")))
    told = [yaml.safe_load(each.files["engine.yaml"])["engine"] for each in (played, served)]
    assert "stepSeconds" not in told[0]
    assert set(told[1]["stepSeconds"]) == {"floor", "perPrefillToken", "perKvToken", "perSequence", "overhead"}


def test_the_cpu_engines_float32_is_planned_with(prepared):
    in_float32, in_bfloat16 = prepared(), prepared(model__dtype="bfloat16")
    weights = [sum(stage.memory.weights for stage in each.plan.stages) for each in (in_float32, in_bfloat16)]
    assert weights[0] == 2 * weights[1]


def test_layer_sizes_come_from_the_models_own_files(prepared, tmp_path):
    by_formula = sum(stage.memory.weights for stage in prepared().plan.stages)
    tensors = {f"model.layers.{index}.all.weight": np.zeros(1000, np.float16) for index in range(8)}
    save_file({**tensors, "model.embed_tokens.weight": np.zeros(500, np.float16)}, tmp_path / "model/model.safetensors")
    by_headers = sum(stage.memory.weights for stage in prepared().plan.stages)
    assert by_headers != by_formula
    assert by_headers == 4 * (8 * 1000 + 500)  # in float32, as the CPU computes


def test_fields_that_need_a_cluster_are_noted(prepared):
    notes = prepared(
        replicas=2,
        autoscaling={"maxReplicas": 3},
        engine__image="vllm/vllm-openai",
        model__tokenSecretRef={"name": "a", "key": "b"},
    ).notes
    assert "spec.replicas, spec.autoscaling, spec.engine.image" in notes[0]
    assert "HF_TOKEN" in notes[1]


def test_a_cache_needs_a_cluster_and_the_engine_gets_the_name(prepared):
    commit = "0123456789abcdef0123456789abcdef01234567"
    found = prepared(model__uri="hf://org/model", model__revision=commit, model__cache={"claimName": "models"})
    assert found.notes == ("without a cluster these have no effect: spec.model.cache",)
    engine = json.loads(found.files["plan.json"])["engine"]
    assert (engine["model"], engine["revision"]) == ("org/model", commit)


def test_a_claim_needs_a_cluster(prepared):
    with pytest.raises(BadInput, match=r"spec\.model\.uri: a pvc:// model needs a cluster"):
        prepared(model__uri="pvc://claim/model")


def test_a_model_that_is_not_there_is_named(prepared):
    with pytest.raises(
        BadInput, match=r"spec\.model\.uri: /nonexistent/model has neither config\.json nor params\.json"
    ):
        prepared(model__uri="file:///nonexistent/model")


def test_a_model_that_does_not_fit_is_a_plan_error(prepared):
    with pytest.raises(PlanError):
        prepared(parallelism={"pipeline": 3})


@pytest.mark.parametrize(
    ("version", "on_cpu", "sentence"), [("0.32.0", True, "not a CPU build"), ("0.32.0+cpu", False, "is the CPU build")]
)
def test_a_vllm_for_other_devices_is_refused_before_it_starts(monkeypatch, version, on_cpu, sentence):
    monkeypatch.setattr(preparing.importlib.metadata, "version", lambda name: version)
    with pytest.raises(CannotBeDone, match=sentence):
        preparing._check_engine(on_cpu=on_cpu)


def test_a_port_in_use_is_refused_before_anything_starts():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(CannotBeDone, match="Address already in use: choose another"):
            choose_ports(taken.getsockname()[1])


async def test_it_says_where_it_serves_and_ends_on_sigint(prepared, engine, ports, tmp_path):
    engine(FAKE_ENGINE)
    lines: list[tuple[str, str]] = []
    answers: list[Any] = []

    def fetch() -> None:
        with urllib.request.urlopen(f"http://127.0.0.1:{ports.service}/v1/models", timeout=10) as answer:
            answers.append(json.load(answer))
        os.kill(os.getpid(), signal.SIGINT)

    def say(name: str, line: str) -> None:
        lines.append((name, line))
        if line.startswith("endpoint"):
            asyncio.get_running_loop().run_in_executor(None, fetch)

    await serve(prepared(), tmp_path, ports, say)
    assert answers == [{"partition": "5,3"}]
    told = [line for name, line in lines if name == "uellm"]
    assert f"endpoint  http://127.0.0.1:{ports.service}/v1  model tiny" in told
    assert any("layers 5,3 on Simulated, Simulated" in line for line in told)
    assert ("engine", f"fake engine serves {tmp_path}/model") in lines
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection("127.0.0.1", ports.service)


async def test_an_engine_that_dies_ends_the_sidecar_and_is_reported(prepared, engine, ports, tmp_path):
    engine(DYING_ENGINE)
    lines: list[tuple[str, str]] = []
    with pytest.raises(CannotBeDone, match="the engine ended with exit status 7; its last lines are above"):
        await serve(prepared(), tmp_path, ports, lambda name, line: lines.append((name, line)))
    assert ("engine", "no kernel image") in lines


async def test_a_launcher_that_cannot_bind_gives_its_reason(prepared, engine, ports, tmp_path):
    engine(FAKE_ENGINE)
    refused = prepared(engine__env=[{"name": "VLLM_API_KEY", "value": "secret"}])
    with pytest.raises(CannotBeDone, match=r"could not be launched: RefusedArgument: engine\.env\.VLLM_API_KEY"):
        await serve(refused, tmp_path, ports, lambda name, line: None)


async def test_waiting_for_an_engine_that_never_serves_ends(prepared, engine, ports, tmp_path):
    engine("import signal; signal.pause()")
    with pytest.raises(CannotBeDone, match=r"does not serve after spec\.engine\.startupTimeout, 1 s"):
        await serve(prepared(engine__startupTimeout="1s"), tmp_path, ports, lambda name, line: None)
