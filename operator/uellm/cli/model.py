"""`uellm model`: bytes by layer of a model, from its config.json."""

from __future__ import annotations

import argparse
import json
from itertools import groupby
from typing import Any

from uellm.cli.files import read_json
from uellm.models import Architecture, read_architecture
from uellm.planner.infeasible import size


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    parser.add_argument("config", metavar="CONFIG.json", help="the model's config.json; - reads standard input")
    parser.add_argument("--dtype", default="auto", metavar="D", help="bfloat16, float16, float32 or auto (the default)")
    parser.add_argument(
        "--quantization", default="auto", metavar="Q", help="auto, none, fp8, awq or gptq (default auto: config.json's)"
    )
    parser.add_argument("-o", "--output", choices=("table", "json"), default="table", help="default: table")


def run(args: argparse.Namespace) -> int:
    """Read and print."""
    model = read_architecture(read_json(args.config), dtype=args.dtype, quantization=args.quantization)
    print(json.dumps(document(model)) if args.output == "json" else table(model))
    return 0


def document(model: Architecture) -> dict[str, Any]:
    """The JSON form."""
    return {
        "architecture": model.name,
        "dtype": model.dtype,
        "quantization": model.quantization,
        "parameters": model.parameters,
        "layers": model.layers,
        "weightBytes": model.weight_bytes,
        "layerWeightBytes": list(model.layer_weight_bytes),
        "embeddingBytes": model.embedding_bytes,
        "finalNormBytes": model.final_norm_bytes,
        "lmHeadBytes": model.lm_head_bytes,
        "tiedEmbeddings": model.tied,
        "kvBytesPerToken": model.kv_bytes_per_token,
        "layerKvBytesPerToken": list(model.layer_kv_bytes_per_token),
    }


def table(model: Architecture) -> str:
    """For a person: one line a run of like layers."""
    head = "tied to the embedding" if model.tied else size(model.lm_head_bytes)
    lines = [
        f"{model.name}, {model.dtype}" + (f", {model.quantization}" if model.quantization != "none" else ""),
        f"parameters     {model.parameters:,}",
        f"weights        {size(model.weight_bytes)}",
        f"KV cache       {model.kv_bytes_per_token:,} bytes a token",
        "",
        f"{'PART':<15}{'WEIGHTS':>12}{'KV BYTES A TOKEN':>20}",
        f"{'embedding':<15}{size(model.embedding_bytes):>12}",
    ]
    sizes = zip(range(model.layers), model.layer_weight_bytes, model.layer_kv_bytes_per_token, strict=True)
    for (weights, kv), run_of_layers in groupby(sizes, key=lambda entry: entry[1:]):
        numbers = [entry[0] for entry in run_of_layers]
        name = f"layers {numbers[0]}-{numbers[-1]}" if len(numbers) > 1 else f"layer {numbers[0]}"
        each = " each" if len(numbers) > 1 else ""
        lines.append(f"{name:<15}{size(weights):>12}{kv:>20,}{each}")
    lines += [f"{'final norm':<15}{size(model.final_norm_bytes):>12}", f"{'LM head':<15}{head:>12}"]
    return "\n".join([*lines, *(f"note: {note}" for note in model.notes)])
