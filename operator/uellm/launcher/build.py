"""`python -m uellm.launcher.build OUT.pyz`: the launcher and what it imports in one file, the same bytes every time."""

from __future__ import annotations

import sys
from pathlib import Path

from uellm.zipapp import build_command, write_zipapp

PACKAGES = ("hardware", "models", "planner", "launcher")
MODULES = (
    "__init__.py",
    "documents.py",
    "errors.py",
    "placement_policies.py",
    "placement_report.py",
    "pod_interface.py",
    "drain_token.py",
    "step_basis.py",
    "step_time.py",
    "text.py",
)


def build(output: Path) -> int:
    """Write the zipapp and return its size in bytes."""
    return write_zipapp(output, PACKAGES, MODULES, "uellm.launcher.__main__")


def main() -> int:
    """Build what the command line asks for."""
    return build_command("uellm.launcher.build", "Build the launcher's zipapp", build)


if __name__ == "__main__":
    sys.exit(main())
