"""The draft of a service's speculation, copied to a volume: the real engine drafts with the copy, without a hub."""

from __future__ import annotations

import json
import re
import sys
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import yaml

from helpers import hub_server, real_engine
from helpers.local_run import post
from uellm.api import LLMService, parse_service
from uellm.cli.adapters import with_draft
from uellm.cli.hub import model_facts
from uellm.cli.local.machine import described_machine
from uellm.cli.main import main
from uellm.planner import plan as make_plan
from uellm.reconcile.download.order import order_of
from uellm.reconcile.model_claim import MODEL_MOUNT
from uellm.reconcile.planning.render import render
from uellm.reconcile.planning.request import architecture_of, plan_request
from uellm_devcluster import tinymodel
from uellm_devcluster.local import free_port

pytestmark = pytest.mark.timeout(900)

MODEL, DRAFT = "org/model", "org/draft"
DRAFTED = 2
DEVICE = {"index": 0, "uuid": "GPU-sim-0", "product": "Simulated", "memoryBytes": 2 << 30}


def smaller(directory: Path) -> None:
    """A model of the same vocabulary with two layers."""
    config, weights = tiny(directory)
    beyond = tuple(f"model.layers.{index}." for index in range(2, config["num_hidden_layers"]))
    write(directory, {**config, "num_hidden_layers": 2}, {n: w for n, w in weights.items() if not n.startswith(beyond)})


def head(directory: Path) -> None:
    """An EAGLE head of one layer, which has neither an embedding nor an LM head, nor a tokenizer."""
    import numpy

    config, weights = tiny(directory)
    prefix, width = "model.layers.0.", config["hidden_size"]
    own = {f"layers.0.{name.removeprefix(prefix)}": each for name, each in weights.items() if name.startswith(prefix)}
    del own["layers.0.input_layernorm.weight"]
    own["fc.weight"] = numpy.zeros((width, 2 * width), dtype="float32")
    write(directory, {**config, "num_hidden_layers": 1}, own)
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        (directory / name).unlink()


def tiny(directory: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    from safetensors.numpy import load_file

    config = tinymodel.make(directory)
    return config, load_file(directory / "model.safetensors")


def write(directory: Path, config: dict[str, Any], weights: dict[str, Any]) -> None:
    from safetensors.numpy import save_file

    (directory / "config.json").write_text(json.dumps(config))
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def service(method: str) -> LLMService:
    told = {"model": DRAFT, "num_speculative_tokens": DRAFTED, **({"method": method} if method else {})}
    spec = {
        "model": {"uri": f"hf://{MODEL}", "dtype": "float32", "maxModelLen": 512, "cache": {"claimName": "models"}},
        "engine": {"args": ["--enforce-eager", "--speculative-config", json.dumps(told)]},
    }
    metadata = {"name": "tiny", "namespace": "default", "uid": "0"}
    return parse_service({"apiVersion": "uellm.io/v1alpha1", "kind": "LLMService", "metadata": metadata, "spec": spec})


def copied_and_planned(own: LLMService, scratch: Path) -> str:
    """Look both up, copy them as the download pod does, and plan; plan.json, with the volume where it is here."""
    (scratch / "gpus.yaml").write_text(yaml.safe_dump({"source": "Simulated", "devices": [DEVICE]}))
    facts = with_draft(own, model_facts(f"hf://{MODEL}"))
    order = order_of(own, facts)
    assert order is not None
    volume = scratch / "volume"
    volume.mkdir()
    assert main(["fetch", *(str(volume) if each == MODEL_MOUNT else each for each in order.arguments)]) == 0
    request = plan_request(
        own, architecture_of(own, facts), described_machine(str(scratch / "gpus.yaml")).offers, facts=facts
    )
    rendered = render(make_plan(request), request).plan_json
    assert f"{MODEL_MOUNT}/{DRAFT}/{hub_server.COMMIT}" in rendered
    return rendered.replace(f"{MODEL_MOUNT}/", f"{volume}/")


@pytest.mark.parametrize(("make", "method"), [(smaller, ""), (head, "eagle")])
def test_the_engine_drafts_with_the_copy_without_a_hub(tmp_path, monkeypatch, make, method):
    tinymodel.make(tmp_path / "model", seed=1)
    make(tmp_path / "draft")
    with hub_server.hub_server() as hub:
        hub.files, hub.others = contents(tmp_path / "model"), {DRAFT: contents(tmp_path / "draft")}
        monkeypatch.setenv("HF_ENDPOINT", hub.url)  # where nothing answers when the engine starts
        (tmp_path / "plan.json").write_text(copied_and_planned(service(method), tmp_path))
    port = free_port()
    # Whether the engine asks hubs is the launcher's decision.
    command = ["env", "-u", "HF_HUB_OFFLINE", sys.executable, "-m", "uellm.launcher", "--plan", tmp_path / "plan.json"]
    command += ["--placement", tmp_path / "placement.json", "--listen", f"127.0.0.1:{port}"]
    monkeypatch.setenv("NVIDIA_VISIBLE_DEVICES", DEVICE["uuid"])
    monkeypatch.setattr(real_engine, "READY_TIMEOUT_S", 600.0)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "nothing"))
    log, url = tmp_path / "engine.log", f"http://127.0.0.1:{port}"
    engine = real_engine.start(command, log)
    try:
        real_engine.wait_for(f"{url}/health", engine, log)
        status, body = post(f"{url}/v1/completions", {"model": "tiny", "prompt": "Tell me", "max_tokens": 8})
        assert status == 200, body
        with urllib.request.urlopen(f"{url}/metrics") as answer:
            drafted = re.findall(r"spec_decode_num_draft_tokens_total\{[^}]*\} (\S+)", answer.read().decode())
        assert sum(map(float, drafted)) >= DRAFTED, drafted
    finally:
        real_engine.end(engine)
    started = json.loads((tmp_path / "placement.json").read_text())
    assert started["env"]["HF_HUB_OFFLINE"] == "1"
