"""Why no plan exists: the device, the missing amount, and changes that would fit, computed and not guessed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from uellm.errors import PlanError
from uellm.hardware import DRA, Device, Link
from uellm.planner import constants as c
from uellm.planner.explanation.media import encoder_share
from uellm.planner.nodes.capability import device_refusal
from uellm.planner.nodes.groups import groups_of, takes
from uellm.planner.nodes.pools import Pool
from uellm.planner.refusals.sentences import sentence
from uellm.planner.request import PlanRequest
from uellm.planner.result import Plan
from uellm.planner.search.replicas import Sizer
from uellm.planner.search.search import Rejection, Search
from uellm.planner.search.shapes import shapes
from uellm.planner.shape import Shape
from uellm.planner.units import size
from uellm.text import counted


def no_plan(search: Search, rejections: Sequence[Rejection], *, spanning: Plan | None = None) -> PlanError:
    """NoFit or NeedsExactDevices, with the device and the amount. `spanning`: the plan over nodes, if only it fits."""
    # Only room matters here, and it is the same on all nodes of a family.
    request, pools = search.request, [family.ideal for family in search.families if not family.ideal.members]
    if not pools:
        return PlanError("NoFit", _nothing_free(request))
    exact = _exact(search, pools, rejections)
    if exact is not None:
        return exact
    remedy = _remedy(search, pools, spanning)
    return PlanError("NoFit", f"{_amount(search, pools)}{_nearest(rejections)}{remedy}{_left_out(request)}")


def _left_out(request: PlanRequest) -> str:
    return f"; not considered: {'; '.join(map(str, request.left_out))}" if request.left_out else ""


def _nothing_free(request: PlanRequest) -> str:
    devices = [device for offer in request.nodes for device in offer.node.devices]
    if not devices:
        return f"no GPU on {counted(len(request.nodes), 'profiled node')}"
    out = [device for device in devices if not device.usable]
    unfit = [refusal for device in devices if device.usable and (refusal := device_refusal(device, request))]
    use = f"{len(devices) - len(out) - len(unfit)} in use"
    if out:
        use += f", {len(out)} out of use ({out[0].excluded_reason or out[0].health_reason or out[0].health_state})"
    if unfit:
        use += f", {len(unfit)} cannot run it ({sentence(unfit[0])})"
    return (
        f"none of the {len(devices)} GPUs on {counted(len(request.nodes), 'node')} is free: {use}{_left_out(request)}"
    )


def _exact(search: Search, pools: Sequence[Pool], rejections: Sequence[Rejection]) -> PlanError | None:
    if search.request.allocation == DRA:
        return None
    for rejected in rejections:
        for pool in pools:
            refusal = search.sizer.refusal(pool, rejected.shape)
            if refusal is not None and search.sizer.needs_exact(pool, rejected.shape):
                return PlanError(
                    "NeedsExactDevices",
                    f"{rejected.shape} fits {pool.node} only on certain GPUs, and a device plugin may choose any "
                    f"{rejected.shape.gpus} of the {len(pool.devices)} free ones: {sentence(refusal)}; set "
                    f"placement.gpus.min and max to {len(pool.devices)} to take all of them, withhold the small "
                    "ones from the node's device plugin, or set placement.allocation to DRA where the node has a DRA "
                    "driver",
                )
    return None


def _amount(search: Search, pools: Sequence[Pool]) -> str:
    """What one device would need, what the largest one has, and the difference."""
    pool, device = max(
        ((pool, device) for pool in pools for device in pool.devices), key=lambda entry: entry[1].memory_bytes
    )
    sizes = search.sizer.footprint(pool, Shape(1, 1))
    needed = sum(sizes.layer_bytes) + sum(sizes.layer_kv_bytes) + sizes.first_bytes + sizes.last_bytes
    needed += sizes.fixed_bytes
    usable = device.memory_bytes - (sizes.reserved_bytes(device.memory_bytes) - sizes.fixed_bytes)
    missing = f", {size(needed - usable)} too little" if needed > usable else ""
    return (
        f"needs {size(needed)} on one device; the largest free one has {size(usable)} ({pool.node} gpu-{device.index})"
        f"{missing}{encoder_share(sizes.encoder_bytes)}"
    )


def _nearest(rejections: Sequence[Rejection]) -> str:
    if not rejections:
        return ""
    last = max(rejections, key=lambda entry: (entry.shape.gpus, -entry.shape.tensor))
    return f"; {last.shape} on {last.node}: {sentence(last.refused.cause)}"


def _remedy(search: Search, pools: Sequence[Pool], spanning: Plan | None) -> str:
    request = search.request
    most = max(pool.sure for pool in pools)
    if most == 0:
        return "; every free GPU is planned for other services whose pods have not started yet"
    if most < request.gpus_min and spanning is None:
        return f"; placement.gpus.min is {request.gpus_min}, and no node has more than {most} free GPUs for it"
    if not any(True for _ in search.every_shape()) and spanning is None:
        return "; no number of free GPUs makes a shape that the overrides and the model's heads allow"
    ways = [*_over_nodes(request, spanning), *_more_allowed(search, pools, most)]
    ways += [*_shorter(request, pools), *_quantized(request, pools), *_more_gpus(request, pools)]
    ways += _more_nodes(search)
    if not ways:
        return ": neither a smaller maxModelLen, nor quantization, nor more GPUs of these kinds in one node would do"
    return f": it would fit with {'; or with '.join(ways)}"


def _over_nodes(request: PlanRequest, spanning: Plan | None) -> Iterator[str]:
    """The fields that would allow a plan over several nodes, and its shape."""
    if spanning is None:
        return
    fields = [] if request.multi_node else ["placement.multiNode Allowed"]
    why = ""
    if request.allocation == DRA:
        fields.append("placement.allocation DevicePlugin")
        why = " (a replica that claims its GPUs by DRA cannot span nodes)"
    shape = f"tp{spanning.tensor} x pp{spanning.pipeline}"
    yield f"{' and '.join(fields)}, as {shape} over {spanning.nodes_per_replica} nodes{why}"


def fits_over_nodes(request: PlanRequest, group: Pool) -> bool:
    """Whether some shape has room on a group of nodes under next to no load."""
    search = Search(request, (), (group,))
    return any(search.sizer.refusal(group, shape) is None for shape in search.every_shape() if takes(group, shape))


def _more_nodes(search: Search) -> Iterator[str]:
    """How many nodes like the best one would hold it together, if several may."""
    request = search.request
    if not request.multi_node or request.allocation == DRA:
        return
    for pool in sorted(search.pools, key=lambda each: (-each.sure, each.node))[:1]:
        imagined_nodes = replace(pool, copies=c.MOST_NODES_OF_A_REPLICA, promised=0)
        for group in groups_of(request, (imagined_nodes,)):
            if fits_over_nodes(replace(request, gpus_max=None), group):
                yield f"{len(group.members)} nodes like {pool.node}"
                return


def _more_allowed(search: Search, pools: Sequence[Pool], most: int) -> Iterator[str]:
    """More of the free GPUs, if placement.gpus.max excludes them."""
    request = search.request
    if request.gpus_max is not None and request.gpus_max < most:
        fewest = fewest_gpus(replace(request, gpus_max=None), pools)
        if fewest is not None:
            yield f"placement.gpus.max {fewest} (now {request.gpus_max}): allow more GPUs"


def _shorter(request: PlanRequest, pools: Sequence[Pool]) -> Iterator[str]:
    """The largest model length that fits."""

    def fits(length: int) -> bool:
        return fewest_gpus(replace(request, max_model_len=length), pools) is not None

    low, high = c.LEAST_LENGTH, request.max_model_len
    if high <= low or not fits(low):
        return
    while high - low > max(1, low // 64):
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    length = low // 128 * 128 if low >= 128 else low
    yield f"a smaller maxModelLen, {length} at most (now {request.max_model_len})"


def _quantized(request: PlanRequest, pools: Sequence[Pool]) -> Iterator[str]:
    for name, architecture in request.variants:
        smaller = replace(request, architecture=architecture, variants=())
        if (fewest := fewest_gpus(smaller, pools)) is not None:
            yield f"quantization {name} ({size(architecture.weight_bytes)} of weights, on {counted(fewest, 'GPU')})"
            return


def _more_gpus(request: PlanRequest, pools: Sequence[Pool]) -> Iterator[str]:
    """How many of the largest GPUs one node would need."""
    pool, device = max(
        ((pool, device) for pool in pools for device in pool.devices if not device.mig),
        key=lambda entry: entry[1].memory_bytes,
        default=(None, None),
    )
    if pool is None or device is None:
        return
    for count in range(1, c.MOST_GPUS_OF_A_NODE + 1):
        alike = imagined(pool, device, count)
        wanted = replace(request, gpus_min=count, gpus_max=count)
        if fewest_gpus(wanted, [alike]) is not None:
            yield f"{counted(count, 'GPU')} like {pool.node} gpu-{device.index} ({_product(device)}) free in one node"
            return


def imagined(pool: Pool, device: Device, count: int) -> Pool:
    """A node with this number of the device."""
    devices = tuple(replace(device, uuid=f"{device.uuid}#{index}", index=index) for index in range(count))
    links: tuple[Link, ...] = ()
    return replace(pool, devices=devices, links=links, promised=0)


def fewest_gpus(request: PlanRequest, pools: Sequence[Pool]) -> int | None:
    """The fewest GPUs with room for the model under next to no load, ignoring targets; None if no number is enough."""
    sizer = Sizer(request)
    most = max(pool.sure for pool in pools)
    for gpus in range(request.gpus_min, min(most, request.gpus_max or most) + 1):
        for shape in shapes(request, gpus):
            if any(sizer.refusal(pool, shape) is None for pool in pools):
                return gpus
    return None


def _product(device: Device) -> str:
    return device.product or size(device.memory_bytes)
