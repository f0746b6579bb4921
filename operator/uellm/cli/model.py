"""`uellm model`: bytes of each layer of a model, from its config.json or its whole checkpoint."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from uellm.cli.arguments import add_output
from uellm.cli.exact import engine_facts
from uellm.cli.files import read_json
from uellm.cli.hub import SCHEME, model_facts
from uellm.models import (
    PARAMS,
    Architecture,
    Tensor,
    config_of_params,
    find_tensors,
    read_architecture,
    read_directory,
    with_engine_facts,
    with_quantization_file,
)
from uellm.planner.units import size

QUANTIZATION_FILE = "hf_quant_config.json"
"""ModelOpt's file beside config.json."""
ORIGINS = {
    "config": "",
    "safetensors": " (from the safetensors headers)",
    "engine": " (as vLLM's own class has them)",
}
FEW_RUNS = 4
"""The most runs of equal layers that a table lists; more are abbreviated."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    parser.add_argument(
        "config",
        metavar="CONFIG.json|DIRECTORY|hf://OWNER/NAME",
        help="the model's config.json (- for standard input), its directory, or its name on the hub, with @REVISION if "
        "it is not main (HF_ENDPOINT, HF_TOKEN): the bytes then come from the headers of its safetensors files",
    )
    parser.add_argument(
        "--safetensors", metavar="DIRECTORY", help="directory of safetensors files to read the bytes from"
    )
    parser.add_argument(
        "--dtype",
        default="auto",
        metavar="D",
        help="bfloat16, float16, float32 or auto (default: auto, as in config.json)",
    )
    parser.add_argument(
        "--quantization",
        default="auto",
        metavar="Q",
        help="none, fp8, awq, gptq ... (default: auto, as in config.json)",
    )
    parser.add_argument(
        "--exact",
        action="store_true",
        help="bytes, KV cache and state as vLLM's own class has them, built without weights; needs the extra "
        "engine-cpu, and takes about half a minute",
    )
    add_output(parser, "table", "json")


def run(args: argparse.Namespace) -> int:
    """Read and print."""
    config, tensors = _read(args.config)
    if args.safetensors:
        tensors = read_directory(Path(args.safetensors))
    model = read_architecture(config, dtype=args.dtype, quantization=args.quantization, tensors=tensors)
    if args.exact:
        model = with_engine_facts(model, engine_facts(config))
    print(json.dumps(document(model)) if args.output == "json" else table(model))
    return 0


def _read(source: str) -> tuple[Any, Mapping[str, Tensor] | None]:
    """The configuration and, unless it is a single file, the headers of the tensors."""
    if source.startswith(SCHEME):
        facts = model_facts(source)
        return facts.config, facts.tensors
    directory = Path(source)
    if source == "-" or not directory.is_dir():
        return read_json(source), None
    named = directory / "config.json"
    if not named.exists() and (directory / PARAMS).is_file():
        return config_of_params(read_json(str(directory / PARAMS))), find_tensors(directory)
    config = read_json(str(named))
    quantization = directory / QUANTIZATION_FILE
    if quantization.is_file():
        config = with_quantization_file(config, read_json(str(quantization)))
    return config, find_tensors(directory)


def document(model: Architecture) -> dict[str, Any]:
    """The JSON form."""
    return {
        "architecture": model.name,
        "dtype": model.dtype,
        "quantization": model.quantization,
        "source": model.source,
        "parameters": model.parameters,
        "activeParameters": model.active_parameters,
        "layers": model.layers,
        "weightBytes": model.weight_bytes,
        "layerWeightBytes": list(model.layer_weight_bytes),
        "layerExpertBytes": list(model.layer_expert_bytes),
        "embeddingBytes": model.embedding_bytes,
        "finalNormBytes": model.final_norm_bytes,
        "lmHeadBytes": model.lm_head_bytes,
        "towerBytes": model.tower_bytes,
        "tiedEmbeddings": model.tied,
        "experts": model.experts,
        "expertsPerToken": model.experts_per_token,
        "kvBytesPerToken": model.kv_bytes_per_token,
        "layerKvBytesPerToken": list(model.layer_kv_bytes_per_token),
        "stateBytes": model.state_bytes,
        "layerStateBytes": list(model.layer_state_bytes),
        "layerRecentBytesPerToken": [sum(each.bytes_per_token for each in caches) for caches in model.layer_recent],
        "kvDtypeBytes": model.kv_dtype_bytes,
        "exact": model.exact or model.measured,
        "layerWindowTokens": list(model.layer_window_tokens),
        "layerFlopsPerToken": list(model.layer_flops_per_token),
        "layerAttentionFlopsPerToken": list(model.layer_attention_flops_per_token),
        "headFlopsPerToken": model.head_flops_per_token,
        "maxPositionEmbeddings": model.max_position_embeddings,
        "notes": list(model.notes),
    }


def table(model: Architecture) -> str:
    """A table for people: one row for each kind of layer."""
    quantization = f", {model.quantization}" if model.quantization != "none" else ""
    active = f" ({model.active_parameters:,} for a token)" if model.experts else ""
    origin = ORIGINS[model.source]
    lines = [
        f"{model.name}, {model.dtype}{quantization}",
        f"parameters     {model.parameters:,}{active}",
        f"weights        {size(model.weight_bytes)}{origin}",
        f"KV cache       {model.kv_bytes_per_token:,} bytes a token{_beyond(model)}",
    ]
    if model.state_bytes:
        lines.append(f"state          {size(model.state_bytes)} a sequence, whatever its length")
    if model.layer_recent:
        recent = sum(each.bytes_per_token for caches in model.layer_recent for each in caches)
        most = max(each.tokens for caches in model.layer_recent for each in caches)
        lines.append(f"recent tokens  {recent:,} bytes a token more, for the last {most:,} tokens at most")
    lines += ["", *_rows(model)]
    return "\n".join([*lines, *(f"note: {note}" for note in model.notes)])


def _rows(model: Architecture) -> list[str]:
    kinds = _kinds(model)
    parts = [("embedding", "", size(model.embedding_bytes), "")]
    for (label, weights, kv), numbers in kinds.items():
        each = f"{size(weights)} each" if len(numbers) > 1 else size(weights)
        parts.append((_numbered(numbers), label, each, f"{kv:,}"))
    head = "tied to the embedding" if model.tied and not model.lm_head_bytes else size(model.lm_head_bytes)
    named = "LM head" if model.writes else "head"
    parts += [("final norm", "", size(model.final_norm_bytes), ""), (named, "", head, "")]
    if model.tower_bytes:
        parts.append(("tower", "on every stage", size(model.tower_bytes), ""))
    header = ("PART", "KIND", "WEIGHTS", "KV BYTES A TOKEN")
    wide = [max(len(row[column]) for row in (header, *parts)) for column in range(4)]
    return [
        f"{part:<{wide[0]}}  {kind:<{wide[1]}}  {weights:>{wide[2]}}  {kv:>{wide[3]}}".rstrip()
        for part, kind, weights, kv in (header, *parts)
    ]


def _kinds(model: Architecture) -> dict[tuple[str, int, int], list[int]]:
    """Layers grouped by kind, weight bytes and KV-cache bytes per token."""
    found: dict[tuple[str, int, int], list[int]] = {}
    for index in range(model.layers):
        label = "dense"
        if model.layer_expert_bytes[index]:
            label = f"MoE, {model.experts_per_token} of {model.experts}"
        window = model.layer_window_tokens[index]
        label += f", window {window:,}" if window else ""
        state = model.layer_state_bytes[index]
        label += f", state {size(state)}" if state else ""
        key = (label, model.layer_weight_bytes[index], model.layer_kv_bytes_per_token[index])
        found.setdefault(key, []).append(index)
    return found


def _numbered(numbers: list[int]) -> str:
    """`layer 3`, `layers 0-2`, `layers 0, 2, 4, 6 ... (12)`."""
    if len(numbers) == 1:
        return f"layer {numbers[0]}"
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    words = [f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs]
    if len(words) > FEW_RUNS:
        return f"layers {', '.join(words[:FEW_RUNS])} ... {words[-1]} ({len(numbers)})"
    return f"layers {', '.join(words)}"


def _beyond(model: Architecture) -> str:
    """KV-cache bytes of a token beyond the sliding windows."""
    inside = [bool(window) for window in model.layer_window_tokens]
    if not any(inside):
        return ""
    whole = sum(kv for kv, short in zip(model.layer_kv_bytes_per_token, inside, strict=True) if not short)
    return f", {whole:,} beyond the windows"
