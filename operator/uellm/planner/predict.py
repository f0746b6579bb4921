"""What a placement should do: a roofline over the stages, not calibrated yet.

    decode step of a stage   (weights + sequences * context * KV bytes) / memory rate + all-reduce + hop
    prefill of a stage       prompt * FLOP per token of its layers / compute rate + all-reduce + hop

Sequences are split into as many batches as there are stages, which follow each other through the pipeline: a batch
comes round once it has passed all stages, and not before the slowest stage has served all batches. Rates are the
measured ones times the efficiencies of constants.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from uellm.hardware import Device
from uellm.planner import constants as c
from uellm.planner.demand import Demand
from uellm.planner.speed import Costs, Links, flops_per_s, measured


@dataclass(frozen=True, slots=True)
class StageLoad:
    """What one stage does, on each of its GPUs."""

    devices: tuple[Device, ...]
    layers: int
    weight_bytes: int  # read in every step
    kv_bytes_per_token: int
    flops_per_token: float
    flops_per_sequence: float  # of the LM head, once a sequence and step


@dataclass(frozen=True, slots=True)
class Pipeline:
    """The stages in order with the links between them; times in seconds."""

    stages: tuple[StageLoad, ...]
    links: Links
    costs: Costs

    @property
    def measured(self) -> bool:
        """Whether times can be told at all."""
        return all(measured(device) for stage in self.stages for device in stage.devices)

    def prefill_times(self, tokens: int) -> list[float]:
        """Each stage's time for so many prompt tokens."""
        times = []
        for index, stage in enumerate(self.stages):
            flops = min(flops_per_s(device) or 0.0 for device in stage.devices) * c.COMPUTE_EFFICIENCY
            compute = (tokens * stage.flops_per_token + stage.flops_per_sequence) / flops
            times.append(max(compute, self._reading(stage, 0)) + self._traffic(index, tokens))
        return times

    def decode_times(self, sequences: float, context: float) -> list[float]:
        """Each stage's time for one token of so many sequences."""
        return [
            self._reading(stage, sequences * context) + self._traffic(index, max(1, round(sequences)))
            for index, stage in enumerate(self.stages)
        ]

    def _reading(self, stage: StageLoad, kv_tokens: float) -> float:
        rate = min(device.memory_bytes_per_s or 0.0 for device in stage.devices) * c.MEMORY_EFFICIENCY
        return (stage.weight_bytes + kv_tokens * stage.kv_bytes_per_token) / rate

    def _traffic(self, index: int, tokens: int) -> float:
        """The all-reduces inside a stage (two a layer, ring) and the hop to the next one."""
        stage, time = self.stages[index], 0.0
        size = tokens * self.costs.hop_bytes_per_token
        if len(stage.devices) > 1:
            count = len(stage.devices)
            latency, transfer = max(
                self.links.message(a.uuid, b.uuid, size // 2)
                for a in stage.devices
                for b in stage.devices
                if a is not b
            )
            time += 2 * stage.layers * (latency + transfer * 2 * (count - 1) / count)
        if index + 1 < len(self.stages):
            latency, transfer = self.links.message(stage.devices[0].uuid, self.stages[index + 1].devices[0].uuid, size)
            time += latency + transfer
        return time


@dataclass(frozen=True, slots=True)
class Times:
    """TTFT of a request that meets no other, TPOT under the load expected, and the rate that meets the TPOT target."""

    ttft_s: float
    tpot_s: float
    requests_per_s: float

    def end_to_end_s(self, output_tokens: int) -> float:
        """Seconds from arrival to the last token."""
        return self.ttft_s + output_tokens * self.tpot_s


def predict(pipeline: Pipeline, demand: Demand, kv_tokens: int, sequences: int) -> Times | None:
    """The times of a placement; None where a device is not measured."""
    if not pipeline.measured:
        return None
    ttft = sum(pipeline.prefill_times(demand.prompt_tokens)) + c.STEP_OVERHEAD_S
    most = max(1, min(sequences, kv_tokens // (demand.prompt_tokens + demand.output_tokens)))
    expected = min(most, max(1.0, demand.concurrency or 1.0))
    best = max(_rate(pipeline, demand, count) for count in _within_target(pipeline, demand, most))
    return Times(ttft, _tpot(pipeline, demand, expected), best)


def _context(demand: Demand) -> float:
    return demand.prompt_tokens + demand.output_tokens / 2


def _tpot(pipeline: Pipeline, demand: Demand, sequences: float) -> float:
    stages = len(pipeline.stages)
    times = pipeline.decode_times(max(1.0, sequences / stages), _context(demand))
    rounds = min(float(stages), max(1.0, sequences))
    return max(sum(times), rounds * max(times)) + c.STEP_OVERHEAD_S


def _within_target(pipeline: Pipeline, demand: Demand, most: int) -> Sequence[int]:
    """Numbers of sequences to look at: powers of two up to the most, as far as the target allows."""
    counts = sorted({most, *(1 << power for power in range(most.bit_length()) if 1 << power <= most)})
    allowed = [n for n in counts if demand.tpot_s is None or _tpot(pipeline, demand, n) <= demand.tpot_s]
    return allowed or [1]


def _rate(pipeline: Pipeline, demand: Demand, sequences: int) -> float:
    """Requests a second with so many in flight: each takes its decode steps and the slowest stage's prefill."""
    decode = demand.output_tokens * _tpot(pipeline, demand, sequences) / sequences
    return 1.0 / (decode + max(pipeline.prefill_times(demand.prompt_tokens)))
