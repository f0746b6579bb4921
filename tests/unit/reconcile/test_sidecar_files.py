"""The files that the operator publishes for the sidecar, read as the sidecar reads them."""

from __future__ import annotations

import json

import pytest
import yaml

from helpers.children import containers, environment, pod
from uellm.sidecar.config import load, load_engine


def test_the_sidecars_file_holds_classes_and_queue(made):
    classes = [{"name": "chat", "ttft": "1s"}, {"name": "batch", "e2e": "60s", "onDeadline": "Reject"}]
    found = made(slo={"classes": classes, "defaultClass": "batch"}, scheduling={"policy": "FCFS"})
    config = yaml.safe_load(found["files"]["sidecar.yaml"])
    assert config["defaultClass"] == "batch"
    assert [each["name"] for each in config["classes"]] == ["chat", "batch"]
    assert config["classes"][1]["onDeadline"] == "Reject"
    assert config["scheduling"] == {"policy": "FCFS", "maxQueuedRequests": 1024, "predictor": "Online"}
    assert config["service"] == "ns/llama"
    assert set(config) == {"version", "classes", "defaultClass", "scheduling", "service"}


def test_a_service_without_classes_has_the_one_without_targets(made):
    config = yaml.safe_load(made()["files"]["sidecar.yaml"])
    assert [each["name"] for each in config["classes"]] == ["default"]
    assert config["defaultClass"] == "default"


def test_api_keys_are_mounted_into_the_sidecar_alone(made):
    found = made(auth={"apiKeysSecretRef": {"name": "keys"}})
    assert {"name": "api-keys", "secret": {"secretName": "keys"}} in pod(found)["volumes"]
    mounted = {name: [m["mountPath"] for m in each["volumeMounts"]] for name, each in containers(found).items()}
    assert "/etc/uellm-auth" in mounted["sidecar"]
    assert "/etc/uellm-auth" not in mounted["engine"]
    assert yaml.safe_load(found["files"]["engine.yaml"])["auth"] == {"keysDirectory": "/etc/uellm-auth"}


def test_without_api_keys_nothing_is_mounted_for_them(made):
    found = made()
    assert "api-keys" not in json.dumps(found["Deployment"])
    assert "auth" not in yaml.safe_load(found["files"]["engine.yaml"])


def test_the_sidecar_gets_the_size_of_the_engines_steps(made):
    engine = yaml.safe_load(made()["files"]["engine.yaml"])["engine"]
    assert engine["maxNumSeqs"] > 0
    assert engine["maxNumBatchedTokens"] > 0


MEASURED = {"bf16GigaflopsPerSecond": 100_000, "memoryBytesPerSecond": 500_000_000_000}


def test_the_sidecar_gets_the_step_times_of_the_planned_devices(made, tmp_path):
    found = made(source="NVML", device={"measured": MEASURED})["files"]
    for name in ("sidecar.yaml", "engine.yaml"):
        (tmp_path / name).write_text(found[name])
    model = load(tmp_path / "sidecar.yaml").of_pod(load_engine(tmp_path / "engine.yaml")).step_model()
    # 1.1 billion parameters of 2 bytes: reading them takes the floor, and a token needs two operations for each.
    assert model.floor_s == pytest.approx(2.2e9 / 5e11, rel=0.15)
    assert model.per_prefill_token_s == pytest.approx(2.2e9 / 1e14, rel=0.6)


@pytest.mark.parametrize(
    "device", [{}, {"measured": MEASURED, "source": "Simulated"}], ids=["not measured", "played by a CPU"]
)
def test_the_sidecar_gets_no_step_times_if_they_are_unknown(made, device):
    source = device.pop("source", "NVML")
    found = made(source=source, device=device)["files"]["engine.yaml"]
    assert "stepSeconds" not in yaml.safe_load(found)["engine"]


def test_nearly_equal_measurements_give_the_sidecar_the_same_step_times(made):
    def told(factor):
        measured = {name: int(value * factor) for name, value in MEASURED.items()}
        return yaml.safe_load(made(source="NVML", device={"measured": measured})["files"]["engine.yaml"])["engine"]

    assert told(1.002) == told(1.0) != told(1.5)


def test_what_the_sidecar_learned_outlives_its_container(made):
    found = made()
    assert {"name": "state", "emptyDir": {}} in pod(found)["volumes"]
    assert environment(containers(found)["sidecar"])["UELLM_STATE_DIRECTORY"] == "/var/lib/uellm"


@pytest.mark.parametrize(
    ("policy", "args", "told"),
    [
        ("SLO-ODBS", [], True),
        ("EDF", [], True),
        ("FCFS", [], False),
        ("SLO-ODBS", ["--scheduling-policy=fcfs"], False),
    ],
)
def test_the_sidecar_sends_deadlines_to_an_engine_that_uses_them(made, tmp_path, policy, args, told):
    found = made(scheduling={"policy": policy}, engine={"args": args})["files"]
    for name in ("sidecar.yaml", "engine.yaml"):
        (tmp_path / name).write_text(found[name])
    config = load(tmp_path / "sidecar.yaml").of_pod(load_engine(tmp_path / "engine.yaml"))
    assert config.engine.accepts_priority is told
