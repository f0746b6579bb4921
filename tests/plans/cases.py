"""The cases. A shape is (replicas, tensor, pipeline)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from plans.models import CONFIGS
from uellm.planner.request import SloClass, Workload

Shape = tuple[int, int, int]
CHAT = (SloClass("chat", ttft_s=2.0, tpot_s=0.05),)
PATIENT = (SloClass("chat", ttft_s=5.0, tpot_s=0.06),)  # what small cards are used for


@dataclass(frozen=True)
class Case:
    """A model on a node under a load, with the shapes that an engineer would sign."""

    name: str
    model: str
    gpu: str
    gpus: int
    requests_per_s: float | None
    accepted: tuple[Shape, ...]
    why: str
    classes: tuple[SloClass, ...] = CHAT
    prompt_tokens: int = 1000
    output_tokens: int = 250
    max_model_len: int = 8192

    @property
    def config(self) -> dict[str, Any]:
        """config.json of the model."""
        return CONFIGS[self.model]

    @property
    def workload(self) -> Workload:
        """As in the service's spec."""
        return Workload(self.requests_per_s, self.prompt_tokens, None, self.output_tokens, None)


def _case(name: str, model: str, node: str, rate: float | None, accepted: str, why: str, **more: Any) -> Case:
    gpus, gpu = node.split("x", 1)
    shapes = []
    for text in accepted.split():
        replicas, tensor, pipeline = (int(number) for number in text.split("/"))
        shapes.append((replicas, tensor, pipeline))
    return Case(name, model, gpu, int(gpus), rate, tuple(shapes), why, **more)


CASES = (
    _case("70b bf16 at 4/s", "llama-70b", "8xH100-80", 4, "1/4/1 2/2/1", "vLLM's recipe: TP4; two of TP2 do as well"),
    _case("70b bf16 at 1/s", "llama-70b", "8xH100-80", 1, "1/2/1 1/4/1", "132 GiB need two H100; TP inside NVLink"),
    _case("70b fp8 at 2/s", "llama-70b-fp8", "8xH100-80", 2, "1/2/1", "NVIDIA's and Red Hat's recipe: TP2"),
    _case("70b bf16 on A100", "llama-70b", "8xA100-80", 1, "1/4/1 1/2/1", "weights fill two; four keep the pace"),
    _case("70b bf16 on H200", "llama-70b", "8xH200", 2, "1/2/1 2/1/1", "one H200 holds the weights and little else"),
    _case(
        "70b-AWQ on L40S",
        "llama-70b-awq",
        "4xL40S",
        0.5,
        "1/2/1 2/2/1 1/4/1",
        "37 GiB: two L40S, four for the pace",
        classes=PATIENT,
    ),
    _case("8b at 60/s", "llama-8b", "8xH100-80", 60, "2/1/1 3/1/1 4/1/1", "it fits one GPU: replicas"),
    _case("8b at 4/s", "llama-8b", "8xH100-80", 4, "1/1/1", "one GPU does it"),
    _case("8b on L4", "llama-8b", "4xL4", 0.5, "1/2/1 1/4/1", "at 255 GB/s one L4 needs 66 ms a token: TP2"),
    _case("8b on L40S", "llama-8b", "4xL40S", 2, "1/1/1", "one L40S reads it in 24 ms"),
    _case("8b on 4090", "llama-8b", "2xRTX4090", 2, "1/1/1", "15 GiB of 24"),
    _case(
        "32b-AWQ on 4090",
        "qwen3-32b-awq",
        "2xRTX4090",
        1,
        "1/2/1 1/1/2",
        "18 GiB leave one 4090 no cache",
        classes=PATIENT,
    ),
    _case("32b bf16", "qwen3-32b", "8xH100-80", 2, "1/2/1 1/1/1 2/1/1", "61 GiB: one H100 is tight, two are usual"),
    _case("235b fp8", "qwen3-235b-fp8", "8xH100-80", 2, "1/4/1", "Qwen's recipe: TP4 on H100"),
    _case("235b fp8 on H200", "qwen3-235b-fp8", "8xH200", 2, "1/2/1 1/4/1", "220 GiB: two H200 hold it"),
    _case("R1 on H200", "deepseek-r1", "8xH200", 1, "1/8/1", "DeepSeek's recipe: TP8 on a whole node"),
    _case("gpt-oss-120b", "gpt-oss-120b", "8xH100-80", 2, "1/1/1", "OpenAI: fits one H100"),
    _case("gpt-oss-120b on B200", "gpt-oss-120b", "8xB200", 4, "1/1/1", "fits one with room"),
    _case("gpt-oss-20b on 4090", "gpt-oss-20b", "2xRTX4090", 2, "1/1/1", "13 GiB of 24"),
    _case("gpt-oss-20b on L4", "gpt-oss-20b", "4xL4", 1, "1/1/1 1/2/1", "13 GiB of 22, 3.6B active"),
    _case("72b bf16 at 1/s", "qwen2.5-72b", "8xH100-80", 1, "1/2/1 1/4/1", "135 GiB: TP4 with room, TP2 without"),
    _case("30b-a3b", "qwen3-30b-a3b", "8xH100-80", 4, "1/1/1", "57 GiB on one H100, 3B active"),
    _case("14b on L40S", "qwen3-14b", "4xL40S", 1, "1/1/1 1/2/1", "27 GiB of 44; 41 ms a token on one"),
    _case(
        "14b-AWQ on L4", "qwen3-14b-awq", "4xL4", 0.3, "1/1/1 1/2/1", "9 GiB; 40 ms a token on one L4", classes=PATIENT
    ),
)
