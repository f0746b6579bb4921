from __future__ import annotations

import contextlib
import dataclasses
import json

import pytest
import yaml

from helpers.sizes import GIB
from uellm.api import parse_service
from uellm.errors import BadInput
from uellm.planner import plan
from uellm.reconcile.children import DesiredState, Images, children, config_files, frozen, make_revision
from uellm.reconcile.drift import holds
from uellm.reconcile.names import belonged_to_namesake, belongs_to
from uellm.reconcile.planning.ledger import offers
from uellm.reconcile.planning.render import render
from uellm.reconcile.planning.request import architecture_of, plan_request
from uellm.reconcile.profiled_node import profiled_node
from uellm.sidecar.config import load, load_engine

IMAGES = Images("engine:1", "sidecar:1", "launcher:1")
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 2048,
    "intermediate_size": 5632,
    "num_hidden_layers": 22,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "vocab_size": 32000,
    "max_position_embeddings": 2048,
    "torch_dtype": "bfloat16",
}


@pytest.fixture
def made(make):
    """The children of a service with this spec, by kind."""

    def build(
        *, replicas=1, uri="hf://org/model", model=None, holders=(None, None), device=None, source="Simulated", **spec
    ):
        document = make.service(model={"uri": uri, "config": CONFIG, **(model or {})}, **spec)
        service = parse_service(document)
        profile = make.profile("node-1", holders, **{"memoryBytes": 24 * GIB, **(device or {})})
        profile["status"]["source"] = source
        nodes = [profiled_node(profile)]
        request = plan_request(service, architecture_of(service), offers(nodes, [], []))
        desired = DesiredState(document, service, render(plan(request), request), IMAGES, replicas, "1/digest")
        revision = make_revision(desired)
        made = children(dataclasses.replace(desired, revision=revision))
        files = {**config_files(desired), **revision.files}
        kinds = {("Revision" if child.get("immutable") else child["kind"]): child for child in made}
        return kinds | {"files": files}

    return build


def pod_template(made):
    return made["Deployment"]["spec"]["template"]


def pod(made):
    return pod_template(made)["spec"]


def containers(made):
    spec = pod(made)
    return {each["name"]: each for each in (*spec["initContainers"], *spec["containers"])}


def environment(container):
    return {entry["name"]: entry.get("value", entry.get("valueFrom")) for entry in container["env"]}


def test_the_deployment_comes_last_for_its_pods_need_the_others(made):
    assert [kind for kind in made() if kind != "files"] == [
        "ConfigMap",
        "Revision",
        "Service",
        "PodDisruptionBudget",
        "Deployment",
    ]


def test_names_are_functions_of_the_service(made):
    found = made()
    revision = pod_template(found)["metadata"]["labels"]["uellm.io/revision"]
    names = {kind: child["metadata"]["name"] for kind, child in found.items() if kind != "files"}
    assert names == {
        "ConfigMap": "llama-config",
        "Revision": f"llama-{revision}",
        "Service": "llama",
        "PodDisruptionBudget": "llama",
        "Deployment": "llama-engine",
    }


def test_the_same_service_gives_the_same_bytes(made):
    assert json.dumps(made()) == json.dumps(made())


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


def test_pods_name_no_node(made):
    affinity = pod(made())["affinity"]["nodeAffinity"]
    assert "node-1" not in json.dumps(affinity)
    assert list(affinity) == ["requiredDuringSchedulingIgnoredDuringExecution"]


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


def mebibytes(quantity):
    return int(quantity.removesuffix("Mi"))


def test_storage_is_requested_for_what_the_engine_downloads(made):
    weights = 2_200_000_000  # 1.1 billion parameters of 2 bytes
    stored = {}
    for uri in ("hf://org/model", "pvc://models/llama", "file:///models/llama"):
        request = containers(made(uri=uri))["engine"]["resources"]["requests"]["ephemeral-storage"]
        stored[uri.partition(":")[0]] = mebibytes(request) << 20
    assert stored["pvc"] == stored["file"] == GIB
    assert stored["hf"] - GIB == pytest.approx(weights, rel=0.05)
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
        ({}, 90, 60),
        ({"slo": {"classes": [{"name": "chat", "e2e": "10s"}]}}, 90, 60),
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


def test_the_sidecars_file_holds_classes_and_queue(made):
    classes = [{"name": "chat", "ttft": "1s"}, {"name": "batch", "e2e": "60s", "onDeadline": "Reject"}]
    found = made(slo={"classes": classes, "defaultClass": "batch"}, scheduling={"policy": "FCFS"})
    config = yaml.safe_load(found["files"]["sidecar.yaml"])
    assert config["defaultClass"] == "batch"
    assert [each["name"] for each in config["classes"]] == ["chat", "batch"]
    assert config["classes"][1]["onDeadline"] == "Reject"
    assert config["scheduling"] == {"policy": "FCFS", "maxQueuedRequests": 1024, "predictor": "Online"}
    assert set(config) == {"version", "classes", "defaultClass", "scheduling"}


def test_a_service_without_classes_has_the_one_without_targets(made):
    config = yaml.safe_load(made()["files"]["sidecar.yaml"])
    assert [each["name"] for each in config["classes"]] == ["default"]
    assert config["defaultClass"] == "default"


def test_replicas_rollout_and_scheduling_do_not_touch_the_pods(made):
    before = made()["Deployment"]["spec"]["template"]
    after = made(replicas=3, rollout={"maxSurge": 1, "maxUnavailable": 0}, scheduling={"policy": "FCFS"})["Deployment"]
    assert after["spec"]["template"] == before
    assert after["spec"]["replicas"] == 3
    assert after["spec"]["strategy"]["rollingUpdate"] == {"maxSurge": 1, "maxUnavailable": 0}


def test_a_users_template_overrides_ours(made):
    template = {"metadata": {"labels": {"team": "a"}}, "spec": {"priorityClassName": "high"}}
    spec = made(template=template)["Deployment"]["spec"]["template"]
    assert spec["metadata"]["labels"] == {
        "app.kubernetes.io/name": "uellm-engine",
        "app.kubernetes.io/instance": "llama",
        "app.kubernetes.io/managed-by": "uellm",
        "uellm.io/service": "llama",
        "uellm.io/revision": spec["metadata"]["labels"]["uellm.io/revision"],
        "team": "a",
    }
    assert spec["spec"]["priorityClassName"] == "high"


def test_a_template_that_cannot_be_merged_is_refused(made):
    with pytest.raises(BadInput, match=r"spec\.template\.spec\.containers"):
        made(template={"spec": {"containers": "engine"}})


def test_a_frozen_deployment_changes_its_number_alone(make, made):
    document = make.service()
    live = {**made()["Deployment"], "metadata": {**made()["Deployment"]["metadata"], "uid": "x"}}
    assert holds(frozen(document, live, 1), live)
    assert frozen(document, live, 0)["spec"] == {**live["spec"], "replicas": 0}


def test_a_child_is_known_by_its_owner_or_by_its_annotation(make, made):
    document, child = make.service(), made()["Service"]
    assert belongs_to(child, document)
    orphan = {"metadata": {**child["metadata"], "ownerReferences": []}}
    assert belongs_to(orphan, document)
    stranger = {"metadata": {"name": "llama"}}
    assert not belongs_to(stranger, document)
    successor = {**document, "metadata": {**document["metadata"], "uid": "another"}}
    assert not belongs_to(child, successor)
    assert belonged_to_namesake(child, successor)


def test_images_are_read_back_as_written():
    assert Images.from_json(IMAGES.to_json()) == IMAGES
    assert Images.from_json("{}") is None
    assert Images.from_json("not json") is None


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
