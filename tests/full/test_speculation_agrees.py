"""The fields and methods of speculation that are known here are those of the engine's own SpeculativeConfig."""

from __future__ import annotations

import ast
import importlib.util
from pathlib import Path

from uellm.planner.vllm.speculation import FIELDS, METHODS, MTP_METHODS

OF_THE_ENGINE = {"target_model_config", "target_parallel_config", "draft_model_config", "draft_parallel_config"}
"""Fields that the engine fills in itself."""


def source() -> ast.Module:
    spec = importlib.util.find_spec("vllm")
    assert spec is not None
    assert spec.origin is not None
    return ast.parse((Path(spec.origin).parent / "config" / "speculative.py").read_text(encoding="utf-8"))


def literals(module: ast.Module) -> dict[str, set[str]]:
    """The texts of each `Literal[...]` that has a name, with those of the names in it."""
    found: dict[str, set[str]] = {}
    for node in module.body:
        if (
            isinstance(node, ast.Assign)
            and isinstance(node.value, ast.Subscript)
            and isinstance(node.targets[0], ast.Name)
        ):
            parts = node.value.slice.elts if isinstance(node.value.slice, ast.Tuple) else [node.value.slice]
            texts = {str(each.value) for each in parts if isinstance(each, ast.Constant)}
            named = [found[each.id] for each in parts if isinstance(each, ast.Name)]
            found[node.targets[0].id] = texts.union(*named)
    return found


def test_the_fields_that_a_user_may_set_are_the_engines():
    [config] = [each for each in source().body if isinstance(each, ast.ClassDef) and each.name == "SpeculativeConfig"]
    theirs = {
        each.target.id for each in config.body if isinstance(each, ast.AnnAssign) and isinstance(each.target, ast.Name)
    }
    assert theirs - OF_THE_ENGINE == FIELDS


def test_the_methods_are_the_engines():
    found = literals(source())
    assert found["MTPModelTypes"] == MTP_METHODS
    assert found["SpeculativeMethod"] - found["MTPModelTypes"] == set(METHODS) - {"mtp"}
