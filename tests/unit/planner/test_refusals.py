"""Every kind of refusal has its sentence, with its figures and devices."""

from __future__ import annotations

import pytest

from helpers.sizes import GIB
from uellm.planner.refusals import devices, kinds, placement
from uellm.planner.refusals.kinds import PlanRefusal
from uellm.planner.refusals.sentences import sentence
from uellm.planner.target_outcome import TargetOutcome

LARGE = placement.LayerTooLarge(layer=3, need_bytes=2 * GIB, have_bytes=GIB, device="gpu-0 (GPU-a)")

EXAMPLES = [
    (kinds.TooFewGpus(4, 2, 1), "needs 4 free GPUs and has 2, 1 of them planned for other services"),
    (kinds.NoGpuOfResource(2, "nvidia.com/gpu"), "needs 2 free nvidia.com/gpu and has none"),
    (kinds.MigSlicesAlone(), "MIG slices cannot be combined: a replica has to fit on one slice"),
    (
        kinds.UnlikeGpus(2, (("", 1), ("L4", 3))),
        "GPUs that share layers (tensor 2) must be identical, and the kubelet may choose unlike ones (1 x GPU, 3 x L4)",
    ),
    (kinds.TooFewGroups(3, 2, 1), "needs 3 groups of 2 identical GPUs; there are 1"),
    (
        kinds.NoRoom(LARGE, 2, (0, 3)),
        "on each of the 2 GPUs that share a layer, no device has room for layer 3: it needs 2.0 GiB, and the largest, "
        "gpu-0 (GPU-a), has 1.0 GiB free (the kubelet may choose gpu-0, gpu-3)",
    ),
    (
        kinds.MissedTargets((TargetOutcome("TPOT", "chat", 0.045, 0.03),)),
        "TPOT 45 ms predicted, target of class chat 30 ms",
    ),
    (kinds.TooFewRequests(1.25, 2), "serves 1.25 of 2.00 requests/s"),
    (kinds.OnNode("a", kinds.TooFewGpus(1, 0)), "a: needs 1 free GPU and has 0"),
    (kinds.OtherLayers(32, 28), "the plan places 32 layers and the model has 28"),
    (kinds.TooFewReplicas(tuple("abcd"), 2, 3), "a, b, c and 1 more node have room for 2 of 3 replicas"),
    (
        kinds.NoneToClaim((("A100", 2), ("L4", 1))),
        "its claim asks for 2 x A100 and 1 x L4, and fewer than these are free",
    ),
    (kinds.NodesTaken(("a",), free=False), "no GPU of a is free"),
    (kinds.NodesTaken(("a", "b"), free=True), "a, b have no room"),
    (kinds.IndivisibleSize(3, "num_attention_heads", 32), "3 does not divide the model's num_attention_heads 32"),
    (
        kinds.SplitBlocks(4, "mlp.down_proj", 7392, 128, (2,)),
        "tensor 4 cuts mlp.down_proj into parts of 7392, which the quantisation's blocks of 128 do not divide, and "
        "vLLM refuses that; tensor 2 would do",
    ),
    (
        devices.TimeSlicedShare("GPU-1::0"),
        "GPU-1::0 is lent to several pods at once, by time-slicing, MPS or HAMi: they share its memory, so no plan can "
        "rely on it; turn the sharing off on the node, or use MIG",
    ),
    (
        devices.CapabilityTooLow("P4", (6, 1), (7, 5), by_image=False),
        "P4 has compute capability 6.1, and vLLM needs 7.5",
    ),
    (
        devices.CapabilityTooLow("V100", (7, 0), (7, 5), by_image=True),
        "V100 has compute capability 7.0, and vLLM's image needs 7.5: name one that is built for it (CUDA 12) in "
        "spec.engine.image, or take other GPUs",
    ),
    (
        devices.SparseAttentionUnsupported("A100", (8, 0), (9, 10, 12), "DeepseekV32ForCausalLM"),
        "A100 has compute capability 8.0, and vLLM has the sparse attention of DeepseekV32ForCausalLM for 9.x, 10.x, "
        "12.x only: take other GPUs, or name an image that has it in spec.engine.image",
    ),
    (
        devices.Int8Unsupported("B200", (10, 0), (10, 0)),
        "B200 has compute capability 10.0, and vLLM's kernel for INT8 weights and activations ends below 10.0: set "
        "--linear-backend triton in spec.engine.args, or take an FP8 checkpoint",
    ),
    (
        devices.QuantizationUnsupported("V100", (7, 0), (7, 5), "awq"),
        "V100 has compute capability 7.0, and quantization awq needs 7.5 in vLLM",
    ),
    (
        devices.Bfloat16Unsupported("T4", (7, 5), (8, 0)),
        "T4 has compute capability 7.5, and vLLM refuses bfloat16 below 8.0: set spec.model.dtype to float16",
    ),
    (
        devices.Float32Needed("T4", (7, 5), "Gemma3ForCausalLM"),
        "T4 has compute capability 7.5, without bfloat16, and vLLM would compute Gemma3ForCausalLM in float32: twice "
        "the memory",
    ),
    (placement.TooManyStages(3, 2, 8), "3 stages need as many devices and layers; there are 2 devices and 8 layers"),
    (
        kinds.SplitBlocks(8, "mlp.down_proj", 192, 128, (1, 2, 4)),
        "tensor 8 cuts mlp.down_proj into parts of 192, which the quantisation's blocks of 128 do not divide, and vLLM "
        "refuses that; tensor 1, 2, 4 would do",
    ),
    (
        kinds.SplitBlocks(2, "mlp.up_proj", 96, 128, ()),
        "tensor 2 cuts mlp.up_proj into parts of 96, which the quantisation's blocks of 128 do not divide, and vLLM "
        "refuses that; no tensor parallelism would do",
    ),
    (placement.EmptyStage(3, 2), "3 stages for 2 layers leave one without any"),
    (placement.TooFewDevices(3, 2), "3 stages need as many devices; there are 2"),
    (
        placement.LayerTooLarge(None, 2 * GIB, GIB, "b"),
        "no device has room for even one layer: it needs 2.0 GiB, and the largest, b, has 1.0 GiB free",
    ),
    (
        placement.MemoryShort(3 * GIB, GIB, 2 * GIB, devices=1, of=2, device="b"),
        "layers, KV cache, embedding and head need 3.0 GiB, and b has 1.0 GiB free: 2.0 GiB are missing",
    ),
    (
        placement.MemoryShort(3 * GIB, GIB, 2 * GIB, devices=2, of=4, device="b"),
        "layers, KV cache, embedding and head need 3.0 GiB, and the 2 largest devices have 1.0 GiB free: 2.0 GiB are "
        "missing",
    ),
    (
        placement.NoSplit(3 * GIB, 4 * GIB, GIB, GIB, devices=2, exactly=True, device="b", device_bytes=2 * GIB),
        "no split over exactly 2 devices fits: they have 4.0 GiB free for 3.0 GiB, but whole layers, the embedding "
        "(1.0 GiB) and the head (1.0 GiB) leave gaps; the largest, b, has 2.0 GiB free",
    ),
    (
        placement.StageTooLarge(1, 20, 3 * GIB, GIB),
        "stage 1 with 20 layers needs 3.0 GiB on a device, and the devices left for it have at most 1.0 GiB free",
    ),
    (
        placement.SearchCutShort(20, placement.TooFewDevices(3, 2)),
        "no placement found among 20 kinds of devices, too many to try every set (not proven impossible): 3 stages "
        "need as many devices; there are 2",
    ),
    (
        placement.BaselineFails("BGS", ("a", "b"), (5, 3)),
        "policy BGS finds no placement that fits; policy HELR has one: 5 on a, 3 on b",
    ),
]


@pytest.mark.parametrize(("refusal", "expected"), EXAMPLES)
def test_a_refusal_says_what_is_needed_what_there_is_and_where(refusal: PlanRefusal, expected: str) -> None:
    assert sentence(refusal) == expected


def test_every_kind_of_refusal_has_a_sentence() -> None:
    concrete = {
        kind
        for module in (devices, kinds, placement)
        for kind in vars(module).values()
        if isinstance(kind, type)
        and issubclass(kind, PlanRefusal)
        and kind not in (PlanRefusal, devices.DeviceRefusal, placement.PlacementRefusal)
    }
    assert {type(refusal) for refusal, _ in EXAMPLES} == concrete
    assert concrete <= set(sentence.registry)


def test_renaming_changes_a_device_and_never_the_words_around_it() -> None:
    names = {"0000": "no device", "0001": "gpu-1 (GPU-0000)"}
    found = placement.SearchCutShort(2, placement.LayerTooLarge(None, GIB, 0, "0001")).renamed(names)
    assert "the largest, gpu-1 (GPU-0000), has" in sentence(found)
    assert placement.BaselineFails("BGS", ("0001", "0000"), (1, 1)).renamed(names).devices == (
        "gpu-1 (GPU-0000)",
        "no device",
    )
