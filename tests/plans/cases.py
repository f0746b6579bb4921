"""The cases. A shape is (replicas, tensor, pipeline)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from plans.models import CONFIGS
from uellm.planner.request import SloClass, Workload

Shape = tuple[int, int, int]
CHAT = (SloClass("chat", ttft_s=2.0, tpot_s=0.05),)
QUICK = (SloClass("chat", ttft_s=1.0, tpot_s=0.02),)
LONG = (SloClass("documents", ttft_s=5.0, tpot_s=0.05),)
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
    nodes: int = 1
    """Of these GPUs; a replica may span them."""
    own_image: bool = False
    """The user names an image that is built for these GPUs."""

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
    _case("gemma-3-27b on L40S", "gemma-3-27b", "4xL40S", 0.5, "1/2/1 1/4/1", "51 GiB: two L40S", classes=PATIENT),
    _case("gemma-3-27b", "gemma-3-27b", "8xH100-80", 2, "1/1/1 1/2/1 2/1/1", "51 GiB fit one H100"),
    _case("vl-72b at 4/s", "qwen2.5-vl-72b", "8xH100-80", 4, "1/4/1 2/2/1", "Qwen's recipe: TP4"),
    _case("405b fp8", "llama-405b-fp8", "8xH100-80", 0.5, "1/8/1", "Meta's recipe: a whole node"),
    _case("405b bf16 on H200", "llama-405b", "8xH200", 0.5, "1/8/1", "756 GiB of 1,118"),
    _case("R1 on B200", "deepseek-r1", "8xB200", 1, "1/8/1 1/4/1", "625 GiB: four hold it, eight have room"),
    _case("mixtral", "mixtral-8x7b", "8xH100-80", 2, "1/2/1", "Mistral's recipe: 87 GiB on two"),
    _case("24b on L40S", "mistral-small-24b", "4xL40S", 1, "1/2/1 1/4/1", "44 GiB fill one L40S"),
    _case("24b at 4/s", "mistral-small-24b", "8xH100-80", 4, "1/1/1 2/1/1", "one H100 holds it"),
    _case("phi-4 on A10G", "phi-4", "4xA10G", 0.5, "1/2/1 1/4/1", "27 GiB: two A10G", classes=PATIENT),
    _case("7b on A10G", "qwen2.5-7b", "4xA10G", 1, "1/1/1 2/1/1 1/2/1", "14 GiB of 22"),
    _case("7b-AWQ on T4", "qwen2.5-7b-awq", "4xT4", 0.3, "1/1/1 2/1/1 1/2/1", "5 GiB of 15", classes=PATIENT),
    _case("7b on T4", "qwen2.5-7b", "4xT4", 0.3, "1/2/1 1/4/1", "14 GiB leave one T4 no cache", classes=PATIENT),
    _case("8b on 5090", "qwen3-8b", "2xRTX5090", 2, "1/1/1", "15 GiB of 31"),
    _case("4b on L4", "qwen3-4b", "4xL4", 0.5, "1/1/1", "7 GiB of 22"),
    _case("next-80b", "qwen3-next-80b", "8xH100-80", 2, "1/4/1", "Qwen's recipe: TP4; two have no room for a cache"),
    _case("coder-480b fp8 on H200", "qwen3-coder-480b-fp8", "8xH200", 2, "1/4/1 1/8/1", "450 GiB: four hold it"),
    _case("glm-air fp8", "glm-4.5-air-fp8", "8xH100-80", 2, "1/2/1", "Z.ai's recipe: two H100, by tensor"),
    _case("glm-air fp8 on H200", "glm-4.5-air-fp8", "8xH200", 2, "1/1/1 1/2/1", "Z.ai's recipe: one H200"),
    _case("glm fp8", "glm-4.5-fp8", "8xH100-80", 1, "1/8/1", "Z.ai's recipe: eight H100"),
    _case("glm fp8 on H200", "glm-4.5-fp8", "8xH200", 1, "1/4/1", "Z.ai's recipe: four H200"),
    _case("minimax-m2.5", "minimax-m2.5", "8xH100-80", 2, "1/4/1", "MiniMax's recipe: TP4"),
    _case("34b on A100", "yi-34b", "8xA100-80", 1, "1/2/1 1/1/1", "64 GiB of 79 leave little", max_model_len=4096),
    _case(
        "72b-AWQ on L40S",
        "qwen2.5-72b-awq",
        "4xL40S",
        0.25,
        "1/2/1 1/4/1 2/2/1",
        "39 GiB: two L40S",
        classes=PATIENT,
    ),
    _case("70b nvfp4 on B200", "llama-70b-nvfp4", "8xB200", 4, "1/1/1", "40 GiB of 178"),
    _case("gpt-oss-120b on L40S", "gpt-oss-120b", "4xL40S", 1, "1/2/1 1/4/1", "61 GiB: two L40S"),
    _case("gpt-oss-120b on A100", "gpt-oss-120b", "8xA100-80", 2, "1/1/1", "61 GiB of 79, weights unpacked"),
    _case("70b fp8, quick", "llama-70b-fp8", "8xH100-80", 2, "1/4/1 1/8/1 2/4/1", "20 ms a token: TP4", classes=QUICK),
    _case("8b at 100/s on B200", "llama-8b", "8xB200", 100, "2/1/1 3/1/1 4/1/1", "it fits one GPU: replicas"),
    _case("dbrx", "dbrx", "8xH100-80", 1, "1/4/1", "Databricks' recipe: 245 GiB on four"),
    _case("scout", "llama-4-scout", "8xH100-80", 2, "1/4/1", "200 GiB: four H100"),
    _case("15b on A100-40", "starcoder2-15b", "8xA100-40", 2, "1/1/1 1/2/1", "30 GiB of 39", max_model_len=4096),
    _case("32b on GH200", "qwen3-32b", "1xGH200", 2, "1/1/1", "61 GiB of 94"),
    _case(
        "8b on V100",
        "llama-8b",
        "8xV100-32",
        1,
        "1/1/1 1/2/1",
        "15 GiB of 32, in float16",
        classes=PATIENT,
        own_image=True,
    ),
    _case(
        "8b, long prompts",
        "llama-8b",
        "8xH100-80",
        0.25,
        "1/2/1",
        "30,000 tokens take one H100 1.6 s: two share them",
        classes=LONG,
        prompt_tokens=30_000,
        output_tokens=500,
        max_model_len=131_072,
    ),
)

CASES_OVER_NODES = (
    _case("R1 on two of 8 H100", "deepseek-r1", "8xH100-80", 1, "1/8/2", "vLLM's recipe: TP8 x PP2", nodes=2),
    _case(
        "K2 on two of 8 H200",
        "kimi-k2",
        "8xH200",
        None,
        "1/8/2",
        "Moonshot's recipe: 16 H200 are the least for 128k tokens",
        classes=(),
        max_model_len=131_072,
        nodes=2,
    ),
    _case(
        "405b fp8 on two of 4 H100",
        "llama-405b-fp8",
        "4xH100-80",
        0.25,
        "1/4/2",
        "380 GiB of 569: TP inside the node, PP across",
        nodes=2,
    ),
)
