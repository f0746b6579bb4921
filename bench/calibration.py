"""How accurately `uellm calibrate` recovers an engine's step times, by noise and by number of measurements.

    python bench/calibration.py [--json FILE]

Steps are drawn for three engines (an 8B model on an H100, a 70B model on four of them, a small model on one CPU). Their
true times get Gaussian noise, and one step in fifty takes five times as long, as on a busy machine. The table shows
the error of each important figure and of predicted steps (the median of 5 draws), and the CPU time of a fit.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import time
from pathlib import Path
from typing import Any

from uellm.planner.calibration.calibrate import calibrate
from uellm.step_time import StepTime

ENGINES = {
    "8B on H100": StepTime(5.5e-3, 45e-6, 44e-9, 15e-6, 0.5e-3),
    "70B on 4 H100": StepTime(15e-3, 110e-6, 25e-9, 20e-6, 1.5e-3),
    "small on CPU": StepTime(20e-3, 1.1e-3, 2e-6, 0.4e-3, 3e-3),
}
LIMITS = {"kvBlocks": 1000, "blockTokens": 16, "maxNumSeqs": 256, "maxNumBatchedTokens": 8192, "maxModelLen": 8192}
DRAWS = 5
SLOW_SHARE, SLOW_TIMES = 0.02, 5.0


def main() -> int:
    """Fit, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    rows = [
        row(name, step, noise, count)
        for name, step in ENGINES.items()
        for noise in (0.0, 0.05, 0.15)
        for count in (60, 400)
    ]
    print(table(rows))
    if args.json:
        args.json.write_text(json.dumps({"rows": rows}, indent=1))
    return 0


def drawn(step: StepTime, noise: float, count: int, seed: int) -> list[dict[str, Any]]:
    """Measurements: steps that only decode, small and large chunks, short and long contexts."""
    draw, rows = random.Random(seed), []
    for _ in range(count):
        prefill = draw.choice([0, 0, 0, 0.2, 0.5, 1.0, 2.0, 4.0, 8.0]) * step.floor_tokens
        sequences = draw.randint(1, 128)
        kv = sequences * draw.randint(50, 3000)
        seconds = step.step_s(round(prefill), kv, sequences) * max(0.3, draw.gauss(1.0, noise))
        if noise and draw.random() < SLOW_SHARE:
            seconds *= SLOW_TIMES
        rows.append({"prefillTokens": round(prefill), "kvTokens": kv, "sequences": sequences, "seconds": seconds})
    return rows


def row(name: str, truth: StepTime, noise: float, count: int) -> dict[str, Any]:
    """The medians over the draws."""
    draws = []
    for seed in range(DRAWS):
        data = {"name": name, "limits": LIMITS, "steps": drawn(truth, noise, count, seed)}
        began = time.process_time()
        found = calibrate(data).engine.step
        draws.append({**errors(found, truth), "seconds": time.process_time() - began})
    figures = {figure: statistics.median(entry[figure] for entry in draws) for figure in draws[0]}
    return {"engine": name, "noise": noise, "measurements": count, **figures}


def errors(found: StepTime, truth: StepTime) -> dict[str, float]:
    """Relative errors: of a step that only reads the weights, per prompt token, per KV token, and of unseen steps."""
    base, true_base = found.floor_s + found.overhead_s, truth.floor_s + truth.overhead_s
    steps = [
        abs(found.step_s(prefill, kv, sequences) / truth.step_s(prefill, kv, sequences) - 1)
        for prefill in (0, truth.floor_tokens, 4 * truth.floor_tokens)
        for sequences, kv in ((1, 100), (32, 30_000), (128, 200_000))
    ]
    return {
        "base": abs(base / true_base - 1),
        "perPrefillToken": abs(found.per_prefill_token_s / truth.per_prefill_token_s - 1),
        "perKvToken": abs(found.per_kv_token_s / truth.per_kv_token_s - 1),
        "steps": statistics.median(steps),
    }


def table(rows: list[dict[str, Any]]) -> str:
    """The table that is printed."""
    lines = [f"{'ENGINE':<15}{'NOISE':>6}{'STEPS':>7}{'BASE':>8}{'PREFILL':>9}{'KV':>8}{'NEW STEPS':>11}{'CPU S':>7}"]
    lines += [
        f"{row['engine']:<15}{row['noise']:>6.0%}{row['measurements']:>7}{row['base']:>8.1%}"
        f"{row['perPrefillToken']:>9.1%}{row['perKvToken']:>8.1%}{row['steps']:>11.1%}{row['seconds']:>7.2f}"
        for row in rows
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
