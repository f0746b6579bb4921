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
from uellm.hardware import NodeNeeds
from uellm.models import read_architecture
from uellm.planner import plan
from uellm.planner.handover.node_needs import node_needs
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


@pytest.mark.parametrize("name", ["Gemma3nForCausalLM", "Glm4MoeForCausalLM", "Glm4vForConditionalGeneration"])
def test_a_model_that_is_only_named_like_one_that_float16_breaks_is_served_in_it(build, name) -> None:
    model = replace(read_architecture(build.config), name=name)
    assert plan(replace(build.request(turing(build)), architecture=model)).nodes == ("a",)


def test_gpus_older_than_vllm_supports_are_refused(build) -> None:
    old = build.node("a", [build.gpu("a", 0, "L4", compute_capability="6.1")])
    assert "compute capability 6.1, and vLLM needs 7.5" in str(failure(build.request(old)))


def test_a_quantization_that_the_gpu_cannot_run_is_refused(build) -> None:
    volta = build.node("a", [replace(build.gpu("a", 0), product="V100", compute_capability="7.0")])
    request = replace(build.request(volta), architecture=read_architecture(build.config, quantization="fp8"))
    request = replace(request, architecture=replace(request.architecture, dtype="float16"))
    own = replace(request, engine=EngineRequest(own_image=True))
    assert "V100 has compute capability 7.0, and quantization fp8 needs 7.5 in vLLM" in str(failure(own))


def test_fp8_of_quark_needs_a_gpu_that_multiplies_in_fp8_and_other_formats_of_quark_do_not(build) -> None:
    ampere = a_gpu(build, "a", "A100", "8.0")

    def quark(weight: dict) -> dict:
        section = {"quant_method": "quark", "global_quant_config": {"weight": weight}}
        return {**build.config, "quantization_config": section}

    fp8 = build.request(ampere, config=quark({"dtype": "fp8_e4m3", "qscheme": "per_tensor"}))
    assert "A100 has compute capability 8.0, and quantization quark needs 8.9 in vLLM" in str(failure(fp8))
    mxfp4 = build.request(ampere, config=quark({"dtype": "fp4", "qscheme": "per_group", "group_size": 32}))
    assert plan(mxfp4).nodes == ("a",)


def a_gpu(build, node: str, product: str, capability: str):
    return build.node(node, [replace(build.gpu(node, 0), product=product, compute_capability=capability)])


def int8(build, inputs: object):
    """Weights in INT8 by compressed-tensors, with inputs of a type; None: in 16 bits."""
    weights = {"num_bits": 8, "type": "int", "strategy": "channel"}
    group = {"targets": ["Linear"], "weights": weights, "input_activations": inputs}
    section = {"quant_method": "compressed-tensors", "config_groups": {"group_0": group}}
    return read_architecture({**build.config, "quantization_config": section})


INTEGERS = {"num_bits": 8, "type": "int", "strategy": "token", "dynamic": True}


def test_a_v100_is_refused_unless_the_user_names_an_image_that_is_built_for_it(build) -> None:
    request = build.request(a_gpu(build, "a", "V100", "7.0"))
    assert "V100 has compute capability 7.0, and vLLM's image needs 7.5" in str(failure(request))
    own = replace(request, engine=EngineRequest(own_image=True))
    assert "the engine's image is taken to have the kernels that the model needs on V100" in told(own)
    ada = build.request(build.node("a", [build.gpu("a", 0, "L4", compute_capability="8.9")]))
    assert "is taken to have" not in told(replace(ada, engine=EngineRequest(own_image=True)))


def test_an_image_that_is_built_for_a_v100_runs_compressed_tensors_there(build) -> None:
    model = replace(int8(build, None), dtype="float16")
    request = replace(build.request(a_gpu(build, "a", "V100", "7.0")), architecture=model)
    assert "V100 has compute capability 7.0, and vLLM's image needs 7.5" in str(failure(request))
    assert plan(replace(request, engine=EngineRequest(own_image=True))).nodes == ("a",)


@pytest.mark.parametrize("capability", ["7.5", "8.0", "8.9", "11.0"])
def test_sparse_attention_is_refused_on_gpus_for_which_vllm_has_no_kernel(build, capability: str) -> None:
    model = replace(read_architecture(build.config), sparse_attention=True)
    request = replace(build.request(a_gpu(build, "a", "old", capability)), architecture=model)
    assert "vLLM has the sparse attention of LlamaForCausalLM for 9.x, 10.x, 12.x only" in str(failure(request))
    assert plan(replace(request, engine=EngineRequest(own_image=True))).nodes == ("a",)
    able = build.offer(a_gpu(build, "b", "able", "9.0"))
    assert plan(replace(request, nodes=(*request.nodes, able))).nodes == ("b",)


@pytest.mark.parametrize("capability", ["9.0", "10.0", "10.3", "12.0", "12.1", ""])
def test_sparse_attention_is_planned_where_vllm_has_a_kernel_or_the_gpu_is_unknown(build, capability: str) -> None:
    model = replace(read_architecture(build.config), sparse_attention=True)
    assert plan(replace(build.request(a_gpu(build, "a", "new", capability)), architecture=model)).nodes == ("a",)


def test_int8_weights_and_activations_are_planned_on_gpus_before_blackwell(build) -> None:
    model = int8(build, INTEGERS)
    request = replace(build.request(a_gpu(build, "a", "B200", "10.0")), architecture=model)
    assert "B200 has compute capability 10.0, and vLLM's kernel for INT8" in str(failure(request))
    hopper = build.offer(a_gpu(build, "h", "H100", "9.0"))
    mixed = replace(request, nodes=(*request.nodes, hopper))
    assert plan(mixed).nodes == ("h",)
    needs = node_needs(plan(mixed), mixed, "nvidia.com/gpu")
    assert (needs.capability, needs.capability_below) == ((7, 5), (10, 0))
    assert NodeNeeds.from_dict(needs.to_dict()) == needs


@pytest.mark.parametrize("args", [("--linear-backend", "triton"), ("--linear_backend=triton",)])
def test_the_remedy_for_int8_on_blackwell_works(build, args: tuple[str, ...]) -> None:
    request = replace(build.request(a_gpu(build, "a", "B200", "10.0")), architecture=int8(build, INTEGERS))
    remedied = replace(request, engine=EngineRequest(args=args))
    assert plan(remedied).nodes == ("a",)
    assert node_needs(plan(remedied), remedied, "nvidia.com/gpu").capability_below is None


@pytest.mark.parametrize("inputs", [None, {"num_bits": 8, "type": "float"}])
def test_int8_weights_alone_run_on_every_gpu(build, inputs: object) -> None:
    model = int8(build, inputs)
    assert plan(replace(build.request(a_gpu(build, "a", "B200", "10.0")), architecture=model)).nodes == ("a",)


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
