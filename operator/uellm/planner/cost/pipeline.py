"""The time of a step on each stage, and of a round through all of them: a roofline over measured rates.

    matrices   max(FLOPs / compute rate, weight bytes / memory rate): the slower of the two shows (Williams et al. 2009)
    attention  max(FLOPs over the context / compute rate, KV bytes / memory rate), for prompts and sequences apart
    all-reduce two a layer where n GPUs share it; ring: 2(n-1) messages of size/n, so 2(n-1)/n of the size and 2(n-1)
               latencies (Thakur et al. 2005); over NVLink also one shot: n-1 times the size, one latency, as vLLM's own
               kernel does for small ones; the faster of the two
    hop        latency + 2 * tokens * hidden * bytes of a number, to the next stage
    overhead   a constant, and one per sequence: each stage's process prepares, launches and samples for each batch

Rates are the measured ones times the efficiencies. A pipeline of m stages has m batches in flight. Each comes round
when it has passed all stages, and not before the slowest stage has served all batches:

    round = max(sum of the stages' times, m * the slowest stage's time)

A step of the engine, for whoever waits for its next token, is a round; it carries the chunks of all m batches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from uellm.hardware import NVLINK
from uellm.planner.cost.rates import Costs, Links, flops_per_s, measured
from uellm.planner.cost.work import StageLoad
from uellm.step_time import StepTime


@dataclass(frozen=True, slots=True)
class Parts:
    """A stage's time by what it is spent on; seconds."""

    compute_s: float
    memory_s: float
    link_s: float

    @property
    def total_s(self) -> float:
        """All of it."""
        return self.compute_s + self.memory_s + self.link_s


@dataclass(frozen=True, slots=True)
class StageTimes:
    """A stage with its rates, for a mean request: sequences hold a context, tokens of a prompt see half the prompt."""

    load: StageLoad
    compute_per_s: float
    memory_per_s: float
    weight_bytes: float
    """Of the layers, experts included."""
    expert_bytes: float
    token_flops: float
    """Of the layers' matrices."""
    seen_flops: float
    """Of a prompt's token: attention."""
    held_flops: float
    """Of a sequence's next token: attention."""
    held_bytes: float
    """Of KV cache that it reads."""
    traffic: tuple[tuple[float, float], ...]
    """All-reduces, the hop: seconds, and seconds per token."""
    shot: tuple[float, float] | None
    """In place of the first of them where it is faster."""

    def parts(self, prefill_tokens: float, sequences: float) -> Parts:
        """The time of a step with so many tokens of prompts beside so many sequences."""
        tokens, load = prefill_tokens + sequences, self.load
        rows = sequences + (1.0 if prefill_tokens else 0.0)  # that the head is computed for
        compute = memory = 0.0
        for flops, size in (
            (tokens * self.token_flops, self.read_bytes(tokens)),
            (rows * load.head_flops, load.head_bytes),
            (sequences * self.held_flops, sequences * self.held_bytes),
            (prefill_tokens * self.seen_flops, 0.0),
        ):
            computing, reading = flops / self.compute_per_s, size / self.memory_per_s
            if computing > reading:
                compute += computing
            else:
                memory += reading
        return Parts(compute, memory, self._link_s(tokens))

    def read_bytes(self, tokens: float) -> float:
        """Weight bytes of the layers that a step over so many tokens reads: see Architecture.layer_read_bytes."""
        if not self.expert_bytes:
            return self.weight_bytes
        untouched: float = (1.0 - self.load.routed_share) ** tokens
        return self.weight_bytes - self.expert_bytes * untouched

    def time_s(self, prefill_tokens: float, sequences: float) -> float:
        """Seconds of such a step."""
        return self.parts(prefill_tokens, sequences).total_s

    @property
    def weights_s(self) -> float:
        """Seconds to read the layers' weights, of experts all: what their matrices take at least in a busy engine."""
        return self.weight_bytes / self.memory_per_s

    def _link_s(self, tokens: float) -> float:
        times = [fixed + per_token * tokens for fixed, per_token in self.traffic]
        if self.shot is not None:
            times[0] = min(times[0], self.shot[0] + self.shot[1] * tokens)
        return sum(times)


class Pipeline:
    """The stages in order, with the links between them, for a mean request. Times in seconds."""

    def __init__(self, loads: Sequence[StageLoad], links: Links | None, costs: Costs) -> None:
        """`links` None: what GPUs say to one another counts nothing. `loads` are of measured devices."""
        self.costs = costs
        self.stages = tuple(_stage(loads, index, links, costs) for index in range(len(loads)))

    def stage_times(self, prefill_tokens: float, sequences: float) -> list[float]:
        """Each stage's time for one batch: so many tokens of prompts, so many sequences."""
        efficiency = self.costs.efficiency
        overhead = efficiency.step_overhead_s + efficiency.per_sequence_s * sequences
        return [stage.time_s(prefill_tokens, sequences) + overhead for stage in self.stages]

    def round_s(self, prefill_tokens: float, sequences: float) -> float:
        """The time in which every sequence gets a token and all batches together compute so much of prompts."""
        batches = self.batches(sequences)
        times = self.stage_times(prefill_tokens / batches, sequences / batches)
        return max(sum(times), batches * max(times))

    def batches(self, sequences: float) -> float:
        """Batches in flight: no more than stages, and none without a sequence."""
        return min(float(len(self.stages)), max(1.0, sequences))

    def passage_s(self, tokens: float, sequences: float) -> float:
        """The time of a prompt's chunk through all stages, beside its batch of the sequences."""
        return sum(self.stage_times(tokens, sequences / self.batches(sequences)))

    def slowest(self, prefill_tokens: float, sequences: float) -> Parts:
        """The parts of the slowest stage of a round."""
        batches = self.batches(sequences)
        parts = [stage.parts(prefill_tokens / batches, sequences / batches) for stage in self.stages]
        return max(parts, key=lambda part: part.total_s)

    def step_time(self, chunk: float, sequences: float) -> StepTime:
        """The step-time model of the filled pipeline, exact about steps of `chunk` tokens beside so many sequences.

        A decoding token costs compute only where the step is bound by it; the model's figure per sequence has that of
        steps which carry a chunk, so that steps without one come out a little too slow.
        """
        m, held = float(len(self.stages)), self.costs.held_tokens
        filled = max(sequences, m)
        full = self.round_s(chunk, filled)
        floor = self._filled([stage.weights_s for stage in self.stages])
        per_token = (self.round_s(2 * chunk, filled) - full) / chunk
        per_kv_token = self._filled([stage.held_bytes / held / stage.memory_per_s for stage in self.stages]) / m
        overhead = max(0.0, self.round_s(0.0, m) - floor - per_kv_token * m * held)
        rest = full - max(floor, per_token * chunk) - overhead
        return StepTime(floor, per_token, per_kv_token, max(0.0, rest / filled - per_kv_token * held), overhead)

    def _filled(self, times: Sequence[float]) -> float:
        return max(sum(times), len(times) * max(times))


def all_measured(loads: Sequence[StageLoad]) -> bool:
    """Whether times can be told at all."""
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
    return StageTimes(
        load=load,
        compute_per_s=min(flops_per_s(device) or 0.0 for device in load.devices) * costs.efficiency.compute,
        memory_per_s=min(device.memory_bytes_per_s or 0.0 for device in load.devices) * costs.efficiency.memory,
        weight_bytes=load.weight_bytes,
        expert_bytes=load.expert_bytes,
        token_flops=load.flops_per_token,
        seen_flops=load.attention_flops(seen),
        held_flops=load.attention_flops(held),
        held_bytes=load.kv_bytes(held),
        traffic=tuple(traffic),
        shot=shot,
    )


def _all_reduce(load: StageLoad, links: Links, costs: Costs) -> tuple[tuple[float, float], tuple[float, float] | None]:
    """Seconds, and seconds per token, of a step's all-reduces: by ring, and in one shot where NVLink allows it."""
    n, times = len(load.devices), 2 * load.layers
    pairs = [(a.uuid, b.uuid) for a in load.devices for b in load.devices if a is not b]
    # Half of what goes between stages: the hidden state alone.
    latency, transfer = max(links.message(a, b, costs.hop_bytes_per_token // 2) for a, b in pairs)
    ring = (times * 2 * (n - 1) * latency, times * 2 * (n - 1) / n * transfer)
    nvlink = all(links.between(a, b).kind == NVLINK for a, b in pairs)
    return ring, (times * latency, times * (n - 1) * transfer) if nvlink else None
