"""The planner's figures have one home."""

from __future__ import annotations

import ast
from pathlib import Path

import uellm.planner

ROOT = Path(uellm.planner.__file__).parent
# Limits of an algorithm, how much is remembered, vLLM's own tables and units of a computation: see constants.py.
ELSEWHERE = {
    "calibration/calibrate.py",
    "calibration/fitting.py",
    "kernels.py",
    "memo.py",
    "nodes/capability.py",
    "vllm/media.py",
    "search/figures.py",
    "vllm/defaults.py",
    "vllm/flags.py",
    "vllm/model_flags.py",
    "vllm/version.py",
}


def figures(path: Path) -> list[str]:
    """Names of the module-level constants that are numbers."""
    names = []
    for node in ast.parse(path.read_text()).body:
        value = getattr(node, "value", None)
        if isinstance(node, ast.Assign | ast.AnnAssign) and value is not None:
            target = node.targets[0] if isinstance(node, ast.Assign) else node.target
            numbers = [each for each in ast.walk(value) if isinstance(each, ast.Constant)]
            if any(isinstance(each.value, int | float) and not isinstance(each.value, bool) for each in numbers):
                names.append(ast.unparse(target))
    return names


def test_only_constants_contains_figures() -> None:
    found = {}
    for path in ROOT.rglob("*.py"):
        name = path.relative_to(ROOT).as_posix()
        if name != "constants.py" and name not in ELSEWHERE and not name.startswith("placement/"):
            found[name] = [each for each in figures(path) if each.isupper()]
    assert {name: names for name, names in found.items() if names} == {"nodes/tensor_groups.py": ["_UNITS_PER_SECOND"]}
