"""The command line that the sidecar's benchmarks share."""

from __future__ import annotations

import argparse
import json
import platform
import resource
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

Measure = Callable[[float, int], dict[str, Any]]


def run(name: str, description: str, measure: Measure, show: Callable[[dict[str, Any]], None]) -> int:
    """Measure, print, write. `measure` takes the seconds of a run and how many runs are to be made of each case."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--seconds", type=float, default=5.0, help="seconds of each run (default: %(default)g)")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each case (default: %(default)s)")
    args = parser.parse_args()
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    found = measure(args.seconds, args.rounds)
    # Builds of one version differ in speed, with and without profile-guided optimisation.
    python = {"version": platform.python_version(), "compiler": platform.python_compiler(), "path": sys.executable}
    print("Python {version}, {compiler}, {path}".format(**python))
    show(found)
    if args.json:
        args.json.write_text(json.dumps({"benchmark": name, "python": python, "results": found}, indent=2) + "\n")
    return 0
