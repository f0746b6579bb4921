"""The benchmark for a real GPU, on the CPU in small sizes, without anything that UELLM installs but torch and numpy."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
# A bare machine, as Python sees it: what the project depends on is not there.
BARE = """
import sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"pydantic", "httpx", "kopf", "kubernetes", "yaml", "aiohttp", "grpc", "uvloop"}:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Missing())
"""


def test_the_benchmark_for_a_real_gpu_runs_through_on_a_machine_with_torch_alone(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(BARE)
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nPYTHONPATH="{tmp_path}:$PYTHONPATH" exec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    result = tmp_path / "result.json"
    command = [ROOT / "bench" / "on_gpu.sh", "--tiny", "--json", result]
    environment = {**os.environ, "PYTHON": str(python)}
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert ran.returncode == 0, ran.stderr
    found = json.loads(result.read_text())
    assert {row["figure"] for row in found["rates"]} >= {"bf16GigaflopsPerSecond", "memoryBytesPerSecond"}
    assert found["layers"][0]["format"] == "bf16"
    assert all(row["predictedSeconds"] > 0 for each in found["layers"] for row in each["rows"])
    assert "median error" in ran.stdout
