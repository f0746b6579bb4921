"""One shape evaluated on one node: which devices, which layers, how much KV cache, how fast."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import InitVar, dataclass, field, replace
from fractions import Fraction

from uellm.errors import PlanError
from uellm.hardware import DRA, Device, Link
from uellm.planner import constants as c
from uellm.planner.assignment.assign import Assignment, Task, settled
from uellm.planner.assignment.every_subset import admits_some, refusal
from uellm.planner.assignment.spanning import assign_over
from uellm.planner.correction import Corrections
from uellm.planner.cost.demand import Demand
from uellm.planner.cost.predict import Times, predict
from uellm.planner.cost.rates import Costs, Links, flops_per_s, measured
from uellm.planner.cost.step_sizes import enlarged, steps
from uellm.planner.cost.work import stage_loads
from uellm.planner.memory.footprint import Footprint, footprint
from uellm.planner.memory.kv_cache import KvCache, kv_cache, tokens_of_flag
from uellm.planner.nodes.groups import devices_for
from uellm.planner.nodes.pools import Pool
from uellm.planner.nodes.tensor_groups import kind_of
from uellm.planner.refusals.kinds import PlanRefusal
from uellm.planner.request import PlanRequest
from uellm.planner.result import MemoryUse, Stage
from uellm.planner.search.figures import Essence, Figures, Known, Worked, build_of
from uellm.planner.shape import Shape, Steps
from uellm.planner.spans import spans
from uellm.planner.vllm.cache_dtype import with_cache
from uellm.planner.vllm.defaults import default_steps
from uellm.planner.vllm.drafting import drafting_of
from uellm.planner.vllm.flags import KV_CACHE_BYTES, UserArgs
from uellm.step_basis import Correction

_known: Known[Worked] = Known()
_known_footprints: Known[Footprint] = Known()


@dataclass(frozen=True, slots=True)
class Evaluator:
    """The data that all candidates of one search share."""

    request: PlanRequest
    demand: Demand
    user: UserArgs
    costs: Costs = field(init=False)
    """Without a correction: layers are placed by them, in the pod as here."""
    _corrections: Corrections = field(init=False, compare=False, repr=False)
    _essence: Essence = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        request, demand = self.request, self.demand
        costs = Costs.of(request.architecture, demand.prompt_tokens, demand.output_tokens, request.efficiency)
        object.__setattr__(self, "costs", costs)
        corrections = Corrections.of(request)
        object.__setattr__(self, "_corrections", corrections)
        essence = Essence(
            request.architecture, demand, self.user.args, request.max_model_len, corrections, request.adapters
        )
        object.__setattr__(self, "_essence", essence)

    def correction(self, devices: Sequence[Device], shape: Shape) -> Correction | None:
        """The measured step times by which a prediction for these devices is corrected; None where there are none."""
        return self._corrections.nearest(devices, shape)

    def costs_on(self, devices: Sequence[Device], shape: Shape) -> Costs:
        """The costs with that correction."""
        found = self.correction(devices, shape)
        return self.costs if found is None else replace(self.costs, factors=found.factors)

    def steps(self, devices: Sequence[Device], shape: Shape, links: Sequence[Link] = ()) -> Steps:
        """Step sizes for any of these devices. Without `links`, communication takes no time."""
        known = Links(links) if links else None
        costs = self.costs_on(devices, shape)
        return steps(self.request.architecture, self.demand, devices, shape, self.user, costs, known)

    def steps_on(self, pool: Pool, shape: Shape) -> Steps:
        """Step sizes for any devices of a pool."""
        return self.steps(devices_for(pool, shape), shape, pool.links)

    def footprint(self, shape: Shape, sizes: Steps) -> Footprint:
        """Memory of the shape."""
        key = shape, sizes, self._essence  # the same on every node
        known = _known_footprints.get(key)
        if known is None:
            model, wanted = self.request.architecture, self.demand
            held = wanted.prompt_tokens + wanted.output_tokens
            slots = self.request.adapters
            known = footprint(
                model,
                shape,
                sizes,
                wanted.kv_tokens,
                self.user,
                request_tokens=held,
                longest=self.request.max_model_len,
                adapters=slots,
            )
            _known_footprints.put(key, known)
        return known

    def task(self, shape: Shape, sizes: Steps) -> Task:
        """The placement task of the shape."""
        sizes_of = self.footprint(shape, sizes)
        return Task(
            layer_bytes=sizes_of.layer_bytes,
            layer_kv_bytes=sizes_of.layer_kv_bytes,
            first_bytes=sizes_of.first_bytes,
            last_bytes=sizes_of.last_bytes,
            fixed_bytes=sizes_of.fixed_bytes,
            margin=sizes_of.margin,
            tensor=shape.tensor,
            costs=self.costs,
            policy=self.request.policy,
            objective=self.objective(shape),
            layers_override=self.request.overrides.layers,
        )

    def objective(self, shape: Shape) -> str:
        """What the solver minimises: the slowest stage limits a filled pipeline, the sum of all stages an idle one."""
        if self.request.objective == "Latency":
            return "latency"
        filled = (self.demand.service_concurrency or 0.0) >= max(2, shape.pipeline)
        return "bottleneck" if filled or self.request.objective == "Throughput" else "latency"

    def refusal(self, pool: Pool, shape: Shape, sizes: Steps) -> PlanRefusal | None:
        """Why the shape is refused on the node; None if it is not."""
        task = self.task(shape, sizes)
        if self.request.allocation != DRA:
            return refusal(pool, task, shape.pipeline)
        if admits_some(pool, task, shape.pipeline):
            return None
        if shape.gpus <= pool.sure:
            largest = sorted(pool.devices, key=lambda device: (-device.memory_bytes, device.index))[: shape.gpus]
            pool = replace(pool, devices=tuple(largest), promised=0)
        return refusal(pool, task, shape.pipeline)

    def needs_exact(self, pool: Pool, shape: Shape) -> bool:
        """Whether the shape would be possible if we could choose the devices."""
        return admits_some(pool, self.task(shape, self.steps_on(pool, shape)), shape.pipeline)

    def fit(self, pool: Pool, shape: Shape, larger: int = 1) -> Candidate | PlanRefusal:
        """The shape on the node with its own step sizes, or why it cannot be had there.

        `larger`: the factor by which the chunk grows, up to vLLM's default; a chunk that the user set stays.
        """
        sizes = self.steps_on(pool, shape)
        if larger > 1:
            smallest = min(pool.devices, key=lambda device: device.memory_bytes)
            most = max(sizes.batched_tokens, default_steps(smallest.product, smallest.memory_bytes)[0])
            sizes = enlarged(sizes, larger, most, self.user)
        return self.refusal(pool, shape, sizes) or self.candidate(pool, shape, sizes)

    def candidate(self, pool: Pool, shape: Shape, sizes: Steps) -> Candidate | PlanRefusal:
        """The shape on a node that admits it, or why it is refused after all."""
        task = self.task(shape, sizes)
        key = build_of(pool), task, shape, sizes, self._essence
        if (worked := _known.get(key)) is not None:
            return Candidate(self, pool, shape, sizes, worked.on(pool), worked.figures)
        assignment = _assigned(pool, task, shape.pipeline)
        if isinstance(assignment, PlanRefusal):
            return assignment
        found = Candidate(self, pool, shape, sizes, assignment)
        _known.put(key, Worked.of(pool, assignment, Figures(found.footprint, found.kv, found.times)))
        return found

    def slowest(self, found: Candidate) -> Times | None:
        """The times with the slowest devices that a device plugin may allocate instead."""
        pool, count = found.pool, found.shape.gpus
        if self.request.allocation == DRA or count >= len(pool.devices) or found.times is None:
            return None
        each = count // max(1, len(pool.members))
        by_speed = sorted(pool.devices, key=_speed)
        fast, slow = _speed(by_speed[-1]), _speed(by_speed[0])
        if all(one <= other * (1 + c.SPEED_TOLERANCE) for one, other in zip(fast[:2], slow[:2], strict=True)):
            return None
        slowest = pool.mapped(lambda devices: tuple(sorted(devices, key=_speed)[:each]))
        unlucky = self.candidate(slowest, found.shape, found.sizes)
        return unlucky.times if isinstance(unlucky, Candidate) else None


def _assigned(pool: Pool, task: Task, stages: int) -> Assignment | PlanRefusal:
    if pool.members:
        return assign_over([member.devices for member in pool.members], pool.links, task, stages)
    return settled(pool.devices, pool.links, task, stages)


def _speed(device: Device) -> tuple[float, float, int, int]:
    return device.memory_bytes_per_s or 0.0, flops_per_s(device) or 0.0, device.memory_bytes, device.index


@dataclass(frozen=True, slots=True)
class Candidate:
    """A shape placed on a node."""

    evaluator: Evaluator
    pool: Pool
    shape: Shape
    sizes: Steps
    assignment: Assignment
    known: InitVar[Figures | None] = None
    """Its figures, if they were worked out on a node of the same build."""
    footprint: Footprint = field(init=False)
    kv: KvCache = field(init=False)
    times: Times | None = field(init=False)

    def __post_init__(self, known: Figures | None) -> None:
        object.__setattr__(self, "footprint", known.footprint if known else self._footprint())
        object.__setattr__(self, "kv", known.kv if known else self._kv_cache())
        object.__setattr__(self, "times", known.times if known else self._times())

    def _footprint(self) -> Footprint:
        return self.evaluator.footprint(self.shape, self.sizes)

    @property
    def measured(self) -> bool:
        """Whether all its devices are measured."""
        return all(measured(device) for device in self.assignment.devices)

    @property
    def spans(self) -> list[tuple[int, int]]:
        """First layer, and the one after the last, by stage."""
        return spans(self.assignment.layers)

    def stages(self) -> tuple[Stage, ...]:
        """The stages with the memory of each of their devices, by kind."""
        return tuple(self._stage(index) for index in range(len(self.spans)))

    def _stage(self, index: int) -> Stage:
        group, sizes = self.assignment.groups[index], self.footprint
        kv = int(self.kv.tokens * self._kv_per_token(index))
        sampler = sizes.sampler_bytes if index + 1 == len(self.spans) else 0
        smallest = min(device.memory_bytes for device in group)
        used = MemoryUse(
            weights=self._weights(index) - self._adapters(index) + sizes.tower_bytes,
            kv=kv,
            activations=sizes.activation_bytes + sampler,
            graphs=sizes.graph_bytes,
            context=sizes.context_bytes,
            free=0,
            adapters=self._adapters(index),
            encoder=sizes.encoder_bytes if index == 0 else 0,
        )
        # Requirement for a replacement device: the same with the required KV cache and vLLM's margin.
        required = used.required - kv + self.kv_required(index)
        least = math.ceil(required / (1 - Fraction(sizes.margin)))
        exact = self.shape.tensor > 1 or self.pool.members or self.evaluator.request.allocation == DRA
        product = group[0].product if exact and len({kind_of(device) for device in group}) == 1 else ""
        memory = replace(used, free=max(0, smallest - used.required))
        return Stage(tuple(device.uuid for device in group), least, product, memory)

    def kv_required(self, index: int) -> int:
        """The least bytes of KV cache on each GPU of a stage."""
        a, b = self.spans[index]
        return sum(self.footprint.layer_kv_bytes[a:b])

    def _weights(self, index: int) -> int:
        (a, b), sizes = self.spans[index], self.footprint
        ends = sizes.embedding_bytes * (index == 0) + sizes.head_bytes * (index + 1 == len(self.spans))
        return sum(sizes.layer_bytes[a:b]) + ends

    def _adapters(self, index: int) -> int:
        """The part of them in LoRA slots."""
        (a, b), slots = self.spans[index], self.footprint.adapters
        return sum(slots.layers[a:b]) + slots.first * (index == 0) + slots.last * (index + 1 == len(self.spans))

    def _kv_per_token(self, index: int) -> int:
        a, b = self.spans[index]
        return sum(self.footprint.layer_kv_bytes_per_token[a:b])

    def _kv_cache(self) -> KvCache:
        rooms = []
        for index, group in enumerate(self.assignment.groups):
            memory = min(device.memory_bytes for device in group)
            beside = self.footprint.sampler_bytes if index + 1 == len(self.spans) else 0
            beside += self.footprint.encoder_bytes if index == 0 else 0
            rooms.append(memory - self.footprint.reserved_bytes(memory) - self._weights(index) - beside)
        per_token = [self._kv_per_token(index) for index in range(len(self.spans))]
        most = self.evaluator.demand.kv_tokens if self.pool.simulated else None
        planned = kv_cache(rooms, per_token, most_tokens=most)
        own = self.evaluator.user.number(KV_CACHE_BYTES)
        if own is None or not any(per_token):
            return planned
        return _own_cache(own, kv_cache(rooms, per_token), per_token, self.evaluator.request)

    def _times(self) -> Times | None:
        evaluator, placed = self.evaluator, self.assignment
        drafting = drafting_of(evaluator.request.architecture, evaluator.user)
        model = with_cache(evaluator.request.architecture, evaluator.user)
        loads = stage_loads(model, placed.groups, placed.layers, drafting=drafting)
        links, costs = Links(self.pool.links), evaluator.costs_on(placed.devices, self.shape)
        return predict(loads, links, costs, evaluator.demand, self.kv.tokens, self.sizes)

    @property
    def correction(self) -> Correction | None:
        """The measured step times by which its prediction is corrected; None where there are none."""
        return self.evaluator.correction(self.assignment.devices, self.shape)


def _own_cache(own: int, most: KvCache, per_token: Sequence[int], request: PlanRequest) -> KvCache:
    """The user's KV cache size, checked against the available room and the need of one request.

    Raises PlanError InvalidOverride.
    """
    tokens = tokens_of_flag(own, per_token)
    where = f"spec.engine.args: {KV_CACHE_BYTES} {own}"
    if tokens > most.tokens:
        raise PlanError("InvalidOverride", f"{where} does not fit beside the weights: at most {most.flag_bytes}")
    if tokens < request.max_model_len:
        raise PlanError(
            "InvalidOverride",
            f"{where} holds {tokens} tokens, fewer than maxModelLen {request.max_model_len}: give it "
            f"{(request.max_model_len + c.BLOCK_TOKENS) * max(per_token)} or lower maxModelLen",
        )
    return KvCache(tokens, own)
