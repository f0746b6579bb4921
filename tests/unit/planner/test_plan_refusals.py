"""What a GPU cannot do, and what would fit if nothing does: each proposed remedy works."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from uellm.errors import PlanError
from uellm.models import read_architecture
from uellm.planner import plan
from uellm.planner.request import EngineRequest, LeftOut, Overrides


def failure(request) -> PlanError:
    with pytest.raises(PlanError) as raised:
        plan(request)
    return raised.value


def fits(request) -> bool:
    try:
        return bool(plan(request))
    except PlanError:
        return False


def told(request) -> str:
    return " ".join(plan(request).assumptions)


def turing(build, **changes):
    return build.node("a", [build.gpu("a", index, "T4", compute_capability="7.5", **changes) for index in range(2)])


def test_without_a_users_dtype_vllm_computes_in_float16_on_gpus_without_bfloat16(build) -> None:
    assert "T4 cannot compute in bfloat16: vLLM computes in float16 there" in told(build.request(turing(build)))


def test_a_users_bfloat16_is_refused_on_gpus_without_it(build) -> None:
    error = failure(build.request(turing(build), engine=EngineRequest(dtype="bfloat16")))
    assert error.reason == "NoFit"
    assert "T4 has compute capability 7.5, and vLLM refuses bfloat16 below 8.0: set spec.model.dtype" in str(error)


def test_gpus_without_bfloat16_are_excluded_if_others_have_it(build) -> None:
    ampere = build.node("b", [build.gpu("b", 0, "L4", compute_capability="8.9")])
    assert plan(build.request(turing(build), ampere, engine=EngineRequest(dtype="bfloat16"))).nodes == ("b",)


def test_a_model_that_float16_breaks_is_not_served_in_it(build) -> None:
    gemma = replace(read_architecture(build.config), name="Gemma2ForCausalLM")
    error = failure(replace(build.request(turing(build)), architecture=gemma))
    assert "vLLM would compute Gemma2ForCausalLM in float32" in str(error)


def test_gpus_older_than_vllm_supports_are_refused(build) -> None:
    old = build.node("a", [build.gpu("a", 0, "L4", compute_capability="6.1")])
    assert "compute capability 6.1, and vLLM needs 7.0" in str(failure(build.request(old)))


def test_a_quantization_that_the_gpu_cannot_run_is_refused(build) -> None:
    volta = build.node("a", [replace(build.gpu("a", 0), product="V100", compute_capability="7.0")])
    request = replace(build.request(volta), architecture=read_architecture(build.config, quantization="fp8"))
    request = replace(request, architecture=replace(request.architecture, dtype="float16"))
    assert "V100 has compute capability 7.0, and quantization fp8 needs 7.5 in vLLM" in str(failure(request))


def test_fp8_weights_on_gpus_without_fp8_products_are_noted(build) -> None:
    ampere = build.node("a", [replace(build.gpu("a", 0), product="A100", compute_capability="8.0")])
    request = replace(build.request(ampere), architecture=read_architecture(build.config, quantization="fp8"))
    assert "A100 cannot multiply in FP8" in told(request)
    ada = build.node("a", [build.gpu("a", 0, "L4", compute_capability="8.9")])
    assert "cannot multiply" not in told(replace(request, nodes=(build.offer(ada),)))


@pytest.mark.parametrize("changes", [{"uuid": "GPU-1::0"}, {"resource_name": "nvidia.com/gpu.shared"}, {"shares": 4}])
def test_a_share_of_a_time_sliced_gpu_is_refused_with_the_reason(build, changes: dict) -> None:
    error = failure(build.request(build.node("a", [build.gpu("a", 0, "H100", **changes)])))
    assert error.reason == "NoFit"
    assert "is lent to several pods at once, by time-slicing, MPS or HAMi" in str(error)
    assert "use MIG" in str(error)


def test_a_node_whose_gpus_cannot_all_run_the_service_is_left_to_exact_devices(build) -> None:
    devices = [build.gpu("a", 0, "H100"), build.gpu("a", 1, "H100", uuid="GPU-1::0")]
    request = build.request(build.node("a", devices))
    assert failure(request).reason == "NoFit"
    assert plan(replace(request, allocation="DRA")).devices == ("a-gpu-0",)


def test_a_model_that_cannot_be_split_into_stages_is_not(build) -> None:
    whole = replace(read_architecture(build.config), supports_pipeline=False)
    request = replace(build.request(build.node("a", "T4 T4")), architecture=whole)
    assert (plan(request).tensor, plan(request).pipeline) == (2, 1)
    error = failure(replace(request, overrides=Overrides(pipeline=2)))
    assert error.reason == "InvalidOverride"
    assert "vLLM cannot split LlamaForCausalLM into stages" in str(error)


def test_nodes_that_the_pods_may_not_use_are_listed(build) -> None:
    left_out = (LeftOut("b", "cordoned"),)
    assert "not considered: b: cordoned" in told(replace(build.request(build.node("a", "L4")), left_out=left_out))
    small = replace(build.request(build.node("a", "T4"), config=build.large), left_out=left_out)
    assert str(failure(small)).endswith("; not considered: b: cordoned")
    nowhere = failure(replace(build.request(), left_out=left_out))
    assert (nowhere.reason, "none of the profiled nodes may run the pods: b: cordoned" in str(nowhere)) == (
        "NoFit",
        True,
    )


def test_the_model_length_that_is_proposed_fits_and_a_longer_one_does_not(build) -> None:
    request = build.request(build.node("a", "L4"), max_model_len=100_000)
    length = int(re.search(r"a smaller maxModelLen, (\d+) at most \(now 100000\)", str(failure(request))).group(1))
    assert fits(replace(request, max_model_len=length))
    assert not fits(replace(request, max_model_len=int(length * 1.05)))


def test_the_quantization_that_is_proposed_fits(build) -> None:
    eight = read_architecture(build.config, quantization="fp8")
    request = replace(build.request(build.node("a", "T4")), variants=(("fp8", eight),))
    assert "quantization fp8 (8.5 GiB of weights, on 1 GPU)" in str(failure(request))
    assert fits(replace(request, architecture=eight))


def test_a_quantization_that_would_not_fit_either_is_not_proposed(build) -> None:
    eight = read_architecture(build.large, quantization="fp8")
    error = failure(replace(build.request(build.node("a", "T4"), config=build.large), variants=(("fp8", eight),)))
    assert "quantization" not in str(error)


def test_the_number_of_gpus_that_is_proposed_fits_and_one_fewer_does_not(build) -> None:
    request = build.request(build.node("a", "L4 L4"), config=build.large)
    count = int(re.search(r"with (\d+) GPUs like a gpu-0 \(L4\) free in one node", str(failure(request))).group(1))
    assert fits(replace(request, nodes=(build.offer(build.node("b", "L4 " * count)),)))
    assert not fits(replace(request, nodes=(build.offer(build.node("b", "L4 " * (count - 1))),)))


def test_the_refusal_says_if_nothing_helps(build) -> None:
    tiny = build.gpu("a", 0, memory_bytes=1 << 28)
    error = failure(build.request(build.node("a", [tiny]), config=build.large))
    assert "neither a smaller maxModelLen, nor quantization, nor more GPUs" in str(error)


SCRIPT = """
import json, sys
sys.path[:0] = sys.argv[1:]
import conftest as build
from uellm.planner import plan
nodes = [build.all_links(build.node(name, "L4 L4 T4 A10")) for name in ("a", "b", "c")]
load, chat = build.Workload(4, 512, None, 256), build.SloClass("chat", 1, 0.1)
made = plan(build.request(*nodes, workload=load, classes=(chat,)))
print(json.dumps(made.to_dict()))
"""


def test_the_hash_seed_changes_no_plan() -> None:
    directory = Path(__file__).parent
    answers = {
        subprocess.run(
            [sys.executable, "-c", SCRIPT, directory, directory.parents[1]],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(answers) == 1
