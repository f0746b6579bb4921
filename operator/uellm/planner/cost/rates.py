"""The cost of a layer on a device and of a hop: seconds of a mean request that runs alone.

    seconds per weight byte = output / memory rate + prompt * (FLOP per weight byte) / compute rate
    seconds per hop         = (output + 1) * latency + (output + prompt) * (bytes per token) / link rate

Decoding reads every weight once per token. Prefill computes with every weight once per prompt token.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from uellm.hardware import Device, Link
from uellm.models import Architecture
from uellm.planner import constants as c
from uellm.planner.efficiency import Efficiency
from uellm.step_time import UNCORRECTED, StepFactors


@dataclass(frozen=True, slots=True)
class Costs:
    """The mean request by which devices and links are compared, and the cost of its tokens."""

    prompt_tokens: int = c.ASSUMED_PROMPT_TOKENS
    output_tokens: int = c.ASSUMED_OUTPUT_TOKENS
    flops_per_weight_byte: float = 1.0
    """Per token, averaged over the layers."""
    hop_bytes_per_token: int = 0
    """Sent from one stage to the next."""
    efficiency: Efficiency = field(default_factory=Efficiency)
    """Shares of the measured rates that the engine reaches."""
    factors: StepFactors = UNCORRECTED
    """By which measured step times differ from those predicted by all this."""

    @property
    def held_tokens(self) -> float:
        """KV tokens that the request holds on average while it decodes."""
        return self.prompt_tokens + self.output_tokens / 2

    @property
    def before_engine_s(self) -> float:
        """Seconds from a request's arrival to its prompt's, as tokens, in the engine."""
        return self.efficiency.request_s + self.efficiency.prompt_token_s * self.prompt_tokens

    @classmethod
    def of(
        cls, model: Architecture, prompt_tokens: int, output_tokens: int, efficiency: Efficiency | None = None
    ) -> Costs:
        """The costs for a model. A stage sends hidden state and residual: 2 * hidden_size numbers per token."""
        return cls(
            prompt_tokens,
            output_tokens,
            sum(model.layer_flops_per_token) / sum(model.layer_weight_bytes),
            2 * model.hidden_size * model.weight_dtype_bytes,
            efficiency or Efficiency(),
        )

    def to_dict(self) -> dict[str, Any]:
        """The form in plan.json."""
        return {
            "promptTokens": self.prompt_tokens,
            "outputTokens": self.output_tokens,
            "flopsPerWeightByte": repr(self.flops_per_weight_byte),
            "hopBytesPerToken": self.hop_bytes_per_token,
            "computeEfficiency": repr(self.efficiency.compute),
            "memoryEfficiency": repr(self.efficiency.memory),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Costs:
        """The inverse of `to_dict`; missing fields get their defaults."""
        return cls(
            int(data.get("promptTokens", c.ASSUMED_PROMPT_TOKENS)),
            int(data.get("outputTokens", c.ASSUMED_OUTPUT_TOKENS)),
            float(data.get("flopsPerWeightByte", 1.0)),
            int(data.get("hopBytesPerToken", 0)),
            Efficiency(
                compute=float(data.get("computeEfficiency", c.COMPUTE_EFFICIENCY)),
                memory=float(data.get("memoryEfficiency", c.MEMORY_EFFICIENCY)),
            ),
        )


def flops_per_s(device: Device) -> float | None:
    """The measured rate of 16-bit matrix products; None if it was not measured."""
    return device.bf16_flops_per_s or device.fp16_flops_per_s


def measured(device: Device) -> bool:
    """Whether both rates that a prediction needs were measured."""
    return bool(flops_per_s(device) and device.memory_bytes_per_s)


def performances(devices: Sequence[Device], costs: Costs) -> tuple[float, ...]:
    """[n]: weight bytes per second for a mean request. Speeds within the tolerance of each other become equal.

    A device without measurements counts as the slowest measured one. If none is measured, all are equal.
    """
    known = [_seconds_per_byte(device, costs) for device in devices]
    slowest = max((value for value in known if value is not None), default=1.0)
    seconds = [slowest if value is None else value for value in known]
    levels: list[float] = []
    for value in sorted(seconds):
        if not levels or value > levels[-1] * (1 + c.SPEED_TOLERANCE):
            levels.append(value)
    return tuple(1.0 / max(level for level in levels if level <= value) for value in seconds)


def _seconds_per_byte(device: Device, costs: Costs) -> float | None:
    flops, rate = flops_per_s(device), device.memory_bytes_per_s
    if not flops or not rate:
        return None
    decode = costs.output_tokens / (rate * costs.efficiency.memory)
    prefill = costs.prompt_tokens * costs.flops_per_weight_byte / (flops * costs.efficiency.compute)
    return decode + prefill


class Links:
    """The links of a node by direction. A link that was measured in one direction only counts for both."""

    def __init__(self, links: Iterable[Link]) -> None:
        self._links = {(link.a, link.b): link for link in links}

    def between(self, a: str, b: str) -> Link:
        """The link from a to b; without figures if it was not measured."""
        return self._links.get((a, b)) or self._links.get((b, a)) or Link(a, b)

    def hop_s(self, a: str, b: str, costs: Costs) -> float:
        """Seconds that a mean request spends on hops from a to b."""
        latency, per_token = self.message(a, b, costs.hop_bytes_per_token)
        return (costs.output_tokens + 1) * latency + (costs.output_tokens + costs.prompt_tokens) * per_token

    def message(self, a: str, b: str, size_bytes: int) -> tuple[float, float]:
        """Latency and transfer time of a message in seconds. Unmeasured figures are those of constants.py."""
        link = self.between(a, b)
        latency = c.UNMEASURED_LATENCY_S if link.latency_s is None else link.latency_s
        return latency, size_bytes / (link.bytes_per_s or c.UNMEASURED_BYTES_PER_S)
