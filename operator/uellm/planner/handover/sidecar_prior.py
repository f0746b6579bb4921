"""The sidecar's first estimate of the engine's step times, before it has measured any: those of the plan."""

from __future__ import annotations

from typing import NamedTuple

from uellm.planner.correction import Corrections, step_basis
from uellm.planner.cost.predict import predict
from uellm.planner.cost.rates import Links
from uellm.planner.cost.work import stage_loads
from uellm.planner.handover.revalidate import evaluator_of, shape_of
from uellm.planner.nodes.network import network_links, network_rate
from uellm.planner.request import PlanRequest
from uellm.planner.result import Plan
from uellm.planner.shape import Steps
from uellm.planner.vllm.cache_dtype import with_cache
from uellm.planner.vllm.drafting import drafting_of
from uellm.planner.vllm.flags import UserArgs
from uellm.step_basis import StepBasis
from uellm.step_time import UNCORRECTED, StepFactors, StepTime


class StepPrior(NamedTuple):
    """Step times, and the correction that the plan's prediction was made with."""

    step: StepTime
    """Without the correction, so that measured factors always refer to the same."""
    factors: StepFactors
    basis: StepBasis | None
    """None where the devices are not alike."""


def step_prior(plan: Plan, request: PlanRequest) -> StepPrior | None:
    """The step times by `step_time` with their correction; None where these are not known."""
    step = step_time(plan, request)
    if step is None:
        return None
    shape = shape_of(plan)
    known = {device.uuid: device for offer in request.nodes for device in offer.node.devices}
    devices = [known[uuid] for uuid in plan.devices]
    found = Corrections.of(request).nearest(devices, shape)
    return StepPrior(step, UNCORRECTED if found is None else found.factors, step_basis(request, devices, shape))


def step_time(plan: Plan, request: PlanRequest) -> StepTime | None:
    """The step times of a whole replica on the devices meant for the first, as these are measured now, rounded.

    None where they are not all known and measured, or are simulated. None also where a step's time does not depend on
    its prompt tokens, because chunks are so small that reading the weights hides them.
    """
    named = set(plan.nodes)
    offers = [offer for offer in request.nodes if offer.node.name in named]
    known = {device.uuid: (device, offer.node) for offer in offers for device in offer.node.devices}
    if not plan.devices or not all(uuid in known for uuid in plan.devices):
        return None
    nodes = list({known[uuid][1].name: known[uuid][1] for uuid in plan.devices}.values())
    if nodes[0].simulated or sum(plan.layers) != request.architecture.layers:
        return None
    groups = [tuple(known[uuid][0] for uuid in stage.devices) for stage in plan.stages]
    user = UserArgs(request.engine.args)
    drafting = drafting_of(request.architecture, user)
    loads = stage_loads(with_cache(request.architecture, user), groups, plan.layers, drafting=drafting)
    evaluator, sizes = evaluator_of(plan, request), Steps(plan.max_num_batched_tokens, plan.max_num_seqs)
    tokens = plan.predicted.kv_cache_tokens
    rate = network_rate((offer.node.name, offer.node.network) for offer in offers)
    between = network_links([node.devices for node in nodes], rate)
    links = Links((*(link for node in nodes for link in node.links), *between))
    times = predict(loads, links, evaluator.costs, evaluator.demand, tokens, sizes)
    step = None if times is None else times.step
    return step.rounded() if step is not None and step.per_prefill_token_s > 0 else None
