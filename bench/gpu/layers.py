"""Transformer layers on a GPU: step times measured with torch beside those that the cost model predicts.

Layers with the shapes of Llama-3.1-8B and 70B and random weights, in bf16 and in FP8, run as a CUDA graph: decode steps
(several batch sizes and contexts) and prompt chunks. For each number format the efficiencies are fitted to every other
step, as `uellm calibrate` does it, and the other steps are predicted.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
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
from uellm.planner.kernels import LINEAR, rates

LLAMA = {"architectures": ["LlamaForCausalLM"], "num_key_value_heads": 8, "max_position_embeddings": 131072}
FP8 = {"quantization_config": {"quant_method": "fp8", "activation_scheme": "dynamic"}}
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
TINY_BATCHES, TINY_CONTEXTS, TINY_CHUNKS = (1, 4, 16), (16, 64, 256), (8, 16, 32, 64, 96, 128)
REPEATS, TINY_REPEATS = 20, 3
FREE_SHARE = 0.6
"""Share of the free memory that a step's KV cache may take; larger steps are left out."""


@dataclass(frozen=True)
class Step:
    """`tokens` of one prompt, or one token of each of `sequences` that hold `context`."""

    sequences: int
    context: int
    tokens: int


class Layers:
    """A stack of decoder layers on one device, without rotary embeddings, which cost little."""

    def __init__(self, model: Architecture, device: str, *, fp8: bool) -> None:
        self.model, self.device = model, device
        self.dtype = torch.bfloat16 if device == "cuda" or fp8 else torch.float32
        self._multiply = self._fp8_multiply if fp8 else functional.linear
        self._scale = torch.ones((), device=device, dtype=torch.float32)
        q, kv = model.attention_heads * model.head_dim, model.kv_heads * model.head_dim
        sizes = {
            "qkv": (q + 2 * kv, model.hidden_size),
            "out": (model.hidden_size, q),
            "up": (2 * model.intermediate_size, model.hidden_size),
            "down": (model.hidden_size, model.intermediate_size),
        }
        stored = torch.float8_e4m3fn if fp8 else self.dtype
        self.weights = [
            {name: (self._drawn(*size) / size[1] ** 0.5).to(stored) for name, size in sizes.items()}
            for _ in range(model.layers)
        ]

    def _drawn(self, *size: int) -> torch.Tensor:
        return torch.randn(*size, device=self.device, dtype=self.dtype)

    def cache_bytes(self, step: Step) -> int:
        """Bytes of the step's KV cache."""
        per_token = 2 * self.model.kv_heads * self.model.head_dim * self.dtype.itemsize
        return step.sequences * step.context * per_token * self.model.layers

    def work(self, step: Step) -> Callable[[], torch.Tensor]:
        """The step as a function without arguments."""
        model, multiply = self.model, self._multiply
        rows, length = (1, step.tokens) if step.tokens else (step.sequences, 1)
        hidden = self._drawn(rows, length, model.hidden_size)
        held = 0 if step.tokens else step.context
        caches = [self._drawn(2, rows, model.kv_heads, held, model.head_dim) for _ in self.weights] if held else []

        def run() -> torch.Tensor:
            state = hidden
            for index, weights in enumerate(self.weights):
                state = state + self._attention(state, weights, caches[index] if held else None)
                gate, up = multiply(functional.rms_norm(state, state.shape[-1:]), weights["up"]).chunk(2, -1)
                state = state + multiply(functional.silu(gate) * up, weights["down"])
            return state

        return run

    def _attention(
        self, state: torch.Tensor, weights: dict[str, torch.Tensor], cache: torch.Tensor | None
    ) -> torch.Tensor:
        model = self.model
        rows, length, _ = state.shape
        heads, kv = model.attention_heads * model.head_dim, model.kv_heads * model.head_dim
        projected = self._multiply(functional.rms_norm(state, state.shape[-1:]), weights["qkv"])
        parts = projected.split([heads, kv, kv], -1)
        q, k, v = (part.view(rows, length, -1, model.head_dim).transpose(1, 2) for part in parts)
        if cache is not None:
            k, v = cache[0], cache[1]
        seen = functional.scaled_dot_product_attention(q, k, v, is_causal=cache is None, enable_gqa=True)
        return self._multiply(seen.transpose(1, 2).reshape(rows, length, heads), weights["out"])

    def _fp8_multiply(self, state: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """`state` (.., in) times `weight` (out, in) in FP8. The state is converted here, as an engine does it."""
        rows = state.reshape(-1, state.shape[-1]).to(torch.float8_e4m3fn)
        scales = {"scale_a": self._scale, "scale_b": self._scale}
        result = torch._scaled_mm(rows, weight.t(), **scales, out_dtype=state.dtype, use_fast_accum=True)
        return result.view(*state.shape[:-1], -1)


def compared(device: Device, torch_device: str, *, fp8: bool) -> dict[str, Any]:
    """Every step of every shape in one number format: measured, predicted, and the error. `device`: with its rates."""
    shapes = SHAPES if torch_device == "cuda" else TINY
    rows = [row for name, shape in shapes.items() for row in _measured(name, shape, torch_device, fp8=fp8)]
    name = "fp8" if fp8 else "bf16"
    found, _ = calibrate_stages(_stages_of(rows[::2], device), f"layers in torch, {name}")
    for row in rows:
        row["predictedSeconds"] = _predicted(row, device, found)
        row["error"] = abs(row["predictedSeconds"] / row["seconds"] - 1)
    held_out = statistics.median(row["error"] for row in rows[1::2])
    return {"format": name, "efficiency": found.to_dict(), "heldOutMedianError": held_out, "rows": rows}


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


def _measured(name: str, shape: Mapping[str, int], device: str, *, fp8: bool) -> Iterator[dict[str, Any]]:
    """Every step of a shape that fits into the free memory."""
    tiny = device == "cpu"
    dtype = "float32" if tiny and not fp8 else "bfloat16"
    config = {**LLAMA, **shape, "vocab_size": 1024, "torch_dtype": dtype, **(FP8 if fp8 else {})}
    layers = Layers(read_architecture(config), device, fp8=fp8)
    batches, contexts, chunks = (TINY_BATCHES, TINY_CONTEXTS, TINY_CHUNKS) if tiny else (BATCHES, CONTEXTS, CHUNKS)
    steps = [Step(batch, context, 0) for batch in batches for context in contexts]
    steps += [Step(0, 0, tokens) for tokens in chunks]
    for step in steps:
        if not tiny and layers.cache_bytes(step) > FREE_SHARE * torch.cuda.mem_get_info()[0]:
            continue
        took = seconds(layers.work(step), device)
        if not tiny:
            torch.cuda.empty_cache()
        yield {"shape": name, "config": config, "step": vars(step), "seconds": took}


def _stages_of(rows: list[dict[str, Any]], device: Device) -> list[dict[str, float]]:
    """The rows as `stages` of MEASUREMENTS.json."""
    stages = []
    for row in rows:
        model, step = read_architecture(row["config"]), row["step"]
        load = stage_loads(model, [(device,), (device,)], [model.layers, 0])[0]
        flops_per_s, _ = rates(device, device.bf16_flops_per_s or 0.0, LINEAR, load.linear_kernel)
        tokens, seen = step["tokens"] or step["sequences"], step["tokens"] / 2
        layer_flops, attention_flops = sum(model.layer_flops_per_token), sum(model.layer_attention_flops_per_token)
        stages.append(
            {
                "flops": tokens * (layer_flops + seen * attention_flops),
                "weightBytes": sum(model.layer_weight_bytes),
                "otherBytes": step["sequences"] * step["context"] * model.kv_bytes_per_token,
                "sequences": step["sequences"],
                "flopsPerSecond": flops_per_s,
                "memoryBytesPerSecond": device.memory_bytes_per_s or 0.0,
                "seconds": row["seconds"],
            }
        )
    return stages


def _predicted(row: Mapping[str, Any], device: Device, efficiency: Efficiency) -> float:
    """The cost model's time for the step: a stage without embedding and head."""
    model, step = read_architecture(row["config"]), row["step"]
    costs = Costs.of(model, max(1, step["tokens"] or step["context"]), 0, efficiency)
    loads = stage_loads(model, [(device,), (device,)], [model.layers, 0])
    return Pipeline(loads, None, costs).stage_times(step["tokens"], step["sequences"])[0]


def table(found: Mapping[str, Any]) -> list[list[str]]:
    """The rows of the table."""
    lines = [["FORMAT", "SHAPE", "SEQUENCES", "CONTEXT", "CHUNK", "MEASURED", "PREDICTED", "ERROR"]]
    for row in found["rows"]:
        step = row["step"]
        load = [str(step["sequences"]), str(step["context"]), str(step["tokens"])]
        times = [f"{row['seconds'] * 1e3:.3f} ms", f"{row['predictedSeconds'] * 1e3:.3f} ms"]
        lines.append([found["format"], row["shape"], *load, *times, f"{row['error']:.1%}"])
    return lines
