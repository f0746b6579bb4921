"""Which plan is chosen, and what is reported about it."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from helpers.sizes import GIB
from uellm.errors import PlanError
from uellm.planner import Plan, plan
from uellm.planner.request import EngineRequest, Overrides, Workload


def failure(request) -> PlanError:
    with pytest.raises(PlanError) as raised:
        plan(request)
    return raised.value


def test_the_fewest_gpus_that_fit_are_taken(build) -> None:
    made = plan(build.request(build.node("a", "L4 L4"), build.node("b", "H100 H100")))
    assert (made.gpus_per_replica, made.tensor, made.pipeline, made.layers) == (1, 1, 1, (32,))


def test_every_node_that_admits_the_shape_is_a_candidate_the_fastest_first(build) -> None:
    made = plan(
        build.request(
            *(build.node(name, product) for name, product in zip("abcd", ("L4", "H100", "T4", "A10"), strict=True)),
            engine=EngineRequest(args=("--max-num-seqs", "256")),
        )
    )
    assert made.nodes == ("b", "d", "a")  # a T4 is too small


def test_the_same_question_in_another_order_gives_the_same_plan(build) -> None:
    nodes = [build.node("a", "T4 L4 T4"), build.node("b", "L4 T4"), build.node("c", "T4 T4 T4 T4")]
    request = build.request(*nodes, workload=build.workload, classes=build.chat)
    turned = [
        replace(offer, node=replace(offer.node, devices=offer.node.devices[::-1]), free=offer.free[::-1])
        for offer in request.nodes[::-1]
    ]
    assert plan(replace(request, nodes=tuple(turned))) == plan(request)


def test_unlike_gpus_get_unlike_numbers_of_layers_by_their_speed(build) -> None:
    request = build.request(build.node("a", "A10 L4"), gpus_min=2, workload=build.workload, classes=build.chat)
    made = plan(request)
    assert made.pipeline == 2
    fast = made.devices.index("a-gpu-0")
    assert made.layers[fast] > made.layers[1 - fast]


def test_a_larger_model_takes_more_gpus_and_the_end_stages_fewer_layers(build) -> None:
    """vLLM PR 6920: 70B on 8 L4. Fewer layers on the stages with embedding and head leave more KV cache."""
    request = build.request(build.node("a", "L4 " * 8), config=build.large, gpus_min=8, overrides=Overrides(tensor=1))
    made, even = plan(request), plan(replace(request, policy="Even"))
    assert even.layers == (10,) * 8
    assert made.layers[0] < max(made.layers[1:-1]) > made.layers[-1]
    assert made.predicted.kv_cache_tokens > even.predicted.kv_cache_tokens


def test_tensor_parallelism_is_preferred_over_fast_links_where_it_answers_sooner(build) -> None:
    node = build.all_links(build.node("a", "H100 H100 H100 H100"))
    made = plan(build.request(node, config=build.large, gpus_min=4))
    assert (made.tensor, made.pipeline) == (4, 1)


def test_unlike_gpus_never_share_a_layer(build) -> None:
    made = plan(build.request(build.node("a", "A10 L4"), gpus_min=2))
    assert made.tensor == 1
    reasons = [entry.rejected for entry in made.alternatives if entry.tensor == 2]
    assert "must be identical" in reasons[0]


def test_objective_latency_takes_more_gpus_where_they_save_a_second_a_request(build) -> None:
    node = build.all_links(build.node("a", "L4 L4 L4 L4"))
    efficient = plan(build.request(node))
    fast = plan(build.request(node, objective="Latency"))
    assert efficient.gpus_per_replica == 1
    assert fast.gpus_per_replica == 4
    assert fast.predicted.tpot_ms < efficient.predicted.tpot_ms


def test_policy_he_takes_the_fewest_gpus_whatever_the_objective(build) -> None:
    node = build.all_links(build.node("a", "L4 L4 L4 L4"))
    assert plan(build.request(node, objective="Latency", policy="HE")).gpus_per_replica == 1


def test_objective_throughput_takes_what_serves_most(build) -> None:
    node = build.all_links(build.node("a", "L4 L4 L4 L4"))
    made = plan(build.request(node, objective="Throughput"))
    rates = [made.predicted.requests_per_s]
    for gpus in (1, 2, 3):
        rates.append(plan(build.request(node, gpus_min=gpus, gpus_max=gpus)).predicted.requests_per_s)
    assert rates[0] == max(rates)


def test_min_equal_to_max_pins_the_count(build) -> None:
    made = plan(build.request(build.node("a", "H100 H100 H100"), gpus_min=2, gpus_max=2))
    assert made.gpus_per_replica == 2


def test_alternatives_say_why_they_lost(build) -> None:
    made = plan(build.request(build.node("a", "T4 T4 T4 T4")))
    assert made.gpus_per_replica == 2
    told = {(entry.gpus, entry.tensor): entry.rejected for entry in made.alternatives}
    assert "GiB are missing" in told[1, 1]
    assert "a request takes" in told[2, 1]
    assert "takes 3 GPUs instead of 2" in told[3, 1]
    assert len(made.alternatives) <= 8


def test_at_most_eight_alternatives_are_listed(build) -> None:
    made = plan(build.request(build.node("a", "L4 " * 8), config=build.large))
    assert len(made.alternatives) == 8


def test_assumptions_are_listed_in_the_plan(build) -> None:
    told = " ".join(plan(build.request(build.node("a", "L4"))).assumptions)
    for words in ("requestsPerSecond is not given", "promptTokens.mean is not given: 512", "outputTokens.mean is not"):
        assert words in told


def test_overrides_take_precedence_and_are_shown(build) -> None:
    overrides = Overrides(tensor=1, pipeline=3, layers=(20, 6, 6))
    made = plan(build.request(build.node("a", "L4 L4 L4 L4"), overrides=overrides))
    assert (made.tensor, made.pipeline, made.layers) == (1, 3, (20, 6, 6))
    told = " ".join(made.assumptions)
    for words in ("tensor 1 is set", "pipeline 3 is set", "layers 20,6,6 is set"):
        assert words in told


def test_given_layers_go_on_the_devices_that_hold_them(build) -> None:
    request = build.request(
        build.node("a", "T4 L4"), overrides=Overrides(layers=(2, 30)), max_model_len=2048, gpus_max=2
    )
    assert plan(request).devices == ("a-gpu-0", "a-gpu-1")
    assert plan(replace(request, overrides=Overrides(layers=(30, 2)))).devices == ("a-gpu-1", "a-gpu-0")


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (Overrides(layers=(20, 13)), "spec.parallelism.layers: [20,13] add up to 33; the model has 32 layers"),
        (Overrides(layers=(32, 0)), "spec.parallelism.layers: [32,0]: every stage needs at least one layer"),
        (Overrides(layers=(40, -8)), "every stage needs at least one layer"),
        (Overrides(pipeline=3, layers=(16, 16)), "spec.parallelism.pipeline: 3 is not the number of stages"),
        (Overrides(pipeline=33), "spec.parallelism.pipeline: 33 stages are more than the model's 32 layers"),
        (Overrides(tensor=3), "spec.parallelism.tensor: 3 does not divide the model's num_attention_heads 32"),
        (Overrides(tensor=4, pipeline=2), "4 x pipeline 2 is 8 GPUs; placement.gpus.max allows 4"),
    ],
)
def test_an_override_that_cannot_work_is_refused_with_the_field(build, overrides: Overrides, words: str) -> None:
    error = failure(build.request(build.node("a", "H100 H100 H100 H100"), overrides=overrides, gpus_max=4))
    assert error.reason == "InvalidOverride"
    assert words in str(error)


def test_an_override_below_the_pinned_count_is_refused(build) -> None:
    error = failure(build.request(build.node("a", "H100 " * 4), overrides=Overrides(tensor=1, pipeline=2), gpus_min=4))
    assert (error.reason, "placement.gpus.min asks for 4" in str(error)) == ("InvalidOverride", True)


def test_more_tokens_than_the_model_has_positions_are_refused(build) -> None:
    error = failure(build.request(build.node("a", "H100"), max_model_len=200_000))
    assert error.reason == "InvalidOverride"
    assert "maxModelLen 200000 is more than the 131072 positions" in str(error)


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("--tensor-parallel-size", "2"), "--tensor-parallel-size is not allowed: the plan decides it"),
        (("--max-num-seqs", "many"), "--max-num-seqs 'many' is not a positive whole number"),
        (("--gpu-memory-utilization=1.5",), "--gpu-memory-utilization '1.5' is not a share"),
        (("--kv-cache-memory-bytes", "100G"), "does not fit beside the weights: at most"),
        (("--kv-cache-memory-bytes", "1M"), "fewer than maxModelLen 8192"),
    ],
)
def test_engine_arguments_that_cannot_work_are_refused(build, args: tuple[str, ...], words: str) -> None:
    error = failure(build.request(build.node("a", "L4"), engine=EngineRequest(args=args)))
    assert error.reason == "InvalidOverride"
    assert words in str(error)


def test_without_profiles_there_is_no_plan(build) -> None:
    assert failure(build.request()).reason == "NoProfile"


def test_no_fit_names_the_amount_the_device_and_what_to_change(build) -> None:
    error = failure(build.request(build.node("a", "T4 L4"), config=build.large))
    assert error.reason == "NoFit"
    assert re.match(
        r"needs 13\d\.\d GiB on one device; the largest free one has 20\.7 GiB \(a gpu-1\), 11\d\.\d GiB too little; "
        r"2 = tp1 x pp2 on",
        str(error),
    )
    assert str(error).endswith("it would fit with 7 GPUs like a gpu-1 (L4) free in one node")


def test_no_fit_within_the_allowed_gpus_says_to_allow_more(build) -> None:
    error = failure(build.request(build.node("a", "T4 T4"), gpus_max=1))
    assert error.reason == "NoFit"
    assert "it would fit with placement.gpus.max 2 (now 1): allow more GPUs" in str(error)


def test_too_few_free_gpus_for_the_pinned_count_are_reported(build) -> None:
    error = failure(build.request(build.node("a", "H100"), gpus_min=2))
    assert error.reason == "NoFit"
    assert "placement.gpus.min is 2, and no node has more than 1 free" in str(error)


def test_gpus_that_are_taken_or_out_of_use_are_not_planned_with(build) -> None:
    node = build.node("a", ["H100", build.gpu("a", 1, "H100", health_state="Quarantined", health_reason="XID79")])
    error = failure(build.request(build.offer(node, taken=[0])))
    assert error.reason == "NoFit"
    assert "none of the 2 GPUs on 1 node is free: 1 in use, 1 out of use (XID79)" in str(error)


def test_gpus_promised_to_other_services_are_not_counted_on(build) -> None:
    node = build.node("a", "L4 L4 L4")
    assert plan(build.request(build.offer(node, promised=1), gpus_min=2)).gpus_per_replica == 2
    error = failure(build.request(build.offer(node, promised=2), gpus_min=2))
    assert error.reason == "NoFit"


def test_a_shape_that_fits_only_on_chosen_devices_needs_exact_devices(build) -> None:
    error = failure(build.request(build.node("a", "T4 L4"), gpus_max=1))
    assert error.reason == "NeedsExactDevices"
    assert "a device plugin may choose any 1 of the 2 free ones" in str(error)
    # The kubelet still hands out what the profile excludes.
    assert "withhold the small ones from the node's device plugin" in str(error)


def test_dra_may_choose_devices(build) -> None:
    made = plan(build.request(build.node("a", "T4 L4"), gpus_max=1, allocation="DRA"))
    assert made.devices == ("a-gpu-1",)


def test_all_free_gpus_of_a_node_are_a_choice_of_their_own(build) -> None:
    made = plan(build.request(build.node("a", "T4 L4")))
    assert made.gpus_per_replica == 2


def test_a_mig_slice_serves_alone(build) -> None:
    slices = [build.gpu("a", index, "L4", mig=True, resource_name="nvidia.com/mig-1g.20gb") for index in range(4)]
    assert plan(build.request(build.node("a", slices))).gpus_per_replica == 1
    error = failure(build.request(build.node("a", slices), gpus_min=2))
    assert "MIG slices cannot be combined" in str(error)


def test_devices_of_different_resource_names_are_never_mixed(build) -> None:
    mixed = [build.gpu("a", 0, "T4"), build.gpu("a", 1, "T4", resource_name="example.com/gpu")]
    assert failure(build.request(build.node("a", mixed))).reason == "NoFit"


def test_scaling_the_service_changes_no_plan(build) -> None:
    request = build.request(build.node("a", "L4 L4 L4 L4"), workload=build.workload, classes=build.chat)
    assert plan(replace(request, replicas=7)) == plan(request)


def test_a_load_that_no_replica_can_hold_is_shared_by_more(build) -> None:
    heavy = replace(build.workload, requests_per_s=100.0)
    made = plan(build.request(build.node("a", "L4 L4"), workload=heavy, classes=build.chat))
    assert made.recommended_replicas > 1
    told = " ".join(made.assumptions)
    assert f"requests/s on each of {made.recommended_replicas} replicas" in told
    assert "within the targets have room for 1 now" in told


def test_replicas_follow_from_the_rate_that_one_serves(build) -> None:
    load = Workload(requests_per_s=40.0, prompt_tokens_mean=512, output_tokens_mean=256)
    made = plan(build.request(build.node("a", "H100"), workload=load, classes=build.chat))
    assert made.recommended_replicas == -(-40.0 // made.predicted.requests_per_s) > 1


def test_nothing_is_predicted_of_devices_that_are_not_measured(build) -> None:
    made = plan(build.request(build.node("a", [build.unmeasured("a", 0)])))
    assert made.predicted.tpot_ms is None
    assert "speeds of unknown are not measured, so nothing is predicted" in " ".join(made.assumptions)
    assert "tpotMilliseconds" not in made.to_dict()["predicted"]


def test_a_known_product_that_nobody_measured_is_planned_with_the_rates_of_the_product(build) -> None:
    blank = build.gpu("a", 0, "L4", product="NVIDIA L4", bf16_flops_per_s=None, memory_bytes_per_s=None)
    made = plan(build.request(build.node("a", [blank])))
    assert made.predicted.tpot_ms == pytest.approx(16.06e9 / (0.255e12 * 0.946) * 1e3, rel=0.1)
    assert "speeds of NVIDIA L4 are not measured on these nodes: those of the product" in " ".join(made.assumptions)


def test_equal_unmeasured_gpus_get_layers_that_fill_their_memory_evenly(build) -> None:
    blank = [build.unmeasured("a", index, "T4") for index in range(2)]
    made = plan(build.request(build.node("a", blank), overrides=Overrides(pipeline=2)))
    assert made.layers == (17, 15)  # logits and sampling are on the last stage
    assert abs(made.stages[0].memory.free - made.stages[1].memory.free) < GIB


def test_noise_of_a_percent_in_the_speeds_moves_no_layer(build) -> None:
    noisy = [build.gpu("a", index, "T4", memory_bytes_per_s=2.8e11 * (1 + index / 200)) for index in range(2)]
    made = plan(build.request(build.node("a", noisy), overrides=Overrides(pipeline=2)))
    assert made.layers == plan(build.request(build.node("a", "T4 T4"), overrides=Overrides(pipeline=2))).layers


def test_a_plan_is_read_back_from_its_document_unchanged(build) -> None:
    made = plan(build.request(build.node("a", "T4 L4"), workload=build.workload, classes=build.chat))
    again = Plan.from_dict(made.to_dict())
    assert again.to_dict() == made.to_dict()
    assert (again.layers, again.devices, again.nodes) == (made.layers, made.devices, made.nodes)
