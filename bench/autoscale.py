"""The number of replicas over a day: UELLM's rule beside a fixed number, tuned HPA and KEDA, and clairvoyant ones.

    python bench/autoscale.py [--data DIR] [--json FILE] [--days-of NAME ...] [--seeds S ...] [--jobs N]

Each day is made of an hour of a trace (`uellm evaluate autoscale`), with start-up times of 2 and 8 minutes. HPA and
KEDA are told three times: as tuned, the fewest GPU hours for the attainment of UELLM's rule or more, and the most that
they attain in its hours. Three quarters of an hour of processor time a day.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import sys
from pathlib import Path
from typing import Any

from uellm.cli.evaluate_autoscale import beside_uellm
from uellm.cli.main import main as uellm
from uellm.text import aligned

ROOT = Path(__file__).parents[1]
DAYS = {
    "conversation": ("azure2023_conv.csv.gz", "azure-conversation"),
    "code-shaped": ("azure2023_conv.csv.gz", "azure-code"),
    "servegen": ("servegen_m-mid_1h_10rps.csv.gz", "servegen"),
    "bursts": ("servegen_m-mid_1h_10rps.csv.gz", "bursts"),
    "reasoning": ("servegen_deepseek-r1_1h_10rps.csv.gz", "servegen"),
}
"""The trace and the daily curve of each."""


def evaluate(data: Path, name: str, seed: int, jobs: int) -> dict[str, Any]:
    trace, shape = DAYS[name]
    scenarios = data / "scenarios"
    files = {
        "trace": data / "traces" / trace,
        "classes": scenarios / "classes-mixed.yaml",
        "engine": scenarios / "engine-8b-h100.json",
    }
    options = [f"--{option}={path}" for option, path in files.items()]
    answer = io.StringIO()
    with contextlib.redirect_stdout(answer):
        status = uellm(
            ["evaluate", "autoscale", *options, f"--shape={shape}", f"--seed={seed}", f"--jobs={jobs}", "-o", "json"]
        )
    if status:
        raise SystemExit(status)
    return dict(json.loads(answer.getvalue()), day=name, seed=seed)


def rows(document: dict[str, Any]) -> list[list[str]]:
    results = document["results"]
    best = {result["startupSeconds"]: result["gpuHours"] for result in results if result["policy"] == "clairvoyant"}
    return [
        [
            document["day"],
            f"{result['startupSeconds']:g}s",
            result["policy"],
            f"{result['attainment']['all']:.4f}",
            f"{result['gpuHours']:.1f}",
            f"{result['gpuHours'] / best[result['startupSeconds']]:.2f}",
            *beside_uellm(result),
        ]
        for result in results
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared", help="holds traces/ and scenarios/")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--days-of", nargs="+", choices=DAYS, default=["conversation"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[1])
    parser.add_argument("--jobs", type=int, default=1)
    args = parser.parse_args()
    if not (args.data / "traces").is_dir():
        print(f"autoscale: no traces in {args.data}: give their folder by --data", file=sys.stderr)
        return 0
    documents = [evaluate(args.data, name, seed, args.jobs) for name in args.days_of for seed in args.seeds]
    head = ["DAY", "START-UP", "POLICY", "ATTAINED", "GPU HOURS", "OF CLAIRVOYANT"]
    head += ["HOURS AT UELLM'S ATTAINMENT", "ATTAINED AT UELLM'S HOURS"]
    print("\n".join(aligned([head, *(row for document in documents for row in rows(document))])))
    if args.json:
        args.json.write_text(json.dumps(documents, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
