"""Splits of an 8-layer model over two stages of a real vLLM on this CPU: predicted and measured memory and step times.

    python bench/stage_split.py [--json FILE] [--keep DIR] [--splits 1,7 2,6 ...]

First the engine runs in one process, with 8 layers and with 2; these steps calibrate the cost model. Then it runs with
each split: two processes with one CPU each, and a full pipeline (16 streams, two batches in flight). The step time of
the slowest stage is compared, because it sets the throughput. Times are CPU seconds of the stages' own threads; the
least of six rounds counts, because other load can only add to a step. The remaining effect of other load is measured by
a fixed piece of work that runs between the steps, and times are scaled to the machine's best moment. No measurement of
a split is used for the calibration.

`--keep DIR` stores the raw measurements and reuses those found there, because an engine takes a minute to start.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from uellm.hardware import Device
from uellm.models import Architecture, read_architecture
from uellm.planner.calibration.calibrate import Calibration, calibrate, rank_correlation
from uellm.planner.cost.pipeline import Pipeline
from uellm.planner.cost.predict import EngineModel
from uellm.planner.cost.rates import Costs
from uellm.planner.cost.work import stage_loads
from uellm.planner.memory.kv_cache import tokens_of_flag
from uellm.planner.shape import Steps
from uellm_devcluster import tinymodel

# The head weighs two and a half layers, so that the ends of the pipeline differ.
CONFIG = {
    **tinymodel.config(),
    "hidden_size": 768,
    "intermediate_size": 2304,
    "num_attention_heads": 12,
    "num_key_value_heads": 4,
    "vocab_size": 24576,
}
CHUNK, STREAMS, PROMPT, OUTPUT = 64, 16, 64, 32
KV_BYTES, BLOCK_TOKENS = 128 << 20, 128
FILLED = ["filled", STREAMS, PROMPT, OUTPUT]
SPLIT_LOADS = [["warm", 4, 64, 8], *[FILLED] * 6]
# Small chunks separate a step's floor from its overhead, long contexts show the cost of KV, and few streams that of
# sequences.
VARIED = [
    *[[f"prompts of {tokens}", 6, tokens, 3] for tokens in (4, 8, 12, 16, 24, 32, 48)],
    ["prompts of 192", 6, 192, 1],
    ["few", 2, 16, 24],
    ["contexts", 4, 512, 16],
    ["mixed", 12, 96, 24],
]
CALIBRATION_LOADS = [["warm", 4, 64, 8], *[*VARIED, FILLED] * 3]
# With one size, the time to read the weights could not be separated from a step's overhead.
SIZES = (8, 2)
ENGINE_TIMEOUT_S = 600


def main() -> int:
    """Measure what is not stored, compare, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--keep", type=Path)
    parser.add_argument("--splits", nargs="+", default=[f"{count},{8 - count}" for count in range(1, 8)])
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        keep = args.keep or Path(scratch)
        keep.mkdir(parents=True, exist_ok=True)
        sizes = {layers: measured(str(layers), keep) for layers in SIZES}
        splits = {split: measured(split, keep) for split in args.splits}
    best = min(reference for raw in (*sizes.values(), *splits.values()) for reference in references(raw))
    for raw in (*sizes.values(), *splits.values()):
        scale(raw, best)
    model, device = read_architecture(CONFIG), this_cpu()
    found = calibrate(calibration_document(sizes, device))
    rows = [row(split, raw, model, device, found) for split, raw in splits.items()]
    result = {"device": rates(device), "calibration": calibration_dict(found), "splits": rows, **ranks(rows)}
    print(table(result))
    if args.json:
        args.json.write_text(json.dumps(result, indent=1))
    return 0


def measured(layers: str, keep: Path) -> dict[str, Any]:
    """The raw measurements of one engine."""
    path = keep / f"{layers}.json"
    if not path.exists():
        config = keep / f"config-{layers}.json"
        config.write_text(json.dumps(config_of(sum(map(int, layers.split(","))))))
        command = [sys.executable, "-m", "uellm_devcluster.measured_engine", str(config), "--layers", layers]
        loads = SPLIT_LOADS if "," in layers else CALIBRATION_LOADS
        command += ["--loads", json.dumps(loads), "--chunk", str(CHUNK), "--sequences", str(STREAMS)]
        print(f"measuring {layers} ...", file=sys.stderr)
        done = subprocess.run(command, capture_output=True, text=True, timeout=ENGINE_TIMEOUT_S, check=False)
        if done.returncode:
            sys.exit(f"the engine with layers {layers} ended with {done.returncode}:\n{done.stderr[-2000:]}")
        path.write_text(done.stdout)
    document: dict[str, Any] = json.loads(path.read_text())
    return document


def config_of(layers: int) -> dict[str, Any]:
    """The model's configuration with this number of layers."""
    return {**CONFIG, "num_hidden_layers": layers}


def this_cpu() -> Device:
    """One CPU as a device: the best of a few matrix products and sums, in the thread's own seconds."""
    import torch

    torch.set_num_threads(1)
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    matrix, block = torch.rand(1024, 1024), torch.rand(64 << 20)
    compute = min(seconds_of(lambda: matrix @ matrix) for _ in range(8))
    memory = min(seconds_of(block.sum) for _ in range(8))
    return Device(
        "cpu", 0, "one CPU", 8 << 30, bf16_flops_per_s=2 * 1024**3 / compute, memory_bytes_per_s=4 * (64 << 20) / memory
    )


def seconds_of(work: Any) -> float:
    """CPU seconds of this thread."""
    begun = time.thread_time()
    work()
    return time.thread_time() - begun


def references(raw: dict[str, Any]) -> list[float]:
    """The fixed piece of work's time, for each round and stage the median."""
    return [reference_of(stage) for entry in raw["rounds"] for stage in entry["steps"]]


def reference_of(steps: list[dict[str, float]]) -> float:
    """The median over a stage's steps of one round; its first step always carries it."""
    return statistics.median(step["reference"] for step in steps if "reference" in step)


def scale(raw: dict[str, Any], best: float) -> None:
    """Times as they would have been at the machine's best moment."""
    for entry in raw["rounds"]:
        for stage in entry["steps"]:
            factor = best / reference_of(stage)
            for step in stage:
                step["seconds"] *= factor


def filled(raw: dict[str, Any]) -> list[float]:
    """CPU seconds of each stage with a full pipeline: each step's least over the rounds.

    Which requests share a step depends on their arrival. Where that differs between the rounds, the least round counts.
    """
    rounds = [entry["steps"] for entry in raw["rounds"] if entry["name"] == FILLED[0]]
    seconds = [[[step["seconds"] for step in stage] for stage in stages] for stages in rounds]
    if len({len(stages[0]) for stages in seconds}) == 1:
        return [sum(map(min, zip(*stage, strict=True))) for stage in zip(*seconds, strict=True)]
    return min(([sum(stage) for stage in stages] for stages in seconds), key=max)


def distinct_steps(raw: dict[str, Any]) -> list[dict[str, float]]:
    """The distinct steps of the single stage, each with its least time."""
    found: dict[tuple[float, ...], dict[str, float]] = {}
    for entry in raw["rounds"]:
        for step in entry["steps"][0] if entry["name"] != "warm" else ():
            kind = (step["prefillTokens"], step["kvTokens"], step["sequences"])
            if kind not in found or step["seconds"] < found[kind]["seconds"]:
                found[kind] = step
    return list(found.values())


def calibration_document(sizes: dict[int, dict[str, Any]], device: Device) -> dict[str, Any]:
    """MEASUREMENTS.json of the engines in one process: each is one stage, so its steps are the stage's."""
    limits = {
        "kvBlocks": sizes[SIZES[0]]["kvTokens"] // BLOCK_TOKENS,
        "blockTokens": BLOCK_TOKENS,
        "maxNumSeqs": STREAMS,
        "maxNumBatchedTokens": CHUNK,
        "maxModelLen": 1024,
    }
    stages = [
        stage_step(step, read_architecture(config_of(layers)), device)
        for layers, raw in sizes.items()
        for step in distinct_steps(raw)
    ]
    steps = distinct_steps(sizes[SIZES[0]])
    return {"name": "layers on one CPU", "limits": limits, "steps": steps, "stages": stages}


def stage_step(step: dict[str, float], model: Architecture, device: Device) -> dict[str, float]:
    """A step of a whole model as an entry of `stages`."""
    return {
        "flops": (step["prefillTokens"] + step["sequences"]) * sum(model.layer_flops_per_token),
        "weightBytes": sum(model.layer_weight_bytes),
        "otherBytes": model.lm_head_bytes + step["kvTokens"] * model.kv_bytes_per_token,
        "sequences": step["sequences"],
        **rates(device),
        "seconds": step["seconds"],
    }


def rates(device: Device) -> dict[str, float]:
    """The device's rates in the form of MEASUREMENTS.json."""
    return {
        "flopsPerSecond": device.bf16_flops_per_s or 0.0,
        "memoryBytesPerSecond": device.memory_bytes_per_s or 0.0,
    }


def row(split: str, raw: dict[str, Any], model: Architecture, device: Device, found: Calibration) -> dict[str, Any]:
    """One split: the planner's prediction and the measurement."""
    layers = [int(count) for count in split.split(",")]
    costs = Costs.of(model, PROMPT, OUTPUT, found.efficiency)
    loads = stage_loads(model, [(device,)] * len(layers), layers)
    per_token = [sum(model.layer_kv_bytes_per_token[:count]) for count in layers]
    tokens = tokens_of_flag(KV_BYTES, per_token, BLOCK_TOKENS)
    engine = EngineModel(Pipeline(loads, None, costs), tokens, Steps(CHUNK, STREAMS))
    by_stage = [seconds / OUTPUT for seconds in filled(raw)]
    weights = [sum(model.layer_weight_bytes[:count]) for count in layers]
    weights[0] += model.embedding_bytes
    weights[-1] += model.lm_head_bytes + model.final_norm_bytes
    walls = sorted(entry["tokens"] / entry["seconds"] for entry in raw["rounds"] if entry["name"] == "filled")
    return {
        "split": split,
        "predictedStepSeconds": engine.tpot_s(STREAMS),
        "measuredStepSeconds": max(by_stage),
        "measuredStageSeconds": by_stage,
        "wallTokensPerSecond": walls[-1],
        "predictedWeightBytes": weights,
        "measuredWeightBytes": [stage["weights"] for stage in raw["memory"]],
        "predictedKvBytes": [tokens * each for each in per_token],
        "measuredKvBytes": [stage["kv"] for stage in raw["memory"]],
        "predictedKvTokens": tokens,
        "measuredKvTokens": raw["kvTokens"],
    }


def ranks(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Spearman's correlations over the splits, and the largest error of a stage's memory."""
    told, took, wall = (
        np.array([entry[name] for entry in rows])
        for name in ("predictedStepSeconds", "measuredStepSeconds", "wallTokensPerSecond")
    )
    wrong = [
        abs(flag_bytes - there) / there
        for entry in rows
        for kind in ("Weight", "Kv")
        for flag_bytes, there in zip(entry[f"predicted{kind}Bytes"], entry[f"measured{kind}Bytes"], strict=True)
    ]
    return {
        "spearman": rank_correlation(told, took),
        "spearmanWall": rank_correlation(-told, wall),
        "medianStepError": float(np.median(np.abs(told - took) / took)),
        "largestMemoryError": max(wrong),
    }


def calibration_dict(found: Calibration) -> dict[str, Any]:
    """The calibration with its reports."""
    stages = {} if found.stages is None else {"stages": found.stages.to_dict()}
    return {**found.to_dict(), "report": {"steps": found.steps.to_dict(), **stages}}


def table(result: dict[str, Any]) -> str:
    """The table that is printed."""
    lines = [f"{'SPLIT':<7}{'STEP MS told':>13}{'measured':>10}{'TOKENS/S wall':>15}  WEIGHTS MB told/measured", ""]
    for entry in result["splits"]:
        pairs = zip(entry["predictedWeightBytes"], entry["measuredWeightBytes"], strict=True)
        weights = "  ".join(f"{told / 1e6:.2f}/{there / 1e6:.2f}" for told, there in pairs)
        told, took = (1e3 * entry[f"{word}StepSeconds"] for word in ("predicted", "measured"))
        lines.append(
            f"{entry['split']:<7}{told:>13.1f}{took:>10.1f}{entry['wallTokensPerSecond']:>15.1f}  {weights}   "
            f"KV tokens {entry['predictedKvTokens']}/{entry['measuredKvTokens']}"
        )
    lines += [
        "",
        f"rank correlation (Spearman): {result['spearman']:.3f} with CPU seconds of the slowest stage, "
        f"{result['spearmanWall']:.3f} with the wall's tokens/s",
        f"median error of the step time {result['medianStepError']:.1%}, largest error of a stage's memory "
        f"{result['largestMemoryError']:.3%}",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
