"""The time of a step on each stage, and of a round through all stages: a roofline model over measured rates.

    matrices   max(FLOPs / compute rate, weight bytes / memory rate): the slower of the two
               (Williams, Waterman and Patterson 2009, doi:10.1145/1498765.1498785)
    attention  max(FLOPs over the context / compute rate, KV bytes / memory rate), for prompts and sequences separately
    all-reduce two per layer if n GPUs share it. Ring: 2(n-1) messages of size/n, so 2(n-1)/n of the size and 2(n-1)
               latencies (Thakur, Rabenseifner and Gropp 2005, doi:10.1177/1094342005051521). With NVLink also in one
               shot: n-1 times the size and one latency, as in vLLM's kernel for small messages. The faster one counts.
    hop        to the next stage: latency + 2 * tokens * hidden_size * bytes per number / link rate
    drafting   with speculation each sequence brings drafted tokens to verify, and what drafts them passes over all
               tokens of the step once, and over the sequences for each further token; none is taken as accepted
    overhead   constants per batch, sequence and layer, and another per layer for tokens of a prompt: each stage's
               process prepares, launches and samples every batch

Matrices of routed experts are counted separately, with their own rates (kernels.py). Rates are the measured ones times
the efficiencies. A pipeline of m stages has m batches in flight. A batch returns when it has passed all stages, and not
before the slowest stage has served all batches:

    round = max(sum of the stages' times, m * the slowest stage's time)

For a sequence that waits for its next token, a step of the engine is a round. A round carries the chunks of all m
batches.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from uellm.hardware import NVLINK, Device
from uellm.models.kernels import Kernel
from uellm.planner.cost.rates import Costs, Links, flops_per_s, measured
from uellm.planner.cost.work import StageLoad
from uellm.planner.efficiency import Efficiency
from uellm.planner.kernels import KernelName, KernelShare, rates
from uellm.step_time import UNCORRECTED, StepTime


@dataclass(frozen=True, slots=True)
class Parts:
    """A stage's time by the resource that limits it, in seconds."""

    compute_s: float
    memory_s: float
    link_s: float

    @property
    def total_s(self) -> float:
        """The sum."""
        return self.compute_s + self.memory_s + self.link_s

    def __add__(self, other: Parts) -> Parts:
        return Parts(self.compute_s + other.compute_s, self.memory_s + other.memory_s, self.link_s + other.link_s)

    def times(self, factor: float) -> Parts:
        """So many of them."""
        return Parts(factor * self.compute_s, factor * self.memory_s, factor * self.link_s)


@dataclass(frozen=True, slots=True)
class Matrices:
    """The matrices of a stage that one kind of kernel multiplies."""

    flops: float
    """Per token."""
    size_bytes: float
    compute_per_s: float
    memory_per_s: float

    @property
    def compute_s(self) -> float:
        """Seconds to compute one token."""
        return self.flops / self.compute_per_s

    @property
    def memory_s(self) -> float:
        """Seconds to read all of them."""
        return self.size_bytes / self.memory_per_s


@dataclass(frozen=True, slots=True)
class StageTimes:
    """A stage with its rates, for mean requests: a prompt token attends to half the prompt, on average."""

    load: StageLoad
    compute_per_s: float
    """Of the LM head and of the next tokens' attention."""
    attention_per_s: float
    """Of the attention of a prompt's tokens."""
    memory_per_s: float
    linear: Matrices
    """All but the routed experts."""
    experts: Matrices
    seen_flops: float
    """FLOPs of the attention of a prompt token."""
    held_flops: float
    """FLOPs of the attention of a sequence's next token."""
    held_bytes: float
    """Bytes of KV cache that a sequence's next token reads."""
    layer_overhead_s: float
    """Of every step, for all layers together."""
    prompt_overhead_s: float
    """Of a step with tokens of a prompt, besides."""
    traffic: tuple[tuple[float, float], ...]
    """Ring all-reduces (if GPUs share layers), then the hop (if a stage follows): seconds, and seconds per token."""
    shot: tuple[float, float] | None
    """One-shot all-reduces, which replace the ring if they are faster: seconds, and seconds per token."""
    draft: StageTimes | None = None
    """A pass of what drafts for speculation."""

    def parts(self, prefill_tokens: float, sequences: float) -> Parts:
        """The time of a step with the given prompt tokens and sequences."""
        load = self.load
        verified = sequences * load.rows
        tokens = prefill_tokens + verified
        rows = verified + (1.0 if prefill_tokens else 0.0)  # outputs of the LM head
        compute = memory = 0.0
        for computing, reading in (
            (tokens * self.linear.compute_s, self.linear.memory_s),
            (tokens * self.experts.compute_s, self.experts.memory_s * self.touched(tokens)),
            (rows * load.head_flops / self.compute_per_s, load.head_bytes / self.memory_per_s),
            (verified * self.held_flops / self.compute_per_s, sequences * self.held_bytes / self.memory_per_s),
            (prefill_tokens * self.seen_flops / self.attention_per_s, 0.0),
        ):
            if computing > reading:
                compute += computing
            else:
                memory += reading
        return Parts(compute, memory, self._link_s(tokens)) + self._drafting(prefill_tokens, verified, sequences)

    def _drafting(self, prefill_tokens: float, verified: float, sequences: float) -> Parts:
        """The first pass of the draft goes over all tokens of the step, each further one over one of a sequence."""
        passes = self.load.draft_passes
        if self.draft is None or not passes:
            return Parts(0.0, 0.0, 0.0)
        first = self.draft.parts(prefill_tokens + verified - sequences, sequences)
        return first + self.draft.parts(0.0, sequences).times(passes - 1)

    def touched(self, tokens: float) -> float:
        """The share of the experts that a step with this number of tokens reads: see Architecture.layer_read_bytes."""
        if not self.experts.size_bytes:
            return 0.0
        untouched: float = (1.0 - self.load.routed_share) ** tokens
        return 1.0 - untouched

    def time_s(self, prefill_tokens: float, sequences: float) -> float:
        """Seconds of a step with the given prompt tokens and sequences, without the engine's constant parts."""
        overhead = self.layer_overhead_s + (self.prompt_overhead_s if prefill_tokens else 0.0)
        if self.draft is not None:
            overhead += self.load.draft_passes * self.draft.layer_overhead_s
        return self.parts(prefill_tokens, sequences).total_s + overhead

    @property
    def weights_s(self) -> float:
        """Seconds to read all weights of the layers: the least time of their matrices in a busy engine."""
        drafts = self.load.draft_passes * self.draft.weights_s if self.draft is not None else 0.0
        return self.linear.memory_s + self.experts.memory_s + drafts

    def kv_token_s(self, held: float) -> float:
        """Seconds to read the KV cache of a token of a mean sequence, which holds `held`."""
        drafts = self.load.draft_passes * self.draft.kv_token_s(held) if self.draft is not None else 0.0
        return self.held_bytes / held / self.memory_per_s + drafts

    def _link_s(self, tokens: float) -> float:
        times = [fixed + per_token * tokens for fixed, per_token in self.traffic]
        if self.shot is not None:
            times[0] = min(times[0], self.shot[0] + self.shot[1] * tokens)
        return sum(times)


class Pipeline:
    """The stages in order, with the links between them, for a mean request. Times in seconds."""

    def __init__(self, loads: Sequence[StageLoad], links: Links | None, costs: Costs) -> None:
        """`links` None: communication takes no time. All devices of `loads` must be measured."""
        self.costs = costs
        self.stages = tuple(
            _with_draft(_stage(loads, index, links, costs), links, costs) for index in range(len(loads))
        )
        self._unlike, self._like = _alike(self.stages)

    def stage_times(self, prefill_tokens: float, sequences: float) -> list[float]:
        """[stages]: the time of one batch with the given prompt tokens and sequences."""
        efficiency = self.costs.efficiency
        overhead = efficiency.step_overhead_s + efficiency.per_sequence_s * sequences
        times = [stage.time_s(prefill_tokens, sequences) + overhead for stage in self._unlike]
        factors = self.costs.factors
        if factors != UNCORRECTED:
            without = [stage.time_s(0.0, sequences) + overhead for stage in self._unlike]
            times = [b * factors.decode + (a - b) * factors.prefill for a, b in zip(times, without, strict=True)]
        return [times[index] for index in self._like]

    def round_s(self, prefill_tokens: float, sequences: float, chunks: float = 0.0) -> float:
        """The time in which every sequence gets a token and all batches together compute the given prompt tokens.

        `chunks`: the number of batches that these prompt tokens fill by themselves.
        """
        batches = self.batches(sequences, chunks)
        times = self.stage_times(prefill_tokens / batches, sequences / batches)
        return max(sum(times), batches * max(times))

    def batches(self, sequences: float, chunks: float = 0.0) -> float:
        """Batches in flight: at most one per stage, and none without a sequence or a chunk of a prompt.

        Unlike a sequence's next token, the next chunk of a prompt does not wait for the one before.
        """
        return min(float(len(self.stages)), max(1.0, sequences, chunks))

    def passage_s(self, tokens: float, sequences: float) -> float:
        """The time of a prompt's chunk through all stages, together with its batch of the sequences."""
        return sum(self.stage_times(tokens, sequences / self.batches(sequences)))

    def slowest(self, prefill_tokens: float, sequences: float) -> Parts:
        """The time of a round's slowest stage, by resource."""
        batches = self.batches(sequences)
        parts = [stage.parts(prefill_tokens / batches, sequences / batches) for stage in self.stages]
        return max(parts, key=lambda part: part.total_s)

    def step_time(self, chunk: float, sequences: float) -> StepTime:
        """The step-time model of the filled pipeline, exact near `chunk` prompt tokens and `sequences` sequences."""
        m, held = float(len(self.stages)), self.costs.held_tokens
        filled = max(sequences, m)
        decode = self.costs.factors.decode
        floor = decode * self._filled([stage.weights_s for stage in self.stages])
        reading = [stage.kv_token_s(held) for stage in self.stages]
        per_kv_token = decode * self._filled(reading) / m
        lone, many = self.round_s(0.0, m), self.round_s(0.0, filled)
        overhead = max(0.0, lone - floor - per_kv_token * m * held)
        rest = max(0.0, many - floor - overhead)
        per_sequence = max(0.0, rest / filled - per_kv_token * held)
        without = overhead + (per_kv_token * held + per_sequence) * filled
        full = self.round_s(chunk, filled)
        per_token = (self.round_s(2 * chunk, filled) - full) / chunk
        prompt = max(0.0, full - max(floor, per_token * chunk) - without)
        return StepTime(floor, per_token, per_kv_token, per_sequence, overhead, prompt)

    def _filled(self, times: Sequence[float]) -> float:
        return max(sum(times), len(times) * max(times))


def _alike(stages: Sequence[StageTimes]) -> tuple[list[StageTimes], list[int]]:
    """The stages whose times may differ, and for each stage which of them it is like: long pipelines repeat one."""
    seen, like = dict[StageTimes, int](), list[int]()
    unlike: list[StageTimes] = []
    for stage in stages:
        place = seen.setdefault(replace(stage, load=replace(stage.load, devices=())), len(unlike))
        if place == len(unlike):
            unlike.append(stage)
        like.append(place)
    return unlike, like


def all_measured(loads: Sequence[StageLoad]) -> bool:
    """Whether all devices are measured, so that times can be predicted."""
    return all(measured(device) for load in loads for device in load.devices)


def _stage(loads: Sequence[StageLoad], index: int, links: Links | None, costs: Costs) -> StageTimes:
    load = loads[index]
    traffic: list[tuple[float, float]] = []
    shot = None
    if links is not None and len(load.devices) > 1:
        ring, shot = _all_reduce(load, links, costs)
        traffic.append(ring)
    if links is not None and index + 1 < len(loads):
        following = loads[index + 1].devices
        hops = [
            links.message(a.uuid, b.uuid, costs.hop_bytes_per_token)
            for a, b in zip(load.devices, following, strict=True)
        ]
        traffic.append(max(hops))
    held, seen = costs.held_tokens, costs.prompt_tokens / 2
    efficiency = costs.efficiency
    compute = min(flops_per_s(device) or 0.0 for device in load.devices)
    return StageTimes(
        load=load,
        compute_per_s=compute * efficiency.compute,
        attention_per_s=compute * efficiency.attention,
        memory_per_s=min(device.memory_bytes_per_s or 0.0 for device in load.devices) * efficiency.memory,
        linear=_matrices(
            load.devices,
            efficiency,
            load.linear_kernel,
            efficiency.kernels.linear,
            load.flops_per_token - load.expert_flops_per_token,
            load.weight_bytes - load.expert_bytes,
        ),
        experts=_matrices(
            load.devices,
            efficiency,
            load.expert_kernel,
            efficiency.kernels.experts,
            load.expert_flops_per_token,
            load.expert_bytes,
        ),
        seen_flops=load.attention_flops(seen),
        held_flops=load.attention_flops(held),
        held_bytes=load.kv_bytes(held),
        layer_overhead_s=efficiency.layer_s * load.layers + efficiency.expert_layer_s * load.expert_layers,
        prompt_overhead_s=efficiency.prompt_layer_s * load.layers,
        traffic=tuple(traffic),
        shot=shot,
    )


def _with_draft(stage: StageTimes, links: Links | None, costs: Costs) -> StageTimes:
    """The stage with the times of what drafts on it."""
    draft = stage.load.draft
    return stage if draft is None else replace(stage, draft=_stage((draft,), 0, links, costs))


def _matrices(
    devices: Sequence[Device],
    efficiency: Efficiency,
    kernel: Kernel,
    shares: Mapping[KernelName, KernelShare],
    flops: float,
    size_bytes: float,
) -> Matrices:
    """Matrices of one format on the slowest of the devices."""
    compute, memory = [], []
    for device in devices:
        flops_rate, share = rates(device, flops_per_s(device) or 0.0, shares, kernel)
        compute.append(flops_rate * efficiency.compute)
        memory.append((device.memory_bytes_per_s or 0.0) * efficiency.memory * share)
    return Matrices(flops, size_bytes, min(compute), min(memory))


def _all_reduce(load: StageLoad, links: Links, costs: Costs) -> tuple[tuple[float, float], tuple[float, float] | None]:
    """A step's all-reduces, by ring and in one shot (None without NVLink): seconds, and seconds per token."""
    n, times = len(load.devices), 2 * load.layers
    pairs = [(a.uuid, b.uuid) for a in load.devices for b in load.devices if a is not b]
    # Half of a hop's bytes: the hidden state without the residual.
    latency, transfer = max(links.message(a, b, costs.hop_bytes_per_token // 2) for a, b in pairs)
    ring = (times * 2 * (n - 1) * latency, times * 2 * (n - 1) / n * transfer)
    nvlink = all(links.between(a, b).kind == NVLINK for a, b in pairs)
    return ring, (times * latency, times * (n - 1) * transfer) if nvlink else None
