"""No top-level class name is defined twice in the package."""

from __future__ import annotations

import ast
from collections import Counter
from pathlib import Path

PACKAGE = Path(__file__).parents[3] / "operator" / "uellm"
GENERATED = ("_pb2.py", "_pb2_grpc.py")


def classes(path: Path) -> list[str]:
    """Names of the top-level classes of a module."""
    return [node.name for node in ast.parse(path.read_text()).body if isinstance(node, ast.ClassDef)]


def test_no_class_name_stands_twice_in_the_package():
    modules = [path for path in PACKAGE.rglob("*.py") if not path.name.endswith(GENERATED)]
    count = Counter(name for path in modules for name in classes(path))
    assert count["LLMService"] == 1
    duplicates = {name for name, times in count.items() if times > 1}
    assert duplicates == set(), "give one of each pair a more exact name"
