"""The rows of serving.csv.gz and memory.csv as points of `uellm predict`, with what was measured.

Units are in the names of the columns. Rows whose doubts say that they are of no use are left out, and rows with data
parallelism, which a point cannot tell. models.json has the shapes of the models, from their public config.json.
"""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MODELS: Mapping[str, Any] = json.loads((Path(__file__).parent / "models.json").read_text())
DOUBTFUL = ("UNUSABLE", "SUSPECT", "tensor parallel over")
CACHED_PREFIXES = "prefix cache"
FAMILIES = ("MiniMax", "gpt-oss", "Kimi", "Llama", "Qwen2.5", "Qwen2", "Qwen3-235B", "Qwen3", "Mistral")


@dataclass(frozen=True)
class Row:
    """A measured point. Times in seconds; None: not measured."""

    point: Mapping[str, Any]
    source: str
    family: str
    precision: str
    ttft_s: float | None
    tpot_s: float | None
    tokens_per_s: float | None
    cached: bool
    """Whether prompts may have been in the prefix cache, so that the TTFT says little."""

    @property
    def batch(self) -> str:
        """The number of clients or sequences, as a class of sizes."""
        count = self.point.get("concurrency") or self.point.get("decodeBatch")
        if count is None:
            return "rate"
        return next((f"<= {most}" for most in (1, 8, 32, 128, 512) if count <= most), "> 512")

    @property
    def group(self) -> str:
        """What is held out together: a source, or a family of models of the one large source."""
        return self.family if self.source == "InferenceX" else self.source


def serving(directory: Path) -> list[Row]:
    """The usable rows of serving.csv.gz."""
    with gzip.open(directory / "serving.csv.gz", "rt", newline="") as file:
        return [_row(line) for line in csv.DictReader(file) if _usable(line)]


def memory(directory: Path) -> Iterator[tuple[dict[str, Any], Mapping[str, str]]]:
    """The points of memory.csv whose GPU and utilisation are told, each with its line."""
    with (directory / "memory.csv").open(newline="") as file:
        for line in csv.DictReader(file):
            if line["gpu"] == "?" or not line["gpu_memory_utilization"] or not line["gpu_total_gib"]:
                continue
            point = _point(line, "max_num_batched_tokens", "vllm_version", "kv_cache_dtype")
            yield {**point, "inputTokens": 1, "outputTokens": 1, "decodeBatch": 1}, line


def _usable(line: Mapping[str, str]) -> bool:
    return line["dp"] == "1" and not any(mark in line["doubts"] for mark in DOUBTFUL)


def _row(line: Mapping[str, str]) -> Row:
    point = _point(line, "max_num_batched_tokens", "engine_version", "kv_cache_dtype")
    point |= {"inputTokens": float(line["input_tokens_mean"]), "outputTokens": float(line["output_tokens_mean"])}
    if line["load"] == "decode-step":
        point["decodeBatch"] = int(float(line["concurrency"]))
    elif line["concurrency"]:
        point["concurrency"] = int(float(line["concurrency"]))
    else:
        point["requestsPerSecond"] = float(line["request_rate_per_s"])
    if line["prompts"]:
        point["prompts"] = int(line["prompts"])
    return Row(
        point=point,
        source=line["source_group"],
        family=next(name for name in FAMILIES if name in line["model"]),
        precision=line["weights_precision"],
        ttft_s=_seconds(line, "ttft_mean_ms", "ttft_median_ms"),
        tpot_s=_seconds(line, "tpot_mean_ms", "itl_mean_ms", "tpot_median_ms"),
        tokens_per_s=float(line["output_tokens_per_s"]) if line["output_tokens_per_s"] else None,
        cached=CACHED_PREFIXES in line["doubts"],
    )


def _point(line: Mapping[str, str], chunk: str, version: str, cache: str) -> dict[str, Any]:
    point: dict[str, Any] = {
        "id": line["id"],
        "config": MODELS[line["model"]],
        "gpu": line["gpu"],
        "tensor": int(line["tp"]),
        "pipeline": int(line["pp"]),
        "engineVersion": line[version].strip("?"),
        "enforceEager": line["enforce_eager"] == "1",
    }
    if line[chunk]:
        point["maxNumBatchedTokens"] = int(line[chunk])
    if line["max_num_seqs"]:
        point["maxNumSeqs"] = int(line["max_num_seqs"])
    if line["gpu_memory_utilization"]:
        point["gpuMemoryUtilization"] = float(line["gpu_memory_utilization"])
    if line[cache] != "auto":
        point["kvCacheDtype"] = line[cache]
    return point


def _seconds(line: Mapping[str, str], *columns: str) -> float | None:
    return next((float(line[column]) / 1e3 for column in columns if line[column]), None)
