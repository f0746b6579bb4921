"""Transformer layers on this machine's GPU: step times measured with torch beside those that the cost model predicts.

    python bench/gpu_layers.py [--json FILE] [--tiny]

Layers with the shapes of Llama-3.1-8B and 70B and random bf16 weights run as a CUDA graph: decode steps (several batch
sizes and contexts) and prompt chunks. The GPU's rates are measured as the profiler does it, with a large matrix product
and a copy. The efficiencies are fitted to every other step, as `uellm calibrate` does it, and the other steps are
predicted. Without a GPU it says so and ends. `--tiny` runs small layers on the CPU, to check that the benchmark works;
its figures say nothing about GPUs.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional

from uellm.hardware import Device
from uellm.models import Architecture, read_architecture
from uellm.planner.calibration.calibrate import calibrate_stages
from uellm.planner.cost.pipeline import Pipeline
from uellm.planner.cost.rates import Costs
from uellm.planner.cost.work import stage_loads
from uellm.planner.efficiency import Efficiency

LLAMA = {"architectures": ["LlamaForCausalLM"], "num_key_value_heads": 8, "max_position_embeddings": 131072}
SHAPES = {
    "8B": {"hidden_size": 4096, "intermediate_size": 14336, "num_attention_heads": 32, "num_hidden_layers": 8},
    "70B": {"hidden_size": 8192, "intermediate_size": 28672, "num_attention_heads": 64, "num_hidden_layers": 4},
}
TINY = {
    f"tiny{layers}": {
        "hidden_size": 256,
        "intermediate_size": 512,
        "num_attention_heads": 8,
        "num_hidden_layers": layers,
    }
    for layers in (2, 4)
}
BATCHES, CONTEXTS, CHUNKS = (1, 8, 32, 64, 128, 256), (256, 1024, 4096), (64, 128, 256, 512, 1024, 2048, 4096)
TINY_BATCHES, TINY_CONTEXTS, TINY_CHUNKS = (1, 2, 4, 8, 16), (16, 64, 256, 1024), (8, 16, 32, 64, 96, 128, 192, 256)
REPEATS, TINY_REPEATS = 20, 5


@dataclass(frozen=True)
class Step:
    """`tokens` of one prompt, or one token of each of `sequences` that hold `context`."""

    sequences: int
    context: int
    tokens: int


class Layers:
    """A stack of decoder layers on one device, without norms and rotary embeddings, which cost little."""

    def __init__(self, model: Architecture, device: str) -> None:
        self.model, self.device = model, device
        self.dtype = torch.bfloat16 if device == "cuda" else torch.float32
        q, kv = model.attention_heads * model.head_dim, model.kv_heads * model.head_dim
        sizes = {
            "qkv": (q + 2 * kv, model.hidden_size),
            "out": (model.hidden_size, q),
            "up": (2 * model.intermediate_size, model.hidden_size),
            "down": (model.hidden_size, model.intermediate_size),
        }
        self.weights = [
            {name: self._drawn(*size) / size[1] ** 0.5 for name, size in sizes.items()} for _ in range(model.layers)
        ]

    def _drawn(self, *size: int) -> torch.Tensor:
        return torch.randn(*size, device=self.device, dtype=self.dtype)

    def work(self, step: Step) -> Callable[[], torch.Tensor]:
        """The step as a function without arguments."""
        model = self.model
        rows, length = (1, step.tokens) if step.tokens else (step.sequences, 1)
        hidden = self._drawn(rows, length, model.hidden_size)
        held = 0 if step.tokens else step.context
        caches = [self._drawn(2, rows, model.kv_heads, held, model.head_dim) for _ in self.weights] if held else []

        def run() -> torch.Tensor:
            state = hidden
            for index, weights in enumerate(self.weights):
                state = state + self._attention(state, weights, caches[index] if held else None)
                gate, up = functional.linear(functional.rms_norm(state, state.shape[-1:]), weights["up"]).chunk(2, -1)
                state = state + functional.linear(functional.silu(gate) * up, weights["down"])
            return state

        return run

    def _attention(
        self, state: torch.Tensor, weights: dict[str, torch.Tensor], cache: torch.Tensor | None
    ) -> torch.Tensor:
        model = self.model
        rows, length, _ = state.shape
        heads, kv = model.attention_heads * model.head_dim, model.kv_heads * model.head_dim
        q, k, v = functional.linear(functional.rms_norm(state, state.shape[-1:]), weights["qkv"]).split(
            [heads, kv, kv], -1
        )
        q, k, v = (part.view(rows, length, -1, model.head_dim).transpose(1, 2) for part in (q, k, v))
        if cache is not None:
            k, v = cache[0], cache[1]
        seen = functional.scaled_dot_product_attention(q, k, v, is_causal=cache is None, enable_gqa=True)
        return functional.linear(seen.transpose(1, 2).reshape(rows, length, heads), weights["out"])


def main() -> int:
    """Measure, fit, predict, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--tiny", action="store_true")
    args = parser.parse_args()
    if not (args.tiny or torch.cuda.is_available()):
        print("no GPU on this machine: nothing measured (--tiny runs small layers on the CPU)")
        return 0
    device = "cpu" if args.tiny else "cuda"
    if args.tiny:
        torch.set_num_threads(1)
    rates = measured_rates(device)
    rows = [row for name, shape in (TINY if args.tiny else SHAPES).items() for row in measured(name, shape, device)]
    found, _ = calibrate_stages(stages_of(rows[::2], rates), "layers in torch")
    for row in rows:
        row["predictedSeconds"] = predicted(row, rates, found)
        row["error"] = abs(row["predictedSeconds"] / row["seconds"] - 1)
    held_out = statistics.median(row["error"] for row in rows[1::2])
    result = {"rates": rates, "efficiency": found.to_dict(), "heldOutMedianError": held_out, "rows": rows}
    print(table(result))
    if args.json:
        args.json.write_text(json.dumps(result, indent=1))
    return 0


def measured_rates(device: str) -> dict[str, float]:
    """FLOP/s of a large product, bytes/s of a copy (read and written)."""
    size, dtype = (8192, torch.bfloat16) if device == "cuda" else (512, torch.float32)
    matrix = torch.randn(size, size, device=device, dtype=dtype)
    block = torch.empty((1 << 30) if device == "cuda" else (1 << 24), device=device, dtype=torch.uint8)
    copy = torch.empty_like(block)
    return {
        "flopsPerSecond": 2 * size**3 / seconds(lambda: matrix @ matrix, device),
        "memoryBytesPerSecond": 2 * block.numel() / seconds(lambda: copy.copy_(block), device),
    }


def seconds(work: Callable[[], Any], device: str) -> float:
    """The median time of a call. On a GPU it is replayed as a graph, so that kernel launches cost nothing."""
    work()
    if device == "cpu":
        return statistics.median(_timed(work) for _ in range(TINY_REPEATS))
    graph = torch.cuda.CUDAGraph()
    torch.cuda.synchronize()
    with torch.cuda.graph(graph):
        work()
    times = []
    for _ in range(REPEATS):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) / 1e3)
    return statistics.median(times)


def _timed(work: Callable[[], Any]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def measured(name: str, shape: dict[str, int], device: str) -> Iterator[dict[str, Any]]:
    """Every step of a shape."""
    config = {**LLAMA, **shape, "vocab_size": 1024, "torch_dtype": "bfloat16" if device == "cuda" else "float32"}
    layers = Layers(read_architecture(config), device)
    tiny = device == "cpu"
    batches, contexts, chunks = (TINY_BATCHES, TINY_CONTEXTS, TINY_CHUNKS) if tiny else (BATCHES, CONTEXTS, CHUNKS)
    steps = [Step(batch, context, 0) for batch in batches for context in contexts]
    steps += [Step(0, 0, tokens) for tokens in chunks]
    for step in steps:
        took = seconds(layers.work(step), device)
        yield {"shape": name, "config": config, "step": vars(step), "seconds": took}
    del layers
    if device == "cuda":
        torch.cuda.empty_cache()


def stages_of(rows: list[dict[str, Any]], rates: dict[str, float]) -> list[dict[str, float]]:
    """The rows as `stages` of MEASUREMENTS.json."""
    stages = []
    for row in rows:
        model, step = read_architecture(row["config"]), row["step"]
        tokens = step["tokens"] or step["sequences"]
        seen = step["tokens"] / 2
        stages.append(
            {
                "flops": tokens
                * (sum(model.layer_flops_per_token) + seen * sum(model.layer_attention_flops_per_token)),
                "weightBytes": sum(model.layer_weight_bytes),
                "otherBytes": step["sequences"] * step["context"] * model.kv_bytes_per_token,
                "sequences": step["sequences"],
                **rates,
                "seconds": row["seconds"],
            }
        )
    return stages


def predicted(row: dict[str, Any], rates: dict[str, float], efficiency: Efficiency) -> float:
    """The cost model's time for the step: a stage without embedding and head."""
    model, step = read_architecture(row["config"]), row["step"]
    device = Device("gpu", 0, "measured", 1, bf16_flops_per_s=rates["flopsPerSecond"], **_memory(rates))
    costs = Costs.of(model, max(1, step["tokens"] or step["context"]), 0, efficiency)
    loads = stage_loads(model, [(device,), (device,)], [model.layers, 0])
    return Pipeline(loads, None, costs).stage_times(step["tokens"], step["sequences"])[0]


def _memory(rates: dict[str, float]) -> dict[str, float]:
    return {"memory_bytes_per_s": rates["memoryBytesPerSecond"]}


def table(result: dict[str, Any]) -> str:
    """The table that is printed."""
    rates, efficiency = result["rates"], result["efficiency"]
    lines = [
        f"{rates['flopsPerSecond'] / 1e12:.1f} TFLOP/s, {rates['memoryBytesPerSecond'] / 1e9:.0f} GB/s measured; "
        f"efficiencies fitted: compute {efficiency['compute']:.2f}, memory {efficiency['memory']:.2f}",
        f"{'SHAPE':<6}{'SEQUENCES':>10}{'CONTEXT':>9}{'CHUNK':>7}{'MEASURED ms':>13}{'PREDICTED ms':>14}{'ERROR':>8}",
    ]
    for row in result["rows"]:
        step = row["step"]
        lines.append(
            f"{row['shape']:<6}{step['sequences']:>10}{step['context']:>9}{step['tokens']:>7}"
            f"{row['seconds'] * 1e3:>13.3f}{row['predictedSeconds'] * 1e3:>14.3f}{row['error']:>8.1%}"
        )
    lines.append(f"median error on the steps that were not fitted: {result['heldOutMedianError']:.1%}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
