"""The one place where refusals become sentences."""

from __future__ import annotations

from functools import singledispatch

from uellm.planner import constants as c
from uellm.planner.refusals import devices, kinds, placement
from uellm.planner.refusals.devices import version
from uellm.planner.refusals.kinds import PlanRefusal
from uellm.planner.units import milliseconds, size
from uellm.text import and_more, counted


@singledispatch
def sentence(refusal: PlanRefusal) -> str:
    """The refusal for a person: one sentence without a full stop."""
    raise TypeError(f"no sentence for {type(refusal).__name__}")


@sentence.register
def _(refusal: kinds.TooFewGpus) -> str:
    promised = f", {refusal.promised} of them planned for other services" if refusal.promised else ""
    return f"needs {counted(refusal.need, 'free GPU')} and has {refusal.free}{promised}"


@sentence.register
def _(refusal: kinds.NoGpuOfResource) -> str:
    return f"needs {refusal.need} free {refusal.resource_name} and has none"


@sentence.register
def _(refusal: kinds.MigSlicesAlone) -> str:
    return "MIG slices cannot be combined: a replica has to fit on one slice"


@sentence.register
def _(refusal: kinds.UnlikeGpus) -> str:
    products = ", ".join(f"{number} x {product or 'GPU'}" for product, number in refusal.products)
    return (
        f"GPUs that share layers (tensor {refusal.tensor}) must be identical, and the kubelet may choose unlike ones "
        f"({products})"
    )


@sentence.register
def _(refusal: kinds.TooFewGroups) -> str:
    return f"needs {refusal.stages} groups of {refusal.tensor} identical GPUs; there are {refusal.groups}"


@sentence.register
def _(refusal: kinds.NoRoom) -> str:
    where = f"on each of the {refusal.tensor} GPUs that share a layer, " if refusal.tensor > 1 else ""
    choice = ", ".join(f"gpu-{index}" for index in refusal.choice)
    return f"{where}{sentence(refusal.cause)}" + (f" (the kubelet may choose {choice})" if choice else "")


@sentence.register
def _(refusal: kinds.MissedTargets) -> str:
    return "; ".join(
        f"{entry.name} {milliseconds(entry.predicted_s)} predicted, target of class {entry.class_name} "
        f"{milliseconds(entry.target_s)}"
        for entry in refusal.missed
    )


@sentence.register
def _(refusal: kinds.TooFewRequests) -> str:
    return f"serves {refusal.served_per_s:.2f} of {refusal.wanted_per_s:.2f} requests/s"


@sentence.register
def _(refusal: kinds.OnNode) -> str:
    return f"{refusal.node}: {sentence(refusal.cause)}"


@sentence.register
def _(refusal: kinds.OtherLayers) -> str:
    return f"the plan places {refusal.planned} layers and the model has {refusal.model}"


@sentence.register
def _(refusal: kinds.TooFewReplicas) -> str:
    return f"{_nodes(refusal.nodes)} have room for {refusal.room} of {refusal.wanted} replicas"


@sentence.register
def _(refusal: kinds.NodesTaken) -> str:
    nodes = _nodes(refusal.nodes)
    return f"{nodes} have no room" if refusal.free else f"no GPU of {nodes} is free"


@sentence.register
def _(refusal: kinds.NoneToClaim) -> str:
    wanted = " and ".join(f"{count} x {product or 'GPU'}" for product, count in refusal.products)
    return f"its claim asks for {wanted}, and fewer than these are free"


@sentence.register
def _(refusal: kinds.IndivisibleSize) -> str:
    return f"{refusal.tensor} does not divide the model's {refusal.field} {refusal.size}"


@sentence.register
def _(refusal: kinds.SplitBlocks) -> str:
    others = ", ".join(map(str, refusal.others))
    remedy = f"tensor {others} would do" if others else "no tensor parallelism would do"
    return (
        f"tensor {refusal.tensor} cuts {refusal.matrix} into parts of {refusal.part}, which the quantisation's blocks "
        f"of {refusal.multiple} do not divide, and vLLM refuses that; {remedy}"
    )


@sentence.register
def _(refusal: devices.TimeSlicedShare) -> str:
    return (
        f"{refusal.uuid} is lent to several pods at once, by time-slicing, MPS or HAMi: they share its memory, so no "
        "plan can rely on it; turn the sharing off on the node, or use MIG"
    )


@sentence.register
def _(refusal: devices.CapabilityTooLow) -> str:
    gpu = _gpu(refusal.gpu, refusal.capability)
    if not refusal.by_image:
        return f"{gpu}, and vLLM needs {version(refusal.needed)}"
    return (
        f"{gpu}, and vLLM's image needs {version(refusal.needed)}: name one that is built for it (CUDA 12) in "
        "spec.engine.image, or take other GPUs"
    )


@sentence.register
def _(refusal: devices.QuantizationUnsupported) -> str:
    gpu = _gpu(refusal.gpu, refusal.capability)
    return f"{gpu}, and quantization {refusal.quantization} needs {version(refusal.needed)} in vLLM"


@sentence.register
def _(refusal: devices.SparseAttentionUnsupported) -> str:
    gpu, majors = _gpu(refusal.gpu, refusal.capability), ", ".join(f"{major}.x" for major in refusal.majors)
    return (
        f"{gpu}, and vLLM has the sparse attention of {refusal.model} for {majors} only: take other GPUs, or name an "
        "image that has it in spec.engine.image"
    )


@sentence.register
def _(refusal: devices.Int8Unsupported) -> str:
    gpu = _gpu(refusal.gpu, refusal.capability)
    return (
        f"{gpu}, and vLLM's kernel for INT8 weights and activations ends below {version(refusal.below)}: set "
        "--linear-backend triton in spec.engine.args, or take an FP8 checkpoint"
    )


@sentence.register
def _(refusal: devices.Bfloat16Unsupported) -> str:
    gpu = _gpu(refusal.gpu, refusal.capability)
    return f"{gpu}, and vLLM refuses bfloat16 below {version(refusal.needed)}: set spec.model.dtype to float16"


@sentence.register
def _(refusal: devices.Float32Needed) -> str:
    gpu = _gpu(refusal.gpu, refusal.capability)
    return f"{gpu}, without bfloat16, and vLLM would compute {refusal.model} in float32: twice the memory"


@sentence.register
def _(refusal: placement.TooManyStages) -> str:
    return (
        f"{refusal.stages} stages need as many devices and layers; there are {refusal.devices} devices and "
        f"{refusal.layers} layers"
    )


@sentence.register
def _(refusal: placement.EmptyStage) -> str:
    return f"{refusal.stages} stages for {refusal.layers} layers leave one without any"


@sentence.register
def _(refusal: placement.TooFewDevices) -> str:
    return f"{refusal.stages} stages need as many devices; there are {refusal.devices}"


@sentence.register
def _(refusal: placement.LayerTooLarge) -> str:
    which = "even one layer" if refusal.layer is None else f"layer {refusal.layer}"
    return (
        f"no device has room for {which}: it needs {size(refusal.need_bytes)}, and the largest, {refusal.device}, has "
        f"{size(refusal.have_bytes)} free"
    )


@sentence.register
def _(refusal: placement.MemoryShort) -> str:
    if refusal.devices == 1:
        whose = f"{refusal.device} has"
    else:
        largest = "" if refusal.devices == refusal.of else "largest "
        whose = f"the {refusal.devices} {largest}devices have"
    return (
        f"layers, KV cache, embedding and head need {size(refusal.need_bytes)}, and {whose} "
        f"{size(refusal.have_bytes)} free: {size(refusal.missing_bytes)} are missing"
    )


@sentence.register
def _(refusal: placement.NoSplit) -> str:
    return (
        f"no split over {'exactly' if refusal.exactly else 'up to'} {refusal.devices} devices fits: they have "
        f"{size(refusal.have_bytes)} free for {size(refusal.need_bytes)}, but whole layers, the embedding "
        f"({size(refusal.first_bytes)}) and the head ({size(refusal.last_bytes)}) leave gaps; the largest, "
        f"{refusal.device}, has {size(refusal.device_bytes)} free"
    )


@sentence.register
def _(refusal: placement.StageTooLarge) -> str:
    return (
        f"stage {refusal.stage} with {counted(refusal.layers, 'layer')} needs {size(refusal.need_bytes)} on a device, "
        f"and the devices left for it have at most {size(refusal.have_bytes)} free"
    )


@sentence.register
def _(refusal: placement.SearchCutShort) -> str:
    return (
        f"no placement found among {refusal.kinds} kinds of devices, too many to try every set (not proven "
        f"impossible): {sentence(refusal.cause)}"
    )


@sentence.register
def _(refusal: placement.BaselineFails) -> str:
    split = ", ".join(f"{count} on {name}" for name, count in zip(refusal.devices, refusal.layers, strict=True))
    return f"policy {refusal.policy} finds no placement that fits; policy HELR has one: {split}"


def _gpu(name: str, capability: tuple[int, int]) -> str:
    return f"{name} has compute capability {version(capability)}"


def _nodes(nodes: tuple[str, ...]) -> str:
    return and_more(nodes, c.MOST_NODES_NAMED, "node")
