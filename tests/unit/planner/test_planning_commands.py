"""`uellm model`, `uellm place` and `uellm plan` as commands: exit status, standard output, standard error."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from uellm.cli.main import main, plugin
from uellm.cli.plan_cluster import Offered

INSTANCE = {
    "layers": 4,
    "layerBytes": 1.0,
    "devices": [{"id": "g0", "memoryBytes": 3, "performance": 1}, {"id": "g1", "memoryBytes": 3, "performance": 1}],
    "latencySeconds": [[0, 1], [1, 0]],
}


@pytest.fixture
def command(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Runs a command whose dictionaries stand for files; returns status, output, error."""

    def write(content: Any) -> str:
        path = tmp_path / f"file-{len(list(tmp_path.iterdir()))}.yaml"
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return str(path)

    def run(*args: Any) -> tuple[int, str, str]:
        status = main([arg if isinstance(arg, str) else write(arg) for arg in args])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    run.file = write
    return run


def profile(name: str, *products: str) -> dict[str, Any]:
    devices = [
        {
            "index": index,
            "uuid": f"GPU-{name}-{index}",
            "product": product,
            "memoryBytes": 24 << 30,
            "measured": {"bf16GigaflopsPerSecond": 100_000, "memoryBytesPerSecond": 300_000_000_000},
        }
        for index, product in enumerate(products)
    ]
    return {
        "apiVersion": "uellm.io/v1alpha1",
        "kind": "GPUNodeProfile",
        "metadata": {"name": name},
        "status": {"devices": devices},
    }


def service(build, **spec: Any) -> dict[str, Any]:
    return {
        "apiVersion": "uellm.io/v1alpha1",
        "kind": "LLMService",
        "metadata": {"name": "llama"},
        "spec": {"model": {"uri": "hf://org/llama", "config": build.config, "maxModelLen": 4096}, **spec},
    }


def test_place_prints_one_json_document(command) -> None:
    status, output, error = command("place", INSTANCE, "-o", "json")
    assert (status, error) == (0, "")
    assert json.loads(output) == {
        "feasible": True,
        "cost": 5.0,
        "order": ["g0", "g1"],
        "layers": [2, 2],
        "optimal": True,
        "lowerBound": 5.0,
    }


def test_place_prints_a_table_for_a_person(command) -> None:
    status, output, _ = command("place", INSTANCE)
    assert status == 0
    assert "g0" in output
    assert "cost 5 (optimal)" in output


def test_place_without_a_solution_exits_with_1_and_the_reason(command) -> None:
    status, output, error = command("place", {**INSTANCE, "layers": 9}, "-o", "json")
    assert status == 1
    assert json.loads(output)["feasible"] is False
    assert "are missing" in json.loads(output)["reason"]
    assert "infeasible" in error


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (({**INSTANCE, "layers": 0},), "layers: "),
        (("{not json",), "is not JSON in line 1"),
        (("[]",), "instance: must be a JSON object"),
        ((INSTANCE, "--policy", "Best"), "policy: 'Best' is not one of"),
        ((INSTANCE, "--objective", "speed"), "objective: 'speed' is not one of"),
    ],
)
def test_bad_input_to_place_ends_with_2_and_one_line_that_names_the_field(command, args: tuple, words: str) -> None:
    given = command.file(args[0])
    status, output, error = command("place", given, *args[1:], "-o", "json")
    assert (status, output) == (2, "")
    assert words in error
    assert error.count("\n") == 1


def test_a_file_that_is_not_there_is_named(command) -> None:
    status, _, error = command("place", "/nowhere/instance.json")
    assert status == 2
    assert "/nowhere/instance.json: cannot be read: No such file" in error


def test_model_prints_the_contracts_json(command, build) -> None:
    status, output, _ = command("model", build.config, "-o", "json")
    document = json.loads(output)
    assert status == 0
    assert (document["parameters"], document["layers"]) == (8_030_261_248, 32)
    assert document["weightBytes"] == 2 * document["parameters"]
    assert document["weightBytes"] == (
        sum(document["layerWeightBytes"])
        + document["embeddingBytes"]
        + document["finalNormBytes"]
        + document["lmHeadBytes"]
    )
    assert document["kvBytesPerToken"] == sum(document["layerKvBytesPerToken"]) == 131072


def test_model_prints_a_table_for_a_person(command, build) -> None:
    status, output, _ = command("model", build.config, "--dtype", "float32")
    assert status == 0
    assert "8,030,261,248" in output
    assert "layers 0-31" in output


def test_model_of_an_unknown_architecture_ends_with_2(command) -> None:
    status, output, error = command("model", {"architectures": ["Unheard"]}, "-o", "json")
    assert (status, output) == (2, "")
    assert "config.architectures: 'Unheard' is not known" in error


def test_plan_prints_the_plan_in_the_form_of_the_status(command, build) -> None:
    status, output, error = command("plan", "-f", service(build), "--profiles", profile("n", "L4", "L4"), "-o", "json")
    document = json.loads(output)
    assert (status, error) == (0, "")
    assert (document["gpusPerReplica"], document["layers"], document["nodes"]) == (1, [32], ["n"])


def test_plan_takes_a_list_of_profiles_and_prints_yaml(command, build) -> None:
    profiles = {"kind": "List", "apiVersion": "v1", "items": [profile("n", "L4"), profile("m", "L4")]}
    status, output, _ = command("plan", "-f", service(build), "--profiles", profiles, "-o", "yaml")
    assert status == 0
    assert yaml.safe_load(output)["nodes"] == ["m", "n"]


def test_plan_prints_budgets_reasons_and_predictions_for_a_person(command, build) -> None:
    placement = {"gpus": {"min": 2}}
    given = service(build, placement=placement)
    status, output, _ = command("plan", "-f", given, "--profiles", profile("n", "L4", "L4"))
    assert status == 0
    for words in ("2 = tp", "GiB", "WEIGHTS", "predicted", "assumed or set:", "rejected:", "--max-num-batched-tokens"):
        assert words in output


def test_plan_takes_the_models_config_from_a_file(command, build, monkeypatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    given = service(build)
    del given["spec"]["model"]["config"]
    profiles = profile("n", "L4")
    status, _, error = command("plan", "-f", given, "--profiles", profiles)
    assert status == 1
    assert "cannot be reached" in error
    given["spec"]["model"]["uri"] = "file:///models/llama"
    status, _, error = command("plan", "-f", given, "--profiles", profiles)
    assert status == 1
    assert "ModelUnknown: the architecture of file:///models/llama is not known here" in error
    status, _, _ = command("plan", "-f", given, "--profiles", profiles, "--model-config", build.config)
    assert status == 0


def test_an_impossible_plan_exits_with_1_and_the_reason(command, build) -> None:
    given = service(build, placement={"gpus": {"min": 3}})
    status, output, error = command("plan", "-f", given, "--profiles", profile("n", "L4"), "-o", "json")
    assert status == 1
    assert json.loads(output)["error"]["reason"] == "NoFit"
    assert error.startswith("uellm plan: NoFit: needs ")


def test_allocated_gpus_are_not_planned_with(command, build) -> None:
    busy = profile("n", "L4")
    busy["status"]["devices"][0]["allocatedTo"] = {"podUID": "some-pod"}
    status, _, error = command("plan", "-f", service(build), "--profiles", busy)
    assert (status, "in use" in error) == (1, True)


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ({"parallelism": {"layers": [0]}}, "spec.parallelism.layers"),
        ({"placement": {"gpus": {"min": 0}}}, "spec.placement.gpus.min"),
        ({"nonsense": 1}, "spec.nonsense"),
    ],
)
def test_a_bad_service_ends_with_2_and_the_field(command, build, spec: dict, words: str) -> None:
    status, output, error = command(
        "plan", "-f", service(build, **spec), "--profiles", profile("n", "L4"), "-o", "json"
    )
    assert (status, output) == (2, "")
    assert words in error


def test_files_of_the_wrong_kind_are_named(command, build) -> None:
    status, _, error = command("plan", "-f", profile("n", "L4"), "--profiles", profile("n", "L4"))
    assert (status, "must hold one LLMService; it holds 0" in error) == (2, True)
    status, _, error = command("plan", "-f", service(build), "--profiles", service(build))
    assert (status, "'LLMService' document; it must hold only GPUNodeProfiles and GPUNodeClasses" in error) == (2, True)
    twice = {"kind": "List", "items": [profile("n", "L4"), profile("n", "L4")]}
    status, _, error = command("plan", "-f", service(build), "--profiles", twice)
    assert (status, "two GPUNodeProfiles named 'n'" in error) == (2, True)


def test_plan_takes_classes_of_nodes_that_may_join(command, build) -> None:
    busy = profile("n", "L4")
    busy["status"]["devices"][0]["allocatedTo"] = {"podUID": "some-pod"}
    joining = {
        "apiVersion": "uellm.io/v1alpha1",
        "kind": "GPUNodeClass",
        "metadata": {"name": "g6"},
        "spec": {"devices": [{"index": 0, "product": "L4", "memoryBytes": 24 << 30}]},
    }
    both = {"kind": "List", "items": [busy, joining]}
    status, output, _ = command("plan", "-f", service(build), "--profiles", both, "-o", "json")
    assert (status, json.loads(output)["nodeClasses"], json.loads(output)["nodes"]) == (0, ["g6"], [])
    status, output, _ = command("plan", "-f", service(build), "--profiles", both)
    assert status == 0
    assert "nodes      class g6 (best first)" in output
    assert "gpu-0 L4 class g6#0" in output
    joining["spec"]["devices"][0]["index"] = 1
    status, _, error = command("plan", "-f", service(build), "--profiles", joining)
    assert (status, error) == (2, "uellm plan: spec.devices: must be numbered from 0 on, without gaps\n")


def test_two_classes_of_one_name_are_refused(command, build) -> None:
    joining = {
        "apiVersion": "uellm.io/v1alpha1",
        "kind": "GPUNodeClass",
        "metadata": {"name": "g6"},
        "spec": {"devices": [{"index": 0, "product": "L4", "memoryBytes": 24 << 30}]},
    }
    status, _, error = command(
        "plan", "-f", service(build), "--profiles", {"kind": "List", "items": [joining, joining]}
    )
    assert (status, "holds two GPUNodeClasses named 'g6'" in error) == (2, True)


@pytest.mark.parametrize("name", ["CUDA_VISIBLE_DEVICES", "VLLM_API_KEY"])
def test_a_variable_that_the_operator_refuses_is_refused(command, build, name: str) -> None:
    given = service(build, engine={"env": [{"name": name, "value": "0"}]})
    status, _, error = command("plan", "-f", given, "--profiles", profile("n", "L4"))
    assert (status, error.startswith(f"uellm plan: InvalidOverride: spec.engine.env: {name} is not allowed")) == (
        1,
        True,
    )


def test_flags_of_the_engine_that_the_plan_depends_on_are_read(command, build) -> None:
    def planned(*args: str) -> tuple[int, str, str]:
        given = service(build, engine={"args": list(args)})
        del given["spec"]["model"]["maxModelLen"]
        return command("plan", "-f", given, "--profiles", profile("n", "L4"), "-o", "json")

    # Its 131072 tokens need 16 GiB beside 15 GiB of weights.
    assert "NoFit" in planned()[2]
    assert planned("--max-model-len", "4k")[0] == 0
    assert "NoFit" in planned("--max-model-len", "4k", "--dtype", "float32")[2]
    status, _, error = planned("--max-model-len", "300000")
    assert status == 1
    assert "spec.engine.args: --max-model-len 300000 is more than the 131072 positions of the model's" in error


@pytest.mark.parametrize(("value", "status"), [("1", 0), (" True", 0), ("0", 1), ("yes", 1)])
def test_a_length_beyond_the_models_is_taken_where_the_engine_is_told_to_take_it(command, build, value, status) -> None:
    env = [{"name": "VLLM_ALLOW_LONG_MAX_MODEL_LEN", "value": value}]

    def planned(engine: dict, spec_length: int | None) -> tuple[int, str, str]:
        given = service(build, engine=engine)
        del given["spec"]["model"]["maxModelLen"]
        given["spec"]["model"] |= {"maxModelLen": spec_length} if spec_length else {}
        return command("plan", "-f", given, "--profiles", profile("n", *["L4"] * 4), "-o", "json")

    by_flag = planned({"args": ["--max-model-len", "200000"], "env": env}, None)
    by_field = planned({"env": env}, 200_000)
    assert (by_flag[0], by_field[0]) == (status, status)
    told = (
        "is more than the 131072 positions of the model's config.json: lower it, or set VLLM_ALLOW_LONG_MAX_MODEL_LEN=1"
    )
    assert all((told in error) == bool(status) for _, _, error in (by_flag, by_field))


@pytest.mark.parametrize(
    ("labels", "template"),
    [
        ({"kueue.x-k8s.io/queue-name": "gpus"}, None),
        ({}, {"spec": {"priorityClassName": "high"}}),
        ({}, {"metadata": {"labels": {"kueue.x-k8s.io/queue-name": "gpus"}}}),
    ],
)
def test_pods_that_may_displace_others_are_planned_as_if_every_gpu_were_free(command, build, labels, template) -> None:
    busy = profile("n", "L4")
    busy["status"]["devices"][0]["allocatedTo"] = {"podUID": "some-pod"}
    given = service(build, **({"template": template} if template else {}))
    given["metadata"]["labels"] = labels
    status, output, error = command("plan", "-f", given, "--profiles", busy, "-o", "json")
    assert (status, json.loads(output)["nodes"]) == (0, ["n"])
    assert error.startswith("uellm plan: no free GPUs hold it: planned as if every GPU were free")
    given["spec"]["placement"] = {"gpus": {"min": 3}}
    assert command("plan", "-f", given, "--profiles", busy)[0] == 1


def test_plan_draws(command, build) -> None:
    status, output, error = command("plan", "-f", service(build), "--profiles", profile("n", "L4"), "-o", "svg")
    assert (status, error) == (0, "")
    assert output.startswith("<svg ")
    assert "GPU-n-0" in output


def test_without_a_plan_the_drawing_is_replaced_by_the_reason(command, build) -> None:
    given = service(build, placement={"gpus": {"min": 3}})
    status, output, error = command("plan", "-f", given, "--profiles", profile("n", "L4"), "-o", "svg")
    assert (status, output) == (1, "")
    assert "NoFit" in error


def test_infeasible_targets_are_reported_with_the_smallest_change(command, build) -> None:
    given = service(build, slo={"classes": [{"name": "chat", "tpot": "20ms"}]})
    status, output, _ = command("plan", "-f", given, "--profiles", profile("n", "L4"))
    assert status == 0
    assert "targets NOT FEASIBLE: TPOT 20 ms of class chat: the best for a lone request is" in " ".join(output.split())
    assert "x the memory bandwidth" in " ".join(output.split())
    _, output, _ = command("plan", "-f", given, "--profiles", profile("n", "L4"), "-o", "json")
    assert json.loads(output)["slo"]["feasible"] is False


def test_without_profiles_the_cluster_is_read_and_a_missing_cluster_is_an_error(command, build, monkeypatch) -> None:
    monkeypatch.setenv("KUBECONFIG", "/nowhere/config")
    status, output, error = command("plan", "-f", service(build), "-o", "json")
    assert (status, output) == (1, "")
    assert "no cluster to talk to" in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("flag", ["--kubeconfig", "--context"])
def test_profiles_from_a_file_exclude_a_cluster(command, build, flag: str) -> None:
    given = ("plan", "-f", service(build), "--profiles", profile("n", "L4"), flag, "some")
    status, _, error = command(*given)
    assert (status, f"{flag}: names a cluster, but --profiles" in error) == (2, True)


def test_the_namespace_of_a_service_that_names_none_may_be_given(command, build) -> None:
    given = ("plan", "-f", service(build), "--profiles", profile("n", "L4"), "-n", "team-a")
    _, output, _ = command(*given)
    assert output.startswith("team-a/llama ")
    named = service(build)
    named["metadata"]["namespace"] = "its-own"
    _, output, _ = command("plan", "-f", named, "--profiles", profile("n", "L4"), "-n", "team-a")
    assert output.startswith("its-own/llama ")


def test_else_the_namespace_is_that_of_the_kubeconfig_s_context(command, build, monkeypatch) -> None:
    seen = []
    monkeypatch.setattr(
        "uellm.cli.plan.offered_by_cluster", lambda service, **_: seen.append(service.namespace) or Offered((), ())
    )
    contexts = [{"name": "c", "context": {"cluster": "c", "user": "u", "namespace": "team-a"}}]
    kubeconfig = command.file({"current-context": "c", "contexts": contexts})
    monkeypatch.setenv("KUBECONFIG", kubeconfig)
    command("plan", "-f", service(build))
    command("plan", "-f", service(build), "-n", "team-b")
    named = service(build)
    named["metadata"]["namespace"] = "its-own"
    command("plan", "-f", named)
    assert seen == ["team-a", "team-b", "its-own"]


def test_as_a_plugin_of_kubectl_it_is_the_same_command(build, tmp_path, monkeypatch, capsys) -> None:
    files = {"svc.json": service(build, placement={"gpus": {"min": 3}}), "nodes.json": profile("n", "L4")}
    for name, content in files.items():
        (tmp_path / name).write_text(json.dumps(content))
    given = ["plan", "-f", str(tmp_path / "svc.json"), "--profiles", str(tmp_path / "nodes.json")]
    monkeypatch.setattr("sys.argv", ["kubectl-uellm", *given])
    assert plugin() == 1
    assert "NoFit" in capsys.readouterr().err
    monkeypatch.setattr("sys.argv", ["kubectl-uellm", "plan", "-f", str(tmp_path / "nothing.yaml")])
    assert plugin() == 2
    assert capsys.readouterr().err.startswith("kubectl uellm plan: ")
