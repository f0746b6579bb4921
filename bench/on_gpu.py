"""One GPU of this machine: what NVML tells, micro-benchmarks, transformer layers, and what the profiler costs.

    bench/on_gpu.sh [--json FILE] [--tiny]

It needs python3 with torch and numpy (and nvidia-ml-py for NVML), no network, and no other package: on_gpu.sh finds the
rest in this checkout. It takes a few minutes, at most 8.

    discovery  the devices as the profiler describes them
    rates      every micro-benchmark of the profiler beside the same measured directly with torch; goal: within 3 %
    layers     layers of an 8B and a 70B model in bf16 and FP8: predicted against measured; goal: median error 10 %
    idle       CPU time and memory of observing the GPUs at the profiler's interval; goal: 0.5 % of a core, 150 MB

Without a GPU it says so and ends. `--tiny` runs everything on the CPU in small sizes, to check that the benchmark
works; its figures say nothing about GPUs and are not judged.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from uellm.hardware import Device
from uellm.measuring import figures as measure
from uellm.profiler.nvml import NVMLSource
from uellm.profiler.sample import SourceError
from uellm.text import aligned

TURNS = 3
SAMPLES = 20
INTERVAL_S = 10.0
"""The profiler observes the GPUs so often."""
RATE_GOAL, LAYER_GOAL, IDLE_GOAL, MEMORY_GOAL_MB = 0.03, 0.10, 0.005, 150.0
DIRECT_S = 0.3
TINY = {"matrix": 256, "copy_bytes": 1 << 22, "seconds": 0.05}
FULL = {"matrix": measure.MATRIX, "copy_bytes": measure.COPY_BYTES, "seconds": measure.SECONDS}


def discovery() -> dict[str, Any]:
    """The devices of this machine, or why there are none."""
    try:
        sample = NVMLSource().sample()
    except SourceError as error:
        return {"error": str(error)}
    versions = {"driverVersion": sample.driver_version, "cudaVersion": sample.cuda_version}
    return {**versions, "devices": list(sample.devices), "links": list(sample.links)}


def rates(torch: Any, device: str, sizes: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Each figure of the profiler, and the same measured directly, in turn: medians of three turns."""
    ours, direct = list[dict[str, float]](), list[dict[str, float]]()
    for _ in range(TURNS):
        ours.append({name: float(value) for name, value in measure.device_figures(torch, device, **sizes).items()})
        direct.append(direct_figures(torch, device, sizes))
    found = []
    for name in ours[0]:
        row = {"figure": name, "profiler": _median(ours, name), "direct": _median(direct, name)}
        found.append({**row, "difference": row["profiler"] / row["direct"] - 1})
    return found


def _median(turns: list[dict[str, float]], name: str) -> float:
    return statistics.median(turn[name] for turn in turns)


def direct_figures(torch: Any, device: str, sizes: Mapping[str, Any]) -> dict[str, float]:
    """The same figures without the profiler's clock: on a GPU by CUDA's events."""
    matrix, copy_bytes = sizes["matrix"], sizes["copy_bytes"]
    found = {}
    for name, product in measure.PRODUCTS.items():
        try:
            call_s = direct_s(torch, device, product(torch, device, matrix))
        except measure.NO_KERNEL:
            continue
        found[f"{name}GigaflopsPerSecond"] = 2 * matrix**3 / call_s / 1e9
    source = torch.empty(copy_bytes, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    found["memoryBytesPerSecond"] = 2 * copy_bytes / direct_s(torch, device, lambda: target.copy_(source))
    return found


def direct_s(torch: Any, device: str, call: Callable[[], object]) -> float:
    """Seconds of one call, from as many calls as take `DIRECT_S` together."""
    time_of = _event_s if device.startswith("cuda") else _clock_s
    time_of(torch, call, 3)
    once_s = time_of(torch, call, 3) / 3
    times = max(1, round(DIRECT_S / once_s))
    return time_of(torch, call, times) / times


def _event_s(torch: Any, call: Callable[[], object], times: int) -> float:
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    for _ in range(times):
        call()
    end.record()
    end.synchronize()
    milliseconds: float = begin.elapsed_time(end)
    return milliseconds / 1e3


def _clock_s(_: Any, call: Callable[[], object], times: int) -> float:
    began_s = time.perf_counter()
    for _ in range(times):
        call()
    return time.perf_counter() - began_s


def described(torch: Any, device: str, measured: list[dict[str, Any]], found: Mapping[str, Any]) -> Device:
    """The device that is measured, with its rates, as the planner gets it."""
    entries = found.get("devices") or []
    entry = {"uuid": "cpu", "product": "CPU", "memoryBytes": 1, "computeCapability": ""}
    if device.startswith("cuda"):
        properties = torch.cuda.get_device_properties(0)
        entry = {
            "uuid": "cuda:0",
            "product": properties.name,
            "memoryBytes": properties.total_memory,
            "computeCapability": f"{properties.major}.{properties.minor}",
        }
        known = [each for each in entries if each["product"] == properties.name]
        entry = known[0] if known else entry
    return Device.from_dict({**entry, "measured": {row["figure"]: row["profiler"] for row in measured}})


def idle() -> dict[str, Any]:
    """What one observation costs this process, as a share of a core, and its memory. Empty without NVML."""
    source = NVMLSource()
    try:
        source.sample()
    except SourceError:
        return {}
    began_s = time.process_time()
    for _ in range(SAMPLES):
        source.sample()
    sample_s = (time.process_time() - began_s) / SAMPLES
    return {"sampleMilliseconds": sample_s * 1e3, "coreShare": sample_s / INTERVAL_S, "residentMegabytes": _resident()}


def _resident() -> float:
    found = re.search(r"VmRSS:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(found[1]) / 1e3 if found else 0.0


def results(*, tiny: bool) -> dict[str, Any] | None:
    """All the figures; None without a GPU."""
    began_s = time.monotonic()
    # Before torch is imported, whose memory is not the profiler's.
    found: dict[str, Any] = {"discovery": discovery(), "idle": idle()}
    _say("importing torch", began_s)
    import torch
    from gpu import layers

    if not (tiny or torch.cuda.is_available()):
        return None
    device = "cpu" if tiny else "cuda"
    if tiny:
        torch.set_num_threads(1)
    _say("rates", began_s)
    found["rates"] = rates(torch, device, TINY if tiny else FULL)
    gpu = described(torch, device, found["rates"], found["discovery"])
    # CPUs multiply in FP8 number by number, which would take minutes.
    formats = [False, True] if gpu.fp8_flops_per_s and not tiny else [False]
    found["layers"] = []
    for fp8 in formats:
        _say(f"layers in {'FP8' if fp8 else 'bf16'}", began_s)
        found["layers"].append(layers.compared(gpu, device, fp8=fp8))
    versions = {"torch": torch.__version__, "python": sys.version.split()[0], "tiny": tiny}
    return {**versions, "product": gpu.product, **found, "seconds": round(time.monotonic() - began_s, 1)}


def _say(what: str, began_s: float) -> None:
    print(f"  {time.monotonic() - began_s:5.1f} s  {what}", file=sys.stderr, flush=True)


def tables(found: Mapping[str, Any]) -> str:
    """What is printed."""
    from gpu.layers import table

    lines = [f"{found['product']}, torch {found['torch']}, {found['seconds']} s in all", ""]
    discovered = found["discovery"]
    for device in discovered.get("devices", ()):
        lines.append("NVML: " + ", ".join(f"{key} {value}" for key, value in device.items()))
    if "error" in discovered:
        lines.append(f"NVML: {discovered['error']}")
    rows = [["RATE", "PROFILER", "DIRECT", "DIFFERENCE"]]
    for row in found["rates"]:
        rows.append([row["figure"], f"{row['profiler']:.4g}", f"{row['direct']:.4g}", f"{row['difference']:+.1%}"])
    lines += ["", *aligned(rows)]
    for each in found["layers"]:
        efficiency = each["efficiency"]
        lines += ["", *aligned(table(each))]
        lines.append(
            f"{each['format']}: median error {each['heldOutMedianError']:.1%} on the steps that were not fitted; "
            f"efficiency of compute {efficiency['compute']:.2f}, of memory {efficiency['memory']:.2f}"
        )
    if cost := found["idle"]:
        lines += ["", "idle: {coreShare:.3%} of a core, {residentMegabytes:.0f} MB".format(**cost)]
    return "\n".join(lines)


def misses(found: Mapping[str, Any]) -> list[str]:
    """The goals that were not reached."""
    missed = [row["figure"] for row in found["rates"] if abs(row["difference"]) > RATE_GOAL]
    missed += [f"layers in {each['format']}" for each in found["layers"] if each["heldOutMedianError"] > LAYER_GOAL]
    cost = found["idle"]
    if cost and (cost["coreShare"] > IDLE_GOAL or cost["residentMegabytes"] > MEMORY_GOAL_MB):
        missed.append("idle")
    return missed


def main() -> int:
    """Measure, print, write. Returns 1 where a goal is missed on a GPU."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--tiny", action="store_true", help="small sizes on the CPU")
    args = parser.parse_args()
    found = results(tiny=args.tiny)
    if found is None:
        print("no GPU on this machine: nothing measured (--tiny runs small sizes on the CPU)")
        return 0
    print(tables(found))
    if args.json:
        args.json.write_text(json.dumps(found, indent=1))
    if args.tiny:
        return 0
    missed = misses(found)
    print(f"missed: {', '.join(missed)}" if missed else "every goal reached")
    return int(bool(missed))


if __name__ == "__main__":
    sys.exit(main())
