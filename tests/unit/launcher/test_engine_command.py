from __future__ import annotations

import json
import sys

import pytest

from uellm.errors import PlanError
from uellm.launcher.command import engine_command
from uellm.planner.handover.late_binding import Binding
from uellm.planner.handover.plan_document import PlannedEngine

TWO_STAGES = Binding(order=("GPU-b", "GPU-a"), layers=(5, 3), tensor=1, pipeline=2)


def command(
    *args: str,
    binding: Binding = TWO_STAGES,
    environment: dict | None = None,
    platform: str = "cuda",
    model: str = "/models/tiny",
    revision: str = "",
):
    return engine_command(
        PlannedEngine(model, revision, "tiny", args),
        binding,
        platform=platform,
        listen=("127.0.0.1", 8001),
        environment=environment if environment is not None else {"HOME": "/var/cache/uellm"},
        cpus={0, 1},
    )


def test_the_command_line_on_gpus_is_exactly_this():
    assert command("--max-num-seqs", "64").argv == (
        *(sys.executable, "-m", "vllm.entrypoints.cli.main", "serve", "/models/tiny"),
        *("--max-num-seqs", "64"),
        *("--served-model-name", "tiny", "--tensor-parallel-size", "1", "--pipeline-parallel-size", "2"),
        *("--shutdown-timeout", "20", "--disable-access-log-for-endpoints", "/health,/metrics"),
        *("--host", "127.0.0.1", "--port", "8001"),
    )


def test_the_environment_on_gpus_is_exactly_this():
    result = command()
    assert result.settings == {
        "CUDA_VISIBLE_DEVICES": "GPU-b,GPU-a",
        "VLLM_PP_LAYER_PARTITION": "5,3",
        "VLLM_HOST_IP": "127.0.0.1",
        "GLOO_SOCKET_IFNAME": "lo",
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
    }
    assert result.environment == {"HOME": "/var/cache/uellm", **result.settings}


def test_compiled_code_is_kept_where_the_launcher_says(tmp_path):
    listen, cpus, home = ("127.0.0.1", 8001), {0, 1}, {"HOME": "/h", "VLLM_CACHE_ROOT": "/h/vllm"}
    engine = PlannedEngine("/models/tiny")
    result = engine_command(
        engine, TWO_STAGES, platform="cuda", listen=listen, environment=home, cpus=cpus, compiled=tmp_path
    )
    assert result.environment["VLLM_CACHE_ROOT"] == result.settings["VLLM_CACHE_ROOT"] == f"{tmp_path}/vllm"


def test_an_engine_with_slots_for_adapters_may_load_them_while_it_runs():
    engine = PlannedEngine("/models/tiny", loads_adapters=True)
    assert PlannedEngine.from_dict(engine.to_dict()) == engine
    listen, cpus = ("127.0.0.1", 8001), {0, 1}
    result = engine_command(engine, TWO_STAGES, platform="cuda", listen=listen, environment={}, cpus=cpus)
    assert result.settings["VLLM_ALLOW_RUNTIME_LORA_UPDATING"] == "1"


def test_one_stage_has_no_partition_whatever_the_container_says():
    one = Binding(order=("GPU-a", "GPU-b"), layers=(8,), tensor=2, pipeline=1)
    result = command(binding=one, environment={"VLLM_PP_LAYER_PARTITION": "1,7", "CUDA_VISIBLE_DEVICES": "0"})
    assert "VLLM_PP_LAYER_PARTITION" not in result.environment
    assert result.environment["CUDA_VISIBLE_DEVICES"] == "GPU-a,GPU-b"


def test_a_hub_model_stays_online_and_carries_its_revision():
    result = command(model="meta-llama/Llama-3.1-8B", revision="v1")
    assert "HF_HUB_OFFLINE" not in result.settings
    assert result.argv[result.argv.index("--revision") + 1] == "v1"


@pytest.mark.parametrize(("draft", "offline"), [("org/small", False), ("/models/org/small/main", True)])
def test_a_model_on_a_volume_stays_online_for_a_draft_of_the_hub(draft, offline):
    given = json.dumps({"model": draft, "num_speculative_tokens": 2})
    assert ("HF_HUB_OFFLINE" in command("--speculative-config", given).settings) == offline


@pytest.mark.parametrize(
    "given", ["[", '{"tensor_parallel_size": 2}', '{"method": "eagle", "num_speculative_tokens": 2}']
)
def test_speculation_that_cannot_be_read_names_no_draft(given):
    result = command("--speculative-config", given)
    assert result.settings["HF_HUB_OFFLINE"] == "1"
    assert given in result.argv


def test_what_the_user_sets_for_the_engine_wins_over_our_defaults():
    environment = {"VLLM_NO_USAGE_STATS": "0", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    result = command("--shutdown-timeout", "5", platform="cpu", environment=environment)
    assert result.environment["VLLM_NO_USAGE_STATS"] == "0"
    assert result.environment["VLLM_CPU_OMP_THREADS_BIND"] == "nobind"
    assert result.argv.count("--shutdown-timeout") == 1


def test_the_cpu_engine_gets_threads_and_a_backend_without_a_compiler_and_no_cuda():
    result = command(platform="cpu", environment={"CUDA_VISIBLE_DEVICES": "0"})
    assert result.environment["VLLM_CPU_OMP_THREADS_BIND"] == "0|1"
    assert "CUDA_VISIBLE_DEVICES" not in result.environment
    assert result.argv[5:9] == ("--dtype", "float32", "-cc.mode=2", "-cc.backend=eager")


@pytest.mark.parametrize("flag", ["-cc.mode=3", "--compilation-config={}", "--enforce_eager", "-O0"])
def test_a_users_compilation_flags_are_left_alone_on_the_cpu_engine(flag):
    assert "-cc.backend=eager" not in command(flag, platform="cpu").argv


def test_dtype_auto_becomes_float32_on_the_cpu_engine_and_another_is_kept():
    assert command("--dtype=auto", platform="cpu").argv[6:8] == ("--dtype", "float32")
    assert "float32" not in command("--dtype", "bfloat16", platform="cpu").argv


def test_a_refused_flag_names_itself_and_the_remedy():
    with pytest.raises(PlanError, match=r"engine\.args: --host is not allowed: the engine listens") as caught:
        command("--host=0.0.0.0")
    assert caught.value.reason == "RefusedArgument"


def test_an_api_key_in_the_environment_is_refused_without_showing_it():
    with pytest.raises(PlanError, match=r"engine\.env\.VLLM_API_KEY") as caught:
        command(environment={"VLLM_API_KEY": "s3cret"})
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize("model", ["", "--trust-remote-code"])
def test_a_model_that_would_be_a_flag_is_refused(model):
    with pytest.raises(PlanError, match=r"engine\.model"):
        command(model=model)
