"""The engine's pod: containers, probes, resources, environment, volumes."""

from __future__ import annotations

import contextlib
import json

import pytest

from helpers.children import containers, environment, mebibytes, pod
from helpers.sizes import GIB
from uellm.errors import BadInput


def test_every_container_meets_pod_security_restricted(made):
    found = made()
    assert pod(found)["securityContext"]["runAsNonRoot"] is True
    assert pod(found)["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert pod(found)["automountServiceAccountToken"] is False
    for container in containers(found).values():
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "readOnlyRootFilesystem": True,
        }


def test_the_sidecar_is_a_native_one_that_outlives_the_engine(made):
    sidecar = containers(made())["sidecar"]
    assert sidecar["restartPolicy"] == "Always"
    assert sidecar["args"][:3] == ["sidecar", "--listen=:8000", "--engine=http://127.0.0.1:8001"]


def test_the_engines_parent_answers_the_kubelet_for_it(made):
    engine = containers(made())["engine"]
    asked = {name: engine[f"{name}Probe"]["httpGet"] for name in ("startup", "liveness", "readiness")}
    assert asked == {
        "startup": {"path": "/startup", "port": 8003},
        "liveness": {"path": "/live", "port": 8003},
        "readiness": {"path": "/ready", "port": 8003},
    }
    assert "--drain" in engine["lifecycle"]["preStop"]["exec"]["command"]


def test_the_startup_timeout_is_the_startup_probes_patience(made):
    engine = containers(made(engine={"startupTimeout": "10m1s"}))["engine"]
    assert engine["startupProbe"]["failureThreshold"] * engine["startupProbe"]["periodSeconds"] == 605


def test_every_written_path_has_a_volume(made):
    engine = containers(made())["engine"]
    mounts = {mount["mountPath"] for mount in engine["volumeMounts"]}
    assert {"/tmp", "/dev/shm", "/var/cache/uellm", "/run/uellm", "/etc/uellm-revision", "/uellm-bin"} <= mounts
    assert environment(engine)["HOME"] == "/var/cache/uellm"


def test_gpus_are_asked_for_beside_the_users_resources(made):
    found = made(engine={"resources": {"requests": {"cpu": "2"}, "limits": {"memory": "8Gi"}}})
    resources = containers(found)["engine"]["resources"]
    assert resources["limits"] == {"memory": "8Gi", "nvidia.com/gpu": "1"}
    assert (resources["requests"]["cpu"], resources["requests"]["nvidia.com/gpu"]) == ("2", "1")
    # Kubernetes takes the limit for the request, and ours might be above it.
    assert "memory" not in resources["requests"]


def test_limits_of_the_users_template_are_the_requests_too(made):
    template = {"spec": {"containers": [{"name": "engine", "resources": {"limits": {"ephemeral-storage": "1Gi"}}}]}}
    assert "ephemeral-storage" not in containers(made(template=template))["engine"]["resources"]["requests"]


@pytest.mark.parametrize(
    "spec",
    [
        {"volumes": [5]},
        {"containers": [{"name": "engine", "resources": {"limits": {"memory": 5}}}]},
        {"terminationGracePeriodSeconds": "soon"},
    ],
)
def test_a_malformed_template_is_left_to_the_api_server_which_names_the_field(made, spec):
    with contextlib.suppress(BadInput):
        assert made(template={"spec": spec})


def test_storage_is_requested_for_what_the_engine_downloads(made):
    weights = 2_200_000_000  # 1.1 billion parameters of 2 bytes
    stored = {}
    for uri in ("hf://org/model", "pvc://models/llama", "file:///models/llama"):
        request = containers(made(uri=uri))["engine"]["resources"]["requests"]["ephemeral-storage"]
        stored[uri.partition(":")[0]] = mebibytes(request) << 20
    assert stored["pvc"] == stored["file"] == GIB
    assert stored["hf"] - GIB == pytest.approx(weights, rel=0.05)
    found = made(model={"cache": {"claimName": "models"}, "revision": "0" * 40})
    request = containers(found)["engine"]["resources"]["requests"]["ephemeral-storage"]
    assert mebibytes(request) << 20 == GIB
    volumes = {"spec": {"volumes": [{"name": "cache", "persistentVolumeClaim": {"claimName": "cache"}}]}}
    request = containers(made(template=volumes))["engine"]["resources"]["requests"]["ephemeral-storage"]
    assert mebibytes(request) << 20 == GIB


def test_memory_and_cpu_are_requested_by_the_models_bytes_and_the_ranks(made):
    def requests(**options):
        found = containers(made(source="NVML", **options))["engine"]["resources"]["requests"]
        return mebibytes(found["memory"]), int(found["cpu"].removesuffix("m"))

    one, two = requests(parallelism={"tensor": 1}), requests(parallelism={"tensor": 2})
    assert two[0] > one[0] > 2_200_000_000 >> 20
    assert (one[1], two[1]) == (1000, 1500)


def test_every_container_but_the_engine_has_limits_within_its_requests(made):
    for name in ("launcher", "sidecar"):
        resources = containers(made())[name]["resources"]
        assert resources["limits"].keys() == resources["requests"].keys() == {"cpu", "memory", "ephemeral-storage"}


@pytest.mark.parametrize(
    ("spec", "whole_s", "drain_s"),
    [
        # How long an answer takes is not known, or is more than is assumed of any.
        ({}, 600, 570),
        ({"slo": {"classes": [{"name": "chat", "ttft": "1s"}, {"name": "batch", "e2e": "10s"}]}}, 600, 570),
        ({"slo": {"classes": [{"name": "chat", "tpot": "1s"}]}}, 600, 570),
        # The longest answer at the target's pace: 2048 tokens of 50 ms, after 10 s.
        ({"slo": {"classes": [{"name": "chat", "ttft": "10s", "tpot": "50ms"}]}}, 148, 118),
        ({"slo": {"classes": [{"name": "chat", "tpot": "5ms"}]}}, 90, 60),
        # A target for the whole answer says it.
        ({"slo": {"classes": [{"name": "chat", "e2e": "10s"}]}}, 90, 60),
        ({"slo": {"classes": [{"name": "chat", "tpot": "50ms", "e2e": "60s"}]}}, 95, 65),
        ({"slo": {"classes": [{"name": "chat", "ttft": "1s"}, {"name": "batch", "e2e": "10m"}]}}, 635, 605),
        ({"slo": {"classes": [{"name": "batch", "e2e": "24h"}]}}, 3600, 3570),
        ({"template": {"spec": {"terminationGracePeriodSeconds": 700}}}, 700, 670),
        ({"template": {"spec": {"terminationGracePeriodSeconds": 30}}}, 30, 15),
    ],
)
def test_a_drain_lasts_as_long_as_the_grace_period_allows_and_the_longest_answer_needs(made, spec, whole_s, drain_s):
    found = made(**spec)
    engine = containers(found)["engine"]
    assert pod(found)["terminationGracePeriodSeconds"] == whole_s
    assert f"--drain-seconds={drain_s}" in containers(found)["sidecar"]["args"]
    # The hook outlasts the sidecar's drain, so that it hears of its end.
    assert f"--drain-timeout={drain_s + 10}" in engine["lifecycle"]["preStop"]["exec"]["command"]
    # A restart of a dead engine does not wait for answers that will never come.
    assert engine["livenessProbe"]["terminationGracePeriodSeconds"] == min(whole_s, 90)


@pytest.mark.parametrize("resource", ["nvidia.com/gpu", "nvidia.com/mig-3g.20gb"])
def test_gpu_nodes_taints_are_tolerated_also_for_slices(made, resource):
    found = made(device={"resourceName": resource})
    assert containers(found)["engine"]["resources"]["limits"] == {resource: "1"}
    assert [each["key"] for each in pod(found)["tolerations"]] == list(dict.fromkeys(["nvidia.com/gpu", resource]))


def test_vllm_waits_as_long_for_its_model_as_the_service_says(made):
    engine = containers(made(engine={"startupTimeout": "2h"}))["engine"]
    assert environment(engine)["VLLM_ENGINE_READY_TIMEOUT_S"] == "7200"


def test_the_users_environment_wins_by_name(made):
    engine = containers(made(engine={"env": [{"name": "HOME", "value": "/x"}, {"name": "A", "value": "1"}]}))["engine"]
    assert environment(engine)["HOME"] == "/x"
    assert environment(engine)["A"] == "1"
    assert [entry["name"] for entry in engine["env"]].count("HOME") == 1


def test_a_token_comes_from_its_secret_and_appears_nowhere_else(made):
    found = made(model={"tokenSecretRef": {"name": "hf", "key": "token"}})
    assert environment(containers(found)["engine"])["HF_TOKEN"] == {"secretKeyRef": {"name": "hf", "key": "token"}}
    assert "hf" not in json.dumps(found["files"]["sidecar.yaml"])


def test_a_pvc_model_is_mounted_for_reading(made):
    found = made(uri="pvc://claim/models/x")
    assert {"name": "model", "persistentVolumeClaim": {"claimName": "claim", "readOnly": True}} in pod(found)["volumes"]
    assert {"name": "model", "mountPath": "/models", "readOnly": True} in containers(found)["engine"]["volumeMounts"]
    assert json.loads(found["files"]["plan.json"])["engine"]["model"] == "/models/models/x"


@pytest.mark.parametrize(
    ("uri", "image", "path"),
    [
        ("oci://ghcr.io/org/model:V1_b", "ghcr.io/org/model:V1_b", "/models"),
        (
            "oci://registry:5000/a/b@sha256:" + "0a" * 32 + "#8b/int4",
            "registry:5000/a/b@sha256:" + "0a" * 32,
            "/models/8b/int4",
        ),
    ],
)
def test_a_model_of_an_image_is_mounted_for_reading(made, uri, image, path):
    found = made(uri=uri)
    assert {"name": "model", "image": {"reference": image}} in pod(found)["volumes"]
    assert {"name": "model", "mountPath": "/models", "readOnly": True} in containers(found)["engine"]["volumeMounts"]
    engine = json.loads(found["files"]["plan.json"])["engine"]
    assert (engine["model"], engine["revision"]) == (path, "")


def test_a_model_of_a_bucket_is_loaded_by_the_engines_streaming_loader(made):
    found = made(uri="s3://bucket/llama/")
    engine = json.loads(found["files"]["plan.json"])["engine"]
    assert engine["model"] == "s3://bucket/llama"
    assert engine["args"][engine["args"].index("--load-format") + 1] == "runai_streamer"
    assert not [each for each in pod(found)["volumes"] if each["name"] == "model"]


@pytest.mark.parametrize(
    ("cache", "claim"),
    [({"claimName": "models"}, "models"), ({"size": "9Gi", "accessModes": ["ReadWriteMany"]}, "llama-weights")],
)
def test_a_copy_is_mounted_for_reading_and_needs_no_token(made, cache, claim):
    commit = "0123456789abcdef0123456789abcdef01234567"
    token = {"name": "hf", "key": "token"}
    found = made(uri="hf://org/model", model={"cache": cache, "revision": commit, "tokenSecretRef": token})
    assert {"name": "model", "persistentVolumeClaim": {"claimName": claim}} in pod(found)["volumes"]
    engine = containers(found)["engine"]
    assert {"name": "model", "mountPath": "/models", "readOnly": True} in engine["volumeMounts"]
    assert "HF_TOKEN" not in environment(engine)
    planned = json.loads(found["files"]["plan.json"])["engine"]
    assert (planned["model"], planned["revision"]) == (f"/models/org/model/{commit}", "")


def test_compiled_code_is_kept_on_the_volume_of_the_copy_beside_the_weights(made):
    commit = "0123456789abcdef0123456789abcdef01234567"
    cached = {"cache": {"claimName": "models"}, "revision": commit}
    kept = {"name": "model", "mountPath": "/var/cache/uellm-compiled", "subPath": ".compiled/llama"}
    assert kept in containers(made(model=cached, compiled=".compiled/llama"))["engine"]["volumeMounts"]
    for found in (made(model=cached), made(compiled=".compiled/llama")):
        assert kept["mountPath"] not in {each["mountPath"] for each in containers(found)["engine"]["volumeMounts"]}


@pytest.mark.parametrize(
    ("uri", "model", "revision"),
    [
        ("hf://org/model", "org/model", "main"),
        ("file:///models/x/", "/models/x", ""),
        ("pvc://claim", "/models", ""),
    ],
)
def test_the_engine_is_given_the_model_as_it_finds_it(made, uri, model, revision):
    engine = json.loads(made(uri=uri)["files"]["plan.json"])["engine"]
    assert (engine["model"], engine["revision"], engine["servedName"]) == (model, revision, "llama")
