"""The solver with exactly the packages of each image, as images/collect.sh takes them from the lock."""

from __future__ import annotations

import json
import os
import random
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from uellm.launcher.build import build

ROOT = Path(__file__).parents[3]
DEVICES, LAYERS = 12, 80
PLACE = "import sys; from uellm.cli.main import main; sys.exit(main())"
# The launcher has no command for it, so use the zipapp's own solver.
LAUNCHER_PLACE = """
import json, sys
from uellm.planner.placement.instance import Instance
from uellm.planner.placement.solver import solve
with open(sys.argv[2]) as file:
    print(json.dumps(solve(Instance.from_dict(json.load(file)), objective=sys.argv[4]).to_dict()))
"""


def options_of(role: str) -> list[str]:
    """The options that images/collect.sh passes to `uv export` for a role."""
    found = re.search(rf"^collect {role} (.*)$", (ROOT / "images" / "collect.sh").read_text(), re.MULTILINE)
    assert found, role
    return shlex.split(found[1])


def packages_of(role: str) -> list[str]:
    export = [
        ".venv/bin/uv",
        "export",
        "--quiet",
        "--offline",
        "--frozen",
        "--no-default-groups",
        "--no-emit-workspace",
    ]
    done = subprocess.run(
        [*export, "--no-header", "--no-hashes", "--no-annotate", *options_of(role)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return [line.split("==")[0] for line in done.stdout.splitlines()]


@pytest.fixture
def instance(tmp_path: Path) -> Path:
    """Twelve GPUs, all different."""
    rng = random.Random(12)
    data: dict[str, Any] = {
        "layers": LAYERS,
        "layerBytes": 1.7e9,
        "layerKvBytes": 2e8,
        "devices": [
            {"id": f"g{i}", "memoryBytes": rng.uniform(1e10, 4e10), "performance": rng.uniform(2e11, 3e12)}
            for i in range(DEVICES)
        ],
        "latencySeconds": [[rng.uniform(1e-5, 1e-3) for _ in range(DEVICES)] for _ in range(DEVICES)],
        "a2": 0.001,
    }
    path = tmp_path / "instance.json"
    path.write_text(json.dumps(data))
    return path


def place(code: str, path: Iterable[Path], instance: Path, objective: str) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-S", "-c", code, "place", str(instance), "--objective", objective, "-o", "json"],
        env={"PATH": os.environ["PATH"], "PYTHONPATH": ":".join(map(str, path))},
        cwd=instance.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


@pytest.mark.parametrize("objective", ["latency", "bottleneck"])
@pytest.mark.parametrize("role", ["operator", "profiler"])
def test_an_images_packages_place_twelve_unlike_gpus_with_a_proof(
    role: str, objective: str, instance: Path, packages_alone: Callable[[Iterable[str]], Path]
) -> None:
    answer = place(PLACE, [ROOT / "operator", packages_alone(packages_of(role))], instance, objective)
    assert answer["optimal"]
    assert sum(answer["layers"]) == LAYERS


@pytest.mark.parametrize("objective", ["latency", "bottleneck"])
def test_the_launcher_and_numpy_place_twelve_unlike_gpus_with_a_proof(
    objective: str, instance: Path, packages_alone: Callable[[Iterable[str]], Path], tmp_path: Path
) -> None:
    build(tmp_path / "launcher.pyz")
    answer = place(LAUNCHER_PLACE, [tmp_path / "launcher.pyz", packages_alone(["numpy"])], instance, objective)
    assert answer["optimal"]
    assert sum(answer["layers"]) == LAYERS


def test_only_the_sidecars_image_is_without_numpy() -> None:
    assert {role: "numpy" in packages_of(role) for role in ("operator", "profiler", "sidecar")} == {
        "operator": True,
        "profiler": True,
        "sidecar": False,
    }
